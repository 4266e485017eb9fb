// A context's prefill, ahead of any request.
#ifndef PERIGEE_CLUSTER_SCHEDULER_PREFILL_CONTEXT_H_
#define PERIGEE_CLUSTER_SCHEDULER_PREFILL_CONTEXT_H_

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "cluster/scheduler/node_set.h"

namespace perigee::cluster {

// Has the prefill node that has least to do compute these tokens behind all that anybody waits for, and leave their
// planes in the stores. UNAVAILABLE: not now; CANCELLED once `cancelled` says so.
absl::Status PrefillContextTokens(const NodeSet& nodes, const std::string& tenant,
                                  const std::vector<int32_t>& token_ids, const std::function<bool()>& cancelled);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_PREFILL_CONTEXT_H_
