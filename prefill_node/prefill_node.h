// The prefill node: finds the longest stored prefix, computes the rest layer by layer, ships each layer's tiles while
// the next one is computed, and commits each chunk while the next one is computed. Chunks of several prompts share a
// pass (node/batch_engine.h); what two prompts begin with alike is computed once (computing.h).
#ifndef PERIGEE_PREFILL_NODE_PREFILL_NODE_H_
#define PERIGEE_PREFILL_NODE_PREFILL_NODE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "node/chunk_writer.h"
#include "node/node.h"
#include "node/prompt_load.h"
#include "node/request_metrics.h"
#include "perigee/v1/prefill.pb.h"
#include "prefill_node/computing.h"

namespace perigee::prefill_node {

struct PrefillOptions {
  int chunk_tokens = 512;  // Computed and committed together; rounded up to whole blocks.
  // Other prompts may go on from any block border in so many last tokens of a prompt: with another question about the
  // same text. From earlier ones they can once one has tried to.
  int branch_tokens = 256;
  int chunks_under_way = 2;  // Reserved and not yet committed: one is computed while the one before it is committed.
  node::WriteOptions write = {};
};

// Any thread may call, several at once.
class PrefillNode {
 public:
  // `node` outlives this object.
  PrefillNode(const node::Node* node, const PrefillOptions& options);

  // INVALID_ARGUMENT for prompts that are empty, too long or not tokens of this model; UNAVAILABLE when the store is
  // not there; RESOURCE_EXHAUSTED when the store or this node has no room. What was committed before an error stays and
  // is found by a retry. DEADLINE_EXCEEDED once `deadline` has passed, CANCELLED once `cancelled` (asked now and then)
  // says so: at the latest between two layers.
  absl::Status Prefill(const v1::PrefillRequest& request, absl::Time deadline, v1::PrefillResponse* response,
                       const std::function<bool()>& cancelled = nullptr) const;

  const node::RequestMetrics& metrics() const { return metrics_; }
  // Prompts under way.
  int running() const { return running_; }
  int64_t tokens_ahead() const { return tokens_ahead_; }  // Theirs.

 private:
  struct Prompt {
    pod::Identity identity;
    std::vector<int32_t> ids;
    int replicas = 0;                    // 0: the node's own number.
    int64_t cached = 0;                  // Tokens whose planes are to be stored: all but the last, or all.
    std::vector<pod::BlockKey> keys;     // Of the blocks of the cached tokens.
    std::vector<int64_t> branch_points;  // Segment borders, and the end.
    bool whole = false;                  // A context's.
    bool background = false;
  };
  absl::StatusOr<Prompt> Read(const v1::PrefillRequest& request) const;
  absl::Status Store(const v1::PrefillRequest& request, absl::Time deadline, v1::PrefillResponse* response,
                     const std::function<bool()>& cancelled) const;
  // Loads what is stored, computes and stores the rest.
  absl::Status Continue(const Prompt& prompt, node::StoredPrompt stored, bool all_stored,
                        const node::LoadRequest& request, v1::PrefillResponse* response) const;
  // Until no prompt is under way that somebody waits for.
  absl::Status LetOthersGoFirst(const node::LoadRequest& request) const;
  // From the cache's end to the prompt's.
  absl::Status Compute(const Prompt& prompt, const node::LoadRequest& request, model::PlaneCache& cache,
                       node::PromptLoad& load, v1::PrefillResponse* response) const;

  const node::Node* const node_;
  const int64_t chunk_tokens_;
  const PrefillOptions options_;
  mutable node::RequestMetrics metrics_;
  mutable Computing computing_;
  mutable std::atomic<int> running_{0};
  mutable absl::Mutex mu_;
  mutable int awaited_ ABSL_GUARDED_BY(mu_) = 0;  // Prompts under way that are not in the background.
  mutable std::atomic<int64_t> tokens_ahead_{0};
};

}  // namespace perigee::prefill_node

#endif  // PERIGEE_PREFILL_NODE_PREFILL_NODE_H_
