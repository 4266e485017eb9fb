#include "cluster/cli/exit_code.h"

#include <string>

#include "absl/strings/cord.h"
#include "absl/types/optional.h"

namespace perigee::cli {
namespace {

constexpr char kPayload[] = "perigee/exit-code";

}  // namespace

absl::Status WithExitCode(absl::Status status, ExitCode code) {
  if (!status.ok()) status.SetPayload(kPayload, absl::Cord(std::string(1, static_cast<char>(code))));
  return status;
}

absl::Status Outcome(ExitCode code) {
  return code == ExitCode::kDone ? absl::OkStatus() : WithExitCode(absl::UnknownError(""), code);
}

absl::Status UsageError(absl::string_view message) {
  return WithExitCode(absl::InvalidArgumentError(message), ExitCode::kUsage);
}

ExitCode ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return ExitCode::kDone;
  if (const absl::optional<absl::Cord> code = status.GetPayload(kPayload); code && code->size() == 1) {
    return static_cast<ExitCode>((*code)[0]);
  }
  return absl::IsDeadlineExceeded(status) ? ExitCode::kTimeout : ExitCode::kFailed;
}

}  // namespace perigee::cli
