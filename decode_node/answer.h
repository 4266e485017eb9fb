// One answer being generated: what becomes of the logits of a pass, until the answer ends.
#ifndef PERIGEE_DECODE_NODE_ANSWER_H_
#define PERIGEE_DECODE_NODE_ANSWER_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "decode_node/stop_text.h"
#include "model/plane_cache.h"
#include "model/sampler.h"
#include "model/served_model.h"
#include "perigee/v1/decode.pb.h"

namespace perigee::decode_node {

// Not thread-safe.
class Answer {
 public:
  // `model` and `request` outlive this object. ids: the prompt, and what of the answer is there already
  // (request.answered_tokens). INVALID_ARGUMENT for sampling parameters out of range.
  static absl::StatusOr<Answer> Create(const model::ServedModel& model, const v1::GenerateRequest& request,
                                       uint32_t sample, model::PlaneCache cache);

  // Nothing is to be sampled any more: Take said false, or what was answered already is the whole answer.
  bool ended() const { return ended_; }

  // Samples the next token and says what there is to tell of it. True when it is to be run: ids().back(), over cache().
  absl::StatusOr<bool> Take(std::span<const float> logits, v1::GenerateEvent::Token* token);
  // When it has ended: why, and the rest of the text.
  void Finish(v1::GenerateEvent::Finished* finished);

  model::PlaneCache& cache() { return cache_; }
  // Prompt and answer; the cache lacks the last one.
  const std::vector<int32_t>& ids() const { return ids_; }

 private:
  Answer(const model::ServedModel& model, const v1::GenerateRequest& request, uint32_t sample, model::PlaneCache cache,
         model::Sampler sampler);
  bool IsEnd(int32_t token) const;
  // What a token, the last of `answered_`, adds to the text. Nothing may follow once it has ended.
  absl::StatusOr<std::string> Add(int32_t token);

  const v1::GenerateRequest* request_;
  uint32_t sample_;
  std::vector<int32_t> eos_;
  model::PlaneCache cache_;
  std::vector<int32_t> ids_;
  uint32_t answered_ = 0;
  bool ended_ = false;
  model::Sampler sampler_;
  model::StreamDecoder text_;
  StopText stop_;
  std::string reason_ = "length";
};

}  // namespace perigee::decode_node

#endif  // PERIGEE_DECODE_NODE_ANSWER_H_
