#include "model/chat_template/builtins.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <ctime>
#include <limits>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "base/status.h"
#include "model/chat_template/strings.h"

namespace perigee::model::jinja {
namespace {

constexpr absl::string_view kFilters[] = {
    "abs",     "capitalize", "count",  "d",          "default", "first", "float",  "int",        "items",
    "join",    "last",       "length", "list",       "lower",   "map",   "reject", "rejectattr", "replace",
    "reverse", "safe",       "select", "selectattr", "string",  "title", "tojson", "trim",       "upper"};
constexpr absl::string_view kTests[] = {"boolean",  "defined", "divisibleby", "eq",      "equalto", "even",
                                        "false",    "float",   "ge",          "gt",      "in",      "integer",
                                        "iterable", "le",      "lt",          "mapping", "ne",      "none",
                                        "number",   "odd",     "sequence",    "string",  "true",    "undefined"};
constexpr absl::string_view kMethods[] = {"capitalize",   "count",   "cycle",  "endswith", "find",   "get",
                                          "items",        "join",    "keys",   "lower",    "lstrip", "removeprefix",
                                          "removesuffix", "replace", "rsplit", "rstrip",   "split",  "startswith",
                                          "strip",        "title",   "upper",  "values"};
constexpr absl::string_view kFunctions[] = {"dict", "namespace", "raise_exception", "range", "strftime_now"};

template <size_t N>
bool OneOf(const absl::string_view (&names)[N], absl::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

// The arguments by the names of the parameters; null for those that are not given.
class Bound {
 public:
  static absl::StatusOr<Bound> Bind(absl::string_view what, const Arguments& arguments,
                                    std::initializer_list<absl::string_view> names, size_t required = 0) {
    Bound bound;
    if (arguments.positional.size() > names.size()) {
      return absl::UnimplementedError(absl::StrCat(what, " with ", arguments.positional.size(),
                                                   " arguments is not supported; at most ", names.size(), " are"));
    }
    for (size_t i = 0; i < arguments.positional.size(); ++i) bound.values_[i] = &arguments.positional[i];
    for (const auto& [name, value] : arguments.named) {
      const auto at = std::find(names.begin(), names.end(), name);
      if (at == names.end()) {
        return absl::UnimplementedError(absl::StrCat(what, ": the argument \"", name, "\" is not supported"));
      }
      bound.values_[static_cast<size_t>(at - names.begin())] = &value;
    }
    for (size_t i = 0; i < required; ++i) {
      if (bound.values_[i] == nullptr) {
        return absl::InvalidArgumentError(absl::StrCat(what, " needs at least ", required, " arguments"));
      }
    }
    bound.what_ = std::string(what);
    return bound;
  }

  const Value* operator[](size_t i) const { return values_[i]; }

  absl::StatusOr<int64_t> Whole(size_t i, int64_t fallback) const {
    if (values_[i] == nullptr || values_[i]->is_none()) return fallback;
    if (!values_[i]->is_whole()) return WrongKind(i, "a whole number");
    return values_[i]->whole();
  }
  absl::StatusOr<Text> String(size_t i) const {
    if (!values_[i]->is_string()) return WrongKind(i, "a text");
    return values_[i]->text();
  }

 private:
  absl::Status WrongKind(size_t i, absl::string_view wanted) const {
    return absl::InvalidArgumentError(
        absl::StrCat(what_, ": argument ", i + 1, " is ", KindName(*values_[i]), "; ", wanted, " is needed"));
  }
  std::array<const Value*, 4> values_{};
  std::string what_;
};

absl::StatusOr<Value> Items(const Value& value) {
  if (value.is_undefined()) return Value::OfList({});
  if (!value.is_dict()) return absl::InvalidArgumentError(absl::StrCat("a ", KindName(value), " has no items"));
  List items;
  for (const auto& [key, item] : value.dict()) items.push_back(Value::OfList({Value::String(key), item}));
  return Value::OfList(std::move(items));
}

// "a.b.0" of a value.
absl::StatusOr<Value> Path(Value value, absl::string_view path) {
  for (;;) {
    const size_t dot = path.find('.');
    const absl::string_view part = path.substr(0, dot);
    int64_t index = 0;
    const Value key = absl::SimpleAtoi(part, &index) ? Value::Int(index) : Value::Own(part);
    PERIGEE_ASSIGN_OR_RETURN(value, GetItem(value, key));
    if (dot == absl::string_view::npos) return value;
    path.remove_prefix(dot + 1);
  }
}

absl::StatusOr<Value> Mapped(const List& list, const Arguments& arguments, Budget& budget) {
  List out;
  if (!arguments.positional.empty()) {
    const Value& filter = arguments.positional[0];
    if (!filter.is_string() || !IsFilter(filter.bytes())) {
      return absl::UnimplementedError(absl::StrCat(
          "map with the filter \"", filter.is_string() ? filter.bytes() : KindName(filter), "\" is not supported"));
    }
    if (filter.bytes() == "map") return absl::UnimplementedError("map inside of map is not supported");
    Arguments rest = arguments;
    rest.positional.erase(rest.positional.begin());
    for (const Value& item : list) {
      PERIGEE_ASSIGN_OR_RETURN(Value mapped, ApplyFilter(filter.bytes(), item, rest, budget));
      out.push_back(std::move(mapped));
    }
    return Value::OfList(std::move(out));
  }
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("map", arguments, {"attribute", "default"}, 1));
  PERIGEE_ASSIGN_OR_RETURN(const Text attribute, bound.String(0));
  for (const Value& item : list) {
    PERIGEE_RETURN_IF_ERROR(budget.Charge(1));
    PERIGEE_ASSIGN_OR_RETURN(Value value, Path(item, attribute.bytes()));
    if (value.is_undefined() && bound[1] != nullptr) value = *bound[1];
    out.push_back(std::move(value));
  }
  return Value::OfList(std::move(out));
}

// select, reject, selectattr, rejectattr.
absl::StatusOr<Value> Selected(absl::string_view name, const List& list, const Arguments& arguments, Budget& budget) {
  const bool by_attribute = absl::EndsWith(name, "attr");
  const bool keep = absl::StartsWith(name, "select");
  if (!arguments.named.empty()) {
    return absl::UnimplementedError(absl::StrCat(name, " with a named argument is not supported"));
  }
  Arguments rest = arguments;
  std::string attribute, test;
  for (std::string* word : {&attribute, &test}) {
    if ((word == &attribute && !by_attribute) || rest.positional.empty()) continue;
    if (!rest.positional[0].is_string()) return absl::InvalidArgumentError(absl::StrCat(name, " needs a name"));
    *word = std::string(rest.positional[0].bytes());
    rest.positional.erase(rest.positional.begin());
  }
  List out;
  for (const Value& item : list) {
    PERIGEE_RETURN_IF_ERROR(budget.Charge(1));
    Value tested = item;
    if (by_attribute) {
      PERIGEE_ASSIGN_OR_RETURN(tested, Path(item, attribute));
    }
    bool passes = Truthy(tested);
    if (!test.empty()) {
      PERIGEE_ASSIGN_OR_RETURN(passes, ApplyTest(test, tested, rest));
    }
    if (passes == keep) out.push_back(item);
  }
  return Value::OfList(std::move(out));
}

absl::StatusOr<Value> ToInt(const Value& input, const Arguments& arguments) {
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("int", arguments, {"default"}));
  const Value fallback = bound[0] == nullptr ? Value::Int(0) : *bound[0];
  if (input.is_whole()) return Value::Int(input.whole());
  double number = std::numeric_limits<double>::quiet_NaN();
  int64_t whole = 0;
  if (input.is_string() && absl::SimpleAtoi(input.bytes(), &whole)) return Value::Int(whole);
  if (input.is_string() && !absl::SimpleAtod(input.bytes(), &number)) return fallback;
  if (input.kind() == Kind::kFloat) number = input.number();
  if (!(std::abs(number) < 9e18)) return fallback;
  return Value::Int(static_cast<int64_t>(number));
}

absl::StatusOr<Value> ToFloat(const Value& input, const Arguments& arguments) {
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("float", arguments, {"default"}));
  double number = 0;
  if (input.is_number()) return Value::Float(input.number());
  if (input.is_string() && absl::SimpleAtod(input.bytes(), &number)) return Value::Float(number);
  return bound[0] == nullptr ? Value::Float(0) : *bound[0];
}

