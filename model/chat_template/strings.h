// Python's operations on texts, each byte keeping its origin. Internal to model/chat_template.
#ifndef PERIGEE_MODEL_CHAT_TEMPLATE_STRINGS_H_
#define PERIGEE_MODEL_CHAT_TEMPLATE_STRINGS_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"
#include "model/chat_template/value.h"

namespace perigee::model::jinja {

// Without the characters of `set` (Python's white space where there is none) at the chosen ends.
Text Strip(const Text& text, std::optional<absl::string_view> set, bool left, bool right);
enum class Case { kUpper, kLower };
Text ToCase(const Text& text, Case to);
// The first character in upper case, the others in lower case.
Text Capitalized(const Text& text);
// Every word so.
Text Titled(const Text& text);
// `separator` must not be empty; without one: between runs of white space. max_splits < 0: all; from the right where
// asked.
List Split(const Text& text, std::optional<absl::string_view> separator, int64_t max_splits, bool from_right);
// `old_text` must not be empty. max_count < 0: all.
Text Replace(const Text& text, absl::string_view old_text, const Text& new_text, int64_t max_count);
// One value a character.
List Characters(const Text& text);

}  // namespace perigee::model::jinja

#endif  // PERIGEE_MODEL_CHAT_TEMPLATE_STRINGS_H_
