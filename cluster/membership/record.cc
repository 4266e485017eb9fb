#include "cluster/membership/record.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/random/random.h"
#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace perigee::cluster {
namespace {

using Json = nlohmann::json;
using WrittenJson = nlohmann::ordered_json;  // Keeps the fields' order; copies deep, so nothing is parsed into it.

constexpr size_t kMaxRecordBytes = size_t{64} << 10;
constexpr size_t kMaxNodes = 4096;
constexpr size_t kMaxTextBytes = 512;
constexpr double kMaxWeight = 1e6;

// A value as it stands in an error: short, whatever it is. (To write a list out takes a stack as deep as the list is.)
std::string Shown(const Json& value) {
  if (value.is_structured()) return value.is_array() ? "a list" : "an object";
  std::string text = value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace);
  if (text.size() > 60) text = absl::StrCat(text.substr(0, 57), "...");
  return text;
}

absl::StatusOr<Json> ParseObject(absl::string_view text, absl::string_view what, size_t max_bytes) {
  if (text.size() > max_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(what, " has ", text.size(), " bytes; at most ", max_bytes, " are allowed"));
  }
  Json json;
  try {  // Only the exception knows the line.
    json = Json::parse(text.begin(), text.end());
  } catch (const Json::exception& e) {
    const std::string why = absl::CHexEscape(absl::string_view(e.what()).substr(0, 200));
    return absl::InvalidArgumentError(absl::StrCat(what, " is not JSON: ", why));
  }
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(what, " is not a JSON object but ", Shown(json)));
  }
  return json;
}

// Reads the fields of one object. The first wrong one is kept in `status`, and nothing is read after it.
struct Fields {
  const Json& object;
  absl::Status status;

  const Json* Find(const char* name) {
    if (!status.ok()) return nullptr;
    const auto found = object.find(name);
    return found == object.end() ? nullptr : &*found;
  }
  void Refuse(const char* name, const Json& value, absl::string_view wanted) {
    status = absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is ", Shown(value), "; it must be ", wanted));
  }
  template <typename T>
  void Unsigned(const char* name, uint64_t max, T* out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_number_unsigned() || value->get<uint64_t>() > max) {
      return Refuse(name, *value, absl::StrCat("a whole number from 0 to ", max));
    }
    *out = static_cast<T>(value->get<uint64_t>());
  }
  void Text(const char* name, std::string* out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_string()) return Refuse(name, *value, "a string");
    *out = value->get<std::string>();
  }
  void Weight(const char* name, double* out) {
    const Json* value = Find(name);
    if (value == nullptr) return;
    if (!value->is_number()) return Refuse(name, *value, "a number");
    *out = value->get<double>();
  }
  template <typename T>
  void Named(const char* name, absl::StatusOr<T> (*from_name)(absl::string_view), T* out) {
    std::string text;
    Text(name, &text);
    if (!status.ok() || object.find(name) == object.end()) return;
    const absl::StatusOr<T> value = from_name(text);
    if (value.ok()) {
      *out = *value;
    } else {
      status = Annotate(value.status(), absl::StrCat("\"", name, "\""));
    }
  }
  // The nested object, or null where there is none.
  const Json* Object(const char* name) {
    const Json* value = Find(name);
    if (value != nullptr && !value->is_object()) Refuse(name, *value, "an object");
    return status.ok() ? value : nullptr;
  }
};

constexpr uint64_t kMax32 = std::numeric_limits<uint32_t>::max();
constexpr uint64_t kMax64 = std::numeric_limits<uint64_t>::max();

absl::StatusOr<NodeCapacity> CapacityOf(const Json& object) {
  NodeCapacity out;
  Fields fields{object, absl::OkStatus()};
  fields.Unsigned("dram_bytes", kMax64, &out.dram_bytes);
  fields.Unsigned("ssd_bytes", kMax64, &out.ssd_bytes);
  fields.Unsigned("pool_bytes", kMax64, &out.pool_bytes);
  fields.Unsigned("max_sequences", kMax32, &out.max_sequences);
  if (!fields.status.ok()) return Annotate(fields.status, "capacity");
  return out;
}

