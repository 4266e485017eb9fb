// Request bodies: read, checked, tokenised.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/gateway/openai.h"
#include "nlohmann/json.hpp"

namespace perigee::cluster {
namespace {

using Json = nlohmann::json;

constexpr int kMaxDepth = 32;
constexpr size_t kMaxStops = 4;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxSaltBytes = 256;
constexpr size_t kMaxSwitches = 16;

std::string Shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

absl::Status Invalid(absl::string_view param, absl::string_view message) {
  return WithDetails(absl::InvalidArgumentError(absl::StrCat("\"", param, "\" ", message)), param);
}

absl::Status Unsupported(absl::string_view param, absl::string_view message = "is not supported by this server") {
  return WithDetails(absl::UnimplementedError(absl::StrCat("\"", param, "\" ", message)), param,
                     "unsupported_parameter");
}

absl::StatusOr<Json> ParseBody(absl::string_view body) {
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t event, Json&) {
    if ((event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) &&
        depth >= kMaxDepth) {
      too_deep = true;
    }
    return !too_deep;
  };
  Json json = Json::parse(body.begin(), body.end(), watch, /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError(absl::StrCat("the body nests deeper than ", kMaxDepth, " levels"));
  }
  if (json.is_discarded()) return absl::InvalidArgumentError("the body is not valid JSON, or not valid UTF-8");
  if (!json.is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  return json;
}

// Reads the fields of one object; null counts as absent.
class Fields {
 public:
  explicit Fields(const Json& object) : object_(object) {}

  const Json* Find(const char* name) const {
    const auto at = object_.find(name);
    return at == object_.end() || at->is_null() ? nullptr : &*at;
  }
  absl::StatusOr<bool> Bool(const char* name, bool fallback) const {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) return Invalid(name, absl::StrCat("is ", Shown(*value), "; true or false is needed"));
    return value->get<bool>();
  }
  absl::StatusOr<double> Number(const char* name, double fallback, double low, double high) const {
    const Json* value = Find(name);
    if (value == nullptr) return fallback;
    const double number = value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
    if (!(number >= low && number <= high)) {
      return Invalid(name, absl::StrCat("is ", Shown(*value), "; a number from ", low, " to ", high, " is needed"));
    }
    return number;
  }
  absl::StatusOr<std::optional<int64_t>> Whole(const char* name, int64_t low, int64_t high) const {
    const Json* value = Find(name);
    if (value == nullptr) return std::optional<int64_t>();
    const bool fits = value->is_number_integer() &&
                      (!value->is_number_unsigned() ||
                       value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
    if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high) {
      return Invalid(name,
                     absl::StrCat("is ", Shown(*value), "; a whole number from ", low, " to ", high, " is needed"));
    }
    return std::optional<int64_t>(value->get<int64_t>());
  }
  absl::StatusOr<std::string> String(const char* name, absl::string_view fallback, size_t max_bytes) const {
    const Json* value = Find(name);
    if (value == nullptr) return std::string(fallback);
    if (!value->is_string()) return Invalid(name, absl::StrCat("is ", Shown(*value), "; a text is needed"));
    if (value->get_ref<const std::string&>().size() > max_bytes) {
      return Invalid(name, absl::StrCat("has more than the ", max_bytes, " bytes allowed"));
    }
    return value->get<std::string>();
  }

  const Json& object() const { return object_; }

