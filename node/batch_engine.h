// One thread that runs a node's forward passes: whatever is waiting when a pass ends goes into the next one together,
// so that each weight is read once for all of it (continuous batching: sequences come and go between passes).
//
// Single tokens (answers being generated) all go into the next pass; of longer stretches (prompts) as many as fit into
// max_tokens, oldest first, at least one: a long prompt holds answers up by one of its stretches at a time, and short
// prompts share a pass.
#ifndef PERIGEE_NODE_BATCH_ENGINE_H_
#define PERIGEE_NODE_BATCH_ENGINE_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "model/transformer.h"
#include "node/compute_rate.h"

namespace perigee::node {

struct BatchEngineStats {
  uint64_t passes = 0;
  uint64_t tokens = 0;          // Of all passes.
  uint64_t answers = 0;         // Single tokens among them.
  uint64_t largest_pass = 0;    // Sequences.
  size_t waiting = 0;           // Now.
  absl::Duration answer_token;  // Between two tokens of an answer, lately.
  absl::Duration busy;
};

// Any thread may call.
class BatchEngine {
 public:
  // `transformer` outlives this object. max_tokens: of one pass.
  BatchEngine(const model::Transformer* transformer, int max_tokens);
  // Ends the pass under way; what still waits ends with CANCELLED.
  ~BatchEngine();

  // Runs the item in a pass to come, then calls `done` with its status, on the engine's thread: it must not wait for
  // anything, and may submit, into the very next pass. What the item points to stays alive until then. From within
  // `done` during destruction, submitting calls the new `done` with CANCELLED at once.
  using Done = std::function<void(const absl::Status&)>;
  void Submit(model::BatchItem item, Done done);

  // Submits, and waits.
  absl::Status Run(model::BatchItem item);

  // Whether a pass that began now would have the machine for itself.
  bool idle() const;
  BatchEngineStats stats() const;
  // Of stretches of a prompt, on this machine, beside what else it runs.
  ComputeRate& prefill_rate() { return rate_; }
  const ComputeRate& prefill_rate() const { return rate_; }

 private:
  struct Work {
    model::BatchItem item;
    Done done;
  };
  void Loop();
  std::vector<Work> Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void RunPass(std::vector<Work>& pass);

  const model::Transformer* const transformer_;
  const size_t max_tokens_;
  ComputeRate rate_;
  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  bool running_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<Work> singles_ ABSL_GUARDED_BY(mu_), stretches_ ABSL_GUARDED_BY(mu_);
  BatchEngineStats stats_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_BATCH_ENGINE_H_
