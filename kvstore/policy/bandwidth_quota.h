// How much payload tenants may move: a token bucket each, which holds a second's worth and may go below zero by one
// call. Whoever is below zero waits until it is not.
//
// Not thread-safe. Time is the caller's.
#ifndef PERIGEE_KVSTORE_POLICY_BANDWIDTH_QUOTA_H_
#define PERIGEE_KVSTORE_POLICY_BANDWIDTH_QUOTA_H_

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace perigee::kvstore {

class BandwidthQuota {
 public:
  // bytes_per_s: above 0.
  void Set(absl::string_view tenant, uint64_t bytes_per_s, absl::Time now) {
    buckets_[tenant] = {static_cast<double>(bytes_per_s), static_cast<double>(bytes_per_s), now};
  }
  // How long the tenant has to wait before its next call; zero: it may go on.
  absl::Duration Wait(absl::string_view tenant, absl::Time now) {
    if (buckets_.empty()) return absl::ZeroDuration();
    const auto it = buckets_.find(tenant);
    if (it == buckets_.end()) return absl::ZeroDuration();
    Bucket& b = it->second;
    const double seconds = std::max(absl::ToDoubleSeconds(now - b.filled), 0.0);
    b.bytes = std::min(b.bytes + seconds * b.bytes_per_s, b.bytes_per_s);
    b.filled = now;
    return b.bytes >= 0 ? absl::ZeroDuration() : absl::Seconds(-b.bytes / b.bytes_per_s);
  }
  void Use(absl::string_view tenant, uint64_t bytes) {
    if (buckets_.empty()) return;
    const auto it = buckets_.find(tenant);
    if (it != buckets_.end()) it->second.bytes -= static_cast<double>(bytes);
  }

 private:
  struct Bucket {
    double bytes_per_s = 0, bytes = 0;
    absl::Time filled;
  };
  absl::flat_hash_map<std::string, Bucket> buckets_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_POLICY_BANDWIDTH_QUOTA_H_
