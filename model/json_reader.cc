#include "model/json_reader.h"

#include <limits>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "base/status.h"

namespace perigee::model {

absl::StatusOr<Json> ParseJsonObject(absl::string_view text, absl::string_view what, int max_depth) {
  std::vector<absl::flat_hash_set<std::string>> keys;  // one set per open object
  std::string duplicate;
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    switch (event) {
      case Json::parse_event_t::object_start:
        keys.emplace_back();
        [[fallthrough]];
      case Json::parse_event_t::array_start:
        // Refused parts are dropped as they are read, so that a file of brackets does not become a tree.
        if (depth >= max_depth) too_deep = true;
        break;
      case Json::parse_event_t::object_end:
        if (!keys.empty()) keys.pop_back();
        break;
      case Json::parse_event_t::key: {
        const auto& key = parsed.get_ref<const std::string&>();
        if (!keys.empty() && !keys.back().insert(key).second && duplicate.empty()) duplicate = key;
        break;
      }
      default:
        break;
    }
    return !too_deep;
  };
  Json value = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError(absl::StrCat(what, " nests deeper than the ", max_depth, " levels allowed"));
  }
  if (value.is_discarded()) return absl::InvalidArgumentError(absl::StrCat(what, " is not valid JSON"));
  if (!duplicate.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " has the key \"", duplicate, "\" twice in one object"));
  }
  if (!value.is_object()) return absl::InvalidArgumentError(absl::StrCat(what, " is not a JSON object"));
  return value;
}

std::string Shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 80) text = text.substr(0, 77) + "...";
  return text;
}

const Json* FindValue(const Json& object, const char* key) {
  if (!object.is_object()) return nullptr;
  const auto it = object.find(key);
  return it == object.end() || it->is_null() ? nullptr : &*it;
}

namespace {
absl::Status WrongType(const char* key, const Json& value, absl::string_view wanted) {
  return absl::InvalidArgumentError(absl::StrCat("\"", key, "\" is ", Shown(value), "; ", wanted, " is needed"));
}
}  // namespace

absl::StatusOr<int64_t> IntOr(const Json& object, const char* key, int64_t fallback) {
  const Json* value = FindValue(object, key);
  if (value == nullptr) return fallback;
  if (value->is_number_unsigned()) {
    const uint64_t number = value->get<uint64_t>();
    if (number <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return static_cast<int64_t>(number);
  } else if (value->is_number_integer()) {
    return value->get<int64_t>();
  }
  return WrongType(key, *value, "a whole number");
}

absl::StatusOr<double> NumberOr(const Json& object, const char* key, double fallback) {
  const Json* value = FindValue(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_number()) return WrongType(key, *value, "a number");
  return value->get<double>();
}

absl::StatusOr<bool> BoolOr(const Json& object, const char* key, bool fallback) {
  const Json* value = FindValue(object, key);
  if (value == nullptr) return fallback;
  if (!value->is_boolean()) return WrongType(key, *value, "true or false");
  return value->get<bool>();
}

absl::StatusOr<std::string> StringOr(const Json& object, const char* key, absl::string_view fallback) {
  const Json* value = FindValue(object, key);
  if (value == nullptr) return std::string(fallback);
  if (!value->is_string()) return WrongType(key, *value, "a string");
  return value->get<std::string>();
}

}  // namespace perigee::model