absl::StatusOr<NodeLoad> LoadOf(const Json& object) {
  NodeLoad out;
  Fields fields{object, absl::OkStatus()};
  fields.Unsigned("dram_used_bytes", kMax64, &out.dram_used_bytes);
  fields.Unsigned("ssd_used_bytes", kMax64, &out.ssd_used_bytes);
  fields.Unsigned("pool_used_bytes", kMax64, &out.pool_used_bytes);
  fields.Unsigned("running", kMax32, &out.running);
  fields.Unsigned("queued", kMax32, &out.queued);
  if (!fields.status.ok()) return Annotate(fields.status, "load");
  return out;
}

absl::StatusOr<NodeRecord> RecordOf(const Json& object) {
  NodeRecord out;
  Fields fields{object, absl::OkStatus()};
  fields.Text("id", &out.id);
  for (const char* required : {"id", "role", "address"}) {
    if (fields.Find(required) == nullptr && fields.status.ok()) {
      fields.status = absl::InvalidArgumentError(absl::StrCat("\"", required, "\" is missing"));
    }
  }
  fields.Named("role", &RoleFromName, &out.role);
  fields.Text("address", &out.address);
  fields.Text("http_address", &out.http_address);
  fields.Text("metrics_address", &out.metrics_address);
  fields.Named("state", &StateFromName, &out.state);
  fields.Weight("weight", &out.weight);
  fields.Text("model_fingerprint", &out.model_fingerprint);
  fields.Text("plan_id", &out.plan_id);
  fields.Unsigned("started_unix_us", std::numeric_limits<int64_t>::max(), &out.started_unix_us);
  fields.Unsigned("incarnation", kMaxEpoch, &out.incarnation);
  if (const Json* capacity = fields.Object("capacity")) {
    const absl::StatusOr<NodeCapacity> value = CapacityOf(*capacity);
    fields.status = value.status();
    if (value.ok()) out.capacity = *value;
  }
  if (const Json* load = fields.Object("load")) {
    const absl::StatusOr<NodeLoad> value = LoadOf(*load);
    fields.status = value.status();
    if (value.ok()) out.load = *value;
  }
  if (fields.status.ok()) fields.status = CheckRecord(out);
  if (fields.status.ok()) return out;
  return CheckNodeId(out.id).ok() ? Annotate(fields.status, absl::StrCat("node ", out.id)) : fields.status;
}

WrittenJson ToJson(const NodeLoad& load) {
  return {{"dram_used_bytes", load.dram_used_bytes},
          {"ssd_used_bytes", load.ssd_used_bytes},
          {"pool_used_bytes", load.pool_used_bytes},
          {"running", load.running},
          {"queued", load.queued}};
}

WrittenJson ToJson(const NodeRecord& node) {
  WrittenJson out = {{"id", node.id}, {"role", RoleName(node.role)}, {"address", node.address}};
  if (!node.http_address.empty()) out["http_address"] = node.http_address;
  if (!node.metrics_address.empty()) out["metrics_address"] = node.metrics_address;
  out["state"] = StateName(node.state);
  out["weight"] = node.weight;
  const NodeCapacity& c = node.capacity;
  out["capacity"] = {{"dram_bytes", c.dram_bytes},
                     {"ssd_bytes", c.ssd_bytes},
                     {"pool_bytes", c.pool_bytes},
                     {"max_sequences", c.max_sequences}};
  if (node.load != NodeLoad{}) out["load"] = ToJson(node.load);
  if (!node.model_fingerprint.empty()) out["model_fingerprint"] = node.model_fingerprint;
  if (!node.plan_id.empty()) out["plan_id"] = node.plan_id;
  out["started_unix_us"] = node.started_unix_us;
  out["incarnation"] = node.incarnation;
  return out;
}

