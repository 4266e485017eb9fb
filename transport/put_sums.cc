#include "transport/put_sums.h"

#include <algorithm>

#include "base/crc32c.h"

namespace perigee::transport::internal {

PutSums::Cover PutSums::CoverOf(std::span<const std::byte> range) const {
  const size_t begin = static_cast<size_t>(range.data() - base_);
  const size_t end = begin + range.size();
  Cover cover{begin / kGranuleBytes, Count(end), Count(begin), end / kGranuleBytes};
  if (range.empty()) cover.end = cover.first;
  cover.end_whole = std::max(cover.end_whole, cover.first_whole);
  return cover;
}

uint32_t PutSums::Begin(std::span<const std::byte> range) {
  const Cover cover = CoverOf(range);
  std::lock_guard<std::mutex> lock(mutex_);
  const uint32_t put = ++puts_;
  for (size_t i = cover.first; i < cover.end; ++i) {
    granules_[i].put = put;
    granules_[i].known = false;
  }
  return put;
}

void PutSums::End(std::span<const std::byte> range, uint32_t put) {
  const Cover cover = CoverOf(range);
  std::vector<uint32_t> sums;
  sums.reserve(cover.end_whole - cover.first_whole);
  for (size_t i = cover.first_whole; i < cover.end_whole; ++i) sums.push_back(Crc32c({At(i), kGranuleBytes}));
  std::lock_guard<std::mutex> lock(mutex_);
  for (size_t i = cover.first; i < cover.end; ++i) {
    Granule& granule = granules_[i];
    const bool whole = i >= cover.first_whole && i < cover.end_whole;
    granule.known = whole && granule.put == put;  // a later put may have been summed in the middle of this one
    if (granule.known) granule.crc32c = sums[i - cover.first_whole];
  }
}

void PutSums::Forget(std::span<const std::byte> range) { Begin(range); }

uint32_t PutSums::Sum(std::span<const std::byte> range) const {
  const Cover cover = CoverOf(range);
  std::vector<Granule> whole;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    whole.assign(granules_.begin() + static_cast<ptrdiff_t>(cover.first_whole),
                 granules_.begin() + static_cast<ptrdiff_t>(cover.end_whole));
  }
  uint32_t crc = 0;
  const std::byte* from = range.data();  // up to here it is summed
  const auto sum_to = [&](const std::byte* to) {
    if (to > from) crc = Crc32c({from, to}, crc);
    from = to;
  };
  for (size_t i = 0; i < whole.size(); ++i) {
    if (!whole[i].known) continue;
    sum_to(At(cover.first_whole + i));
    crc = Crc32cCombine(crc, whole[i].crc32c, kGranuleBytes);
    from += kGranuleBytes;
  }
  sum_to(range.data() + range.size());
  return crc;
}

size_t PutSums::UnknownBytes(std::span<const std::byte> range) const {
  const Cover cover = CoverOf(range);
  std::lock_guard<std::mutex> lock(mutex_);
  size_t bytes = range.size();
  for (size_t i = cover.first_whole; i < cover.end_whole; ++i) {
    if (granules_[i].known) bytes -= kGranuleBytes;
  }
  return bytes;
}

}  // namespace perigee::transport::internal
