// From a call that was read to what the backend is asked: texts and contexts tokenised and put together.
#include <algorithm>
#include <span>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/gateway/openai.h"
#include "cluster/gateway/request_fields.h"
#include "cluster/gateway/text_chunks.h"
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

// A prompt, whose contexts are those that the call names, and its chunks.
struct PromptAndChunks {
  model::ChatPrompt prompt;
  std::vector<model::TokenSpan> chunks;
};

// `is_chunk`: for each of the prompt's contexts.
PromptAndChunks SetApart(model::ChatPrompt prompt, const std::vector<bool>& is_chunk) {
  PromptAndChunks out;
  std::vector<model::TokenSpan> contexts;
  for (size_t i = 0; i < prompt.contexts.size(); ++i) {
    (is_chunk[i] ? out.chunks : contexts).push_back(prompt.contexts[i]);
  }
  prompt.contexts = std::move(contexts);
  // Who comes with the same chunk again has it as a context, whatever stood before it: nobody goes on from behind it.
  if (!out.chunks.empty()) std::erase_if(prompt.branch_points, [&](int64_t p) { return p > out.chunks[0].begin; });
  out.prompt = std::move(prompt);
  return out;
}

// The contexts of `parts` and the chunks of the text behind them.
absl::StatusOr<PromptAndChunks> ChunkedPrompt(const FrontModel& model, Parts parts, absl::string_view text,
                                              absl::string_view separator, size_t most) {
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<TextChunk> chunks, CutChunks(*model.tokenizer, text, separator, {}, most));
  std::vector<bool> is_chunk;
  for (const model::PromptPart& part : parts) {
    if (part.context && !part.context->empty()) is_chunk.push_back(false);
  }
  size_t at = 0;
  for (const TextChunk& chunk : chunks) {
    if (chunk.begin > at) parts.push_back(TextPart(text.substr(at, chunk.begin - at)));
    parts.push_back({.text = {}, .context = chunk.ids});
    is_chunk.push_back(true);
    at = chunk.end;
  }
  PERIGEE_ASSIGN_OR_RETURN(model::ChatPrompt prompt, TextPrompt(model, std::move(parts), text.substr(at)));
  return SetApart(std::move(prompt), is_chunk);
}

// Where a chunk stands, the template is given a context.
absl::StatusOr<PromptAndChunks> ChatPromptOf(const CompletionCall& call, const FrontModel& model,
                                             std::span<const std::span<const int32_t>> contexts, absl::Time now,
                                             absl::string_view separator, size_t most) {
  std::vector<model::ChatMessage> messages = call.messages;
  std::vector<std::vector<TextChunk>> kept;  // Whose tokens `tokens` looks at.
  std::vector<std::span<const int32_t>> tokens;
  std::vector<bool> is_chunk;  // Of each of `tokens`.
  size_t next = 0;
  const auto add = [&](std::span<const int32_t> ids, bool chunk) {
    tokens.push_back(ids);
    is_chunk.push_back(chunk);
  };
  for (model::ChatMessage& message : messages) {
    const std::string text = std::move(message.content);
    const std::vector<size_t> places = std::move(message.contexts);
    message.content.clear();
    message.contexts.clear();
    kept.emplace_back();
    if (message.role == "user") {
      PERIGEE_ASSIGN_OR_RETURN(kept.back(), CutChunks(*model.tokenizer, text, separator, places, most));
      most -= kept.back().size();
    }
    size_t at = 0, place = 0;
    const auto copy_until = [&](size_t end) {
      for (; place < places.size() && places[place] <= end; ++place) {
        message.content.append(text, at, places[place] - at);
        at = places[place];
        message.contexts.push_back(message.content.size());
        add(contexts[next++], false);
      }
      message.content.append(text, at, end - at);
      at = end;
    };
    for (const TextChunk& chunk : kept.back()) {
      copy_until(chunk.begin);
      message.contexts.push_back(message.content.size());
      add(chunk.ids, true);
      at = chunk.end;
    }
    copy_until(text.size());
  }
  absl::StatusOr<model::ChatPrompt> prompt =
      model.chat_template->Encode(*model.tokenizer, messages, {.switches = call.template_switches, .now = now}, tokens);
  if (!prompt.ok()) {
    // A template may leave out of a text what it may not leave out of contexts.
    if (tokens.size() > contexts.size()) return ChatPromptOf(call, model, contexts, now, "", most);
    return prompt.status();
  }
  std::vector<bool> chunk_stands;
  for (const size_t number : prompt->context_numbers) chunk_stands.push_back(is_chunk[number]);
  return SetApart(*std::move(prompt), chunk_stands);
}