absl::StatusOr<Value> Default(const Value& input, const Arguments& arguments) {
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("default", arguments, {"default_value", "boolean"}));
  const bool also_false = bound[1] != nullptr && Truthy(*bound[1]);
  if (!input.is_undefined() && !(also_false && !Truthy(input))) return input;
  return bound[0] == nullptr ? Value::Own("") : *bound[0];
}

absl::StatusOr<Value> Json(const Value& input, const Arguments& arguments, Budget& budget) {
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("tojson", arguments, {"ensure_ascii", "indent"}));
  if (bound[0] != nullptr && bound[0]->kind() != Kind::kBool) {
    // Jinja's own tojson has the indentation first, transformers' has it second.
    return absl::UnimplementedError("tojson with an indentation that is not named is not supported; write indent=...");
  }
  if (bound[0] != nullptr && Truthy(*bound[0])) {
    return absl::UnimplementedError("tojson with ensure_ascii=true is not supported");
  }
  PERIGEE_ASSIGN_OR_RETURN(const int64_t indent, bound.Whole(1, -1));
  if (indent > 16) return absl::UnimplementedError(absl::StrCat("tojson with indent=", indent, " is not supported"));
  PERIGEE_ASSIGN_OR_RETURN(Text text, ToJson(input, static_cast<int>(std::max<int64_t>(indent, -1))));
  PERIGEE_RETURN_IF_ERROR(budget.ChargeBytes(text.size()));
  return Value::String(std::move(text));
}

