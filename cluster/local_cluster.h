// A cluster on one machine: stores, prefill nodes, decode nodes and a gateway as separate processes of this program,
// members by a file (cluster/membership/static_membership.h).
#ifndef PERIGEE_CLUSTER_LOCAL_CLUSTER_H_
#define PERIGEE_CLUSTER_LOCAL_CLUSTER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "base/file.h"
#include "cluster/client.h"
#include "cluster/process.h"

namespace perigee::cluster {

struct LocalClusterOptions {
  std::string executable;  // The perigee program; "": this one.
  std::string model_folder;
  std::string plan_file;     // "": the model folder's plan.json, else the identity plan; "identity".
  std::string state_folder;  // Data, logs, secrets and cluster.json; made where missing.
  std::string host = "127.0.0.1";
  int stores = 1;
  int prefill_nodes = 1;
  int decode_nodes = 1;
  bool gateway = false;
  int replicas = 1;         // Stores that are to have what nodes write.
  uint16_t store_port = 0;  // Of the first, the others' follow; 0: any free ones.
  uint16_t prefill_port = 0;
  uint16_t decode_port = 0;
  uint16_t gateway_port = 0;
  bool keep_planes = true;  // Nodes keep planes of earlier requests.
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
  // FAILED_PRECONDITION: another cluster runs in that state folder.
  static absl::StatusOr<std::unique_ptr<LocalCluster>> Start(LocalClusterOptions options);

  const ClusterAddresses& addresses() const { return addresses_; }
  std::string address_file() const;

  // SIGKILL, as a crash would; and a new process on the same address and data.
  void KillStore();  // The first.
  absl::Status StartStore();

  // The name of a process that has ended by itself, if any.
  std::optional<std::string> FindDead();

  // Stops all, the stores last. The first error, if any; all are stopped in any case.
  absl::Status Stop();

  // Of the first of each.
  pid_t store_pid() const { return Find("store").pid(); }
  pid_t prefill_pid() const { return Find("prefill").pid(); }
  pid_t decode_pid() const { return Find("decode").pid(); }

 private:
  explicit LocalCluster(LocalClusterOptions options) : options_(std::move(options)) {}
  absl::Status MakeSecret();
  absl::Status MakeMembers();
  absl::Status LockFolder();
  // A process, in the order in which they were started: stores first.
  struct Part {
    std::string name;  // "store", "store2", ...: its id, its log's and its data folder's name.
    std::string role;
    std::string address;  // Once it is ready; where it is started again.
    std::optional<ChildProcess> child;
  };
  const ChildProcess& Find(const std::string& name) const;
  absl::Status LaunchAll(const std::string& role, int count, uint16_t port);
  absl::Status Launch(Part& part, const std::string& listen);
  std::vector<std::string> StoreArguments(const Part& part) const;
  std::vector<std::string> NodeArguments(const Part& part) const;
  absl::Status AwaitReady(Part& part);
  LocalClusterOptions options_;
  ClusterAddresses addresses_;
  UniqueFd lock_;  // Of the state folder.
  std::vector<Part> parts_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_LOCAL_CLUSTER_H_
