// A daemon's face to whoever watches it, over HTTP/1.1:
//
//   GET /metrics   what `collect` says, for Prometheus
//   GET /health    200 while the process lives
//   GET /ready     200 while it takes new work, else 503 with the reason
#ifndef PERIGEE_CLUSTER_METRICS_METRICS_SERVER_H_
#define PERIGEE_CLUSTER_METRICS_METRICS_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cluster/metrics/metric_families.h"

namespace perigee::cluster {

class MetricsServer {
 public:
  // Both are called from threads of this object, until its end; the process's own metrics come besides.
  struct Sources {
    std::string process;  // "store", "gateway", ...
    std::string version;  // Of the program.
    std::function<void(MetricFamilies&)> collect;
    std::function<absl::Status()> ready;
  };
  // listen: host:port; port 0: any free one. INVALID_ARGUMENT for what is no address, ALREADY_EXISTS when the port is
  // taken.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& listen, Sources sources);
  // Waits for answers under way, a few seconds at most.
  ~MetricsServer();

  // "host:port" with the port in use.
  const std::string& address() const;

 private:
  class Impl;
  explicit MetricsServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_METRICS_METRICS_SERVER_H_