absl::StatusOr<Value> Replaced(const Text& text, const Arguments& arguments, Budget& budget) {
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("replace", arguments, {"old", "new", "count"}, 2));
  PERIGEE_ASSIGN_OR_RETURN(const Text old_text, bound.String(0));
  PERIGEE_ASSIGN_OR_RETURN(const Text new_text, bound.String(1));
  PERIGEE_ASSIGN_OR_RETURN(const int64_t count, bound.Whole(2, -1));
  if (old_text.size() == 0) return absl::UnimplementedError("replacing an empty text is not supported");
  PERIGEE_RETURN_IF_ERROR(budget.ChargeBytes(text.size() / old_text.size() * new_text.size() + text.size()));
  return Value::String(Replace(text, old_text.bytes(), new_text, count));
}

absl::StatusOr<Value> Stripped(const Text& text, const Arguments& arguments, bool left, bool right) {
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("strip", arguments, {"chars"}));
  if (bound[0] == nullptr || bound[0]->is_none()) return Value::String(Strip(text, std::nullopt, left, right));
  PERIGEE_ASSIGN_OR_RETURN(const Text set, bound.String(0));
  return Value::String(Strip(text, set.bytes(), left, right));
}

absl::Status NoArguments(absl::string_view what, const Arguments& arguments) {
  return Bound::Bind(what, arguments, {}).status();
}

// The filters that take a text and nothing else.
absl::StatusOr<Value> Cased(absl::string_view name, const Text& text, const Arguments& arguments) {
  PERIGEE_RETURN_IF_ERROR(NoArguments(name, arguments));
  if (name == "upper") return Value::String(ToCase(text, Case::kUpper));
  if (name == "lower") return Value::String(ToCase(text, Case::kLower));
  if (name == "title") return Value::String(Titled(text));
  return Value::String(Capitalized(text));
}

bool IsCasing(absl::string_view name) {
  return name == "upper" || name == "lower" || name == "title" || name == "capitalize";
}

}  // namespace

bool IsFilter(absl::string_view name) { return OneOf(kFilters, name); }
bool IsTest(absl::string_view name) { return OneOf(kTests, name); }
bool IsMethod(absl::string_view name) { return OneOf(kMethods, name); }
bool IsFunction(absl::string_view name) { return OneOf(kFunctions, name); }

absl::Status Budget::Charge(int64_t units) {
  left_ -= units;
  if (left_ < 0) return absl::InvalidArgumentError("rendering the chat template takes too many steps or too much text");
  return absl::OkStatus();
}

