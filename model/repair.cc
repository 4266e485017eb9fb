#include "model/repair.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace perigee::model {
namespace {

absl::Status NotUnderstood(absl::string_view text) {
  return absl::InvalidArgumentError(absl::StrCat(
      "the repair '", text.substr(0, 80),
      "' is not understood; there are none, full, prefix:TOKENS (1 to 4096), deviation:SHARE (above 0, at most 1) "
      "and parallel:TEMPERATURE:SCALE (above 0, at most 2)"));
}

// Six digits count, as ToString writes them.
bool Number(absl::string_view text, double most, double* out) {
  return absl::SimpleAtod(text, out) && absl::SimpleAtod(absl::StrCat(*out), out) && *out > 0 && *out <= most;
}

}  // namespace

absl::StatusOr<Repair> Repair::Parse(absl::string_view text) {
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ':');
  Repair repair;
  const size_t given = parts.size() - 1;
  if (text.empty() || text == "none") return repair;
  if (text == "full") return Repair{.kind = RepairKind::kFull};
  if (parts[0] == "prefix" && given <= 1) {
    repair = {.kind = RepairKind::kPrefix, .prefix_tokens = 32};
    if (given == 0 || (absl::SimpleAtoi(parts[1], &repair.prefix_tokens) && repair.prefix_tokens >= 1 &&
                       repair.prefix_tokens <= 4096)) {
      return repair;
    }
  } else if (parts[0] == "deviation" && given <= 1) {
    repair = {.kind = RepairKind::kDeviation, .share = 0.15};
    if (given == 0 || Number(parts[1], 1, &repair.share)) return repair;
  } else if (parts[0] == "parallel" && (given == 0 || given == 2)) {
    repair = {.kind = RepairKind::kParallel, .temperature = 0.9, .scale = 0.9};
    if (given == 0 || (Number(parts[1], 2, &repair.temperature) && Number(parts[2], 2, &repair.scale))) return repair;
  }
  return NotUnderstood(text);
}

std::string Repair::ToString() const {
  switch (kind) {
    case RepairKind::kPrefix:
      return absl::StrCat("prefix:", prefix_tokens);
    case RepairKind::kDeviation:
      return absl::StrCat("deviation:", share);
    case RepairKind::kParallel:
      return absl::StrCat("parallel:", temperature, ":", scale);
    case RepairKind::kFull:
      return "full";
    case RepairKind::kNone:
      break;
  }
  return "none";
}

}  // namespace perigee::model
