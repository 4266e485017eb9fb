// Metrics of prefill and decode nodes: perigee_node_*, with the label role.
#ifndef PERIGEE_CLUSTER_METRICS_NODE_METRICS_H_
#define PERIGEE_CLUSTER_METRICS_NODE_METRICS_H_

#include <cstdint>
#include <optional>

#include "cluster/membership/membership.h"
#include "cluster/metrics/metric_families.h"
#include "node/node.h"
#include "node/request_metrics.h"
#include "perigee/v1/node.pb.h"

namespace perigee::cluster {

// Of the answers that a decode node puts into the store.
struct StoredAnswers {
  uint64_t stored = 0, failed = 0, waiting = 0, bytes = 0;
};

// load: what the node's service says of it. answers: nothing for prefill nodes.
void CollectNode(Role role, const node::Node& node, const v1::NodeLoad& load, const node::RequestMetrics& requests,
                 const std::optional<StoredAnswers>& answers, MetricFamilies& out);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_METRICS_NODE_METRICS_H_
