// Inside of transport/: CRC32Cs of what peers have put into one region, taken as the bytes arrive, while they are in
// the cache and the peer is busy with what comes next. So whoever checks a long put when it is complete has little left
// to sum.
//
// Kept by granules of 16 KiB of the region. A granule's sum is known when one put covered it and no other put touched
// it while that one was under way, or since. Writes past the transport (the owner's own, RDMA) are not seen: the owner
// forgets a range before it lets anybody write there.
//
// Any thread.
#ifndef PERIGEE_TRANSPORT_PUT_SUMS_H_
#define PERIGEE_TRANSPORT_PUT_SUMS_H_

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <vector>

namespace perigee::transport::internal {

class PutSums {
 public:
  static constexpr size_t kGranuleBytes = size_t{16} << 10;

  explicit PutSums(std::span<const std::byte> region) : base_(region.data()), granules_(Count(region.size())) {}

  // All ranges lie in the region. A put of `range` begins to change it; End sums what is there now.
  uint32_t Begin(std::span<const std::byte> range);
  void End(std::span<const std::byte> range, uint32_t put);
  // What is there is unknown: the put has failed, or other memory begins to be used.
  void Forget(std::span<const std::byte> range);

  // CRC32C of the range: of what is known, and the rest from memory.
  uint32_t Sum(std::span<const std::byte> range) const;
  // How much Sum would read.
  size_t UnknownBytes(std::span<const std::byte> range) const;

 private:
  struct Granule {
    uint32_t crc32c = 0;
    uint32_t put = 0;  // the last that began
    bool known = false;
  };
  static size_t Count(size_t bytes) { return (bytes + kGranuleBytes - 1) / kGranuleBytes; }
  // Of granules: [first, end) are touched, [first_whole, end_whole) lie inside.
  struct Cover {
    size_t first, end, first_whole, end_whole;
  };
  Cover CoverOf(std::span<const std::byte> range) const;
  const std::byte* At(size_t granule) const { return base_ + granule * kGranuleBytes; }

  const std::byte* const base_;
  mutable std::mutex mutex_;  // guards what follows; never held while summing
  std::vector<Granule> granules_;
  uint32_t puts_ = 0;
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_PUT_SUMS_H_