 private:
  const Json& object_;
};

// Fields that would change the answer: only the values that ask for nothing are taken.
absl::Status RefuseUnsupported(const Fields& fields, Endpoint endpoint) {
  const auto empty = [](const Json& value) {
    return value == false || value == 0 || value == "" || ((value.is_array() || value.is_object()) && value.empty());
  };
  // For completions 0 asks for a token's own.
  if (const Json* logprobs = fields.Find("logprobs"); logprobs != nullptr && *logprobs != Json(false)) {
    return Unsupported("logprobs");
  }
  std::vector<const char*> names = {"logit_bias", "presence_penalty", "frequency_penalty"};
  if (endpoint == Endpoint::kCompletions) {
    names.insert(names.end(), {"suffix", "echo"});
  } else {
    names.insert(names.end(), {"tools", "functions", "top_logprobs", "audio", "prediction", "web_search_options"});
  }
  for (const char* name : names) {
    const Json* value = fields.Find(name);
    if (value != nullptr && !empty(*value)) return Unsupported(name);
  }
  if (endpoint == Endpoint::kCompletions) {
    const Json* best_of = fields.Find("best_of");
    const Json* n = fields.Find("n");
    if (best_of != nullptr && *best_of != (n == nullptr ? Json(1) : *n))
      return Unsupported("best_of", "other than \"n\" is not supported");
    return absl::OkStatus();
  }
  for (const char* name : {"tool_choice", "function_call"}) {
    const Json* value = fields.Find(name);
    if (value != nullptr && *value != "none" && *value != "auto") return Unsupported(name);
  }
  if (const Json* format = fields.Find("response_format")) {
    if (!format->is_object() || format->value("type", Json()) != "text") {
      return Unsupported("response_format", "other than {\"type\": \"text\"} is not supported by this server");
    }
  }
  if (const Json* modalities = fields.Find("modalities"); modalities != nullptr && *modalities != Json{"text"}) {
    return Unsupported("modalities", "other than [\"text\"] is not supported by this server");
  }
  return absl::OkStatus();
}

absl::Status ReadStops(const Fields& fields, CompletionCall& call) {
  const Json* stop = fields.Find("stop");
  if (stop == nullptr) return absl::OkStatus();
  const Json list = stop->is_array() ? *stop : Json::array({*stop});
  if (list.size() > kMaxStops) {
    return Invalid("stop", absl::StrCat("has ", list.size(), " texts; at most ", kMaxStops, " are allowed"));
  }
  for (const Json& text : list) {
    if (!text.is_string() || text.get_ref<const std::string&>().empty() ||
        text.get_ref<const std::string&>().size() > kMaxStopBytes) {
      return Invalid("stop", absl::StrCat("has ", Shown(text), "; texts of 1 to ", kMaxStopBytes, " bytes are needed"));
    }
    call.stop.push_back(text.get<std::string>());
  }
  return absl::OkStatus();
}

absl::Status ReadSampling(const Fields& fields, const CallLimits& limits, CompletionCall& call) {
  constexpr int64_t kInt32 = std::numeric_limits<int32_t>::max(), kInt64 = std::numeric_limits<int64_t>::max();
  PERIGEE_ASSIGN_OR_RETURN(const auto samples, fields.Whole("n", 1, limits.max_samples));
  call.samples = static_cast<uint32_t>(samples.value_or(1));
  PERIGEE_ASSIGN_OR_RETURN(auto max_tokens, fields.Whole("max_tokens", 1, kInt32));
  // The newer name, which OpenAI has for chats.
  PERIGEE_ASSIGN_OR_RETURN(const auto newer, fields.Whole("max_completion_tokens", 1, kInt32));
  if (newer) {
    max_tokens = newer;
    call.max_tokens_name = "max_completion_tokens";
  }
  if (max_tokens) call.max_tokens = static_cast<uint32_t>(*max_tokens);
  PERIGEE_ASSIGN_OR_RETURN(call.temperature, fields.Number("temperature", 1, 0, 2));
  PERIGEE_ASSIGN_OR_RETURN(call.top_p, fields.Number("top_p", 1, 0, 1));
  if (call.top_p == 0)
    return Invalid("top_p", "is 0; a number above 0 is needed (temperature 0 takes the likeliest token)");
  PERIGEE_ASSIGN_OR_RETURN(const auto top_k, fields.Whole("top_k", -1, kInt32));
  call.top_k = static_cast<uint32_t>(std::max<int64_t>(top_k.value_or(0), 0));
  PERIGEE_ASSIGN_OR_RETURN(const auto seed, fields.Whole("seed", -kInt64 - 1, kInt64));
  if (seed) call.seed = static_cast<uint64_t>(*seed);
  PERIGEE_ASSIGN_OR_RETURN(call.ignore_eos, fields.Bool("ignore_eos", false));
  return ReadStops(fields, call);
}

absl::Status ReadDelivery(const Fields& fields, CompletionCall& call) {
  PERIGEE_ASSIGN_OR_RETURN(call.stream, fields.Bool("stream", false));
  if (const Json* options = fields.Find("stream_options")) {
    if (!options->is_object()) return Invalid("stream_options", "is not an object");
    if (!call.stream) return Invalid("stream_options", "is only allowed when \"stream\" is true");
    PERIGEE_ASSIGN_OR_RETURN(call.include_usage, Fields(*options).Bool("include_usage", false));
  }
  PERIGEE_ASSIGN_OR_RETURN(call.salt, fields.String("cache_salt", "", kMaxSaltBytes));
  PERIGEE_ASSIGN_OR_RETURN(const std::string user, fields.String("user", "", 4096));
  PERIGEE_ASSIGN_OR_RETURN(const double timeout, fields.Number("timeout", -1, 1e-3, 1e6));
  if (timeout > 0) call.timeout = absl::Seconds(timeout);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> TokenIds(const Json& list) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      return Invalid("prompt", absl::StrCat("has ", Shown(id), " where a token id is expected"));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// A text, a list of texts, a list of token ids, or a list of such lists.
absl::Status ReadPrompt(const Fields& fields, const CallLimits& limits, CompletionCall& call) {
  const Json* prompt = fields.Find("prompt");
  if (prompt == nullptr) return Invalid("prompt", "is missing");
  if (prompt->is_string()) {
    call.text_prompts = {prompt->get<std::string>()};
    return absl::OkStatus();
  }
  if (!prompt->is_array() || prompt->empty()) {
    return Invalid("prompt",
                   absl::StrCat("is ", Shown(*prompt), "; a text, a list of texts, or lists of token ids are needed"));
  }
  if (prompt->front().is_number()) {
    PERIGEE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TokenIds(*prompt));
    call.token_prompts.push_back(std::move(ids));
    return absl::OkStatus();
  }
  if (prompt->size() > limits.max_prompts) {
    return Invalid("prompt",
                   absl::StrCat("has ", prompt->size(), " prompts; at most ", limits.max_prompts, " are allowed"));
  }
  for (const Json& one : *prompt) {
    if (one.is_string() && call.token_prompts.empty()) {
      call.text_prompts.push_back(one.get<std::string>());
    } else if (one.is_array() && !one.empty() && call.text_prompts.empty()) {
      PERIGEE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TokenIds(one));
      call.token_prompts.push_back(std::move(ids));
    } else {
      return Invalid("prompt", absl::StrCat("has ", Shown(one), "; all texts or all lists of token ids are needed"));
    }
  }
  return absl::OkStatus();
}

