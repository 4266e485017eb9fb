#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "base/status.h"
#include "pod/plan.h"

namespace perigee::pod {
namespace {

using Json = nlohmann::json;

// The largest plan there can be (1024 x 1024 followers, as ToJson writes it) has 58 MiB.
constexpr size_t kMaxPlanFileBytes = size_t{64} << 20;
constexpr int kMaxDepth = 5;  // Plan, slots, layer, slot, lead.

absl::Status Bad(absl::string_view what) { return absl::InvalidArgumentError(absl::StrCat("plan file: ", what)); }

// What a hostile file may put into an error message.
std::string Clip(absl::string_view text) {
  constexpr size_t kMax = 64;
  return text.size() <= kMax ? std::string(text) : absl::StrCat(text.substr(0, kMax), "...");
}

// Before anything is built from the text: nesting as deep as the file is long would cost many times its size.
bool IsTooDeep(absl::string_view text) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '[' || c == '{') {
      if (++depth > kMaxDepth) return true;
    } else if (c == ']' || c == '}') {
      --depth;
    }
  }
  return false;
}

// Refuses a field that stands twice in one object: readers in other languages may take the other one.
absl::StatusOr<Json> ParseJson(absl::string_view text) {
  std::vector<std::set<std::string>> open_objects;
  std::string repeated;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& parsed) {
    if (event == Json::parse_event_t::object_start) open_objects.emplace_back();
    if (event == Json::parse_event_t::object_end) open_objects.pop_back();
    if (event == Json::parse_event_t::key && !open_objects.back().insert(parsed.get<std::string>()).second &&
        repeated.empty()) {
      repeated = Clip(parsed.get<std::string>());
      return false;
    }
    return true;
  };
  if (text.size() > kMaxPlanFileBytes)
    return Bad(absl::StrCat("it has ", text.size(), " bytes; no plan is that large"));
  // The parser would take a zero byte as the text's end and ignore what follows.
  if (text.find('\0') != absl::string_view::npos) return Bad("it has a zero byte");
  if (IsTooDeep(text)) return Bad("it is nested more deeply than any plan");
  Json json = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (!repeated.empty()) return Bad(absl::StrCat("field '", repeated, "' stands twice in one object"));
  if (json.is_discarded()) return Bad("it is not valid JSON");
  return json;
}

absl::Status CheckFields(const Json& object, const std::set<std::string>& known, absl::string_view where) {
  if (!object.is_object()) return Bad(absl::StrCat(where, " is not a JSON object"));
  for (const auto& [name, value] : object.items()) {
    if (!known.contains(name)) return Bad(absl::StrCat("unknown field '", Clip(name), "' in ", where));
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Int(const Json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || !it->is_number_integer())
    return Bad(absl::StrCat("'", field, "' is missing or not an integer"));
  const bool fits = it->is_number_unsigned() ? it->get<uint64_t>() <= INT32_MAX
                                             : it->get<int64_t>() >= INT32_MIN && it->get<int64_t>() <= INT32_MAX;
  if (!fits) return Bad(absl::StrCat("'", field, "' is out of range: ", it->dump()));
  return it->get<int>();
}

absl::StatusOr<std::string> Text(const Json& object, const char* field) {
  const auto it = object.find(field);
  if (it == object.end() || !it->is_string()) return Bad(absl::StrCat("'", field, "' is missing or not a string"));
  return it->get<std::string>();
}

absl::StatusOr<Codec> CodecField(const Json& object, const char* field) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string name, Text(object, field));
  const std::optional<Codec> codec = CodecFromName(name);
  if (!codec) return Bad(absl::StrCat("'", field, "' is '", Clip(name), "'; this build knows bf16 and fp16"));
  return *codec;
}

absl::StatusOr<Slot> ParseSlot(const Json& json) {
  PERIGEE_RETURN_IF_ERROR(CheckFields(json, {"role", "lead", "far_codec"}, "a slot"));
  Slot slot;
  PERIGEE_ASSIGN_OR_RETURN(const std::string role, Text(json, "role"));
  if (role == "near-only") {
    slot.role = Role::kNearOnly;
    if (json.size() != 1) return Bad("a near-only slot has a role and nothing else");
    return slot;
  }
  if (role != "lead" && role != "follower") {
    return Bad(absl::StrCat("role '", Clip(role), "' is not lead, follower or near-only"));
  }
  PERIGEE_ASSIGN_OR_RETURN(slot.far_codec, CodecField(json, "far_codec"));
  const auto lead = json.find("lead");
  if (role == "lead") {
    if (lead != json.end()) return Bad("a lead names no other lead");
    return slot;
  }
  slot.role = Role::kFollower;
  const auto index = [](const Json& v) { return v.is_number_unsigned() && v.get<uint64_t>() < 1024; };
  if (lead == json.end() || !lead->is_array() || lead->size() != 2 || !index((*lead)[0]) || !index((*lead)[1])) {
    return Bad("a follower's 'lead' is [layer, kv head]");
  }
  slot.lead = SlotId{(*lead)[0].get<int>(), (*lead)[1].get<int>()};
  return slot;
}

}  // namespace

