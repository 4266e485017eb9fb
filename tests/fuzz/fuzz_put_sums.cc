// The sums of what peers have put, which "copied" messages feed too: whatever puts come, overlapping and in whatever
// order they end, the sum of a range that none is under way in is that of its bytes.
//
// An input is a list of steps of six bytes: what, u16 where, u16 how long, what is written.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "transport/put_sums.h"

namespace {

using perigee::transport::internal::PutSums;

constexpr size_t kRegionBytes = 5 * PutSums::kGranuleBytes + 1000;
constexpr size_t kMostUnderWay = 8;

void Expect(bool condition) {
  if (!condition) std::abort();
}

struct Put {
  std::span<std::byte> range;
  uint32_t number = 0;
};

bool Meet(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.data() < b.data() + b.size() && b.data() < a.data() + a.size();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::vector<std::byte> region(kRegionBytes);
  PutSums sums(region);
  std::vector<Put> under_way;
  perigee::ByteReader r({reinterpret_cast<const char*>(data), size});
  const auto end_put = [&](size_t i) {
    sums.End(under_way[i].range, under_way[i].number);
    under_way.erase(under_way.begin() + static_cast<ptrdiff_t>(i));
  };
  const auto check = [&](std::span<const std::byte> range) {
    Expect(sums.UnknownBytes(range) <= range.size());
    for (const Put& put : under_way) {
      if (Meet(put.range, range)) return;
    }
    Expect(sums.Sum(range) == perigee::Crc32c(range));
  };
  while (r.remaining() >= 6) {
    const uint8_t what = r.U8();
    // In half granules and a few bytes, so that ranges often begin and end where granules do.
    const uint16_t where = r.U16(), length = r.U16();
    const auto fill = static_cast<int>(r.U8());
    const auto place = [](uint16_t n) { return (n & 15U) * (PutSums::kGranuleBytes / 2) + (n >> 12); };
    const size_t at = std::min<size_t>(place(where), kRegionBytes);
    const std::span<std::byte> range = std::span(region).subspan(at, std::min(place(length), kRegionBytes - at));
    switch (what % 4) {
      case 0:
        if (under_way.size() == kMostUnderWay) end_put(0);
        under_way.push_back({range, sums.Begin(range)});
        break;
      case 1:  // Some of its bytes come, and perhaps it ends.
        if (under_way.empty()) break;
        std::memset(under_way[where % under_way.size()].range.data(), fill,
                    std::min<size_t>(length, under_way[where % under_way.size()].range.size()));
        if (what & 128U) end_put(where % under_way.size());
        break;
      case 2:  // The owner's own writing.
        sums.Forget(range);
        if (!range.empty()) std::memset(range.data(), fill, range.size());
        break;
      default:
        check(range);
    }
  }
  while (!under_way.empty()) end_put(under_way.size() / 2);
  check(region);
  return 0;
}