absl::StatusOr<Value> ApplyFilter(absl::string_view name, const Value& input, const Arguments& arguments,
                                  Budget& budget) {
  if (name == "default" || name == "d") return Default(input, arguments);
  if (name == "tojson") return Json(input, arguments, budget);
  if (name == "int") return ToInt(input, arguments);
  if (name == "float") return ToFloat(input, arguments);
  if (name == "items") return Items(input);
  if (name == "safe") return input;
  if (name == "length" || name == "count") {
    PERIGEE_ASSIGN_OR_RETURN(const int64_t length, Length(input));
    return Value::Int(length);
  }
  if (name == "abs") {
    if (!input.is_number()) return absl::InvalidArgumentError(absl::StrCat("abs of a ", KindName(input)));
    if (!input.is_whole()) return Value::Float(std::abs(input.number()));
    if (input.whole() == std::numeric_limits<int64_t>::min()) return absl::InvalidArgumentError("abs: out of range");
    return Value::Int(std::abs(input.whole()));
  }
  if (name == "string" || name == "trim" || name == "replace" || IsCasing(name)) {
    PERIGEE_ASSIGN_OR_RETURN(const Text text, Printed(input));
    PERIGEE_RETURN_IF_ERROR(budget.ChargeBytes(text.size()));
    if (name == "string") return Value::String(text);
    if (name == "trim") return Stripped(text, arguments, true, true);
    if (name == "replace") return Replaced(text, arguments, budget);
    return Cased(name, text, arguments);
  }
  PERIGEE_ASSIGN_OR_RETURN(List list, Iterated(input, budget));
  if (name == "list") return Value::OfList(std::move(list));
  if (name == "first") return list.empty() ? Value::Undefined("the first of nothing") : list.front();
  if (name == "last") return list.empty() ? Value::Undefined("the last of nothing") : list.back();
  if (name == "map") return Mapped(list, arguments, budget);
  if (name == "reverse") {
    std::reverse(list.begin(), list.end());
    if (!input.is_string()) return Value::OfList(std::move(list));
    return Joined(list, Text(), budget);
  }
  if (name == "join") {
    PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("join", arguments, {"d", "attribute"}));
    Text separator;
    if (bound[0] != nullptr) {
      PERIGEE_ASSIGN_OR_RETURN(separator, Printed(*bound[0]));
    }
    if (bound[1] != nullptr) {
      PERIGEE_ASSIGN_OR_RETURN(const Text attribute, bound.String(1));
      for (Value& item : list) {
        PERIGEE_ASSIGN_OR_RETURN(item, Path(item, attribute.bytes()));
      }
    }
    return Joined(list, separator, budget);
  }
  if (absl::StartsWith(name, "select") || absl::StartsWith(name, "reject")) {
    return Selected(name, list, arguments, budget);
  }
  return absl::UnimplementedError(absl::StrCat("the filter \"", name, "\" is not supported"));
}

absl::StatusOr<bool> ApplyTest(absl::string_view name, const Value& input, const Arguments& arguments) {
  const bool takes_value = name == "eq" || name == "equalto" || name == "ne" || name == "lt" || name == "le" ||
                           name == "gt" || name == "ge" || name == "in" || name == "divisibleby";
  if (takes_value != (arguments.positional.size() == 1) || arguments.positional.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the test \"", name, "\" has ", arguments.positional.size(), " arguments"));
  }
  if (name == "defined") return !input.is_undefined();
  if (name == "undefined") return input.is_undefined();
  if (name == "none") return input.is_none();
  if (name == "string") return input.is_string();
  if (name == "mapping") return input.is_dict();
  if (name == "boolean") return input.kind() == Kind::kBool;
  if (name == "true") return input.kind() == Kind::kBool && input.whole() != 0;
  if (name == "false") return input.kind() == Kind::kBool && input.whole() == 0;
  if (name == "integer") return input.kind() == Kind::kInt;
  if (name == "float") return input.kind() == Kind::kFloat;
  if (name == "number") return input.is_number();
  // Undefined values can be iterated over in Jinja, and have a length.
  const bool walks = input.is_list() || input.is_dict() || input.is_string() || input.is_undefined();
  if (name == "iterable" || name == "sequence") return walks;
  if (name == "odd" || name == "even" || name == "divisibleby") {
    const int64_t divisor = name == "divisibleby" && arguments.positional[0].is_whole()
                                ? arguments.positional[0].whole()
                                : (name == "divisibleby" ? 0 : 2);
    if (!input.is_whole() || divisor == 0) {
      return absl::InvalidArgumentError(absl::StrCat("the test \"", name, "\" of a ", KindName(input)));
    }
    const bool divides = divisor == -1 || input.whole() % divisor == 0;
    return name == "odd" ? !divides : divides;
  }
  const Value& other = arguments.positional[0];
  if (name == "in") return Contains(other, input);
  if (name == "eq" || name == "equalto") return Equal(input, other);
  if (name == "lt") return Less(input, other);
  if (name == "gt") return Less(other, input);
  if (name == "ne") {
    PERIGEE_ASSIGN_OR_RETURN(const bool same, Equal(input, other));
    return !same;
  }
  if (name == "le" || name == "ge") {
    PERIGEE_ASSIGN_OR_RETURN(const bool other_way, name == "le" ? Less(other, input) : Less(input, other));
    return !other_way;
  }
  return absl::UnimplementedError(absl::StrCat("the test \"", name, "\" is not supported"));
}