absl::StatusOr<Plan> Plan::Parse(absl::string_view text) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  PERIGEE_RETURN_IF_ERROR(CheckFields(json,
                                      {"format", "version", "model_fingerprint", "layers", "kv_heads", "head_dim",
                                       "sink_tokens", "recent_tokens", "sharing", "near_codec", "slots"},
                                      "the plan"));
  PERIGEE_ASSIGN_OR_RETURN(const std::string format, Text(json, "format"));
  if (format != "perigee.plan") return Bad(absl::StrCat("'format' is '", Clip(format), "', not perigee.plan"));
  PERIGEE_ASSIGN_OR_RETURN(const int version, Int(json, "version"));
  if (version != 1) return Bad(absl::StrCat("version ", version, " is not known; this build reads version 1"));

  PERIGEE_ASSIGN_OR_RETURN(const std::string fingerprint_hex, Text(json, "model_fingerprint"));
  absl::StatusOr<Digest> fingerprint = DigestFromHex(fingerprint_hex);
  if (!fingerprint.ok()) return Bad(absl::StrCat("'model_fingerprint': ", fingerprint.status().message()));
  KvShape shape;
  PERIGEE_ASSIGN_OR_RETURN(shape.layers, Int(json, "layers"));
  PERIGEE_ASSIGN_OR_RETURN(shape.kv_heads, Int(json, "kv_heads"));
  PERIGEE_ASSIGN_OR_RETURN(shape.head_dim, Int(json, "head_dim"));
  PERIGEE_RETURN_IF_ERROR(ValidateShape(shape));
  Window window;
  PERIGEE_ASSIGN_OR_RETURN(window.sink_tokens, Int(json, "sink_tokens"));
  PERIGEE_ASSIGN_OR_RETURN(window.recent_tokens, Int(json, "recent_tokens"));
  PERIGEE_ASSIGN_OR_RETURN(const std::string sharing, Text(json, "sharing"));
  if (sharing != "key" && sharing != "score")
    return Bad(absl::StrCat("'sharing' is '", Clip(sharing), "', not key or score"));
  PERIGEE_ASSIGN_OR_RETURN(const Codec near_codec, CodecField(json, "near_codec"));

  const auto layers = json.find("slots");
  if (layers == json.end() || !layers->is_array() || layers->size() != static_cast<size_t>(shape.layers)) {
    return Bad(absl::StrCat("'slots' is not a list of ", shape.layers, " layers"));
  }
  std::vector<Slot> slots;
  for (const Json& layer : *layers) {
    if (!layer.is_array() || layer.size() != static_cast<size_t>(shape.kv_heads)) {
      return Bad(absl::StrCat("a layer in 'slots' is not a list of ", shape.kv_heads, " slots"));
    }
    for (const Json& entry : layer) {
      absl::StatusOr<Slot> slot = ParseSlot(entry);
      if (!slot.ok()) {
        return Annotate(slot.status(), absl::StrCat("slot ", slots.size() % static_cast<size_t>(shape.kv_heads),
                                                    " of layer ", slots.size() / static_cast<size_t>(shape.kv_heads)));
      }
      slots.push_back(*slot);
    }
  }
  return Create(shape, window, sharing == "key" ? Sharing::kKey : Sharing::kScore, near_codec, std::move(slots),
                *fingerprint);
}

std::string Plan::ToJson() const {
  nlohmann::ordered_json json;
  json["format"] = "perigee.plan";
  json["version"] = 1;
  json["model_fingerprint"] = ToHex(model_fingerprint_);
  json["layers"] = shape_.layers;
  json["kv_heads"] = shape_.kv_heads;
  json["head_dim"] = shape_.head_dim;
  json["sink_tokens"] = window_.sink_tokens;
  json["recent_tokens"] = window_.recent_tokens;
  json["sharing"] = sharing_ == Sharing::kKey ? "key" : "score";
  json["near_codec"] = CodecName(near_codec_);
  // One layer a line: people read and compare plans.
  std::string slots;
  for (int l = 0; l < shape_.layers; ++l) {
    auto row = nlohmann::ordered_json::array();
    for (int h = 0; h < shape_.kv_heads; ++h) {
      const Slot& s = slot(l, h);
      nlohmann::ordered_json entry;
      entry["role"] = s.role == Role::kLead ? "lead" : s.role == Role::kFollower ? "follower" : "near-only";
      if (s.role == Role::kFollower) entry["lead"] = {s.lead.layer, s.lead.kv_head};
      if (s.role != Role::kNearOnly) entry["far_codec"] = CodecName(s.far_codec);
      row.push_back(std::move(entry));
    }
    absl::StrAppend(&slots, l == 0 ? "" : ",\n", "    ", row.dump());
  }
  std::string head = json.dump(2);
  head.resize(head.size() - 2);  // Without "\n}".
  return absl::StrCat(head, ",\n  \"slots\": [\n", slots, "\n  ]\n}\n");
}

}  // namespace perigee::pod
