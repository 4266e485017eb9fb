// Reading JSON that came from outside: nesting bounded, duplicate keys refused, and typed getters that name the field
// and its value. Internal to model/ (its public headers have no JSON types).
#ifndef PERIGEE_MODEL_JSON_READER_H_
#define PERIGEE_MODEL_JSON_READER_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace perigee::model {

using Json = nlohmann::json;

// `what` names the text in errors ("config.json"). INVALID_ARGUMENT on syntax errors, invalid UTF-8, duplicate keys in
// an object, nesting deeper than max_depth, or a top level that is not an object. Memory stays within a small multiple
// of the text.
absl::StatusOr<Json> ParseJsonObject(absl::string_view text, absl::string_view what, int max_depth);

// For error messages: the value as text, shortened; never throws.
std::string Shown(const Json& value);

// Each returns `fallback` when the key is absent or null, and INVALID_ARGUMENT when the value has another type.
absl::StatusOr<int64_t> IntOr(const Json& object, const char* key, int64_t fallback);
absl::StatusOr<double> NumberOr(const Json& object, const char* key, double fallback);
absl::StatusOr<bool> BoolOr(const Json& object, const char* key, bool fallback);
absl::StatusOr<std::string> StringOr(const Json& object, const char* key, absl::string_view fallback);

// Null where the key is absent or its value is null.
const Json* FindValue(const Json& object, const char* key);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_JSON_READER_H_
