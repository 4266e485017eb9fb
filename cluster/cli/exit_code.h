// What the program's exit code says. docs/operations.md has the same table.
#ifndef PERIGEE_CLUSTER_CLI_EXIT_CODE_H_
#define PERIGEE_CLUSTER_CLI_EXIT_CODE_H_

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace perigee::cli {

enum class ExitCode : int {
  kDone = 0,
  kFailed = 1,    // Something went wrong; one line on standard error says what.
  kUsage = 2,     // The command line itself is wrong.
  kNotFound = 3,  // What was asked for is not there: no such key, node or context; a prompt that is not wholly stored.
  kRefused = 4,   // Nothing was done: it would do harm, was not confirmed, or there was nothing to do.
  kTimeout = 5,   // Not done in time; what was begun may go on.
  kWrongBytes = 6,  // Stored bytes do not match their checksums.
};

// `status`, to end the program with that code. OK statuses stay as they are.
absl::Status WithExitCode(absl::Status status, ExitCode code);
// To end the program with that code and no complaint: what was printed says all.
absl::Status Outcome(ExitCode code);

// INVALID_ARGUMENT, kUsage: what the command line says cannot be meant.
absl::Status UsageError(absl::string_view message);

// Of an action's status: the code that it was given, kTimeout for DEADLINE_EXCEEDED, kFailed for other errors.
ExitCode ExitCodeOf(const absl::Status& status);

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_EXIT_CODE_H_
