// Process-wide logging set-up over spdlog. Log with spdlog's own calls: spdlog::info("{} blocks", n). Lines of a thread
// that works for a request (base/trace.h) name it.
#ifndef PERIGEE_BASE_LOG_H_
#define PERIGEE_BASE_LOG_H_

#include <string>

#include "absl/status/status.h"

namespace perigee {

// Sends log lines to standard error. Levels: trace, debug, info, warn, error, off. Formats: text, "time level process:
// [request] text"; json, one object a line with "time", "level", "process", "message" and, where there is one,
// "request_id". Call once, before other threads start.
absl::Status InitLogging(const std::string& process, const std::string& level, const std::string& format = "text");

}  // namespace perigee

#endif  // PERIGEE_BASE_LOG_H_
