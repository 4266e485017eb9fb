// Request bodies: read and checked.
#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/contexts/registry.h"
#include "cluster/gateway/openai.h"
#include "cluster/gateway/request_fields.h"
#include "model/repair.h"

namespace perigee::cluster {
namespace {

using Json = RequestJson;

constexpr size_t kMaxStops = 4;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxSaltBytes = 256;
constexpr size_t kMaxSwitches = 16;
constexpr size_t kMaxRepairBytes = 64;
constexpr size_t kMaxSeparatorBytes = 64;

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

// A context's id, as one more of the call's.
absl::Status AddContext(const std::string& where, const Json& id, const CallLimits& limits, CompletionCall& call) {
  if (!id.is_string()) return Invalid(where, absl::StrCat("has ", Shown(id), " where a context's id is needed"));
  const std::string& text = id.get_ref<const std::string&>();
  if (const absl::Status checked = CheckContextId(text); !checked.ok()) return Invalid(where, checked.message());
  if (call.contexts.size() >= limits.max_contexts) {
    return Invalid(where, absl::StrCat("has one context more than the ", limits.max_contexts, " allowed in a request"));
  }
  call.contexts.push_back(text);
  return absl::OkStatus();
}

absl::Status ReadSeparator(const Fields& fields, CompletionCall& call) {
  if (fields.Find("context_separator") == nullptr) return absl::OkStatus();
  PERIGEE_ASSIGN_OR_RETURN(call.separator, fields.String("context_separator", "", kMaxSeparatorBytes));
  if (call.separator.empty()) return Invalid("context_separator", "is empty; a text of 1 to 64 bytes is needed");
  if (call.text_prompts.size() + call.token_prompts.size() > 1 || !call.token_prompts.empty()) {
    return Invalid("context_separator", "stands in texts: one prompt, and that a text, is needed with it");
  }
  return absl::OkStatus();
}

// Those that stand before the prompt. And what is to be done with all of them.
absl::Status ReadContexts(const Fields& fields, const CallLimits& limits, CompletionCall& call) {
  if (const Json* contexts = fields.Find("contexts")) {
    if (!contexts->is_array()) {
      return Invalid("contexts", absl::StrCat("is ", Shown(*contexts), "; a list of ids is needed"));
    }
    for (const Json& id : *contexts) PERIGEE_RETURN_IF_ERROR(AddContext("contexts", id, limits, call));
    call.leading_contexts = call.contexts.size();
  }
  PERIGEE_ASSIGN_OR_RETURN(const std::string repair, fields.String("context_repair", "", kMaxRepairBytes));
  if (repair.empty()) return absl::OkStatus();
  const absl::StatusOr<model::Repair> parsed = model::Repair::Parse(repair);
  if (!parsed.ok()) return Invalid("context_repair", absl::StrCat("cannot be used: ", parsed.status().message()));
  call.repair = parsed->ToString();
  return absl::OkStatus();
}

// [{"text": "..."}, {"context": "id"}, ...] instead of a prompt.
absl::Status ReadSegments(const Json& segments, const CallLimits& limits, CompletionCall& call) {
  if (!segments.is_array() || segments.empty()) {
    return Invalid("segments", absl::StrCat("is ", Shown(segments), "; a list of at least one segment is needed"));
  }
  if (segments.size() > limits.max_segments) {
    return Invalid("segments", absl::StrCat("has ", segments.size(), " segments; at most ", limits.max_segments,
                                            " are allowed: join neighbouring texts"));
  }
  for (const Json& segment : segments) {
    const bool one = segment.is_object() && segment.size() == 1;
    if (one && segment.contains("context")) {
      PERIGEE_RETURN_IF_ERROR(AddContext("segments", segment["context"], limits, call));
      call.segments.push_back({.text = "", .is_context = true});
    } else if (one && segment.contains("text") && segment["text"].is_string()) {
      call.segments.push_back({.text = segment["text"].get<std::string>(), .is_context = false});
    } else {
      return Invalid("segments",
                     absl::StrCat("has ", Shown(segment), "; {\"text\": \"...\"} or {\"context\": \"id\"} is needed"));
    }
  }
  return absl::OkStatus();
}

// A text, a list of texts, a list of token ids, or a list of such lists; or segments instead.
absl::Status ReadPrompt(const Fields& fields, const CallLimits& limits, CompletionCall& call) {
  const Json* prompt = fields.Find("prompt");
  if (const Json* segments = fields.Find("segments")) {
    if (prompt != nullptr) return Invalid("segments", "cannot stand beside \"prompt\": they are the prompt");
    return ReadSegments(*segments, limits, call);
  }
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
    PERIGEE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TokenIds("prompt", *prompt));
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
      PERIGEE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, TokenIds("prompt", one));
      call.token_prompts.push_back(std::move(ids));
    } else {
      return Invalid("prompt", absl::StrCat("has ", Shown(one), "; all texts or all lists of token ids are needed"));
    }
  }
  return absl::OkStatus();
}