// The elements of a list of nodes or stores, each read by `read`, with no id twice.
template <typename T>
absl::Status ReadList(const Json& object, const char* name, absl::StatusOr<T> (*read)(const Json&),
                      std::vector<T>* out) {
  const auto list = object.find(name);
  if (list == object.end()) return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is missing"));
  if (!list->is_array()) {
    return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is ", Shown(*list), "; it must be a list"));
  }
  if (list->size() > kMaxNodes) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", name, "\" has ", list->size(), " entries; at most ", kMaxNodes, " are allowed"));
  }
  std::set<std::string> ids;
  for (const Json& element : *list) {
    const std::string place = absl::StrCat(name, "[", ids.size(), "]");
    if (!element.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(place, " is ", Shown(element), "; it must be an object"));
    }
    absl::StatusOr<T> value = read(element);
    if (!value.ok()) return Annotate(value.status(), place);
    if (!ids.insert(value->id).second) {
      return absl::InvalidArgumentError(absl::StrCat(place, ": the id '", value->id, "' stands twice"));
    }
    out->push_back(*std::move(value));
  }
  return absl::OkStatus();
}

absl::Status ReadEpoch(const Json& object, uint64_t* epoch) {
  *epoch = 0;
  Fields fields{object, absl::OkStatus()};
  fields.Unsigned("epoch", kMaxEpoch, epoch);
  PERIGEE_RETURN_IF_ERROR(fields.status);
  if (*epoch == 0) {
    return absl::InvalidArgumentError(absl::StrCat("\"epoch\" must be there, and be from 1 to ", kMaxEpoch));
  }
  return absl::OkStatus();
}

absl::Status CheckWeight(double weight) {
  if (std::isfinite(weight) && weight > 0 && weight <= kMaxWeight) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"weight\" is ", weight, "; it must be above 0, and at most ", kMaxWeight));
}

absl::Status CheckHex(const char* name, absl::string_view text) {
  if (text.size() <= kMaxTextBytes &&
      std::all_of(text.begin(), text.end(), [](char c) { return absl::ascii_isxdigit(c); })) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is ", Shown(Json(std::string(text))), "; it must be hexadecimal digits"));
}

// A store of the placement is a record of which only the fields that place it are there.
absl::StatusOr<kvstore::StoreEntry> StoreOf(const Json& object) {
  kvstore::StoreEntry out;
  NodeState state = NodeState::kServing;
  Fields fields{object, absl::OkStatus()};
  fields.Text("id", &out.id);
  fields.Text("address", &out.address);
  fields.Named("state", &StateFromName, &state);
  fields.Weight("weight", &out.weight);
  PERIGEE_RETURN_IF_ERROR(fields.status);
  PERIGEE_RETURN_IF_ERROR(CheckNodeId(out.id));
  PERIGEE_RETURN_IF_ERROR(CheckAddress("address", out.address));
  PERIGEE_RETURN_IF_ERROR(CheckWeight(out.weight));
  out.state = state == NodeState::kDraining ? kvstore::StoreState::kDraining : kvstore::StoreState::kServing;
  return out;
}

}  // namespace

const char* StateName(NodeState state) { return state == NodeState::kDraining ? "draining" : "serving"; }

absl::StatusOr<NodeState> StateFromName(absl::string_view name) {
  for (const NodeState state : {NodeState::kServing, NodeState::kDraining}) {
    if (name == StateName(state)) return state;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown state ", Shown(Json(std::string(name))), ": serving or draining"));
}

absl::Status CheckNodeId(absl::string_view id) {
  const bool good = !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"id\" is ", Shown(Json(std::string(id))), "; it must be 1 to 128 of A-Z a-z 0-9 . _ -"));
}

absl::Status CheckAddress(const char* name, absl::string_view address) {
  const size_t colon = address.rfind(':');
  uint32_t port = 0;
  const bool good = address.size() <= kMaxTextBytes && colon != absl::string_view::npos && colon > 0 &&
                    absl::SimpleAtoi(address.substr(colon + 1), &port) && port >= 1 && port <= 65535 &&
                    std::all_of(address.begin(), address.end(), [](char c) { return absl::ascii_isgraph(c); });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("\"", name, "\" is ", Shown(Json(std::string(address))), "; it must be host:port"));
}

