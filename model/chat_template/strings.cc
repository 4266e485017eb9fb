#include "model/chat_template/strings.h"

#include <unicode/locid.h>
#include <unicode/unistr.h>

#include <algorithm>
#include <string>
#include <utility>

#include "model/utf8.h"

namespace perigee::model::jinja {
namespace {

bool BeginsCharacter(char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }

size_t FirstCharacterBytes(absl::string_view text) { return NextUtf8(text).bytes; }

size_t LastCharacterBytes(absl::string_view text) {
  size_t bytes = 1;
  while (bytes < text.size() && bytes < 4 && !BeginsCharacter(text[text.size() - bytes])) ++bytes;
  return bytes;
}

// What str.isspace() says of one character.
bool IsWhiteSpace(absl::string_view c) {
  if (c.size() == 1) {
    const auto byte = static_cast<uint8_t>(c[0]);
    return byte == ' ' || (byte >= 0x09 && byte <= 0x0D) || (byte >= 0x1C && byte <= 0x1F);
  }
  static constexpr absl::string_view kWide[] = {"\u0085", "\u00A0", "\u1680", "\u2000", "\u2001", "\u2002", "\u2003",
                                                "\u2004", "\u2005", "\u2006", "\u2007", "\u2008", "\u2009", "\u200A",
                                                "\u2028", "\u2029", "\u202F", "\u205F", "\u3000"};
  return std::find(std::begin(kWide), std::end(kWide), c) != std::end(kWide);
}

bool InSet(absl::string_view c, std::optional<absl::string_view> set) {
  // A whole character is found only where one begins.
  return set ? set->find(c) != absl::string_view::npos : IsWhiteSpace(c);
}

std::string InCase(absl::string_view text, Case to) {
  icu::UnicodeString wide =
      icu::UnicodeString::fromUTF8(icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
  if (to == Case::kUpper) {
    wide.toUpper(icu::Locale::getRoot());
  } else {
    wide.toLower(icu::Locale::getRoot());
  }
  std::string out;
  wide.toUTF8String(out);
  return out;
}

}  // namespace

Text Strip(const Text& text, std::optional<absl::string_view> set, bool left, bool right) {
  absl::string_view rest = text.bytes();
  size_t begin = 0;
  while (left && !rest.empty()) {
    const size_t bytes = FirstCharacterBytes(rest);
    if (!InSet(rest.substr(0, bytes), set)) break;
    rest.remove_prefix(bytes);
    begin += bytes;
  }
  while (right && !rest.empty()) {
    const size_t bytes = LastCharacterBytes(rest);
    if (!InSet(rest.substr(rest.size() - bytes), set)) break;
    rest.remove_suffix(bytes);
  }
  return text.Part(begin, rest.size());
}

Text ToCase(const Text& text, Case to) {
  Text out;
  for (size_t at = 0; at < text.size();) {  // Runs of one origin.
    const size_t end = text.RunEnd(at);
    const std::string cased = InCase(text.bytes().substr(at, end - at), to);
    out.Append(Text(cased, text.origin(at)));
    at = end;
  }
  return out;
}

Text Capitalized(const Text& text) {
  if (text.size() == 0) return text;
  const size_t first = FirstCharacterBytes(text.bytes());
  Text out = ToCase(text.Part(0, first), Case::kUpper);
  out.Append(ToCase(text.Part(first, text.size() - first), Case::kLower));
  return out;
}

Text Titled(const Text& text) {
  constexpr absl::string_view kBetween = "-({[<";
  const auto is_between = [&](absl::string_view c) {
    return IsWhiteSpace(c) || (c.size() == 1 && kBetween.find(c[0]) != absl::string_view::npos);
  };
  Text out;
  size_t word = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = FirstCharacterBytes(text.bytes().substr(at));
    if (is_between(text.bytes().substr(at, bytes))) {
      out.Append(Capitalized(text.Part(word, at - word)));
      out.Append(text.Part(at, bytes));
      word = at + bytes;
    }
    at += bytes;
  }
  out.Append(Capitalized(text.Part(word, text.size() - word)));
  return out;
}

namespace {

List SplitAtWhiteSpace(const Text& text, int64_t max_splits, bool from_right) {
  List words;
  const Text rest = Strip(text, std::nullopt, !from_right, from_right);
  // Word borders first, then those that max_splits leaves.
  std::vector<std::pair<size_t, size_t>> found;
  size_t begin = 0;
  bool inside = false;
  for (size_t at = 0; at < rest.size();) {
    const size_t bytes = FirstCharacterBytes(rest.bytes().substr(at));
    const bool space = IsWhiteSpace(rest.bytes().substr(at, bytes));
    if (space && inside) found.emplace_back(begin, at);
    if (!space && !inside) begin = at;
    inside = !space;
    at += bytes;
  }
  if (inside) found.emplace_back(begin, rest.size());
  const bool all = max_splits < 0 || found.size() <= static_cast<size_t>(max_splits) + 1;
  if (all) {
    for (const auto& [from, to] : found) words.push_back(Value::String(rest.Part(from, to - from)));
    return words;
  }
  const auto splits = static_cast<size_t>(max_splits);
  if (from_right) {
    const size_t end = found[found.size() - splits - 1].second;
    words.push_back(Value::String(rest.Part(0, end)));
    for (size_t i = found.size() - splits; i < found.size(); ++i) {
      words.push_back(Value::String(rest.Part(found[i].first, found[i].second - found[i].first)));
    }
  } else {
    for (size_t i = 0; i < splits; ++i) {
      words.push_back(Value::String(rest.Part(found[i].first, found[i].second - found[i].first)));
    }
    words.push_back(Value::String(rest.Part(found[splits].first, rest.size() - found[splits].first)));
  }
  return words;
}

}  // namespace

List Split(const Text& text, std::optional<absl::string_view> separator, int64_t max_splits, bool from_right) {
  if (!separator) return SplitAtWhiteSpace(text, max_splits, from_right);
  List parts;
  if (from_right) {
    size_t end = text.size();
    while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
      const size_t found = text.bytes().substr(0, end).rfind(*separator);
      if (found == absl::string_view::npos) break;
      const size_t begin = found + separator->size();
      parts.push_back(Value::String(text.Part(begin, end - begin)));
      end = found;
    }
    parts.push_back(Value::String(text.Part(0, end)));
    std::reverse(parts.begin(), parts.end());
    return parts;
  }
  size_t begin = 0;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t found = text.bytes().find(*separator, begin);
    if (found == absl::string_view::npos) break;
    parts.push_back(Value::String(text.Part(begin, found - begin)));
    begin = found + separator->size();
  }
  parts.push_back(Value::String(text.Part(begin, text.size() - begin)));
  return parts;
}

Text Replace(const Text& text, absl::string_view old_text, const Text& new_text, int64_t max_count) {
  Text out;
  size_t begin = 0;
  for (int64_t count = 0; max_count < 0 || count < max_count; ++count) {
    const size_t found = text.bytes().find(old_text, begin);
    if (found == absl::string_view::npos) break;
    out.Append(text.Part(begin, found - begin));
    out.Append(new_text);
    begin = found + old_text.size();
  }
  out.Append(text.Part(begin, text.size() - begin));
  return out;
}

List Characters(const Text& text) {
  List characters;
  for (size_t at = 0; at < text.size();) {
    const size_t bytes = FirstCharacterBytes(text.bytes().substr(at));
    characters.push_back(Value::String(text.Part(at, bytes)));
    at += bytes;
  }
  return characters;
}

}  // namespace perigee::model::jinja
