// How fast a tier is, learned from what it does. Not thread-safe.
#ifndef PERIGEE_KVSTORE_RATE_H_
#define PERIGEE_KVSTORE_RATE_H_

#include <algorithm>
#include <cstdint>

#include "absl/time/time.h"
#include "kvstore/plane_id.h"

namespace perigee::kvstore {

// A moving average of bytes per second.
class Rate {
 public:
  explicit Rate(double initial) : bytes_per_s_(initial) {}

  void Add(uint64_t bytes, double seconds) {
    if (bytes < kPageBytes || seconds <= 0) return;  // Too small to say anything.
    // One outlier, or somebody who lies, moves it a little.
    const double rate = std::clamp(static_cast<double>(bytes) / seconds, bytes_per_s_ / 4, bytes_per_s_ * 4);
    bytes_per_s_ = std::clamp(bytes_per_s_ + 0.2 * (rate - bytes_per_s_), kLeast, kMost);
  }
  // For operations that overlap: all bytes of a time in which at least one was under way are counted together.
  void Begin(absl::Time now) {
    if (under_way_++ > 0) return;
    since_ = now;
    bytes_ = 0;
  }
  void End(uint64_t bytes, absl::Time now) {
    bytes_ += bytes;
    const double seconds = absl::ToDoubleSeconds(now - since_);
    if (--under_way_ > 0 && seconds < 0.1) return;
    Add(bytes_, seconds);
    since_ = now;
    bytes_ = 0;
  }

  double bytes_per_s() const { return bytes_per_s_; }
  uint64_t EstimateUs(uint64_t bytes) const {
    return static_cast<uint64_t>(1e6 * static_cast<double>(bytes) / bytes_per_s_);
  }

 private:
  static constexpr double kLeast = 1e5, kMost = 1e12;
  double bytes_per_s_;
  size_t under_way_ = 0;
  absl::Time since_;
  uint64_t bytes_ = 0;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_RATE_H_
