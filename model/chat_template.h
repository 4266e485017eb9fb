// A conversation as the text that the model was trained on, by the model's own chat template (a Jinja template in its
// folder, as Hugging Face's transformers reads it).
//
// There is an interpreter here of the part of Jinja that such templates use, with transformers' settings. What it does
// not know is refused by name (UNIMPLEMENTED), most of it when the template is read, and never rendered differently.
//
// Users' text cannot write special tokens. While rendering, every byte remembers whether it is the template's own or
// came out of a message's content or name; slicing, stripping, joining, replacing and changing case keep that, and only
// the template's own bytes may become special tokens when the result is encoded. Roles are one of a few known words and
// count as the template's, since templates build special tokens from them.
//
// A message may have contexts in it: texts that are registered, tokenised alone, and computed alone. While rendering
// each is one character that no user's text and no template can write, because its bytes have an origin of their own.
//
// Immutable: any thread may call.
#ifndef PERIGEE_MODEL_CHAT_TEMPLATE_H_
#define PERIGEE_MODEL_CHAT_TEMPLATE_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "model/prompt_parts.h"
#include "model/tokenizer.h"

namespace perigee::model {

struct ChatMessage {
  std::string role;     // system, developer, user, assistant, tool, function or ipython.
  std::string content;  // UTF-8.
  std::string name;     // "": the template sees none.
  // Bytes of the content before which a context stands, ascending; several may stand at one. Contexts are counted
  // through all messages.
  std::vector<size_t> contexts = {};
};

struct ChatSegment {
  std::string text;
  bool is_template = false;  // The template's own; else a user's.
  bool split = false;        // No token crosses its beginning.
  int context = -1;          // 0 and up: this context, instead of the text.
};

struct ChatPrompt {
  std::vector<int32_t> token_ids;
  // Token positions at which other conversations are expected to go on differently: where a message's content begins or
  // the last one ends, moved back to the nearest special token or split. Ascending, above 0 and below the size.
  std::vector<int64_t> branch_points;
  std::vector<TokenSpan> contexts = {};  // Where they stand.
  // And which each of them is: templates may put messages in another order, and show one twice.
  std::vector<size_t> context_numbers = {};
};

struct ChatOptions {
  bool add_generation_prompt = true;  // The beginning of the assistant's answer.
  // What the template sees besides, e.g. enable_thinking.
  std::map<std::string, bool> switches;
  absl::Time now = absl::UnixEpoch();  // Of strftime_now, in UTC.
  size_t max_output_bytes = size_t{16} << 20;
};

class ChatTemplate {
 public:
  // From a model folder: chat_template.jinja, else chat_template of tokenizer_config.json (where that is a list, its
  // "default"), else of chat_template.json, else Plain().
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Load(const std::string& folder);

  // `special_tokens`: what the template can name, e.g. "bos_token" -> "<s>". At most 1 MiB of source.
  static absl::StatusOr<std::unique_ptr<ChatTemplate>> Parse(absl::string_view source,
                                                             std::map<std::string, std::string> special_tokens);

  // For models that have none, with no special tokens but the beginning of sequence, where the tokenizer adds one:
  //   System: You are brief.
  //   User: Hello
  //   Assistant:
  // each message a line. The answer begins with the space.
  static std::unique_ptr<ChatTemplate> Plain();

  // INVALID_ARGUMENT: roles or an order that the template refuses, no messages, invalid UTF-8, too much text.
  absl::StatusOr<std::vector<ChatSegment>> Render(std::span<const ChatMessage> messages,
                                                  const ChatOptions& options = {}) const;

  // `contexts`: the tokens of each context in the messages. INVALID_ARGUMENT where the template leaves one out.
  absl::StatusOr<ChatPrompt> Encode(const Tokenizer& tokenizer, std::span<const ChatMessage> messages,
                                    const ChatOptions& options = {},
                                    std::span<const std::span<const int32_t>> contexts = {}) const;

  bool is_plain() const { return program_ == nullptr; }
  ~ChatTemplate();
  ChatTemplate(const ChatTemplate&) = delete;

 private:
  struct Program;
  explicit ChatTemplate(std::unique_ptr<Program> program);
  std::unique_ptr<Program> program_;  // Null: the plain one.
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_CHAT_TEMPLATE_H_
