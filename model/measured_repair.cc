#include "model/measured_repair.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "model/json_reader.h"

namespace perigee::model {
namespace {

constexpr size_t kMaxBytes = 1 << 20;
constexpr int64_t kMost = int64_t{1} << 40;

absl::Status Wrong(const char* field, const Json& object, absl::string_view what) {
  const Json* value = FindValue(object, field);
  return absl::InvalidArgumentError(absl::StrCat(kMeasuredRepairFile, ": ", field, " is ",
                                                 value == nullptr ? "missing" : Shown(*value), "; it must be ", what));
}

absl::StatusOr<int64_t> Count(const Json& object, const char* field, int64_t most) {
  PERIGEE_ASSIGN_OR_RETURN(const int64_t value, IntOr(object, field, -1));
  if (value < 0 || value > most) return Wrong(field, object, absl::StrCat("0 to ", most));
  return value;
}

absl::StatusOr<double> Figure(const Json& object, const char* field, double most) {
  PERIGEE_ASSIGN_OR_RETURN(const double value, NumberOr(object, field, -1));
  if (!(value >= 0 && value <= most)) return Wrong(field, object, absl::StrCat("0 to ", most));
  return value;
}

absl::StatusOr<Digest> DigestOf(const Json& object, const char* field) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string hex, StringOr(object, field, ""));
  const absl::StatusOr<Digest> digest = DigestFromHex(hex);
  if (!digest.ok()) return Wrong(field, object, "64 hexadecimal digits");
  return *digest;
}

absl::StatusOr<Repair> RepairOf(const Json& object) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string text, StringOr(object, "repair", ""));
  if (text.empty()) return Wrong("repair", object, "a repair");
  absl::StatusOr<Repair> repair = Repair::Parse(text);
  return repair.ok() ? std::move(repair) : Annotate(repair.status(), kMeasuredRepairFile);
}

absl::StatusOr<RepairFigures> Row(const Json& object, int64_t questions) {
  if (!object.is_object()) return absl::InvalidArgumentError(absl::StrCat(kMeasuredRepairFile, ": a row is no object"));
  RepairFigures row;
  row.questions = questions;
  PERIGEE_ASSIGN_OR_RETURN(row.repair, RepairOf(object));
  PERIGEE_ASSIGN_OR_RETURN(row.right, Count(object, "right", questions));
  PERIGEE_ASSIGN_OR_RETURN(row.agreed, Count(object, "agreed", questions));
  PERIGEE_ASSIGN_OR_RETURN(const double kl, Figure(object, "kl", 1e9));
  row.kl_sum = kl * static_cast<double>(questions);
  PERIGEE_ASSIGN_OR_RETURN(row.max_logit, Figure(object, "max_logit_difference", 1e9));
  PERIGEE_ASSIGN_OR_RETURN(row.prompt_tokens, Count(object, "prompt_tokens", kMost));
  PERIGEE_ASSIGN_OR_RETURN(row.computed_tokens, Count(object, "computed_tokens", row.prompt_tokens));
  return row;
}

const RepairFigures* Find(const std::vector<RepairFigures>& rows, const Repair& repair) {
  const auto it = std::find_if(rows.begin(), rows.end(), [&](const RepairFigures& r) { return r.repair == repair; });
  return it == rows.end() ? nullptr : &*it;
}

}  // namespace

absl::StatusOr<MeasuredRepair> MeasuredRepair::Parse(absl::string_view json) {
  PERIGEE_ASSIGN_OR_RETURN(const Json object, ParseJsonObject(json, kMeasuredRepairFile, /*max_depth=*/4));
  PERIGEE_ASSIGN_OR_RETURN(const int64_t version, IntOr(object, "version", 0));
  if (version != 1) return Wrong("version", object, "1");
  MeasuredRepair out;
  PERIGEE_ASSIGN_OR_RETURN(out.model_fingerprint, DigestOf(object, "model_fingerprint"));
  PERIGEE_ASSIGN_OR_RETURN(out.plan_id, DigestOf(object, "plan_id"));
  PERIGEE_ASSIGN_OR_RETURN(out.repair, RepairOf(object));
  PERIGEE_ASSIGN_OR_RETURN(out.threshold, Figure(object, "threshold", 1));
  PERIGEE_ASSIGN_OR_RETURN(out.questions, Count(object, "questions", kMost));
  PERIGEE_ASSIGN_OR_RETURN(const int64_t seed, Count(object, "seed", std::numeric_limits<int64_t>::max()));
  out.seed = static_cast<uint64_t>(seed);
  const Json* rows = FindValue(object, "measured");
  if (rows == nullptr || !rows->is_array() || rows->size() > 1000) {
    return Wrong("measured", object, "a list of at most 1000 rows");
  }
  for (const Json& row : *rows) {
    PERIGEE_ASSIGN_OR_RETURN(RepairFigures figures, Row(row, out.questions));
    if (Find(out.measured, figures.repair) != nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(kMeasuredRepairFile, ": ", figures.repair.ToString(), " was measured twice"));
    }
    out.measured.push_back(std::move(figures));
  }
  const RepairFigures* full = Find(out.measured, {.kind = RepairKind::kFull});
  const RepairFigures* chosen = Find(out.measured, out.repair);
  if (full == nullptr || chosen == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat(kMeasuredRepairFile, ": the repair and 'full' must be among what was measured"));
  }
  if (chosen != full && (out.questions == 0 || chosen->accuracy() < out.threshold * full->accuracy())) {
    return absl::InvalidArgumentError(absl::StrCat(kMeasuredRepairFile, ": by its own figures ", out.repair.ToString(),
                                                   " answers ", chosen->right, " questions, less than ", out.threshold,
                                                   " of the plain prompt's ", full->right));
  }
  return out;
}

std::string MeasuredRepair::ToJson() const {
  nlohmann::ordered_json json = {{"version", 1},
                                 {"model_fingerprint", ToHex(model_fingerprint)},
                                 {"plan_id", ToHex(plan_id)},
                                 {"repair", repair.ToString()},
                                 {"threshold", threshold},
                                 {"questions", questions},
                                 {"seed", seed},
                                 {"measured", nlohmann::ordered_json::array()}};
  for (const RepairFigures& row : measured) {
    json["measured"].push_back({{"repair", row.repair.ToString()},
                                {"right", row.right},
                                {"agreed", row.agreed},
                                {"kl", row.kl()},
                                {"max_logit_difference", row.max_logit},
                                {"prompt_tokens", row.prompt_tokens},
                                {"computed_tokens", row.computed_tokens}});
  }
  return absl::StrCat(json.dump(2), "\n");
}

absl::StatusOr<std::optional<MeasuredRepair>> MeasuredRepair::Load(const std::string& folder) {
  const std::string path = absl::StrCat(folder, "/", kMeasuredRepairFile);
  const absl::StatusOr<std::string> text = ReadFile(path, kMaxBytes);
  if (absl::IsNotFound(text.status())) return std::nullopt;
  PERIGEE_RETURN_IF_ERROR(text.status());
  absl::StatusOr<MeasuredRepair> parsed = Parse(*text);
  if (!parsed.ok()) return Annotate(parsed.status(), folder);
  return std::optional<MeasuredRepair>(*std::move(parsed));
}

}  // namespace perigee::model