// A text, or a list of text parts, which become its lines.
absl::StatusOr<std::string> MessageContent(const Json& message, const std::string& where) {
  const Json* content = Fields(message).Find("content");
  if (content == nullptr && message.value("role", Json()) == "assistant") return std::string();
  if (content != nullptr && content->is_string()) return content->get<std::string>();
  if (content == nullptr || !content->is_array())
    return Invalid(where + ".content", "is neither a text nor a list of text parts");
  std::string joined;
  for (const Json& part : *content) {
    if (!part.is_object() || part.value("type", Json()) != "text" || !part.value("text", Json()).is_string()) {
      return Unsupported(where + ".content",
                         absl::StrCat("has the part ", Shown(part), "; only text parts are supported"));
    }
    if (&part != &content->front()) joined += "\n";
    joined += part.at("text").get_ref<const std::string&>();
  }
  return joined;
}

absl::Status ReadMessages(const Fields& fields, const CallLimits& limits, CompletionCall& call) {
  const Json* messages = fields.Find("messages");
  if (messages == nullptr || !messages->is_array() || messages->empty()) {
    return Invalid("messages", "is missing, or not a list of at least one message");
  }
  if (messages->size() > limits.max_messages) {
    return Invalid("messages",
                   absl::StrCat("has ", messages->size(), " messages; at most ", limits.max_messages, " are allowed"));
  }
  for (size_t i = 0; i < messages->size(); ++i) {
    const Json& message = (*messages)[i];
    const std::string where = absl::StrCat("messages[", i, "]");
    if (!message.is_object()) return Invalid(where, "is not an object");
    const Fields of_message(message);
    for (const char* name : {"tool_calls", "function_call", "audio"}) {
      const Json* value = of_message.Find(name);
      if (value != nullptr && !(value->is_array() && value->empty()))
        return Unsupported(absl::StrCat(where, ".", name));
    }
    const Json role = message.value("role", Json());
    static constexpr absl::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool", "function"};
    if (!role.is_string() ||
        std::find(std::begin(kRoles), std::end(kRoles), role.get_ref<const std::string&>()) == std::end(kRoles)) {
      return Invalid(
          where + ".role",
          absl::StrCat("is ", Shown(role), "; one of system, developer, user, assistant, tool, function is needed"));
    }
    model::ChatMessage read;
    // OpenAI's newer name for it; templates know the older one.
    read.role = role == "developer" ? "system" : role.get<std::string>();
    PERIGEE_ASSIGN_OR_RETURN(read.content, MessageContent(message, where));
    PERIGEE_ASSIGN_OR_RETURN(read.name, of_message.String("name", "", 256));
    call.messages.push_back(std::move(read));
  }
  return absl::OkStatus();
}

