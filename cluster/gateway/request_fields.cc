#include "cluster/gateway/request_fields.h"

#include "cluster/gateway/openai.h"

namespace perigee::cluster {
namespace {

using Json = RequestJson;

constexpr int kMaxDepth = 32;

}  // namespace

std::string Shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  return text.size() > 60 ? text.substr(0, 57) + "..." : text;
}

absl::Status Invalid(absl::string_view param, absl::string_view message) {
  return WithDetails(absl::InvalidArgumentError(absl::StrCat("\"", param, "\" ", message)), param);
}

absl::Status Unsupported(absl::string_view param, absl::string_view message) {
  return WithDetails(absl::UnimplementedError(absl::StrCat("\"", param, "\" ", message)), param,
                     "unsupported_parameter");
}

absl::StatusOr<Json> ParseBody(absl::string_view body) {
  bool too_deep = false;
  const auto watch = [&](int depth, Json::parse_event_t event, Json&) {
    if ((event == Json::parse_event_t::object_start || event == Json::parse_event_t::array_start) &&
        depth >= kMaxDepth) {
      too_deep = true;
    }
    return !too_deep;
  };
  Json json = Json::parse(body.begin(), body.end(), watch, /*allow_exceptions=*/false);
  if (too_deep) {
    return absl::InvalidArgumentError(absl::StrCat("the body nests deeper than ", kMaxDepth, " levels"));
  }
  if (json.is_discarded()) return absl::InvalidArgumentError("the body is not valid JSON, or not valid UTF-8");
  if (!json.is_object()) return absl::InvalidArgumentError("the body is not a JSON object");
  return json;
}

absl::StatusOr<std::vector<int32_t>> TokenIds(const char* param, const Json& list) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const Json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
      return Invalid(param, absl::StrCat("has ", Shown(id), " where a token id is expected"));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace perigee::cluster
