// Answers and errors as bodies.
#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/gateway/openai.h"
#include "nlohmann/json.hpp"

namespace perigee::cluster {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kParamUrl[] = "perigee/param";
constexpr char kCodeUrl[] = "perigee/code";
constexpr char kHttpUrl[] = "perigee/http";

// Texts of answers are valid UTF-8; anything else is made so rather than thrown about.
std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json UsageJson(const BackendUsage& usage, bool with_contexts) {
  Json details = {{"cached_tokens", usage.cached_tokens}};
  if (with_contexts) {
    details["context_tokens"] = usage.context_tokens;
    details["repaired_tokens"] = usage.repaired_tokens;
  }
  return {{"prompt_tokens", usage.prompt_tokens},
          {"completion_tokens", usage.completion_tokens},
          {"total_tokens", uint64_t{usage.prompt_tokens} + usage.completion_tokens},
          {"prompt_tokens_details", std::move(details)}};
}

Json ReasonJson(const std::string& reason) { return reason.empty() ? Json() : Json(reason); }

Json ChatChunk(size_t choice, Json delta, const std::string& finish_reason) {
  return {{"index", choice},
          {"delta", std::move(delta)},
          {"logprobs", nullptr},
          {"finish_reason", ReasonJson(finish_reason)}};
}

}  // namespace

AnswerFormat::AnswerFormat(const CompletionCall& call, const std::string& request_id, const std::string& model,
                           absl::Time created)
    : chat_(call.endpoint == Endpoint::kChatCompletions),
      include_usage_(call.include_usage),
      with_contexts_(!call.contexts.empty() || !call.separator.empty()),
      chunk_kind_(chat_ ? "chat.completion.chunk" : "text_completion") {
  const Json head = {{"id", absl::StrCat(chat_ ? "chatcmpl-" : "cmpl-", request_id)},
                     {"created", absl::ToUnixSeconds(created)},
                     {"model", model}};
  head_ = Dump(head);
  head_.back() = ',';  // Goes on.
}

std::string AnswerFormat::Whole(const std::vector<Choice>& choices, const BackendUsage& usage) const {
  Json list = Json::array();
  for (size_t i = 0; i < choices.size(); ++i) {
    Json choice = {{"index", i}};
    if (chat_) {
      choice["message"] = {{"role", "assistant"}, {"content", choices[i].text}, {"refusal", nullptr}};
    } else {
      choice["text"] = choices[i].text;
    }
    choice["logprobs"] = nullptr;
    choice["finish_reason"] = ReasonJson(choices[i].finish_reason);
    list.push_back(std::move(choice));
  }
  return absl::StrCat(head_, "\"object\":\"", chat_ ? "chat.completion" : "text_completion",
                      "\",\"choices\":", Dump(list), ",\"usage\":", Dump(UsageJson(usage, with_contexts_)), "}");
}

std::string AnswerFormat::Wrapped(const std::string& choice_json) const {
  return absl::StrCat("data: ", head_, "\"object\":\"", chunk_kind_, "\",\"choices\":[", choice_json, "]",
                      include_usage_ ? ",\"usage\":null" : "", "}\n\n");
}

std::string AnswerFormat::FirstChunk(size_t choice) const {
  if (!chat_) return "";
  return Wrapped(Dump(ChatChunk(choice, {{"role", "assistant"}, {"content", ""}, {"refusal", nullptr}}, "")));
}

std::string AnswerFormat::Chunk(size_t choice, const BackendEvent& event) const {
  if (event.text.empty() && event.finish_reason.empty()) return "";
  if (!chat_) {
    return Wrapped(Dump({{"index", choice},
                         {"text", event.text},
                         {"logprobs", nullptr},
                         {"finish_reason", ReasonJson(event.finish_reason)}}));
  }
  std::string out;
  if (!event.text.empty()) out = Wrapped(Dump(ChatChunk(choice, {{"content", event.text}}, "")));
  if (!event.finish_reason.empty()) out += Wrapped(Dump(ChatChunk(choice, Json::object(), event.finish_reason)));
  return out;
}

std::string AnswerFormat::UsageChunk(const BackendUsage& usage) const {
  return absl::StrCat("data: ", head_, "\"object\":\"", chunk_kind_,
                      "\",\"choices\":[],\"usage\":", Dump(UsageJson(usage, with_contexts_)), "}\n\n");
}

std::string AnswerFormat::ErrorChunk(const absl::Status& status) {
  return absl::StrCat("data: ", ToApiError(status).body, "\n\n");
}

absl::Status WithDetails(absl::Status status, absl::string_view param, absl::string_view code) {
  if (!param.empty()) status.SetPayload(kParamUrl, absl::Cord(param));
  if (!code.empty()) status.SetPayload(kCodeUrl, absl::Cord(code));
  return status;
}

absl::Status HttpError(int http_status, absl::string_view message, absl::string_view code) {
  absl::Status status = absl::InvalidArgumentError(message);
  status.SetPayload(kHttpUrl, absl::Cord(absl::StrCat(http_status)));
  if (!code.empty()) status.SetPayload(kCodeUrl, absl::Cord(code));
  return status;
}

namespace {

struct Mapped {
  int http_status;
  const char* type;
};

// The one place where the cluster's errors become HTTP's.
Mapped MapCode(absl::StatusCode code) {
  switch (code) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:  // The request asks for what this server does not do.
      return {400, "invalid_request_error"};
    case absl::StatusCode::kUnauthenticated:
      return {401, "authentication_error"};
    case absl::StatusCode::kPermissionDenied:
      return {403, "permission_error"};
    case absl::StatusCode::kNotFound:
      return {404, "invalid_request_error"};
    case absl::StatusCode::kResourceExhausted:
      return {429, "rate_limit_error"};
    case absl::StatusCode::kCancelled:
      return {499, "request_cancelled"};
    case absl::StatusCode::kUnavailable:
      return {503, "service_unavailable"};
    case absl::StatusCode::kDeadlineExceeded:
      return {504, "timeout"};
    default:
      return {500, "server_error"};
  }
}

Json Payload(const absl::Status& status, const char* url) {
  const auto payload = status.GetPayload(url);
  return payload ? Json(std::string(*payload)) : Json();
}

}  // namespace

ApiError ToApiError(const absl::Status& status) {
  Mapped mapped = MapCode(status.code());
  if (const auto http = status.GetPayload(kHttpUrl)) {
    mapped.http_status = std::stoi(std::string(*http));
    if (mapped.http_status == 401) mapped.type = "authentication_error";
  }
  ApiError error;
  error.http_status = mapped.http_status;
  error.retry_later = mapped.http_status == 429 || mapped.http_status == 503;
  error.body = Dump({{"error",
                      {{"message", std::string(status.message())},
                       {"type", mapped.type},
                       {"param", Payload(status, kParamUrl)},
                       {"code", Payload(status, kCodeUrl)}}}});
  return error;
}

std::string ModelEntry(const FrontModel& model) {
  return Dump({{"id", model.name},
               {"object", "model"},
               {"created", absl::ToUnixSeconds(model.created)},
               {"owned_by", "perigee"},
               {"max_model_len", model.context_tokens}});
}

std::string ModelList(const FrontModel& model) {
  return absl::StrCat("{\"object\":\"list\",\"data\":[", ModelEntry(model), "]}");
}

}  // namespace perigee::cluster
