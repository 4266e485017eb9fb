// A store's metrics: perigee_store_*.
#ifndef PERIGEE_CLUSTER_METRICS_STORE_METRICS_H_
#define PERIGEE_CLUSTER_METRICS_STORE_METRICS_H_

#include <optional>

#include "cluster/metrics/metric_families.h"
#include "kvstore/rebalance_stats.h"
#include "kvstore/store.h"

namespace perigee::cluster {

// rebalance: nothing for a store that knows no others.
void CollectStore(const kvstore::StoreStats& stats, const std::optional<kvstore::RebalanceStats>& rebalance,
                  MetricFamilies& out);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_METRICS_STORE_METRICS_H_