absl::Status CheckRecord(const NodeRecord& node) {
  PERIGEE_RETURN_IF_ERROR(CheckNodeId(node.id));
  PERIGEE_RETURN_IF_ERROR(CheckAddress("address", node.address));
  if (!node.http_address.empty()) PERIGEE_RETURN_IF_ERROR(CheckAddress("http_address", node.http_address));
  if (!node.metrics_address.empty()) PERIGEE_RETURN_IF_ERROR(CheckAddress("metrics_address", node.metrics_address));
  PERIGEE_RETURN_IF_ERROR(CheckWeight(node.weight));
  PERIGEE_RETURN_IF_ERROR(CheckHex("model_fingerprint", node.model_fingerprint));
  PERIGEE_RETURN_IF_ERROR(CheckHex("plan_id", node.plan_id));
  if (node.started_unix_us < 0 || node.incarnation > kMaxEpoch) {
    return absl::InvalidArgumentError(absl::StrCat("node ", node.id, ": started_unix_us ", node.started_unix_us,
                                                   " or incarnation ", node.incarnation, " is out of range"));
  }
  return absl::OkStatus();
}

std::string RecordToJson(const NodeRecord& node) { return ToJson(node).dump(); }

absl::StatusOr<NodeRecord> RecordFromJson(absl::string_view text) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseObject(text, "the record", kMaxRecordBytes));
  return RecordOf(json);
}

std::string LoadToJson(const NodeLoad& load) { return ToJson(load).dump(); }

absl::StatusOr<NodeLoad> LoadFromJson(absl::string_view text) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseObject(text, "the load", kMaxRecordBytes));
  return LoadOf(json);
}

std::string StateToJson(NodeState state) { return WrittenJson({{"state", StateName(state)}}).dump(); }

absl::StatusOr<NodeState> StateFromJson(absl::string_view text) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseObject(text, "the state", kMaxRecordBytes));
  NodeState state = NodeState::kServing;
  Fields fields{json, absl::OkStatus()};
  if (fields.Find("state") == nullptr) return absl::InvalidArgumentError("\"state\" is missing");
  fields.Named("state", &StateFromName, &state);
  PERIGEE_RETURN_IF_ERROR(fields.status);
  return state;
}

std::string RemovalToJson(uint64_t incarnation) { return WrittenJson({{"incarnation", incarnation}}).dump(); }

absl::StatusOr<uint64_t> RemovalFromJson(absl::string_view text) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseObject(text, "the removal", kMaxRecordBytes));
  uint64_t incarnation = 0;
  Fields fields{json, absl::OkStatus()};
  fields.Unsigned("incarnation", kMaxEpoch, &incarnation);
  PERIGEE_RETURN_IF_ERROR(fields.status);
  return incarnation;
}

std::string FileToJson(const MembershipFile& file) {
  WrittenJson nodes = WrittenJson::array();
  for (const NodeRecord& node : file.nodes) nodes.push_back(ToJson(node));
  return absl::StrCat(WrittenJson({{"epoch", file.epoch}, {"nodes", std::move(nodes)}}).dump(2), "\n");
}

absl::StatusOr<MembershipFile> FileFromJson(absl::string_view text) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseObject(text, "the file", kMaxMembershipFileBytes));
  MembershipFile out;
  PERIGEE_RETURN_IF_ERROR(ReadEpoch(json, &out.epoch));
  PERIGEE_RETURN_IF_ERROR(ReadList(json, "nodes", &RecordOf, &out.nodes));
  return out;
}

std::string StoreMapToJson(const kvstore::StoreMap& map) {
  WrittenJson stores = WrittenJson::array();
  for (const kvstore::StoreEntry& store : map.stores) {
    const NodeState state = store.state == kvstore::StoreState::kDraining ? NodeState::kDraining : NodeState::kServing;
    stores.push_back(
        {{"id", store.id}, {"address", store.address}, {"weight", store.weight}, {"state", StateName(state)}});
  }
  return WrittenJson({{"epoch", map.epoch}, {"stores", std::move(stores)}}).dump();
}

absl::StatusOr<kvstore::StoreMap> StoreMapFromJson(absl::string_view text) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseObject(text, "the placement", kMaxMembershipFileBytes));
  kvstore::StoreMap out;
  PERIGEE_RETURN_IF_ERROR(ReadEpoch(json, &out.epoch));
  PERIGEE_RETURN_IF_ERROR(ReadList(json, "stores", &StoreOf, &out.stores));
  std::sort(out.stores.begin(), out.stores.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return out;
}

uint64_t NewIncarnation() {
  absl::BitGen random;
  return absl::Uniform<uint64_t>(absl::IntervalClosed, random, 1, kMaxEpoch);
}

}  // namespace perigee::cluster
