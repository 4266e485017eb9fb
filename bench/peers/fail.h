// A benchmark that cannot run has nothing to report: it says why and ends.
#ifndef PERIGEE_BENCH_PEERS_FAIL_H_
#define PERIGEE_BENCH_PEERS_FAIL_H_

#include <errno.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace perigee::bench {

[[noreturn]] inline void Die(const std::string& message) {
  std::fprintf(stderr, "%s: %s\n", program_invocation_short_name, message.c_str());
  std::exit(1);
}

inline void Check(const absl::Status& status, const char* what) {
  if (!status.ok()) Die(absl::StrCat(what, ": ", status.ToString()));
}

template <typename T>
T Check(absl::StatusOr<T> value, const char* what) {
  Check(value.status(), what);
  return *std::move(value);
}

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_PEERS_FAIL_H_
