// How often which durations came: counts in fixed buckets, recorded without a lock, read as one snapshot.
#ifndef PERIGEE_BASE_HISTOGRAM_H_
#define PERIGEE_BASE_HISTOGRAM_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/time/time.h"

namespace perigee {

// Upper bounds in seconds, inclusive; what is longer than the last goes into a bucket of its own. From a tenth of a
// millisecond (a token of a small model) to minutes (a request that waited).
inline constexpr std::array<double, 20> kDurationBounds_s = {
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300};

struct DurationCounts {
  std::array<uint64_t, kDurationBounds_s.size() + 1> buckets{};  // Each without those below it.
  uint64_t count = 0;                                            // Their sum.
  double sum_s = 0;
};

// Any thread may call. A snapshot that is taken while somebody records may lack that duration's time or count.
class DurationHistogram {
 public:
  void Record(absl::Duration duration) {
    const double seconds = absl::ToDoubleSeconds(duration);
    size_t bucket = 0;
    while (bucket < kDurationBounds_s.size() && seconds > kDurationBounds_s[bucket]) ++bucket;
    buckets_[bucket].fetch_add(1, std::memory_order_relaxed);
    sum_ns_.fetch_add(absl::ToInt64Nanoseconds(duration), std::memory_order_relaxed);
  }

  DurationCounts Snapshot() const {
    DurationCounts counts;
    for (size_t i = 0; i < buckets_.size(); ++i) {
      counts.buckets[i] = buckets_[i].load(std::memory_order_relaxed);
      counts.count += counts.buckets[i];
    }
    counts.sum_s = 1e-9 * static_cast<double>(sum_ns_.load(std::memory_order_relaxed));
    return counts;
  }

 private:
  std::array<std::atomic<uint64_t>, kDurationBounds_s.size() + 1> buckets_{};
  std::atomic<int64_t> sum_ns_{0};
};

}  // namespace perigee

#endif  // PERIGEE_BASE_HISTOGRAM_H_