namespace {

absl::StatusOr<Value> TextMethod(absl::string_view name, const Text& text, const Arguments& arguments, Budget& budget) {
  PERIGEE_RETURN_IF_ERROR(budget.ChargeBytes(text.size()));
  if (name == "strip") return Stripped(text, arguments, true, true);
  if (name == "lstrip") return Stripped(text, arguments, true, false);
  if (name == "rstrip") return Stripped(text, arguments, false, true);
  if (IsCasing(name)) {
    if (name == "title") return absl::UnimplementedError("the method \"title\" is not supported; the filter is");
    return Cased(name, text, arguments);
  }
  if (name == "replace") return Replaced(text, arguments, budget);
  if (name == "split" || name == "rsplit") {
    PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(name, arguments, {"sep", "maxsplit"}));
    PERIGEE_ASSIGN_OR_RETURN(const int64_t max_splits, bound.Whole(1, -1));
    const bool from_right = name == "rsplit";
    List parts;
    if (bound[0] == nullptr || bound[0]->is_none()) {
      parts = Split(text, std::nullopt, max_splits, from_right);
    } else {
      PERIGEE_ASSIGN_OR_RETURN(const Text separator, bound.String(0));
      if (separator.size() == 0) return absl::InvalidArgumentError("split: the separator is empty");
      parts = Split(text, separator.bytes(), max_splits, from_right);
    }
    PERIGEE_RETURN_IF_ERROR(budget.Charge(static_cast<int64_t>(parts.size())));
    return Value::OfList(std::move(parts));
  }
  if (name == "join") {
    PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(name, arguments, {"iterable"}, 1));
    PERIGEE_ASSIGN_OR_RETURN(const List list, Iterated(*bound[0], budget));
    for (const Value& item : list) {
      if (!item.is_string()) return absl::InvalidArgumentError(absl::StrCat("join: an item is ", KindName(item)));
    }
    return Joined(list, text, budget);
  }
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(name, arguments, {"sub"}, 1));
  if ((name == "startswith" || name == "endswith") && bound[0]->is_list()) {  // Any of several.
    for (const Value& item : bound[0]->list()) {
      PERIGEE_ASSIGN_OR_RETURN(const Value found, TextMethod(name, text, {.positional = {item}, .named = {}}, budget));
      if (Truthy(found)) return found;
    }
    return Value::Bool(false);
  }
  PERIGEE_ASSIGN_OR_RETURN(const Text part, bound.String(0));
  const bool starts = absl::StartsWith(text.bytes(), part.bytes()), ends = absl::EndsWith(text.bytes(), part.bytes());
  if (name == "startswith") return Value::Bool(starts);
  if (name == "endswith") return Value::Bool(ends);
  if (name == "removeprefix") {
    return Value::String(starts ? text.Part(part.size(), text.size() - part.size()) : text);
  }
  if (name == "removesuffix") return Value::String(ends ? text.Part(0, text.size() - part.size()) : text);
  if (name == "find") {
    const size_t found = text.bytes().find(part.bytes());
    if (found == absl::string_view::npos) return Value::Int(-1);
    return Value::Int(static_cast<int64_t>(CountCharacters(text.bytes().substr(0, found))));
  }
  if (name == "count" && part.size() > 0) {
    return Value::Int(static_cast<int64_t>(Split(text, part.bytes(), -1, false).size()) - 1);
  }
  return absl::UnimplementedError(absl::StrCat("the method \"", name, "\" of a text is not supported so"));
}

}  // namespace

