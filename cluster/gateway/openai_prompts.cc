// From a call that was read to what the backend is asked: texts and contexts tokenised and put together.
#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/gateway/openai.h"
#include "cluster/gateway/request_fields.h"
#include "model/prompt_parts.h"

namespace perigee::cluster {
namespace {

model::ChatPrompt FromParts(model::PromptTokens encoded) {
  model::ChatPrompt prompt{
      .token_ids = std::move(encoded.token_ids), .branch_points = {}, .contexts = std::move(encoded.contexts)};
  // Other prompts go on with another part.
  const auto size = static_cast<int64_t>(prompt.token_ids.size());
  for (size_t i = 1; i < encoded.starts.size(); ++i) {
    const int64_t start = encoded.starts[i];
    const int64_t last = prompt.branch_points.empty() ? 0 : prompt.branch_points.back();
    if (start > last && start < size) prompt.branch_points.push_back(start);
  }
  return prompt;
}

using Parts = std::vector<model::PromptPart>;

model::PromptPart TextPart(absl::string_view text) {
  return {.text = {.text = text, .parse_special = false, .split = true}, .context = {}};
}

absl::StatusOr<model::ChatPrompt> TextPrompt(const FrontModel& model, Parts parts, absl::string_view text) {
  parts.push_back(TextPart(text));
  PERIGEE_ASSIGN_OR_RETURN(model::PromptTokens encoded,
                           model::EncodeParts(*model.tokenizer, parts, model.tokenizer->adds_bos_by_default()));
  return FromParts(std::move(encoded));
}

// Token ids are taken as they are, but for a begin of sequence, which goes before the contexts.
absl::StatusOr<model::ChatPrompt> TokenPrompt(const FrontModel& model, const Parts& leading,
                                              std::span<const int32_t> ids) {
  for (const int32_t id : ids) PERIGEE_RETURN_IF_ERROR(model.tokenizer->TokenBytes(id).status());
  bool add_bos = false;
  if (!leading.empty()) {
    const bool has_bos = !ids.empty() && ids.front() == model.tokenizer->bos_id();
    add_bos = has_bos || model.tokenizer->adds_bos_by_default();
    if (has_bos) ids = ids.subspan(1);
  }
  PERIGEE_ASSIGN_OR_RETURN(model::PromptTokens encoded, model::EncodeParts(*model.tokenizer, leading, add_bos));
  encoded.starts.push_back(static_cast<int64_t>(encoded.token_ids.size()));
  encoded.token_ids.insert(encoded.token_ids.end(), ids.begin(), ids.end());
  return FromParts(std::move(encoded));
}

absl::StatusOr<std::vector<model::ChatPrompt>> Tokenise(const CompletionCall& call, const FrontModel& model,
                                                        std::span<const std::span<const int32_t>> contexts,
                                                        absl::Time now) {
  std::vector<model::ChatPrompt> prompts;
  const auto add = [&](absl::StatusOr<model::ChatPrompt> prompt, const char* param) -> absl::Status {
    if (!prompt.ok()) return WithDetails(prompt.status(), param);
    prompts.push_back(*std::move(prompt));
    return absl::OkStatus();
  };
  if (call.endpoint == Endpoint::kChatCompletions) {
    PERIGEE_RETURN_IF_ERROR(add(model.chat_template->Encode(*model.tokenizer, call.messages,
                                                            {.switches = call.template_switches, .now = now}, contexts),
                                "messages"));
    return prompts;
  }
  Parts leading;
  for (const auto context : contexts.first(call.leading_contexts)) leading.push_back({.text = {}, .context = context});
  for (const std::string& text : call.text_prompts)
    PERIGEE_RETURN_IF_ERROR(add(TextPrompt(model, leading, text), "prompt"));
  for (const auto& ids : call.token_prompts) PERIGEE_RETURN_IF_ERROR(add(TokenPrompt(model, leading, ids), "prompt"));
  if (!call.segments.empty()) {
    size_t next = call.leading_contexts;
    for (const CompletionCall::Segment& segment : call.segments) {
      leading.push_back(segment.is_context ? model::PromptPart{.text = {}, .context = contexts[next++]}
                                           : TextPart(segment.text));
    }
    absl::StatusOr<model::PromptTokens> encoded =
        model::EncodeParts(*model.tokenizer, leading, model.tokenizer->adds_bos_by_default());
    if (!encoded.ok()) return WithDetails(encoded.status(), "segments");
    prompts.push_back(FromParts(*std::move(encoded)));
  }
  return prompts;
}

constexpr uint32_t kDefaultCompletionTokens = 16;

// How many tokens the answer may have.
absl::StatusOr<uint32_t> AnswerTokens(const CompletionCall& call, const FrontModel& model, int64_t prompt_tokens) {
  const bool chat = call.endpoint == Endpoint::kChatCompletions;
  const char* param = chat ? "messages" : "prompt";
  const int64_t room = model.context_tokens - prompt_tokens;
  const int64_t wanted = call.max_tokens.value_or(1);  // A default shrinks to what there is room for.
  if (wanted > room) {
    return WithDetails(
        absl::InvalidArgumentError(absl::StrCat("This model's maximum context length is ", model.context_tokens,
                                                " tokens. However, you requested ", prompt_tokens + wanted, " tokens (",
                                                prompt_tokens, " in the ", param, ", ", wanted,
                                                " in the completion). Please reduce the length of either.")),
        room > 0 ? call.max_tokens_name : param, "context_length_exceeded");
  }
  if (call.max_tokens) return *call.max_tokens;
  return static_cast<uint32_t>(chat ? room : std::min<int64_t>(room, kDefaultCompletionTokens));
}

}  // namespace

absl::StatusOr<std::vector<BackendRequest>> MakeBackendRequests(const CompletionCall& call, const FrontModel& model,
                                                                absl::Time now, uint64_t random_seed,
                                                                std::span<const SharedTokens> contexts) {
  if (call.model != model.name) {
    return WithDetails(absl::NotFoundError(absl::StrCat("The model \"", call.model.substr(0, 200),
                                                        "\" does not exist; this server has \"", model.name, "\"")),
                       "model", "model_not_found");
  }
  if (contexts.size() != call.contexts.size()) return absl::InternalError("the request's contexts are not resolved");
  std::vector<std::span<const int32_t>> context_tokens;
  int64_t in_contexts = 0;
  for (const SharedTokens& tokens : contexts) {
    context_tokens.emplace_back(*tokens);
    in_contexts += static_cast<int64_t>(tokens->size());
  }
  // Before a thousand large ones are put together.
  PERIGEE_RETURN_IF_ERROR(AnswerTokens(call, model, in_contexts).status());
  PERIGEE_ASSIGN_OR_RETURN(std::vector<model::ChatPrompt> prompts, Tokenise(call, model, context_tokens, now));
  std::vector<BackendRequest> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].token_ids.empty()) return Invalid("prompt", "has no tokens");
    BackendRequest request;
    PERIGEE_ASSIGN_OR_RETURN(request.max_tokens,
                             AnswerTokens(call, model, static_cast<int64_t>(prompts[i].token_ids.size())));
    request.token_ids = std::move(prompts[i].token_ids);
    request.branch_points = std::move(prompts[i].branch_points);
    for (const auto& [begin, tokens] : prompts[i].contexts) {
      request.contexts.push_back({.begin = begin, .tokens = tokens});
    }
    request.repair = call.repair;
    request.salt = call.salt;
    request.samples = call.samples;
    request.temperature = call.temperature;
    request.top_p = call.top_p;
    request.top_k = call.top_k;
    // Equal prompts of one request get different answers, as samples of one prompt do.
    request.seed = call.seed.value_or(random_seed) + i * call.samples;
    request.ignore_eos = call.ignore_eos;
    request.stop = call.stop;
    requests.push_back(std::move(request));
  }
  return requests;
}

}  // namespace perigee::cluster
