// Cuts a chat template into text and the tokens inside of {{ }} and {% %}, with Jinja's rules for whitespace as
// transformers sets them: trim_blocks, lstrip_blocks, no trailing newline. Internal to model/chat_template.
#ifndef PERIGEE_MODEL_CHAT_TEMPLATE_LEXER_H_
#define PERIGEE_MODEL_CHAT_TEMPLATE_LEXER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::model::jinja {

struct Token {
  enum class Kind { kText, kPrintBegin, kPrintEnd, kBlockBegin, kBlockEnd, kName, kString, kInt, kFloat, kOperator };
  Kind kind = Kind::kText;
  std::string text;  // Of strings: what they stand for.
  int64_t whole = 0;
  double number = 0;
  int line = 1;
};

// INVALID_ARGUMENT, with the line, for what is no template.
absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source);

}  // namespace perigee::model::jinja

#endif  // PERIGEE_MODEL_CHAT_TEMPLATE_LEXER_H_
