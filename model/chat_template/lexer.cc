#include "model/chat_template/lexer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "base/status.h"

namespace perigee::model::jinja {
namespace {

bool IsNameStart(char c) { return absl::ascii_isalpha(static_cast<unsigned char>(c)) || c == '_'; }
bool IsNameByte(char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_'; }
bool IsDigit(char c) { return c >= '0' && c <= '9'; }
bool IsSpace(char c) { return absl::ascii_isspace(static_cast<unsigned char>(c)); }

void AppendUtf8(uint32_t point, std::string& out) {
  if (point < 0x80) {
    out.push_back(static_cast<char>(point));
  } else if (point < 0x800) {
    out.push_back(static_cast<char>(0xC0 | point >> 6));
    out.push_back(static_cast<char>(0x80 | (point & 0x3F)));
  } else if (point < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | point >> 12));
    out.push_back(static_cast<char>(0x80 | (point >> 6 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (point & 0x3F)));
  } else {
    out.push_back(static_cast<char>(0xF0 | point >> 18));
    out.push_back(static_cast<char>(0x80 | (point >> 12 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (point >> 6 & 0x3F)));
    out.push_back(static_cast<char>(0x80 | (point & 0x3F)));
  }
}

class Lexer {
 public:
  explicit Lexer(absl::string_view source) : source_(source) {}

  absl::StatusOr<std::vector<Token>> Run() {
    while (at_ < source_.size()) PERIGEE_RETURN_IF_ERROR(TextAndTag());
    return std::move(tokens_);
  }

 private:
  absl::Status Error(absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat("line ", line_, ": ", what));
  }
  bool At(absl::string_view text) const { return absl::StartsWith(source_.substr(at_), text); }
  void Advance(size_t bytes) {
    line_ += static_cast<int>(std::count(source_.begin() + static_cast<ptrdiff_t>(at_),
                                         source_.begin() + static_cast<ptrdiff_t>(at_ + bytes), '\n'));
    at_ += bytes;
  }
  void SkipSpace() {
    while (at_ < source_.size() && IsSpace(source_[at_])) Advance(1);
  }
  Token& Add(Token::Kind kind, std::string text = {}) {
    tokens_.push_back({.kind = kind, .text = std::move(text), .line = line_});
    return tokens_.back();
  }

  // Text up to the next tag, without what the tag's whitespace control takes from its end; then the tag.
  absl::Status TextAndTag() {
    size_t tag = at_;
    for (;; ++tag) {
      tag = source_.find('{', tag);
      if (tag == absl::string_view::npos || tag + 1 >= source_.size()) {
        tag = source_.size();
        break;
      }
      if (source_[tag + 1] == '{' || source_[tag + 1] == '%' || source_[tag + 1] == '#') break;
    }
    absl::string_view text = source_.substr(at_, tag - at_);
    if (tag == source_.size()) {
      if (!text.empty()) Add(Token::Kind::kText, std::string(text));
      Advance(text.size());
      return absl::OkStatus();
    }
    const char kind = source_[tag + 1];
    const char sign = tag + 2 < source_.size() ? source_[tag + 2] : '\0';
    const size_t text_bytes = text.size();
    if (sign == '-') {
      while (!text.empty() && IsSpace(text.back())) text.remove_suffix(1);
    } else if (sign != '+' && kind != '{') {
      const size_t newline = text.rfind('\n');
      const size_t line_begin = newline == absl::string_view::npos ? 0 : newline + 1;
      if (line_begin > 0 || line_starting_) {
        const absl::string_view rest = text.substr(line_begin);
        if (std::all_of(rest.begin(), rest.end(), IsSpace)) text = text.substr(0, line_begin);
      }
    }
    if (!text.empty()) Add(Token::Kind::kText, std::string(text));
    Advance(text_bytes + 2);
    const bool has_sign = sign == '-' || sign == '+';
    if (kind == '#') return Comment();
    if (has_sign) Advance(1);
    Add(kind == '{' ? Token::Kind::kPrintBegin : Token::Kind::kBlockBegin);
    return Tag(kind == '{' ? "}}" : "%}", kind == '{');
  }

  absl::Status Comment() {
    const size_t end = source_.find("#}", at_);
    if (end == absl::string_view::npos) return Error("a comment has no #}");
    const char sign = end > at_ ? source_[end - 1] : '\0';
    Advance(end + 2 - at_);
    AfterTag(sign, /*trim_newline=*/true);
    return absl::OkStatus();
  }

  // What the end of a tag takes of the text behind it.
  void AfterTag(char sign, bool trim_newline) {
    const size_t begin = at_;
    if (sign == '-') {
      SkipSpace();
    } else if (sign != '+' && trim_newline && At("\n")) {
      Advance(1);
    }
    line_starting_ = at_ > begin && source_[at_ - 1] == '\n';
  }

  absl::Status Tag(absl::string_view end, bool print) {
    std::string open;  // Brackets that are to be closed.
    for (;;) {
      SkipSpace();
      if (at_ >= source_.size()) return Error(absl::StrCat("a tag has no ", end));
      if (open.empty()) {
        const char sign = source_[at_];
        const bool has_sign = sign == '-' || (sign == '+' && !print);
        if (absl::StartsWith(source_.substr(at_ + (has_sign ? 1 : 0)), end)) {
          Add(print ? Token::Kind::kPrintEnd : Token::Kind::kBlockEnd);
          Advance(end.size() + (has_sign ? 1 : 0));
          AfterTag(has_sign ? sign : '\0', !print);
          return absl::OkStatus();
        }
      }
      PERIGEE_RETURN_IF_ERROR(OneToken(open));
    }
  }

  absl::Status OneToken(std::string& open) {
    const char c = source_[at_];
    if (IsNameStart(c)) {
      size_t end = at_;
      while (end < source_.size() && IsNameByte(source_[end])) ++end;
      Add(Token::Kind::kName, std::string(source_.substr(at_, end - at_)));
      Advance(end - at_);
      return absl::OkStatus();
    }
    if (IsDigit(c)) return Number();
    if (c == '\'' || c == '"') return String(c);
    for (const absl::string_view wide : {"==", "!=", "<=", ">=", "//", "**"}) {
      if (!At(wide)) continue;
      Add(Token::Kind::kOperator, std::string(wide));
      Advance(2);
      return absl::OkStatus();
    }
    if (absl::string_view("+-*/%~<>=.:|,;()[]{}").find(c) == absl::string_view::npos) {
      return Error(absl::StrCat("the character '", absl::string_view(&c, 1), "' is not expected here"));
    }
    if (c == '(' || c == '[' || c == '{') open.push_back(c == '(' ? ')' : c == '[' ? ']' : '}');
    if (c == ')' || c == ']' || c == '}') {
      if (open.empty() || open.back() != c)
        return Error(absl::StrCat("'", absl::string_view(&c, 1), "' closes nothing"));
      open.pop_back();
    }
    Add(Token::Kind::kOperator, std::string(1, c));
    Advance(1);
    return absl::OkStatus();
  }

  absl::Status Number() {
    size_t end = at_;
    while (end < source_.size() && IsDigit(source_[end])) ++end;
    bool is_float = end + 1 < source_.size() && source_[end] == '.' && IsDigit(source_[end + 1]);
    if (is_float) {
      ++end;
      while (end < source_.size() && IsDigit(source_[end])) ++end;
    }
    const absl::string_view digits = source_.substr(at_, end - at_);
    if (end < source_.size() && IsNameByte(source_[end])) {
      return absl::UnimplementedError(absl::StrCat("line ", line_, ": the number ", digits,
                                                   absl::string_view(&source_[end], 1), "... is not supported"));
    }
    Token& token = Add(is_float ? Token::Kind::kFloat : Token::Kind::kInt, std::string(digits));
    const bool good = is_float ? absl::SimpleAtod(digits, &token.number) : absl::SimpleAtoi(digits, &token.whole);
    if (!good) return Error(absl::StrCat("the number ", digits, " is too large"));
    Advance(digits.size());
    return absl::OkStatus();
  }

  absl::Status String(char quote) {
    size_t end = at_ + 1;
    while (end < source_.size() && source_[end] != quote) end += source_[end] == '\\' ? 2 : 1;
    if (end >= source_.size()) return Error("a string does not end");
    std::string out;
    PERIGEE_RETURN_IF_ERROR(Unescape(source_.substr(at_ + 1, end - at_ - 1), out));
    Add(Token::Kind::kString, std::move(out));
    Advance(end + 1 - at_);
    return absl::OkStatus();
  }

  // Python's escapes. An unknown one stays as it is written.
  absl::Status Unescape(absl::string_view raw, std::string& out) const {
    for (size_t i = 0; i < raw.size(); ++i) {
      if (raw[i] != '\\' || i + 1 >= raw.size()) {
        out.push_back(raw[i]);
        continue;
      }
      const char c = raw[++i];
      constexpr absl::string_view kNames = "ntr\\'\"abfv", kBytes = "\n\t\r\\'\"\a\b\f\v";
      if (const size_t known = kNames.find(c); known != absl::string_view::npos) {
        out.push_back(kBytes[known]);
      } else if (c == '\n') {
        continue;
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        uint32_t point = 0;
        const absl::string_view hex = raw.substr(i + 1, digits);
        if (hex.size() != digits ||
            !std::all_of(hex.begin(), hex.end(), [](unsigned char d) { return absl::ascii_isxdigit(d); }) ||
            !absl::SimpleHexAtoi(hex, &point) || point > 0x10FFFF || (point >= 0xD800 && point < 0xE000)) {
          return Error(absl::StrCat("the escape \\", absl::string_view(&c, 1), hex, " is no character"));
        }
        AppendUtf8(point, out);
        i += digits;
      } else if (c == 'N' || IsDigit(c)) {
        return absl::UnimplementedError(
            absl::StrCat("line ", line_, ": the escape \\", absl::string_view(&c, 1), " is not supported"));
      } else {
        out.push_back('\\');
        out.push_back(c);
      }
    }
    return absl::OkStatus();
  }

  absl::string_view source_;
  size_t at_ = 0;
  int line_ = 1;
  bool line_starting_ = true;
  std::vector<Token> tokens_;
};

}  // namespace

absl::StatusOr<std::vector<Token>> Tokenize(absl::string_view source) {
  std::string normal = absl::StrReplaceAll(source, {{"\r\n", "\n"}, {"\r", "\n"}});
  if (absl::EndsWith(normal, "\n")) normal.pop_back();
  return Lexer(normal).Run();
}

}  // namespace perigee::model::jinja
