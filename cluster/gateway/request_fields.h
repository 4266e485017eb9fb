// Request bodies as JSON: parsed within limits, and read field by field, with errors that name the field and the value.
// Internal to cluster/gateway.
#ifndef PERIGEE_CLUSTER_GATEWAY_REQUEST_FIELDS_H_
#define PERIGEE_CLUSTER_GATEWAY_REQUEST_FIELDS_H_

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace perigee::cluster {

using RequestJson = nlohmann::json;

// A value as it stands in an error: short.
std::string Shown(const RequestJson& value);
// "param" is what is wrong.
absl::Status Invalid(absl::string_view param, absl::string_view message);
absl::Status Unsupported(absl::string_view param, absl::string_view message = "is not supported by this server");
// INVALID_ARGUMENT for what is no JSON object, or nests too deep.
absl::StatusOr<RequestJson> ParseBody(absl::string_view body);
absl::StatusOr<std::vector<int32_t>> TokenIds(const char* param, const RequestJson& list);

// Reads the fields of one object; null counts as absent.
class Fields {
 public:
  explicit Fields(const RequestJson& object) : object_(object) {}

  const RequestJson* Find(const char* name) const {
    const auto at = object_.find(name);
    return at == object_.end() || at->is_null() ? nullptr : &*at;
  }
  absl::StatusOr<bool> Bool(const char* name, bool fallback) const {
    const RequestJson* value = Find(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) return Invalid(name, absl::StrCat("is ", Shown(*value), "; true or false is needed"));
    return value->get<bool>();
  }
  absl::StatusOr<double> Number(const char* name, double fallback, double low, double high) const {
    const RequestJson* value = Find(name);
    if (value == nullptr) return fallback;
    const double number = value->is_number() ? value->get<double>() : std::numeric_limits<double>::quiet_NaN();
    if (!(number >= low && number <= high)) {
      return Invalid(name, absl::StrCat("is ", Shown(*value), "; a number from ", low, " to ", high, " is needed"));
    }
    return number;
  }
  absl::StatusOr<std::optional<int64_t>> Whole(const char* name, int64_t low, int64_t high) const {
    const RequestJson* value = Find(name);
    if (value == nullptr) return std::optional<int64_t>();
    const bool fits = value->is_number_integer() &&
                      (!value->is_number_unsigned() ||
                       value->get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
    if (!fits || value->get<int64_t>() < low || value->get<int64_t>() > high) {
      return Invalid(name,
                     absl::StrCat("is ", Shown(*value), "; a whole number from ", low, " to ", high, " is needed"));
    }
    return std::optional<int64_t>(value->get<int64_t>());
  }
  absl::StatusOr<std::string> String(const char* name, absl::string_view fallback, size_t max_bytes) const {
    const RequestJson* value = Find(name);
    if (value == nullptr) return std::string(fallback);
    if (!value->is_string()) return Invalid(name, absl::StrCat("is ", Shown(*value), "; a text is needed"));
    if (value->get_ref<const std::string&>().size() > max_bytes) {
      return Invalid(name, absl::StrCat("has more than the ", max_bytes, " bytes allowed"));
    }
    return value->get<std::string>();
  }

  const RequestJson& object() const { return object_; }

 private:
  const RequestJson& object_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_REQUEST_FIELDS_H_
