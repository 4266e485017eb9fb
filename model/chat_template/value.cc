#include "model/chat_template/value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "base/status.h"
#include "nlohmann/json.hpp"

namespace perigee::model::jinja {
namespace {
constexpr int kMaxJsonDepth = 32;
}  // namespace

Text Text::Part(size_t begin, size_t bytes) const {
  Text part;
  part.bytes_ = bytes_.substr(begin, bytes);
  part.marks_ = marks_.substr(begin, bytes);
  return part;
}

size_t Text::RunEnd(size_t byte) const {
  const size_t end = marks_.find_first_not_of(marks_[byte], byte);
  return end == std::string::npos ? marks_.size() : end;
}

void Text::Append(const Text& other) {
  bytes_ += other.bytes_;
  marks_ += other.marks_;
}

Value Value::Undefined(absl::string_view name) {
  Value value;
  value.text_ = std::make_shared<const Text>(Text::Own(name));
  return value;
}

Value Value::Bool(bool boolean) {
  Value value(Kind::kBool);
  value.whole_ = boolean ? 1 : 0;
  return value;
}

Value Value::Int(int64_t whole) {
  Value value(Kind::kInt);
  value.whole_ = whole;
  return value;
}

Value Value::Float(double number) {
  Value value(Kind::kFloat);
  value.number_ = number;
  return value;
}

Value Value::String(Text text) {
  Value value(Kind::kString);
  value.text_ = std::make_shared<const Text>(std::move(text));
  return value;
}

Value Value::OfList(List list) {
  Value value(Kind::kList);
  value.list_ = std::make_shared<const List>(std::move(list));
  return value;
}

Value Value::OfDict(Dict dict) {
  Value value(Kind::kDict);
  value.dict_ = std::make_shared<Dict>(std::move(dict));
  return value;
}

Value Value::Namespace(Dict dict) {
  Value value(Kind::kNamespace);
  value.dict_ = std::make_shared<Dict>(std::move(dict));
  return value;
}

Value Value::Macro(const Node* macro) {
  Value value(Kind::kMacro);
  value.macro_ = macro;
  return value;
}

const Value* Value::Find(absl::string_view key) const {
  for (const auto& [name, value] : *dict_) {
    if (name.bytes() == key) return &value;
  }
  return nullptr;
}

absl::string_view KindName(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return "undefined";
    case Kind::kNone:
      return "None";
    case Kind::kBool:
      return "bool";
    case Kind::kInt:
      return "int";
    case Kind::kFloat:
      return "float";
    case Kind::kString:
      return "str";
    case Kind::kList:
      return "list";
    case Kind::kDict:
      return "dict";
    case Kind::kNamespace:
      return "namespace";
    case Kind::kMacro:
      return "macro";
  }
  return "value";
}

bool Truthy(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kNone:
      return false;
    case Kind::kBool:
    case Kind::kInt:
      return value.whole() != 0;
    case Kind::kFloat:
      return value.number() != 0;
    case Kind::kString:
      return value.text().size() > 0;
    case Kind::kList:
      return !value.list().empty();
    case Kind::kDict:
      return !value.dict().empty();
    case Kind::kNamespace:
    case Kind::kMacro:
      return true;
  }
  return false;
}

absl::StatusOr<bool> Equal(const Value& a, const Value& b, int depth) {
  if (depth == 0) return absl::InvalidArgumentError("values that are compared nest too deep");
  if (a.is_whole() && b.is_whole()) return a.whole() == b.whole();
  if (a.is_number() && b.is_number()) return a.number() == b.number();
  if (a.kind() != b.kind()) return false;
  switch (a.kind()) {
    case Kind::kString:
      return a.bytes() == b.bytes();
    case Kind::kList: {
      if (a.list().size() != b.list().size()) return false;
      for (size_t i = 0; i < a.list().size(); ++i) {
        PERIGEE_ASSIGN_OR_RETURN(const bool same, Equal(a.list()[i], b.list()[i], depth - 1));
        if (!same) return false;
      }
      return true;
    }
    case Kind::kDict: {
      if (a.dict().size() != b.dict().size()) return false;
      for (const auto& [key, value] : a.dict()) {
        const Value* other = b.Find(key.bytes());
        if (other == nullptr) return false;
        PERIGEE_ASSIGN_OR_RETURN(const bool same, Equal(value, *other, depth - 1));
        if (!same) return false;
      }
      return true;
    }
    case Kind::kNamespace:
      return &a.dict() == &b.dict();
    case Kind::kMacro:
      return a.macro() == b.macro();
    default:
      return true;  // Two undefined values, two Nones.
  }
}

