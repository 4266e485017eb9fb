// UTF-8, one character at a time, by the Unicode standard's rules (no overlong forms, no surrogates, nothing above
// U+10FFFF).
#ifndef PERIGEE_MODEL_UTF8_H_
#define PERIGEE_MODEL_UTF8_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"

namespace perigee::model {

enum class Utf8Kind {
  kCharacter,
  kInvalid,
  kIncomplete
};  // kIncomplete: the text ends inside what may become a character

struct Utf8Step {
  Utf8Kind kind;
  size_t bytes;  // at least 1: the character, or the "maximal subpart" that one U+FFFD stands for
};

// What `text` (not empty) begins with.
Utf8Step NextUtf8(absl::string_view text);

// Replaces every maximal invalid or incomplete part by U+FFFD: always valid UTF-8.
std::string Utf8Lossy(absl::string_view bytes);

// The length of the longest prefix that is whole valid characters.
size_t ValidUtf8Prefix(absl::string_view text);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_UTF8_H_
