// Time that runs evenly: the wall clock's when a process asks for the first time, and from then on a steady clock's.
//
// For times to live, and for whatever is compared with them: somebody who sets the wall clock must not end leases early
// or let them live on. Not for times that are stored or sent: another process's differ. Any thread may call.
#ifndef PERIGEE_BASE_CLOCK_H_
#define PERIGEE_BASE_CLOCK_H_

#include <chrono>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace perigee {

inline absl::Time SteadyNow() {
  using Clock = std::chrono::steady_clock;
  static const Clock::time_point first = Clock::now();
  static const absl::Time wall = absl::Now();
  return wall + absl::FromChrono(Clock::now() - first);
}

}  // namespace perigee

#endif  // PERIGEE_BASE_CLOCK_H_