absl::StatusOr<Value> CallMethod(absl::string_view name, const Value& object, const Arguments& arguments,
                                 Budget& budget) {
  if (object.is_undefined()) {
    return absl::InvalidArgumentError(
        absl::StrCat(object.undefined_name(), " is undefined; \"", name, "\" is asked of it"));
  }
  if (object.is_string() && name != "get" && name != "items" && name != "keys" && name != "values" && name != "cycle") {
    return TextMethod(name, object.text(), arguments, budget);
  }
  if (object.is_dict()) {
    if (name == "items") return Items(object);
    if (name == "get") {
      PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("get", arguments, {"key", "default"}, 1));
      PERIGEE_ASSIGN_OR_RETURN(const Text key, bound.String(0));
      if (const Value* found = object.Find(key.bytes())) return *found;
      return bound[1] == nullptr ? Value::None() : *bound[1];
    }
    if (name == "keys" || name == "values") {
      List list;
      for (const auto& [key, value] : object.dict()) list.push_back(name == "keys" ? Value::String(key) : value);
      return Value::OfList(std::move(list));
    }
    if (name == "cycle" && object.Find("index0") != nullptr && !arguments.positional.empty()) {
      const int64_t index = object.Find("index0")->whole();
      return arguments.positional[static_cast<size_t>(index) % arguments.positional.size()];
    }
  }
  return absl::UnimplementedError(
      absl::StrCat("the method \"", name, "\" of a ", KindName(object), " is not supported"));
}

namespace {

absl::StatusOr<Value> Range(const Arguments& arguments, Budget& budget) {
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("range", arguments, {"a", "b", "c"}, 1));
  PERIGEE_ASSIGN_OR_RETURN(const int64_t first, bound.Whole(0, 0));
  PERIGEE_ASSIGN_OR_RETURN(const int64_t second, bound.Whole(1, 0));
  PERIGEE_ASSIGN_OR_RETURN(const int64_t step, bound.Whole(2, 1));
  constexpr int64_t kFar = int64_t{1} << 40;
  int64_t at = bound[1] == nullptr ? 0 : first;
  const int64_t end = bound[1] == nullptr ? first : second;
  if (step == 0 || std::max({std::abs(at), std::abs(end), std::abs(step)}) > kFar) {
    return absl::InvalidArgumentError("range: the arguments are out of range");
  }
  List list;
  for (; step > 0 ? at < end : at > end; at += step) {
    PERIGEE_RETURN_IF_ERROR(budget.Charge(4));
    list.push_back(Value::Int(at));
  }
  return Value::OfList(std::move(list));
}

absl::StatusOr<Value> FormatNow(const Arguments& arguments, int64_t now_s) {
  PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind("strftime_now", arguments, {"format"}, 1));
  PERIGEE_ASSIGN_OR_RETURN(const Text format, bound.String(0));
  const std::string text(format.bytes());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') continue;
    if (++i < text.size() && text[i] == '-') ++i;
    if (i >= text.size() || absl::string_view("dbBYmyHMSIpjaAF%").find(text[i]) == absl::string_view::npos) {
      return absl::UnimplementedError(absl::StrCat("strftime_now(\"", text, "\") is not supported"));
    }
  }
  if (text.empty()) return Value::Own("");
  if (text.size() > 256) return absl::InvalidArgumentError("strftime_now: the format is too long");
  const auto seconds = static_cast<std::time_t>(now_s);
  std::tm utc{};
  if (::gmtime_r(&seconds, &utc) == nullptr)
    return absl::InvalidArgumentError("strftime_now: the time is out of range");
  char buffer[4096];
  const size_t bytes = std::strftime(buffer, sizeof(buffer), text.c_str(), &utc);
  return Value::Own(absl::string_view(buffer, bytes));
}

}  // namespace

absl::StatusOr<Value> CallFunction(absl::string_view name, const Arguments& arguments, int64_t now_s, Budget& budget) {
  if (name == "range") return Range(arguments, budget);
  if (name == "strftime_now") return FormatNow(arguments, now_s);
  if (name == "raise_exception") {
    PERIGEE_ASSIGN_OR_RETURN(const Bound bound, Bound::Bind(name, arguments, {"message"}, 1));
    PERIGEE_ASSIGN_OR_RETURN(const Text message, Printed(*bound[0]));
    return absl::InvalidArgumentError(
        absl::StrCat("the model's chat template refuses these messages: ", message.bytes()));
  }
  if (name == "namespace" || name == "dict") {
    if (!arguments.positional.empty()) {
      return absl::UnimplementedError(absl::StrCat(name, "() with an argument without a name is not supported"));
    }
    Dict fields;
    for (const auto& [field, value] : arguments.named) fields.emplace_back(Text::Own(field), value);
    return name == "dict" ? Value::OfDict(std::move(fields)) : Value::Namespace(std::move(fields));
  }
  return absl::UnimplementedError(absl::StrCat("the function \"", name, "\" is not supported"));
}

}  // namespace perigee::model::jinja
