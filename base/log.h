// Process-wide logging set-up over spdlog. Log with spdlog's own calls: spdlog::info("{} blocks", n).
#ifndef PERIGEE_BASE_LOG_H_
#define PERIGEE_BASE_LOG_H_

#include <string>

#include "absl/status/status.h"

namespace perigee {

// Sends log lines to standard error as "time level process: text". Levels: trace, debug, info, warn, error, off.
// Call once, before other threads start.
absl::Status InitLogging(const std::string& process, const std::string& level);

}  // namespace perigee

#endif  // PERIGEE_BASE_LOG_H_
