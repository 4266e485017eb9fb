// The flags of `perigee serve` that are about watching a process: its log and its metrics.
#ifndef PERIGEE_CLUSTER_CLI_WATCH_FLAGS_H_
#define PERIGEE_CLUSTER_CLI_WATCH_FLAGS_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cluster/metrics/metrics_server.h"

namespace perigee::cli {

struct WatchFlags {
  std::string log_level = "info";
  std::string log_format = "text";
  std::string metrics_listen;  // "": none.

  void Add(CLI::App& verb);
  absl::Status StartLogging(const std::string& process) const;
  // Null without --metrics-listen. What the sources look at outlives it.
  absl::StatusOr<std::unique_ptr<cluster::MetricsServer>> Serve(const std::string& process,
                                                                std::function<void(cluster::MetricFamilies&)> collect,
                                                                std::function<absl::Status()> ready) const;
};

// Where others reach a process's metrics: on the host of its own address, where it listens on all. "" for null.
std::string MetricsAddress(const cluster::MetricsServer* server, const std::string& node_address);

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_WATCH_FLAGS_H_
