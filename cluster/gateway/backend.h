// What the HTTP front needs of the cluster behind it: a prompt's tokens in, an answer's pieces out.
#ifndef PERIGEE_CLUSTER_GATEWAY_BACKEND_H_
#define PERIGEE_CLUSTER_GATEWAY_BACKEND_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace perigee::cluster {

// A stretch of a prompt that is a context: computed alone, wherever it appears.
struct ContextSpan {
  int64_t begin = 0;  // Into token_ids.
  int64_t tokens = 0;
  // Where it is a slice of a longer text that was computed alone: that text's ids, and where in it the slice begins.
  std::shared_ptr<const std::vector<int32_t>> source = nullptr;
  int64_t source_begin = 0;
};

struct BackendRequest {
  std::string request_id;
  std::string tenant;
  std::string salt;
  std::vector<int32_t> token_ids;          // The whole prompt, begin-of-sequence token and all.
  std::vector<int64_t> branch_points;      // Token positions at which other prompts are expected to go on differently.
  std::vector<ContextSpan> contexts = {};  // Ascending, without overlap.
  // Stretches that may come again elsewhere (text_chunks.h), ascending, apart from contexts and from each other; where
  // the prompt is computed they are text.
  std::vector<ContextSpan> chunks = {};
  std::string repair = {};  // model/repair.h; "": the model's default.
  uint32_t samples = 1;     // Answers to this prompt.
  uint32_t max_tokens = 0;  // Of each answer.
  double temperature = 0;   // 0: greedy.
  double top_p = 1;
  uint32_t top_k = 0;  // 0: off.
  uint64_t seed = 0;   // Answer i is sampled with seed + i.
  bool ignore_eos = false;
  std::vector<std::string> stop;
  absl::Time deadline = absl::InfiniteFuture();
};

// A piece of one answer.
struct BackendEvent {
  uint32_t sample = 0;
  std::string text;           // Whole characters; may be empty.
  uint32_t tokens = 0;        // Generated tokens that this event stands for.
  std::string finish_reason;  // "": goes on; "stop" (end of sequence or a stop text) or "length".
};

// What is known when a request has ended.
struct BackendUsage {
  uint32_t prompt_tokens = 0;
  uint32_t cached_tokens = 0;    // Prompt tokens that were not computed.
  uint32_t context_tokens = 0;   // Of those: as their contexts were computed alone.
  uint32_t repaired_tokens = 0;  // Contexts' tokens that were computed again for this prompt; not among cached_tokens.
  uint32_t completion_tokens = 0;
};

// Any thread may call.
class Backend {
 public:
  virtual ~Backend() = default;

  // Calls emit for every event, from this thread; false from it (the caller is gone) ends the request with CANCELLED.
  // `cancelled` is asked now and then, also while nothing is emitted. RESOURCE_EXHAUSTED: the cluster is overloaded,
  // try again later; UNAVAILABLE: nothing was said yet, try again; DEADLINE_EXCEEDED; INVALID_ARGUMENT: the request.
  virtual absl::StatusOr<BackendUsage> Complete(const BackendRequest& request,
                                                absl::FunctionRef<bool(const BackendEvent&)> emit,
                                                absl::FunctionRef<bool()> cancelled) = 0;

  // Whether requests can be served now; the reason why not.
  virtual absl::Status Ready() = 0;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_BACKEND_H_
