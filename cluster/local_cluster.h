// A cluster on one machine: store, prefill node and decode node as separate processes of this program.
#ifndef PERIGEE_CLUSTER_LOCAL_CLUSTER_H_
#define PERIGEE_CLUSTER_LOCAL_CLUSTER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "cluster/client.h"
#include "cluster/process.h"

namespace perigee::cluster {

struct LocalClusterOptions {
  std::string executable;  // The perigee program; "": this one.
  std::string model_folder;
  std::string plan_file;     // "": the model folder's plan.json, else the identity plan; "identity".
  std::string state_folder;  // Data, logs, secrets and cluster.json; made where missing.
  std::string host = "127.0.0.1";
  uint16_t store_port = 0;  // 0: any free one.
  uint16_t prefill_port = 0;
  uint16_t decode_port = 0;
  int block_tokens = 64;
  int chunk_tokens = 512;
  uint64_t dram_mib = 256;  // The store's memory tier.
  uint64_t ssd_mib = 4096;  // The store's disk tier.
  uint64_t pool_mib = 256;  // Each node's own memory for planes.
  std::string transports;   // "": UCX chooses.
  std::string log_level = "info";
  absl::Duration start_timeout = absl::Seconds(60);
};

// Not thread-safe. Destruction kills what still runs.
class LocalCluster {
 public:
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(LocalClusterOptions options);

  const ClusterAddresses& addresses() const { return addresses_; }
  std::string address_file() const;

  // SIGKILL, as a crash would; and a new process on the same address and data.
  void KillStore();
  absl::Status StartStore();

  // The name of a process that has ended by itself, if any.
  std::optional<std::string> FindDead();

  // Stops all, the store last. The first error, if any; all are stopped in any case.
  absl::Status Stop();

  pid_t store_pid() const { return store_->pid(); }
  pid_t prefill_pid() const { return prefill_->pid(); }
  pid_t decode_pid() const { return decode_->pid(); }

 private:
  explicit LocalCluster(LocalClusterOptions options) : options_(std::move(options)) {}
  absl::Status MakeSecret();
  absl::StatusOr<ChildProcess> Launch(const std::string& role, std::vector<std::string> arguments);
  absl::StatusOr<ChildProcess> LaunchNode(const std::string& role, uint16_t port);
  LocalClusterOptions options_;
  ClusterAddresses addresses_;
  std::optional<ChildProcess> store_, prefill_, decode_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_LOCAL_CLUSTER_H_
