#include "cluster/cli/cluster_access.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/exit_code.h"
#include "kvstore/sessions.h"

namespace perigee::cli {

void ClusterFlags::Add(CLI::App& verb) {
  verb.add_option("--cluster", cluster_file, "Address file written by 'perigee up'")->capture_default_str();
  verb.add_option("--admin", admin, "host:port of any of the cluster's processes, instead of the file");
  verb.add_option("--store-secret-file", secret_file, "File with the secret that stores and nodes ask for");
  verb.add_flag("--json", json, "Print JSON");
}

absl::StatusOr<Contact> ReadContact(const ClusterFlags& flags) {
  Contact contact;
  std::string secret_file = flags.secret_file;
  if (!flags.admin.empty()) {
    contact.addresses = {flags.admin};
  } else {
    const absl::StatusOr<std::string> text = ReadFile(flags.cluster_file, size_t{1} << 20);
    if (!text.ok()) {
      return absl::NotFoundError(absl::StrCat("no cluster is described in ", flags.cluster_file, " (",
                                              text.status().message(),
                                              "): start one with 'perigee up', or name another file with --cluster or "
                                              "a process with --admin"));
    }
    const auto json = nlohmann::json::parse(*text, nullptr, false);
    if (!json.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(flags.cluster_file, " is not a JSON object"));
    }
    if (json.contains("admin") && json["admin"].is_array()) {
      for (const auto& address : json["admin"]) {
        if (address.is_string()) contact.addresses.push_back(address.get<std::string>());
      }
    }
    for (const char* role : {"store", "prefill", "decode"}) {
      if (!json.contains(role) || !json[role].is_string()) continue;
      const auto address = json[role].get<std::string>();
      const auto& known = contact.addresses;
      if (std::find(known.begin(), known.end(), address) == known.end()) contact.addresses.push_back(address);
    }
    if (contact.addresses.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat(flags.cluster_file, " names no process: 'admin' must be a list of host:port"));
    }
    if (secret_file.empty() && json.contains("store_secret_file") && json["store_secret_file"].is_string()) {
      secret_file = json["store_secret_file"].get<std::string>();
    }
  }
  if (!secret_file.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(contact.secret, kvstore::ReadSecret(secret_file));
  }
  return contact;
}

absl::StatusOr<ClusterAccess> ClusterAccess::Open(const ClusterFlags& flags) {
  PERIGEE_ASSIGN_OR_RETURN(const Contact contact, ReadContact(flags));
  ClusterAccess access;
  access.secret = contact.secret;
  absl::Status error = absl::UnavailableError("no process is named");
  for (const std::string& address : contact.addresses) {
    auto admin = std::make_unique<cluster::AdminClient>(address, contact.secret);
    absl::StatusOr<cluster::AdminClient::View> view = admin->GetView();
    if (!view.ok()) {
      error = view.status();
      continue;
    }
    if (access.admin == nullptr) {
      const bool alone = view->alone;
      access.admin = std::move(admin);
      access.view = *std::move(view);
      if (!alone) return access;
    } else if (view->alone) {
      for (cluster::NodeRecord& node : view->cluster.nodes) access.view.cluster.nodes.push_back(std::move(node));
    }
  }
  if (access.admin == nullptr) return Annotate(error, "no process of the cluster answers");
  std::sort(access.view.cluster.nodes.begin(), access.view.cluster.nodes.end(),
            [](const auto& a, const auto& b) { return a.id < b.id; });
  return access;
}

std::unique_ptr<cluster::AdminClient> ClusterAccess::AdminOf(const cluster::NodeRecord& node) const {
  return std::make_unique<cluster::AdminClient>(node.address, secret, absl::Seconds(3));
}

absl::StatusOr<cluster::NodeRecord> ClusterAccess::Node(const std::string& id) const {
  if (const cluster::NodeRecord* node = cluster::FindNode(view.cluster, id)) return *node;
  std::vector<std::string> ids;
  for (const cluster::NodeRecord& node : view.cluster.nodes) ids.push_back(node.id);
  return WithExitCode(
      absl::NotFoundError(absl::StrCat("no node is called '", id, "'; there are ", absl::StrJoin(ids, ", "))),
      ExitCode::kNotFound);
}

const cluster::NodeRecord* ClusterAccess::First(cluster::Role role) const {
  for (const cluster::NodeRecord& node : view.cluster.nodes) {
    if (node.role == role && node.state == cluster::NodeState::kServing) return &node;
  }
  return nullptr;
}

void StoreVerbFlags::Add(CLI::App& verb) {
  cluster.Add(verb);
  verb.add_option("--store", store, "One store: its id, or its host:port (default: all of the cluster's)");
}

absl::StatusOr<std::unique_ptr<StoreFleet>> StoreFleet::Open(const StoreVerbFlags& flags, Use use) {
  if (flags.store.find(':') != std::string::npos) {
    kvstore::StoreMap map{.epoch = 1, .stores = {{.id = flags.store, .address = flags.store}}};
    std::string secret;
    if (!flags.cluster.secret_file.empty()) {
      PERIGEE_ASSIGN_OR_RETURN(secret, kvstore::ReadSecret(flags.cluster.secret_file));
    }
    return Make(std::move(map), secret, use);
  }
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(flags.cluster));
  return Find(cluster, flags.store, use);
}

absl::StatusOr<std::unique_ptr<StoreFleet>> StoreFleet::Of(const ClusterAccess& cluster, const std::string& store) {
  return Find(cluster, store, Use::kAsk);
}

absl::StatusOr<std::unique_ptr<StoreFleet>> StoreFleet::Find(const ClusterAccess& cluster, const std::string& store,
                                                             Use use) {
  kvstore::StoreMap map = cluster::StoresOf(cluster.view.cluster);
  if (!store.empty()) {
    PERIGEE_RETURN_IF_ERROR(cluster.Node(store).status());
    std::erase_if(map.stores, [&](const kvstore::StoreEntry& entry) { return entry.id != store; });
  }
  if (map.stores.empty()) {
    return WithExitCode(absl::NotFoundError("the cluster has no such store"), ExitCode::kNotFound);
  }
  return Make(std::move(map), cluster.secret, use);
}

absl::StatusOr<std::unique_ptr<StoreFleet>> StoreFleet::Make(kvstore::StoreMap map, const std::string& secret,
                                                             Use use) {
  std::unique_ptr<StoreFleet> fleet(new StoreFleet);
  fleet->map_ = map;
  if (use == Use::kMovePayload) {
    PERIGEE_ASSIGN_OR_RETURN(fleet->engine_, transport::Context::Create({}));
  }
  kvstore::ShardedStoreOptions options;
  options.client.secret = secret;
  options.read_stores = map.stores.size();
  fleet->sharded_ = std::make_unique<kvstore::ShardedStore>(std::make_shared<kvstore::StoreDirectory>(std::move(map)),
                                                            fleet->engine_.get(), options);
  return fleet;
}

std::vector<kvstore::ShardedStore::Visited> StoreFleet::TryEach(
    const std::function<absl::Status(const std::string& id, kvstore::StoreClient&)>& visit) {
  return sharded_->ForEachStore(
      [&](const kvstore::StoreEntry& store, kvstore::StoreClient& client) { return visit(store.id, client); });
}

absl::Status StoreFleet::ForEach(
    const std::function<absl::Status(const std::string& id, kvstore::StoreClient&)>& visit) {
  for (const auto& visited : TryEach(visit)) {
    if (!visited.status.ok()) return Annotate(visited.status, absl::StrCat("store ", visited.store.address));
  }
  return absl::OkStatus();
}

}  // namespace perigee::cli
