// The prefill node: finds the longest stored prefix, computes the rest layer by layer, ships each layer's tiles while the next one is
// computed, and commits.
#ifndef PERIGEE_PREFILL_NODE_PREFILL_NODE_H_
#define PERIGEE_PREFILL_NODE_PREFILL_NODE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/client.h"
#include "kvstore/registered_pool.h"
#include "model/plane_cache.h"
#include "model/served_model.h"
#include "perigee/v1/prefill.pb.h"

namespace perigee::prefill_node {

struct PrefillOptions {
  int chunk_tokens = 512;  // Computed and committed together; rounded up to whole blocks.
};

// Any thread may call. All arguments of the constructor outlive the node.
class PrefillNode {
 public:
  PrefillNode(const model::ServedModel* model, kvstore::StoreClient* store, kvstore::RegisteredPool* pool, PrefillOptions options);

  // INVALID_ARGUMENT for prompts that are empty, too long or not tokens of this model; UNAVAILABLE when the store is not there;
  // RESOURCE_EXHAUSTED when the store or this node has no room. What was committed before an error stays and is found by a retry.
  // Ends with DEADLINE_EXCEEDED between two layers once `deadline` has passed.
  absl::Status Prefill(const v1::PrefillRequest& request, absl::Time deadline, v1::PrefillResponse* response);

 private:
  struct Prompt;
  absl::StatusOr<Prompt> Read(const v1::PrefillRequest& request) const;
  absl::Status FetchPrefix(const Prompt& prompt, absl::Time deadline, model::PlaneCache& cache, v1::PrefillResponse* response);
  absl::Status ComputeChunk(const Prompt& prompt, int64_t begin, int64_t end, absl::Time deadline, model::PlaneCache& cache,
                            v1::PrefillResponse* response);

  const model::ServedModel* const model_;
  kvstore::StoreClient* const store_;
  kvstore::RegisteredPool* const pool_;
  const PrefillOptions options_;
};

}  // namespace perigee::prefill_node

#endif  // PERIGEE_PREFILL_NODE_PREFILL_NODE_H_