absl::Status ReadSwitches(const Fields& fields, CompletionCall& call) {
  const Json* switches = fields.Find("chat_template_kwargs");
  if (switches == nullptr) return absl::OkStatus();
  if (!switches->is_object() || switches->size() > kMaxSwitches) {
    return Invalid("chat_template_kwargs", absl::StrCat("is not an object of at most ", kMaxSwitches, " switches"));
  }
  for (const auto& [name, value] : switches->items()) {
    if (!value.is_boolean()) return Unsupported("chat_template_kwargs", "can only have true and false as values");
    call.template_switches[name] = value.get<bool>();
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CompletionCall> ParseCompletionCall(absl::string_view body, Endpoint endpoint,
                                                   const CallLimits& limits) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseBody(body));
  const Fields fields(json);
  CompletionCall call;
  call.endpoint = endpoint;
  PERIGEE_ASSIGN_OR_RETURN(call.model, fields.String("model", "", 1024));
  if (call.model.empty()) return Invalid("model", "is missing");
  PERIGEE_RETURN_IF_ERROR(RefuseUnsupported(fields, endpoint));
  if (endpoint == Endpoint::kCompletions) {
    PERIGEE_RETURN_IF_ERROR(ReadPrompt(fields, limits, call));
  } else {
    PERIGEE_RETURN_IF_ERROR(ReadMessages(fields, limits, call));
    PERIGEE_RETURN_IF_ERROR(ReadSwitches(fields, call));
  }
  PERIGEE_RETURN_IF_ERROR(ReadSampling(fields, limits, call));
  PERIGEE_RETURN_IF_ERROR(ReadDelivery(fields, call));
  return call;
}

namespace {

absl::StatusOr<std::vector<model::ChatPrompt>> Tokenise(const CompletionCall& call, const FrontModel& model,
                                                        absl::Time now) {
  std::vector<model::ChatPrompt> prompts;
  if (call.endpoint == Endpoint::kChatCompletions) {
    auto prompt =
        model.chat_template->Encode(*model.tokenizer, call.messages, {.switches = call.template_switches, .now = now});
    if (!prompt.ok()) return WithDetails(prompt.status(), "messages");
    prompts.push_back(*std::move(prompt));
  }
  for (const std::string& text : call.text_prompts) {
    auto ids = model.tokenizer->Encode(text, model.tokenizer->adds_bos_by_default());
    if (!ids.ok()) return WithDetails(ids.status(), "prompt");
    prompts.push_back({.token_ids = *std::move(ids), .branch_points = {}});
  }
  for (const std::vector<int32_t>& ids : call.token_prompts) {
    for (const int32_t id : ids) {
      if (auto known = model.tokenizer->TokenBytes(id); !known.ok()) return WithDetails(known.status(), "prompt");
    }
    prompts.push_back({.token_ids = ids, .branch_points = {}});
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
                                                                absl::Time now, uint64_t random_seed) {
  if (call.model != model.name) {
    return WithDetails(absl::NotFoundError(absl::StrCat("The model \"", call.model.substr(0, 200),
                                                        "\" does not exist; this server has \"", model.name, "\"")),
                       "model", "model_not_found");
  }
  PERIGEE_ASSIGN_OR_RETURN(std::vector<model::ChatPrompt> prompts, Tokenise(call, model, now));
  std::vector<BackendRequest> requests;
  for (size_t i = 0; i < prompts.size(); ++i) {
    if (prompts[i].token_ids.empty()) return Invalid("prompt", "has no tokens");
    BackendRequest request;
    PERIGEE_ASSIGN_OR_RETURN(request.max_tokens,
                             AnswerTokens(call, model, static_cast<int64_t>(prompts[i].token_ids.size())));
    request.token_ids = std::move(prompts[i].token_ids);
    request.branch_points = std::move(prompts[i].branch_points);
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
