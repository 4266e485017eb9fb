// The answers to one request, generated in the node's common passes, and their events on the way to the caller.
#ifndef PERIGEE_DECODE_NODE_ANSWER_GROUP_H_
#define PERIGEE_DECODE_NODE_ANSWER_GROUP_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "decode_node/answer.h"
#include "node/batch_engine.h"
#include "node/request_metrics.h"
#include "perigee/v1/decode.pb.h"

namespace perigee::decode_node {

// Made and drained by the request's thread; the answers go on, meanwhile, on the engine's.
class AnswerGroup {
 public:
  // block_tokens: of the caches. Engine and metrics outlive this object.
  AnswerGroup(node::BatchEngine* engine, int block_tokens, std::vector<Answer> answers, node::RequestMetrics* metrics);
  // Ends the answers and waits for the pass that they are in.
  ~AnswerGroup();

  // Each answer's first token comes from these logits, those of the prompt's last token.
  void Start(std::span<const float> logits);

  // Calls emit for each event until all answers have ended: OK, or the first error of any. CANCELLED when emit says
  // false; DEADLINE_EXCEEDED at the deadline. The answers may be read then.
  absl::Status Drain(const std::function<bool(const v1::GenerateEvent&)>& emit, absl::Time deadline);

  std::vector<Answer>& answers() { return answers_; }

 private:
  void Step(size_t i);
  void Take(size_t i, std::span<const float> logits);
  void End(const absl::Status& status);

  node::BatchEngine* const engine_;
  const int block_tokens_;
  std::vector<Answer> answers_;             // One thread at a time has each: the one that runs its pass, or Drain's.
  std::vector<std::vector<float>> logits_;  // By answer.
  std::vector<absl::Time> last_token_;      // By answer; before the first one infinitely long ago.
  node::RequestMetrics* const metrics_;

  absl::Mutex mu_;
  std::deque<v1::GenerateEvent> events_ ABSL_GUARDED_BY(mu_);
  size_t running_ ABSL_GUARDED_BY(mu_) = 0;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::decode_node

#endif  // PERIGEE_DECODE_NODE_ANSWER_GROUP_H_
