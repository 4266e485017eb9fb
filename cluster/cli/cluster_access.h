// How operators' verbs reach a cluster: some process's admin service, from it all others, and the stores.
#ifndef PERIGEE_CLUSTER_CLI_CLUSTER_ACCESS_H_
#define PERIGEE_CLUSTER_CLI_CLUSTER_ACCESS_H_

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/admin/admin_client.h"
#include "cluster/cli/command.h"
#include "kvstore/sharded_store.h"
#include "transport/context.h"

namespace perigee::cli {

// The flags that all operators' verbs have.
struct ClusterFlags {
  std::string cluster_file = DefaultStateFolder() + "/cluster.json";
  std::string admin;        // host:port of any process; "": those of the file.
  std::string secret_file;  // "": the one that the file names.
  bool json = false;

  void Add(CLI::App& verb);
};

// A cluster, as a process of it that answers sees it.
struct ClusterAccess {
  cluster::AdminClient::View view;
  std::unique_ptr<cluster::AdminClient> admin;  // Of the process that answered.
  std::string secret;

  // NOT_FOUND without a file; UNAVAILABLE when nobody answers. Where processes are no cluster's members, each of the
  // file's that answers is asked, and the view is theirs put together.
  static absl::StatusOr<ClusterAccess> Open(const ClusterFlags& flags);

  std::unique_ptr<cluster::AdminClient> AdminOf(const cluster::NodeRecord& node) const;
  // kNotFound for an unknown id.
  absl::StatusOr<cluster::NodeRecord> Node(const std::string& id) const;
  // The serving one that is named first, or null.
  const cluster::NodeRecord* First(cluster::Role role) const;
};

// What the flags say without asking anybody.
struct Contact {
  std::vector<std::string> addresses;
  std::string secret;
};
absl::StatusOr<Contact> ReadContact(const ClusterFlags& flags);

struct StoreVerbFlags {
  ClusterFlags cluster;
  std::string store;  // Id, or host:port of one that need not be a cluster's; "": all stores.

  void Add(CLI::App& verb);
};

// The stores that a verb is about.
class StoreFleet {
 public:
  // What a verb does with them. Those that only ask and tell need no data plane: an operator's machine often reaches
  // none, and a store whose own is broken is one that has to be looked at.
  enum class Use { kAsk, kMovePayload };
  static absl::StatusOr<std::unique_ptr<StoreFleet>> Open(const StoreVerbFlags& flags, Use use = Use::kAsk);
  // All stores of a cluster, or the one named so. To ask.
  static absl::StatusOr<std::unique_ptr<StoreFleet>> Of(const ClusterAccess& cluster, const std::string& store);

  // At all stores at once, on threads of its own; `visit` must bear that. The first error, with its store's address.
  absl::Status ForEach(const std::function<absl::Status(const std::string& id, kvstore::StoreClient&)>& visit);
  // The same, for verbs that go on without a store that does not answer.
  std::vector<kvstore::ShardedStore::Visited> TryEach(
      const std::function<absl::Status(const std::string& id, kvstore::StoreClient&)>& visit);
  kvstore::ShardedStore& sharded() { return *sharded_; }
  const std::vector<kvstore::StoreEntry>& stores() const { return map_.stores; }

 private:
  static absl::StatusOr<std::unique_ptr<StoreFleet>> Make(kvstore::StoreMap map, const std::string& secret, Use use);
  static absl::StatusOr<std::unique_ptr<StoreFleet>> Find(const ClusterAccess& cluster, const std::string& store,
                                                          Use use);
  kvstore::StoreMap map_;
  std::unique_ptr<transport::Context> engine_;  // Null: to ask.
  std::unique_ptr<kvstore::ShardedStore> sharded_;
};

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_CLUSTER_ACCESS_H_
