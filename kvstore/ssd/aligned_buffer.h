// Page-aligned memory of its own, as direct I/O wants it; large ones in huge pages where the system allows, which a
// disk takes in fewer pieces. Not zeroed.
#ifndef PERIGEE_KVSTORE_SSD_ALIGNED_BUFFER_H_
#define PERIGEE_KVSTORE_SSD_ALIGNED_BUFFER_H_

#include <sys/mman.h>

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "kvstore/plane_id.h"

namespace perigee::kvstore {

class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes) : bytes_(RoundUpToPage(bytes)) {
    if (bytes_ == 0) return;
    const bool large = bytes_ >= kHugePageBytes;
    const size_t alignment = large ? kHugePageBytes : kPageBytes;
    memory_.reset(
        static_cast<std::byte*>(std::aligned_alloc(alignment, (bytes_ + alignment - 1) / alignment * alignment)));
    if (memory_ == nullptr) throw std::bad_alloc();
    if (large) ::madvise(memory_.get(), bytes_, MADV_HUGEPAGE);  // A wish.
  }
  std::span<std::byte> span() const { return {memory_.get(), bytes_}; }

 private:
  static constexpr size_t kHugePageBytes = size_t{2} << 20;
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<std::byte[], Free> memory_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_ALIGNED_BUFFER_H_
