// Brings a prompt in which contexts stand into a cache (model/composition.h), and runs what of it is computed.
//
// Each context's planes are fetched layer by layer, all contexts at once, under the first pass; what is computed starts
// when the first layer is here. A context that is not stored is computed here, alone, where the request allows it, and
// is then left in this node's memory for others; else the request ends, so that it can be prefilled first.
#ifndef PERIGEE_NODE_COMPOSED_LOAD_H_
#define PERIGEE_NODE_COMPOSED_LOAD_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "model/composition.h"
#include "model/plane_cache.h"
#include "node/node.h"
#include "node/prompt_load.h"

namespace perigee::node {

struct ComposedRequest {
  const pod::Identity* identity = nullptr;
  std::span<const int32_t> ids;  // The whole prompt.
  std::span<const model::ContextRange> contexts;
  model::Repair repair;
  int64_t max_compute_tokens = INT64_MAX;  // Of contexts that are not stored; more are NOT_FOUND.
  int chunk_tokens = 512;                  // A multiple of the block size.
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> cancelled = nullptr;
  // A context that was computed here, whole, in a cache of its own: for those that want it stored. May be null.
  std::function<void(std::span<const int32_t> ids, const model::PlaneCache& cache)> computed = nullptr;
};

// How it went, besides the LoadReport's figures: prefix_tokens are the contexts' tokens that were not computed here.
struct ComposedReport {
  LoadReport load;
  int64_t context_tokens = 0;   // In contexts, whatever became of them.
  int64_t repaired_tokens = 0;  // Of these, computed again in this prompt.
  uint32_t far_only_blocks =
      0;  // Read by their leads' keys where they are near, because their proximal planes are gone.
};

// The ids that stand in front of every context's own when it is computed.
std::vector<int32_t> ContextOpening(const model::Tokenizer& tokenizer);

// `logits`: of the last token. INVALID_ARGUMENT: contexts that cannot be; NOT_FOUND, with the context's number and why:
// one is not stored, and too long to be computed here; other errors as LoadPrompt's.
absl::Status LoadComposed(const Node& node, const ComposedRequest& request, std::unique_ptr<model::PlaneCache>* cache,
                          std::vector<float>* logits, ComposedReport* report);

}  // namespace perigee::node

#endif  // PERIGEE_NODE_COMPOSED_LOAD_H_
