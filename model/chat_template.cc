#include "model/chat_template.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "base/file.h"
#include "base/status.h"
#include "model/chat_template/interpreter.h"
#include "model/chat_template/syntax.h"
#include "model/json_reader.h"
#include "model/utf8.h"

namespace perigee::model {
namespace {

constexpr size_t kMaxSourceBytes = size_t{1} << 20;
constexpr size_t kMaxConfigBytes = size_t{8} << 20;
// What rendering may cost: a third of a second, and many passes over the messages' text.
constexpr int64_t kBudget = 4'000'000, kBudgetPerByte = 2;
// Contexts while rendering: four bytes of UTF-8 each, private-use characters that no case or white space changes.
constexpr char32_t kFirstContextMark = 0xF0000;
constexpr size_t kContextMarkBytes = 4, kMaxContexts = 0x8000;
constexpr absl::string_view kRoles[] = {"system", "developer", "user", "assistant", "tool", "function", "ipython"};

absl::Status CheckMessages(std::span<const ChatMessage> messages, size_t max_bytes) {
  if (messages.empty()) return absl::InvalidArgumentError("there are no messages");
  size_t bytes = 0, contexts = 0;
  for (size_t i = 0; i < messages.size(); ++i) {
    const ChatMessage& message = messages[i];
    if (std::find(std::begin(kRoles), std::end(kRoles), message.role) == std::end(kRoles)) {
      return absl::InvalidArgumentError(
          absl::StrCat("message ", i, " has the role \"", message.role.substr(0, 40),
                       "\"; one of system, developer, user, assistant, tool, function is needed"));
    }
    for (const std::string* text : {&message.content, &message.name}) {
      if (ValidUtf8Prefix(*text) != text->size()) {
        return absl::InvalidArgumentError(absl::StrCat("message ", i, " is not valid UTF-8"));
      }
      bytes += text->size();
    }
    size_t before = 0;
    for (const size_t at : message.contexts) {
      const bool inside_character = at < message.content.size() && (message.content[at] & 0xC0) == 0x80;
      if (at < before || at > message.content.size() || inside_character) {
        return absl::InvalidArgumentError(absl::StrCat("message ", i, " has a context at byte ", at,
                                                       ", which is no place between two characters of it"));
      }
      before = at;
    }
    contexts += message.contexts.size();
  }
  if (contexts > kMaxContexts) {
    return absl::InvalidArgumentError(
        absl::StrCat("the messages have ", contexts, " contexts; at most ", kMaxContexts, " are allowed"));
  }
  if (bytes > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the messages have ", bytes, " bytes of text; at most ", max_bytes, " are allowed"));
  }
  return absl::OkStatus();
}

std::string ContextMark(size_t context) {
  const char32_t c = kFirstContextMark + static_cast<char32_t>(context);
  return {static_cast<char>(0xF0 | (c >> 18)), static_cast<char>(0x80 | ((c >> 12) & 0x3F)),
          static_cast<char>(0x80 | ((c >> 6) & 0x3F)), static_cast<char>(0x80 | (c & 0x3F))};
}

// The context of a mark, or -1.
int MarkedContext(absl::string_view mark) {
  if (mark.size() != kContextMarkBytes) return -1;
  char32_t c = static_cast<unsigned char>(mark[0]) & 0x07;
  for (const char byte : mark.substr(1)) c = (c << 6) | (static_cast<unsigned char>(byte) & 0x3F);
  return c < kFirstContextMark ? -1 : static_cast<int>(c - kFirstContextMark);
}

// The content with its contexts, of which the first is number `context`.
jinja::Text ContentText(const ChatMessage& message, size_t context) {
  jinja::Text text;
  size_t from = 0;
  for (const size_t at : message.contexts) {
    text.Append(jinja::Text::FromMessage(absl::string_view(message.content).substr(from, at - from)));
    text.Append(jinja::Text(ContextMark(context++), jinja::Origin::kContext));
    from = at;
  }
  text.Append(jinja::Text::FromMessage(absl::string_view(message.content).substr(from)));
  return text;
}

jinja::Value MessageValue(const ChatMessage& message, size_t context) {
  jinja::Dict fields;
  fields.emplace_back(jinja::Text::Own("role"), jinja::Value::Own(message.role));
  fields.emplace_back(jinja::Text::Own("content"), jinja::Value::String(ContentText(message, context)));
  if (!message.name.empty()) {
    fields.emplace_back(jinja::Text::Own("name"), jinja::Value::String(jinja::Text::FromMessage(message.name)));
  }
  return jinja::Value::OfDict(std::move(fields));
}

std::vector<ChatSegment> CutByOrigin(const jinja::Text& text) {
  std::vector<ChatSegment> segments;
  for (size_t at = 0; at < text.size();) {
    const bool context = text.origin(at) == jinja::Origin::kContext;
    const size_t end = context ? std::min(text.RunEnd(at), at + kContextMarkBytes) : text.RunEnd(at);
    const absl::string_view bytes = text.bytes().substr(at, end - at);
    if (context) {
      segments.push_back({.text = "", .context = MarkedContext(bytes)});
    } else {
      segments.push_back({.text = std::string(bytes), .is_template = text.origin(at) == jinja::Origin::kOwn});
    }
    at = end;
  }
  return segments;
}

std::vector<ChatSegment> RenderPlain(std::span<const ChatMessage> messages, bool add_generation_prompt) {
  std::vector<ChatSegment> segments;
  size_t context = 0;
  for (const ChatMessage& message : messages) {
    std::string role = message.role;
    role[0] = absl::ascii_toupper(static_cast<unsigned char>(role[0]));
    segments.push_back({.text = role + ": ", .is_template = true, .split = true});
    for (ChatSegment& segment : CutByOrigin(ContentText(message, context))) segments.push_back(std::move(segment));
    context += message.contexts.size();
    segments.push_back({.text = "\n", .is_template = true});
  }
  if (add_generation_prompt) segments.push_back({.text = "Assistant:", .is_template = true, .split = true});
  return segments;
}

// bos_token and the like: a text, or a serialised AddedToken.
void TakeSpecialTokens(const Json& config, std::map<std::string, std::string>& tokens) {
  for (const auto& [key, entry] : config.items()) {
    if (!absl::EndsWith(key, "_token")) continue;
    const Json* value = entry.is_object() ? FindValue(entry, "content") : &entry;
    if (value != nullptr && value->is_string()) tokens.emplace(key, value->get<std::string>());
  }
}

// "" where there is none.
absl::StatusOr<std::string> TemplateOf(const Json& config, absl::string_view file) {
  const Json* value = FindValue(config, "chat_template");
  if (value == nullptr) return std::string();
  if (value->is_string()) return value->get<std::string>();
  std::string names;
  if (value->is_array()) {
    for (const Json& entry : *value) {
      PERIGEE_ASSIGN_OR_RETURN(const std::string name, StringOr(entry, "name", ""));
      if (name == "default") return StringOr(entry, "template", "");
      absl::StrAppend(&names, names.empty() ? "" : ", ", name);
    }
    return absl::UnimplementedError(
        absl::StrCat(file, ": \"chat_template\" has no \"default\" among its templates (", names, ")"));
  }
  return absl::InvalidArgumentError(absl::StrCat(file, ": \"chat_template\" is ", Shown(*value), "; a text is needed"));
}

// Null where there is no such file.
absl::StatusOr<Json> ReadConfig(const std::string& folder, const std::string& name) {
  absl::StatusOr<std::string> text = ReadFile(folder + "/" + name, kMaxConfigBytes);
  if (absl::IsNotFound(text.status())) return Json();
  if (!text.ok()) return text.status();
  return ParseJsonObject(*text, name, 32);
}

}  // namespace

struct ChatTemplate::Program {
  std::unique_ptr<jinja::Node> root;
  std::map<std::string, std::string> special_tokens;
};

ChatTemplate::ChatTemplate(std::unique_ptr<Program> program) : program_(std::move(program)) {}
ChatTemplate::~ChatTemplate() = default;

std::unique_ptr<ChatTemplate> ChatTemplate::Plain() { return std::unique_ptr<ChatTemplate>(new ChatTemplate(nullptr)); }

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Parse(absl::string_view source,
                                                                  std::map<std::string, std::string> special_tokens) {
  if (source.size() > kMaxSourceBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the chat template has ", source.size(), " bytes; at most ", kMaxSourceBytes, " are allowed"));
  }
  if (const size_t valid = ValidUtf8Prefix(source); valid != source.size()) {
    return absl::InvalidArgumentError(absl::StrCat("the chat template is not valid UTF-8 at byte ", valid));
  }
  auto root = jinja::ParseTemplate(source);
  if (!root.ok()) return Annotate(root.status(), "the chat template");
  auto program = std::make_unique<Program>();
  program->root = *std::move(root);
  program->special_tokens = std::move(special_tokens);
  return std::unique_ptr<ChatTemplate>(new ChatTemplate(std::move(program)));
}

absl::StatusOr<std::unique_ptr<ChatTemplate>> ChatTemplate::Load(const std::string& folder) {
  PERIGEE_ASSIGN_OR_RETURN(const Json config, ReadConfig(folder, "tokenizer_config.json"));
  PERIGEE_ASSIGN_OR_RETURN(const Json tokens_map, ReadConfig(folder, "special_tokens_map.json"));
  std::map<std::string, std::string> special_tokens;
  for (const Json* json : {&config, &tokens_map}) {
    if (json->is_object()) TakeSpecialTokens(*json, special_tokens);
  }
  absl::StatusOr<std::string> source = ReadFile(folder + "/chat_template.jinja", kMaxSourceBytes);
  if (absl::IsNotFound(source.status())) source = TemplateOf(config, "tokenizer_config.json");
  if (source.ok() && source->empty()) {
    PERIGEE_ASSIGN_OR_RETURN(const Json other, ReadConfig(folder, "chat_template.json"));
    source = TemplateOf(other, "chat_template.json");
  }
  if (!source.ok()) return source.status();
  if (source->empty()) return Plain();
  auto parsed = Parse(*source, std::move(special_tokens));
  if (!parsed.ok()) return Annotate(parsed.status(), folder);
  return parsed;
}

absl::StatusOr<std::vector<ChatSegment>> ChatTemplate::Render(std::span<const ChatMessage> messages,
                                                              const ChatOptions& options) const {
  PERIGEE_RETURN_IF_ERROR(CheckMessages(messages, options.max_output_bytes));
  if (is_plain()) return RenderPlain(messages, options.add_generation_prompt);
  jinja::List list;
  int64_t budget = kBudget;
  size_t contexts = 0;
  for (const ChatMessage& message : messages) {
    list.push_back(MessageValue(message, contexts));
    contexts += message.contexts.size();
    budget += kBudgetPerByte * static_cast<int64_t>(message.content.size() + message.name.size());
  }
  jinja::Dict variables;
  const auto add = [&](absl::string_view name, jinja::Value value) {
    variables.emplace_back(jinja::Text::Own(name), std::move(value));
  };
  add("messages", jinja::Value::OfList(std::move(list)));
  add("add_generation_prompt", jinja::Value::Bool(options.add_generation_prompt));
  add("tools", jinja::Value::None());
  add("documents", jinja::Value::None());
  for (const auto& [name, on] : options.switches) add(name, jinja::Value::Bool(on));
  for (const auto& [name, text] : program_->special_tokens) add(name, jinja::Value::Own(text));
  auto text = jinja::RenderTemplate(*program_->root, std::move(variables), absl::ToUnixSeconds(options.now),
                                    {.budget = budget, .output_bytes = options.max_output_bytes});
  if (!text.ok()) return Annotate(text.status(), "the chat template");
  return CutByOrigin(*text);
}

absl::StatusOr<ChatPrompt> ChatTemplate::Encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                                const ChatOptions& options,
                                                std::span<const std::span<const int32_t>> contexts) const {
  size_t places = 0;
  for (const ChatMessage& message : messages) places += message.contexts.size();
  if (places != contexts.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the messages have ", places, " contexts, but the tokens of ", contexts.size(), " are given"));
  }
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<ChatSegment> segments, Render(messages, options));
  std::vector<PromptPart> parts;
  std::vector<bool> shown(contexts.size());
  for (const ChatSegment& segment : segments) {
    if (segment.context >= 0) {  // Below `places`: marks are made for these only, and kept whole or not at all.
      parts.push_back({.text = {}, .context = contexts[static_cast<size_t>(segment.context)]});
      shown[static_cast<size_t>(segment.context)] = true;
      continue;
    }
    parts.push_back({.text = {.text = segment.text,
                              // The plain form has no special tokens of its own.
                              .parse_special = segment.is_template && !is_plain(),
                              .split = segment.split},
                     .context = {}});
  }
  if (const auto left_out = std::find(shown.begin(), shown.end(), false); left_out != shown.end()) {
    return absl::InvalidArgumentError(absl::StrCat("the model's chat template leaves out context ",
                                                   left_out - shown.begin() + 1, " of the messages' ", shown.size(),
                                                   ": put it into another message"));
  }
  // A model's template writes its beginning of sequence itself.
  const bool add_bos = is_plain() && tokenizer.adds_bos_by_default();
  PERIGEE_ASSIGN_OR_RETURN(PromptTokens encoded, EncodeParts(tokenizer, parts, add_bos));
  ChatPrompt prompt{
      .token_ids = std::move(encoded.token_ids), .branch_points = {}, .contexts = std::move(encoded.contexts)};
  for (const ChatSegment& segment : segments) {
    const auto number = static_cast<size_t>(segment.context);
    if (segment.context >= 0 && !contexts[number].empty()) prompt.context_numbers.push_back(number);
  }
  const std::vector<int64_t>& starts = encoded.starts;
  const auto size = static_cast<int64_t>(prompt.token_ids.size());
  bool seen_message = false;
  for (size_t i = 0; i < segments.size(); ++i) {
    // Where content begins others ask something else; behind the last one they go on, or end it otherwise.
    const bool begins = !segments[i].is_template || segments[i].split;
    const bool ends = seen_message && segments[i].is_template;
    seen_message = seen_message || !segments[i].is_template;
    if ((begins || ends) && starts[i] > 0 && starts[i] < size &&
        (prompt.branch_points.empty() || prompt.branch_points.back() < starts[i])) {
      prompt.branch_points.push_back(starts[i]);
    }
  }
  return prompt;
}

}  // namespace perigee::model