absl::StatusOr<bool> Less(const Value& a, const Value& b) {
  if (a.is_whole() && b.is_whole()) return a.whole() < b.whole();
  if (a.is_number() && b.is_number()) return a.number() < b.number();
  // Bytes of UTF-8 sort as the characters do.
  if (a.is_string() && b.is_string()) return a.bytes() < b.bytes();
  return absl::InvalidArgumentError(absl::StrCat("'<' and '>' cannot compare ", KindName(a), " with ", KindName(b)));
}

namespace {
absl::StatusOr<std::string> PrintedFloat(double number) {
  const double size = std::abs(number);
  if (!std::isfinite(number) || size >= 1e16 || (size != 0 && size < 1e-4)) {
    return absl::UnimplementedError(absl::StrCat("printing the number ", number, " is not supported"));
  }
  char buffer[64];
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), number, std::chars_format::fixed).ptr;
  std::string text(buffer, end);
  if (text.find('.') == std::string::npos) text += ".0";
  return text;
}
}  // namespace

absl::StatusOr<Text> Printed(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return Text();
    case Kind::kNone:
      return Text::Own("None");
    case Kind::kBool:
      return Text::Own(value.whole() != 0 ? "True" : "False");
    case Kind::kInt:
      return Text::Own(absl::StrCat(value.whole()));
    case Kind::kFloat: {
      PERIGEE_ASSIGN_OR_RETURN(const std::string text, PrintedFloat(value.number()));
      return Text::Own(text);
    }
    case Kind::kString:
      return value.text();
    default:
      return absl::UnimplementedError(
          absl::StrCat("printing a ", KindName(value), " as Python would is not supported; use tojson"));
  }
}

namespace {

// A JSON string of the text; escapes count as what they stand for.
Text JsonString(const Text& text) {
  Text out = Text::Own("\"");
  for (size_t at = 0; at < text.size();) {
    // Runs of one origin, cut before the bytes of a character only where the origin changes.
    const size_t end = text.RunEnd(at);
    const absl::string_view run = text.bytes().substr(at, end - at);
    std::string dumped =
        nlohmann::json(std::string(run)).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    dumped = dumped.substr(1, dumped.size() - 2);
    out.Append(Text(dumped, text.origin(at)));
    at = end;
  }
  out.AppendOwn("\"");
  return out;
}

void NewLine(Text& out, int indent, int depth) {
  if (indent < 0) return;
  out.AppendOwn("\n" + std::string(static_cast<size_t>(indent) * static_cast<size_t>(depth), ' '));
}

}  // namespace

absl::StatusOr<Text> ToJson(const Value& value, int indent, int depth) {
  if (depth > kMaxJsonDepth) return absl::InvalidArgumentError("tojson: the value nests too deep");
  const absl::string_view comma = indent < 0 ? ", " : ",";
  switch (value.kind()) {
    case Kind::kNone:
      return Text::Own("null");
    case Kind::kBool:
      return Text::Own(value.whole() != 0 ? "true" : "false");
    case Kind::kInt:
    case Kind::kFloat:
      return Printed(value);
    case Kind::kString:
      return JsonString(value.text());
    case Kind::kList: {
      if (value.list().empty()) return Text::Own("[]");
      Text out = Text::Own("[");
      for (size_t i = 0; i < value.list().size(); ++i) {
        if (i > 0) out.AppendOwn(comma);
        NewLine(out, indent, depth + 1);
        PERIGEE_ASSIGN_OR_RETURN(const Text item, ToJson(value.list()[i], indent, depth + 1));
        out.Append(item);
      }
      NewLine(out, indent, depth);
      out.AppendOwn("]");
      return out;
    }
    case Kind::kDict: {
      if (value.dict().empty()) return Text::Own("{}");
      Text out = Text::Own("{");
      for (size_t i = 0; i < value.dict().size(); ++i) {
        if (i > 0) out.AppendOwn(comma);
        NewLine(out, indent, depth + 1);
        out.Append(JsonString(value.dict()[i].first));
        out.AppendOwn(": ");
        PERIGEE_ASSIGN_OR_RETURN(const Text item, ToJson(value.dict()[i].second, indent, depth + 1));
        out.Append(item);
      }
      NewLine(out, indent, depth);
      out.AppendOwn("}");
      return out;
    }
    default:
      return absl::InvalidArgumentError(absl::StrCat("tojson cannot write a value that is ", KindName(value)));
  }
}

namespace {
bool BeginsCharacter(char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; }
}  // namespace

size_t CountCharacters(absl::string_view text) {
  return static_cast<size_t>(std::count_if(text.begin(), text.end(), BeginsCharacter));
}

size_t ByteOfCharacter(absl::string_view text, size_t index) {
  size_t seen = 0;
  for (size_t at = 0; at < text.size(); ++at) {
    if (BeginsCharacter(text[at]) && seen++ == index) return at;
  }
  return text.size();
}

}  // namespace perigee::model::jinja
