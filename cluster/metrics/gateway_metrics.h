// A gateway's metrics: perigee_gateway_*, of completions.
#ifndef PERIGEE_CLUSTER_METRICS_GATEWAY_METRICS_H_
#define PERIGEE_CLUSTER_METRICS_GATEWAY_METRICS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/histogram.h"
#include "cluster/contexts/chunk_index.h"
#include "cluster/gateway/http_server.h"
#include "cluster/metrics/metric_families.h"
#include "cluster/scheduler/cluster_backend.h"

namespace perigee::cluster {

// Any thread may call.
class GatewayMetrics {
 public:
  // Tenants with samples of their own; those that come later are counted together, as "other".
  static constexpr size_t kMaxTenants = 100;

  // A request that has ended. Only completions count.
  void Observe(const HttpRequestRecord& record);
  void Collect(const ClusterBackendStats& backend, const ChunkIndexStats& chunks, MetricFamilies& out) const;

 private:
  struct Tenant {
    std::map<int, uint64_t> requests;  // By HTTP status.
    uint64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0, context_tokens = 0, repaired_tokens = 0;
  };
  DurationHistogram first_token_, duration_;
  mutable absl::Mutex mu_;
  std::map<std::string, Tenant> tenants_ ABSL_GUARDED_BY(mu_);
  uint64_t broken_ ABSL_GUARDED_BY(mu_) = 0;
};

// Whether a request is one for a completion, rather than for health, models and the like.
bool IsCompletion(const HttpRequestRecord& record);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_METRICS_GATEWAY_METRICS_H_
