// Which repair a model's contexts get where a request does not say: measured (`perigee context eval`), and written
// beside the model as context_repair.json.
//
// It counts for the model and the plan that it was measured with and no others: contexts of anything else are computed
// in full until they were measured too. So nobody loses quality without having been told.
#ifndef PERIGEE_MODEL_MEASURED_REPAIR_H_
#define PERIGEE_MODEL_MEASURED_REPAIR_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/bytes.h"
#include "model/context_measure.h"
#include "model/repair.h"

namespace perigee::model {

inline constexpr char kMeasuredRepairFile[] = "context_repair.json";

struct MeasuredRepair {
  Digest model_fingerprint{};
  Digest plan_id{};
  Repair repair;
  double threshold = 0;  // Of the plain prompt's accuracy.
  int64_t questions = 0;
  uint64_t seed = 0;
  std::vector<RepairFigures> measured;  // "full" among them.

  // INVALID_ARGUMENT, naming the field, for anything that the measurement cannot have written: also for a repair that
  // by the table's own figures does not keep the threshold.
  static absl::StatusOr<MeasuredRepair> Parse(absl::string_view json);
  std::string ToJson() const;
  // Of a model folder; nothing where there is no such file.
  static absl::StatusOr<std::optional<MeasuredRepair>> Load(const std::string& folder);

  bool IsOf(const Digest& fingerprint, const Digest& plan) const {
    return model_fingerprint == fingerprint && plan_id == plan;
  }
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_MEASURED_REPAIR_H_