// A text, or a list of parts: texts, of which neighbours become lines, and contexts, around which nothing is put.
absl::Status ReadContent(const Json& message, const std::string& where, const CallLimits& limits, CompletionCall& call,
                         model::ChatMessage& read) {
  const Json* content = Fields(message).Find("content");
  if (content == nullptr && message.value("role", Json()) == "assistant") return absl::OkStatus();
  if (content != nullptr && content->is_string()) {
    read.content = content->get<std::string>();
    return absl::OkStatus();
  }
  if (content == nullptr || !content->is_array())
    return Invalid(where + ".content", "is neither a text nor a list of parts");
  bool after_text = false;
  for (const Json& part : *content) {
    const Json type = part.is_object() ? part.value("type", Json()) : Json();
    if (type == "context") {
      PERIGEE_RETURN_IF_ERROR(AddContext(where + ".content", part.value("id", Json()), limits, call));
      read.contexts.push_back(read.content.size());
    } else if (type == "text" && part.value("text", Json()).is_string()) {
      if (after_text) read.content += "\n";
      read.content += part.at("text").get_ref<const std::string&>();
    } else {
      return Unsupported(where + ".content",
                         absl::StrCat("has the part ", Shown(part), "; only texts and contexts are supported"));
    }
    after_text = type == "text";
  }
  return absl::OkStatus();
}

// "contexts" in front of the first user message's content.
absl::Status PlaceLeadingContexts(std::vector<std::string> leading, CompletionCall& call) {
  size_t before = 0;
  for (model::ChatMessage& message : call.messages) {
    if (message.role == "user") {
      message.contexts.insert(message.contexts.begin(), leading.size(), 0);
      call.contexts.insert(call.contexts.begin() + static_cast<ptrdiff_t>(before), leading.begin(), leading.end());
      return absl::OkStatus();
    }
    before += message.contexts.size();
  }
  return Invalid("contexts", "stand before the first user message, but there is none");
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
  // They count for the limit, and get their place when it is known.
  std::vector<std::string> leading = call.contexts;
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
    PERIGEE_RETURN_IF_ERROR(ReadContent(message, where, limits, call, read));
    PERIGEE_ASSIGN_OR_RETURN(read.name, of_message.String("name", "", 256));
    call.messages.push_back(std::move(read));
  }
  if (leading.empty()) return absl::OkStatus();
  call.contexts.erase(call.contexts.begin(), call.contexts.begin() + static_cast<ptrdiff_t>(leading.size()));
  return PlaceLeadingContexts(std::move(leading), call);
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
  PERIGEE_RETURN_IF_ERROR(ReadContexts(fields, limits, call));
  if (endpoint == Endpoint::kCompletions) {
    PERIGEE_RETURN_IF_ERROR(ReadPrompt(fields, limits, call));
  } else {
    PERIGEE_RETURN_IF_ERROR(ReadMessages(fields, limits, call));
    PERIGEE_RETURN_IF_ERROR(ReadSwitches(fields, call));
  }
  PERIGEE_RETURN_IF_ERROR(ReadSeparator(fields, call));
  PERIGEE_RETURN_IF_ERROR(ReadSampling(fields, limits, call));
  PERIGEE_RETURN_IF_ERROR(ReadDelivery(fields, call));
  return call;
}

}  // namespace perigee::cluster
