// Looking into lists, dicts and texts.
#include <algorithm>

#include "absl/strings/match.h"
#include "base/status.h"
#include "model/chat_template/builtins.h"
#include "model/chat_template/strings.h"

namespace perigee::model::jinja {

absl::StatusOr<int64_t> Length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      return static_cast<int64_t>(CountCharacters(value.bytes()));
    case Kind::kList:
      return static_cast<int64_t>(value.list().size());
    case Kind::kDict:
      return static_cast<int64_t>(value.dict().size());
    default:
      return absl::InvalidArgumentError(absl::StrCat("a value that is ", KindName(value), " has no length"));
  }
}

absl::StatusOr<Value> Joined(const List& list, const Text& separator, Budget& budget) {
  Text out;
  for (size_t i = 0; i < list.size(); ++i) {
    if (i > 0) out.Append(separator);
    PERIGEE_ASSIGN_OR_RETURN(const Text item, Printed(list[i]));
    out.Append(item);
    PERIGEE_RETURN_IF_ERROR(budget.ChargeBytes(item.size() + separator.size()));
  }
  return Value::String(std::move(out));
}

absl::StatusOr<Value> GetItem(const Value& object, const Value& key) {
  const std::string shown = key.is_string() ? std::string(key.bytes()) : std::string(KindName(key));
  switch (object.kind()) {
    case Kind::kUndefined:
      return absl::InvalidArgumentError(
          absl::StrCat(object.undefined_name(), " is undefined; \"", shown, "\" is asked of it"));
    case Kind::kDict:
    case Kind::kNamespace:
      if (key.is_string()) {
        if (const Value* found = object.Find(key.bytes())) return *found;
      }
      break;
    case Kind::kList:
    case Kind::kString:
      if (key.is_whole()) {
        PERIGEE_ASSIGN_OR_RETURN(const int64_t length, Length(object));
        const int64_t index = key.whole() < 0 ? key.whole() + length : key.whole();
        if (index < 0 || index >= length) break;
        if (object.is_list()) return object.list()[static_cast<size_t>(index)];
        const size_t begin = ByteOfCharacter(object.bytes(), static_cast<size_t>(index));
        const size_t end = ByteOfCharacter(object.bytes(), static_cast<size_t>(index) + 1);
        return Value::String(object.text().Part(begin, end - begin));
      }
      break;
    default:
      break;
  }
  return Value::Undefined(shown);
}

absl::StatusOr<Value> Slice(const Value& object, const Value& begin, const Value& end, const Value& step,
                            Budget& budget) {
  if (!object.is_list() && !object.is_string()) {
    return absl::InvalidArgumentError(absl::StrCat("a ", KindName(object), " cannot be sliced"));
  }
  for (const Value* bound : {&begin, &end, &step}) {
    if (!bound->is_whole() && !bound->is_none()) {
      return absl::InvalidArgumentError(absl::StrCat("a slice's bound is ", KindName(*bound)));
    }
  }
  const int64_t by = step.is_none() ? 1 : step.whole();
  if (by == 0 || by < -(int64_t{1} << 40) || by > (int64_t{1} << 40)) {
    return absl::InvalidArgumentError(absl::StrCat("a slice's step is ", by));
  }
  PERIGEE_ASSIGN_OR_RETURN(const int64_t length, Length(object));
  const auto place = [&](const Value& bound, int64_t fallback) {
    if (bound.is_none()) return fallback;
    const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? length : length - 1;
    const int64_t at = bound.whole() < 0 ? bound.whole() + length : bound.whole();
    return std::clamp(at, low, std::max(low, high));
  };
  const int64_t from = place(begin, by > 0 ? 0 : length - 1), to = place(end, by > 0 ? length : -1);
  if (object.is_string()) PERIGEE_RETURN_IF_ERROR(budget.ChargeBytes(object.text().size()));
  if (object.is_string() && by == 1) {
    const size_t first = ByteOfCharacter(object.bytes(), static_cast<size_t>(from));
    const size_t last = from < to ? ByteOfCharacter(object.bytes(), static_cast<size_t>(to)) : first;
    return Value::String(object.text().Part(first, last - first));
  }
  PERIGEE_ASSIGN_OR_RETURN(const List all, Iterated(object, budget));
  List out;
  for (int64_t at = from; by > 0 ? at < to : at > to; at += by) out.push_back(all[static_cast<size_t>(at)]);
  if (object.is_list()) return Value::OfList(std::move(out));
  return Joined(out, Text(), budget);
}

absl::StatusOr<bool> Contains(const Value& container, const Value& item) {
  switch (container.kind()) {
    case Kind::kUndefined:
      return false;
    case Kind::kString:
      if (!item.is_string()) {
        return absl::InvalidArgumentError(absl::StrCat("'in' looks for a ", KindName(item), " in a text"));
      }
      return absl::StrContains(container.bytes(), item.bytes());
    case Kind::kDict:
      return item.is_string() && container.Find(item.bytes()) != nullptr;
    case Kind::kList:
      for (const Value& one : container.list()) {
        PERIGEE_ASSIGN_OR_RETURN(const bool same, Equal(one, item));
        if (same) return true;
      }
      return false;
    default:
      return absl::InvalidArgumentError(absl::StrCat("'in' cannot look into a ", KindName(container)));
  }
}

absl::StatusOr<List> Iterated(const Value& value, Budget& budget) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return List();
    case Kind::kString:
      PERIGEE_RETURN_IF_ERROR(budget.Charge(static_cast<int64_t>(value.text().size())));
      return Characters(value.text());
    case Kind::kList:
      PERIGEE_RETURN_IF_ERROR(budget.Charge(static_cast<int64_t>(value.list().size())));
      return value.list();
    case Kind::kDict: {
      List keys;
      for (const auto& [key, unused] : value.dict()) keys.push_back(Value::String(key));
      return keys;
    }
    default:
      return absl::InvalidArgumentError(absl::StrCat("a ", KindName(value), " cannot be iterated over"));
  }
}

}  // namespace perigee::model::jinja
