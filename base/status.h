// The two macros that make absl::Status pleasant: leave the function when a call failed.
//
//   PERIGEE_RETURN_IF_ERROR(file.Sync());
//   PERIGEE_ASSIGN_OR_RETURN(Plan plan, Plan::Parse(text));
#ifndef PERIGEE_BASE_STATUS_H_
#define PERIGEE_BASE_STATUS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

#define PERIGEE_RETURN_IF_ERROR(expr)                  \
  do {                                                 \
    absl::Status perigee_status_ = (expr);             \
    if (!perigee_status_.ok()) return perigee_status_; \
  } while (false)

#define PERIGEE_CONCAT_INNER_(a, b) a##b
#define PERIGEE_CONCAT_(a, b) PERIGEE_CONCAT_INNER_(a, b)

#define PERIGEE_ASSIGN_OR_RETURN(lhs, expr) \
  PERIGEE_ASSIGN_OR_RETURN_IMPL_(PERIGEE_CONCAT_(perigee_status_or_, __LINE__), lhs, expr)
#define PERIGEE_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                   \
  if (!tmp.ok()) return std::move(tmp).status();       \
  lhs = *std::move(tmp)

namespace perigee {

// The same code, with "context: " put in front of the message.
inline absl::Status Annotate(const absl::Status& status, absl::string_view context) {
  if (status.ok()) return status;
  return absl::Status(status.code(), absl::StrCat(context, ": ", status.message()));
}

}  // namespace perigee

#endif  // PERIGEE_BASE_STATUS_H_
