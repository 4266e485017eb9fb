#include "cluster/cli/watch_flags.h"

#include <utility>

#include "base/log.h"
#include "base/status.h"
#include "cluster/cli/member_flags.h"
#include "spdlog/spdlog.h"

namespace perigee::cli {

void WatchFlags::Add(CLI::App& verb) {
  verb.add_option("--log-level", log_level, "trace, debug, info, warn, error or off")->capture_default_str();
  verb.add_option("--log-format", log_format, "text, or json: one object a line")
      ->capture_default_str()
      ->check(CLI::IsMember({"text", "json"}));
  verb.add_option("--metrics-listen", metrics_listen,
                  "host:port of /metrics (Prometheus), /health and /ready over HTTP; port 0 takes a free one "
                  "(default: none)");
}

absl::Status WatchFlags::StartLogging(const std::string& process) const {
  return InitLogging(process, log_level, log_format);
}

absl::StatusOr<std::unique_ptr<cluster::MetricsServer>> WatchFlags::Serve(
    const std::string& process, std::function<void(cluster::MetricFamilies&)> collect,
    std::function<absl::Status()> ready) const {
  if (metrics_listen.empty()) return nullptr;
  PERIGEE_ASSIGN_OR_RETURN(
      std::unique_ptr<cluster::MetricsServer> server,
      cluster::MetricsServer::Start(
          metrics_listen,
          {.process = process, .version = PERIGEE_VERSION, .collect = std::move(collect), .ready = std::move(ready)}));
  spdlog::info("metrics on http://{}/metrics", server->address());
  return server;
}

std::string MetricsAddress(const cluster::MetricsServer* server, const std::string& node_address) {
  if (server == nullptr) return "";
  const std::string& bound = server->address();
  return IsWildcard(bound) ? UnderHostOf(node_address, bound) : bound;
}

}  // namespace perigee::cli
