// The values of a chat template while it is rendered, with Python's meaning of truth, equality and order.
//
// Text remembers for every byte whether it came out of a message or is the template's own; every operation keeps that
// per byte, so that a user's "<|im_end|>" is never taken for the template's. A context that stands in a message is one
// character, of an origin that nothing else has. Internal to model/chat_template.
#ifndef PERIGEE_MODEL_CHAT_TEMPLATE_VALUE_H_
#define PERIGEE_MODEL_CHAT_TEMPLATE_VALUE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::model::jinja {

enum class Origin : char { kOwn, kMessage, kContext };

// UTF-8 bytes and where each came from.
class Text {
 public:
  Text() = default;
  Text(absl::string_view bytes, Origin origin)
      : bytes_(bytes.data(), bytes.size()), marks_(bytes.size(), static_cast<char>(origin)) {}
  static Text Own(absl::string_view bytes) { return Text(bytes, Origin::kOwn); }
  static Text FromMessage(absl::string_view bytes) { return Text(bytes, Origin::kMessage); }

  absl::string_view bytes() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  Origin origin(size_t byte) const { return static_cast<Origin>(marks_[byte]); }
  // Where the run of one origin ends that begins at `byte`.
  size_t RunEnd(size_t byte) const;

  Text Part(size_t begin, size_t bytes) const;
  void Append(const Text& other);
  void AppendOwn(absl::string_view bytes) { Append(Own(bytes)); }

 private:
  std::string bytes_;
  std::string marks_;  // As long as bytes_: each byte's origin.
};

struct Node;
class Value;
using List = std::vector<Value>;
using Dict = std::vector<std::pair<Text, Value>>;  // In order of insertion; small, searched one by one.

enum class Kind { kUndefined, kNone, kBool, kInt, kFloat, kString, kList, kDict, kNamespace, kMacro };

class Value {
 public:
  Value() = default;  // Undefined.
  static Value Undefined(absl::string_view name);
  static Value None() { return Value(Kind::kNone); }
  static Value Bool(bool value);
  static Value Int(int64_t value);
  static Value Float(double value);
  static Value String(Text text);
  static Value Own(absl::string_view text) { return String(Text::Own(text)); }
  static Value OfList(List list);
  static Value OfDict(Dict dict);
  static Value Namespace(Dict dict);
  static Value Macro(const Node* macro);

  Kind kind() const { return kind_; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_none() const { return kind_ == Kind::kNone; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_list() const { return kind_ == Kind::kList; }
  bool is_dict() const { return kind_ == Kind::kDict; }
  // Python counts bool among the whole numbers.
  bool is_whole() const { return kind_ == Kind::kInt || kind_ == Kind::kBool; }
  bool is_number() const { return is_whole() || kind_ == Kind::kFloat; }

  int64_t whole() const { return whole_; }
  double number() const { return kind_ == Kind::kFloat ? number_ : static_cast<double>(whole_); }
  const Text& text() const { return *text_; }
  absl::string_view bytes() const { return text_->bytes(); }
  const List& list() const { return *list_; }
  const Dict& dict() const { return *dict_; }
  Dict& namespace_fields() const { return *dict_; }
  const Node* macro() const { return macro_; }
  std::string undefined_name() const { return text_ == nullptr ? "a value" : std::string(text_->bytes()); }

  // Null where there is no such key. Of dicts and namespaces.
  const Value* Find(absl::string_view key) const;

 private:
  explicit Value(Kind kind) : kind_(kind) {}
  Kind kind_ = Kind::kUndefined;
  int64_t whole_ = 0;
  double number_ = 0;
  const Node* macro_ = nullptr;
  std::shared_ptr<const Text> text_;
  std::shared_ptr<const List> list_;
  std::shared_ptr<Dict> dict_;  // Only a namespace's is ever changed.
};

// "str", "list", ...: Python's names, for messages.
absl::string_view KindName(const Value& value);

bool Truthy(const Value& value);
// At most `depth` levels are compared; deeper values are errors.
absl::StatusOr<bool> Equal(const Value& a, const Value& b, int depth = 32);
// a < b; for numbers, texts.
absl::StatusOr<bool> Less(const Value& a, const Value& b);
// As `{{ value }}` prints it. UNIMPLEMENTED for lists, dicts and others that Python prints in its own notation.
absl::StatusOr<Text> Printed(const Value& value);

// What json.dumps(value, ensure_ascii=False, indent=...) writes; indent < 0: on one line.
absl::StatusOr<Text> ToJson(const Value& value, int indent, int depth = 0);

// Positions of characters in UTF-8 bytes, which Python counts.
size_t CountCharacters(absl::string_view text);
// The byte at which character `index` begins; the size at or past the end.
size_t ByteOfCharacter(absl::string_view text, size_t index);

}  // namespace perigee::model::jinja

#endif  // PERIGEE_MODEL_CHAT_TEMPLATE_VALUE_H_
