#include "decode_node/answer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace perigee::decode_node {

absl::StatusOr<Answer> Answer::Create(const model::ServedModel& model, const v1::GenerateRequest& request,
                                      uint32_t sample, model::PlaneCache cache) {
  PERIGEE_ASSIGN_OR_RETURN(
      model::Sampler sampler,
      model::Sampler::Create({.temperature = request.temperature(),
                              .top_k = static_cast<int>(std::min<uint32_t>(request.top_k(), INT32_MAX)),
                              .top_p = request.top_p() == 0 ? 1.0 : request.top_p(),
                              .seed = request.seed() + sample},
                             request.answered_tokens()));
  Answer answer(model, request, sample, std::move(cache), std::move(sampler));
  // The text of what is answered already brings decoder and stop texts to where the other node left them.
  for (size_t i = answer.ids_.size() - request.answered_tokens(); i < answer.ids_.size(); ++i) {
    if (answer.ended_) {
      return absl::InvalidArgumentError(absl::StrCat("token ", i,
                                                     " of token_ids is said to be answered, but the answer ",
                                                     "has ended before it (", answer.reason_, ")"));
    }
    ++answer.answered_;
    PERIGEE_RETURN_IF_ERROR(answer.Add(answer.ids_[i]).status());
  }
  return answer;
}

Answer::Answer(const model::ServedModel& model, const v1::GenerateRequest& request, uint32_t sample,
               model::PlaneCache cache, model::Sampler sampler)
    : request_(&request),
      sample_(sample),
      eos_(model.tokenizer().eos_ids().empty() ? model.transformer().config().eos_ids : model.tokenizer().eos_ids()),
      cache_(std::move(cache)),
      ids_(request.token_ids().begin(), request.token_ids().end()),
      sampler_(std::move(sampler)),
      text_(model.tokenizer()),
      stop_({request.stop().begin(), request.stop().end()}) {}

bool Answer::IsEnd(int32_t token) const {
  return !request_->ignore_eos() && std::find(eos_.begin(), eos_.end(), token) != eos_.end();
}

absl::StatusOr<bool> Answer::Take(std::span<const float> logits, v1::GenerateEvent::Token* token) {
  PERIGEE_ASSIGN_OR_RETURN(const int32_t id, sampler_.Sample(logits));
  ++answered_;
  ids_.push_back(id);
  token->set_sample(sample_);
  token->set_id(id);
  if (request_->return_logits()) token->mutable_logits()->Assign(logits.begin(), logits.end());
  PERIGEE_ASSIGN_OR_RETURN(*token->mutable_text(), Add(id));
  return !ended_;
}

absl::StatusOr<std::string> Answer::Add(int32_t token) {
  if (IsEnd(token)) {
    reason_ = "eos";
    ended_ = true;
    return "";
  }
  PERIGEE_ASSIGN_OR_RETURN(const std::string piece, text_.Push(token));
  std::string shown = stop_.Push(piece);
  ended_ = stop_.stopped() || answered_ >= request_->max_tokens();
  return shown;
}

void Answer::Finish(v1::GenerateEvent::Finished* finished) {
  std::string rest = stop_.Push(text_.Finish());  // Before Finish: arguments of one call have no order.
  rest += stop_.Finish();
  if (stop_.stopped()) reason_ = "stop";
  finished->set_sample(sample_);
  finished->set_text(std::move(rest));
  finished->set_reason(reason_);
  finished->set_tokens(answered_);
}

}  // namespace perigee::decode_node