constexpr size_t kMaxContextsAndChunks = 1024;

absl::StatusOr<std::vector<PromptAndChunks>> Tokenise(const CompletionCall& call, const FrontModel& model,
                                                      std::span<const std::span<const int32_t>> contexts,
                                                      absl::Time now) {
  std::vector<PromptAndChunks> prompts;
  const size_t most_chunks = kMaxContextsAndChunks - std::min(kMaxContextsAndChunks, contexts.size());
  const auto add = [&](absl::StatusOr<PromptAndChunks> prompt, const char* param) -> absl::Status {
    if (!prompt.ok()) return WithDetails(prompt.status(), param);
    prompts.push_back(*std::move(prompt));
    return absl::OkStatus();
  };
  if (call.endpoint == Endpoint::kChatCompletions) {
    PERIGEE_RETURN_IF_ERROR(add(ChatPromptOf(call, model, contexts, now, call.separator, most_chunks), "messages"));
    return prompts;
  }
  Parts leading;
  for (const auto context : contexts.first(call.leading_contexts)) leading.push_back({.text = {}, .context = context});
  for (const std::string& text : call.text_prompts)
    PERIGEE_RETURN_IF_ERROR(add(ChunkedPrompt(model, leading, text, call.separator, most_chunks), "prompt"));
  for (const auto& ids : call.token_prompts) {
    absl::StatusOr<model::ChatPrompt> prompt = TokenPrompt(model, leading, ids);
    if (!prompt.ok()) return WithDetails(prompt.status(), "prompt");
    prompts.push_back({.prompt = *std::move(prompt), .chunks = {}});
  }
  if (!call.segments.empty()) {
    size_t next = call.leading_contexts;
    for (const CompletionCall::Segment& segment : call.segments) {
      leading.push_back(segment.is_context ? model::PromptPart{.text = {}, .context = contexts[next++]}
                                           : TextPart(segment.text));
    }
    absl::StatusOr<model::PromptTokens> encoded =
        model::EncodeParts(*model.tokenizer, leading, model.tokenizer->adds_bos_by_default());
    if (!encoded.ok()) return WithDetails(encoded.status(), "segments");
    prompts.push_back({.prompt = FromParts(*std::move(encoded)), .chunks = {}});
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
  PERIGEE_ASSIGN_OR_RETURN(std::vector<PromptAndChunks> prompts, Tokenise(call, model, context_tokens, now));
  std::vector<BackendRequest> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    auto& [prompt, chunks] = prompts[i];
    if (prompt.token_ids.empty()) return Invalid("prompt", "has no tokens");
    BackendRequest request;
    PERIGEE_ASSIGN_OR_RETURN(request.max_tokens,
                             AnswerTokens(call, model, static_cast<int64_t>(prompt.token_ids.size())));
    request.token_ids = std::move(prompt.token_ids);
    request.branch_points = std::move(prompt.branch_points);
    for (const auto& [begin, tokens] : prompt.contexts) request.contexts.push_back({.begin = begin, .tokens = tokens});
    for (const auto& [begin, tokens] : chunks) request.chunks.push_back({.begin = begin, .tokens = tokens});
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
