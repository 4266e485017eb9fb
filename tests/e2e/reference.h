// What one process answers to a request of the HTTP API, greedily: the double-precision attention over a dense cache,
// with the tokenisation of the gateway.
#ifndef PERIGEE_TESTS_E2E_REFERENCE_H_
#define PERIGEE_TESTS_E2E_REFERENCE_H_

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/status.h"
#include "cluster/gateway/openai.h"
#include "model/chat_template.h"
#include "model/dense_cache.h"
#include "model/served_model.h"

namespace perigee {

class Reference {
 public:
  static absl::StatusOr<std::unique_ptr<Reference>> Load(const std::string& model_folder) {
    std::unique_ptr<Reference> out(new Reference);
    PERIGEE_ASSIGN_OR_RETURN(out->model_, model::ServedModel::Load({.folder = model_folder, .plan_file = ""}));
    PERIGEE_ASSIGN_OR_RETURN(out->chat_template_, model::ChatTemplate::Load(model_folder));
    return out;
  }

  struct Answer {
    std::string text;
    // The least distance between the likeliest token's logit and the next one's. Where it is within what another order
    // of sums changes, either token is right, and the text is no measure.
    float margin = 1e9f;
  };

  // Thread-safe. The body asks for max_tokens, at temperature 0, with ignore_eos.
  absl::StatusOr<Answer> Complete(cluster::Endpoint endpoint, const nlohmann::json& body) const {
    const cluster::FrontModel front{.name = body["model"],
                                    .tokenizer = &model_->tokenizer(),
                                    .chat_template = chat_template_.get(),
                                    .context_tokens = model_->transformer().config().max_positions,
                                    .created = absl::UnixEpoch()};
    PERIGEE_ASSIGN_OR_RETURN(const cluster::CompletionCall call, cluster::ParseCompletionCall(body.dump(), endpoint));
    PERIGEE_ASSIGN_OR_RETURN(const auto requests, cluster::MakeBackendRequests(call, front, absl::Now(), 0));
    const model::Transformer& transformer = model_->transformer();
    model::DenseCache cache(model_->plan(), model_->layout().block_tokens(), transformer.config().q_heads);
    Answer answer;
    std::vector<float> logits;
    std::vector<int32_t> next = requests[0].token_ids;
    model::StreamDecoder decoder(model_->tokenizer());
    for (uint32_t i = 0; i < requests[0].max_tokens; ++i) {
      PERIGEE_RETURN_IF_ERROR(transformer.Forward(next, cache, model::Logits::kLast, &logits));
      const auto best = std::max_element(logits.begin(), logits.end());
      const auto token = static_cast<int32_t>(best - logits.begin());
      const float top = *best;
      *best = -1e9f;
      answer.margin = std::min(answer.margin, top - *std::max_element(logits.begin(), logits.end()));
      PERIGEE_ASSIGN_OR_RETURN(const std::string piece, decoder.Push(token));
      answer.text += piece;
      next = {token};
    }
    answer.text += decoder.Finish();
    return answer;
  }

  const model::ServedModel& model() const { return *model_; }

 private:
  Reference() = default;
  std::unique_ptr<model::ServedModel> model_;
  std::unique_ptr<model::ChatTemplate> chat_template_;
};

}  // namespace perigee

#endif  // PERIGEE_TESTS_E2E_REFERENCE_H_
