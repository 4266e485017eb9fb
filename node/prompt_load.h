// Brings a prompt's stored prefix into a cache, the faster way, and runs what follows it.
//
// Fetch or recompute. The store says how long the prefix would take to come, this node knows how long it would take to
// compute. Where fetching takes next to nothing of that (the usual case), the planes are fetched layer by layer under
// the first pass. Otherwise both ends work at once: this node computes from the front, the store's planes come from the
// back, and where they meet the prefix is complete. (The other way round would need to know beforehand where they meet,
// because a token can be computed only when everything before it is here.) An estimate that proves wrong is noticed
// when the fetch has taken as long as was hoped for: then both ends begin. So the prefix never takes much longer than
// computing all of it: at most kHope of that time, and what was wasted on the way. A store that goes while planes
// arrive is as one that is too slow, where computing all is allowed: a replica may have them.
#ifndef PERIGEE_NODE_PROMPT_LOAD_H_
#define PERIGEE_NODE_PROMPT_LOAD_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "model/plane_cache.h"
#include "node/back_fetch.h"
#include "node/node.h"
#include "node/prompt_fetch.h"
#include "node/stored_prompt.h"

namespace perigee::node {

enum class LoadMode { kFetch, kBothEnds };

// Of the time to compute a prefix: what fetching it may take before this node begins to compute.
inline constexpr double kHope = 0.05;

// compute: nothing where this node never computed anything.
LoadMode ChooseLoadMode(absl::Duration fetch, std::optional<absl::Duration> compute);

struct LoadRequest {
  const pod::Identity* identity = nullptr;
  std::span<const int32_t> ids;            // At least `tokens`.
  std::span<const pod::BlockKey> keys;     // Of the blocks of `tokens` tokens.
  int64_t tokens = 0;                      // All that may be stored: the prefix is some of them.
  int64_t max_compute_tokens = INT64_MAX;  // Between the prefix and `tokens`; more are NOT_FOUND.
  int chunk_tokens = 512;                  // Computed in one go: a multiple of the block size.
  absl::Time deadline = absl::InfiniteFuture();
  std::function<bool()> cancelled = nullptr;  // Asked now and then.

  // Whether anybody still waits for it: DEADLINE_EXCEEDED or CANCELLED where not.
  absl::Status StillWanted() const;
};

// How it went.
struct LoadReport {
  int64_t prefix_tokens = 0;      // What did not have to be computed behind it,
  int64_t recomputed_tokens = 0;  // and how many of these were computed all the same, because that was faster.
  std::string ended_because;      // Why the prefix is not longer; empty where it could not be.
  uint64_t bytes = 0;             // Fetched.
  uint32_t planes = 0, planes_from_ssd = 0;
  absl::Duration lookup_time, acquire_time, fetch_time, exposed_time;
  LoadMode mode = LoadMode::kFetch;
};

// A prefix in a cache, possibly still arriving. One thread.
class PromptLoad {
 public:
  // What still arrives is left to node/abandoned.h.
  ~PromptLoad();

  // Runs an item over the cache that was loaded, together with other sequences; alone, and while the prefix still
  // arrives, where nobody else needs the machine.
  absl::Status Run(model::BatchItem item);

 private:
  friend absl::Status LoadPrompt(const Node&, const LoadRequest&, StoredPrompt,
                                 const std::function<absl::Status(model::PlaneCache&, PromptLoad&)>&, LoadReport*);
  explicit PromptLoad(const Node& node) : node_(node) {}
  absl::Status FromBothEnds(const LoadRequest& request, size_t blocks, int64_t tokens, model::PlaneCache& cache,
                            LoadReport* report);
  const Node& node_;
  std::unique_ptr<PromptFetch> fetch_;  // Null where nothing is arriving.
};

// Loads the longest usable prefix of what `stored` says and calls `rest` with the cache: it computes from
// cache.tokens() on, by PromptLoad::Run. When planes of the prefix prove missing or wrong, or late, all is done again
// without them, with a new cache: so `rest` may be called more than once, but not again after a first item of it has
// run. NOT_FOUND: more than max_compute_tokens would have to be computed; the message names the block and why it is not
// there.
absl::Status LoadPrompt(const Node& node, const LoadRequest& request, StoredPrompt stored,
                        const std::function<absl::Status(model::PlaneCache& cache, PromptLoad& load)>& rest,
                        LoadReport* report);

}  // namespace perigee::node

#endif  // PERIGEE_NODE_PROMPT_LOAD_H_
