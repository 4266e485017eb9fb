// Who is in the cluster: nodes, their roles, addresses, capacity and load, and the placement epoch.
//
// Two implementations: a file that names the nodes (static_membership.h), and etcd (etcd_membership.h). Both keep the
// last view that they saw: when the file or etcd cannot be reached, changes stop, traffic does not.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_MEMBERSHIP_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_MEMBERSHIP_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvstore/placement.h"

namespace perigee::cluster {

enum class Role : uint8_t { kStore, kPrefill, kDecode, kGateway };
const char* RoleName(Role role);  // "store", "prefill", "decode", "gateway"
absl::StatusOr<Role> RoleFromName(absl::string_view name);

enum class NodeState : uint8_t {
  kServing,
  kDraining,  // Gets nothing new; what it has is finished, or moved away.
};

struct NodeCapacity {
  uint64_t dram_bytes = 0;     // Stores: memory tier.
  uint64_t ssd_bytes = 0;      // Stores: disk tier.
  uint64_t pool_bytes = 0;     // Prefill and decode nodes: memory for planes.
  uint32_t max_sequences = 0;  // Decode nodes: answers at once. Prefill nodes: prompts at once.
  friend bool operator==(const NodeCapacity&, const NodeCapacity&) = default;
};

// Reported every few seconds, for people and for balancing in the large; schedulers ask nodes themselves.
struct NodeLoad {
  uint64_t dram_used_bytes = 0;
  uint64_t ssd_used_bytes = 0;
  uint64_t pool_used_bytes = 0;
  uint32_t running = 0;  // Requests.
  uint32_t queued = 0;
  friend bool operator==(const NodeLoad&, const NodeLoad&) = default;
};

struct NodeRecord {
  std::string id;  // Unique in the cluster, and the same after a restart.
  Role role = Role::kStore;
  std::string address;          // host:port of its gRPC services.
  std::string http_address;     // host:port of a gateway's HTTP API; "" for others.
  std::string metrics_address;  // host:port of its HTTP metrics; "" for none.
  NodeState state = NodeState::kServing;
  double weight = 1;  // Of a store in the placement.
  NodeCapacity capacity;
  NodeLoad load;
  std::string model_fingerprint;  // Hexadecimal; "" for stores.
  std::string plan_id;            // Hexadecimal; "" for stores.
  int64_t started_unix_us = 0;
  uint64_t incarnation = 0;  // Random, of this start of the node, below 2^53. Join makes one where it is 0.
  friend bool operator==(const NodeRecord&, const NodeRecord&) = default;
};

struct ClusterView {
  uint64_t version = 0;           // Grows with every change of anything here, in this process.
  uint64_t placement_epoch = 0;   // Grows when a store joins, leaves, drains, or changes weight or address; the same
                                  // number means the same stores in every process.
  std::vector<NodeRecord> nodes;  // By id.
  absl::Time as_of;               // When the source was last heard.
};

// The stores of a view, for those that place planes.
kvstore::StoreMap StoresOf(const ClusterView& view);

// The node of that id, or null.
const NodeRecord* FindNode(const ClusterView& view, absl::string_view id);

// This process as a member. Destruction leaves the cluster; a static one keeps the node as a member, since it may just
// be starting again. Any thread may call.
class Registration {
 public:
  virtual ~Registration() = default;
  // Told to the others some time later.
  virtual void SetLoad(const NodeLoad& load) = 0;
  // OK for a member. UNAVAILABLE: not entered just now, and trying. For good: FAILED_PRECONDITION when an operator has
  // removed the node, ALREADY_EXISTS when another process has taken its id.
  virtual absl::Status Status() const { return absl::OkStatus(); }
};

// Any thread may call.
class Membership {
 public:
  virtual ~Membership() = default;

  // Never waits, never null.
  virtual std::shared_ptr<const ClusterView> View() const = 0;
  // Until the view's version is above `version`; false when the deadline came first.
  virtual bool AwaitNewer(uint64_t version, absl::Time deadline) const = 0;

  // Changes made here are in View some milliseconds after the call has returned.

  // Enters the node, or replaces the entry of its former life (an operator's drain stays in force). ALREADY_EXISTS when
  // another living process has the id; UNAVAILABLE when the source cannot be reached now; INVALID_ARGUMENT for a record
  // that CheckRecord (record.h) refuses.
  virtual absl::StatusOr<std::unique_ptr<Registration>> Join(const NodeRecord& node) = 0;

  // The operator's: kDraining, and back. NOT_FOUND for an unknown id.
  virtual absl::Status SetState(const std::string& id, NodeState state) = 0;
  // Takes a node out, for good: one that still lives does not come back before it is started again.
  virtual absl::Status Remove(const std::string& id) = 0;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_MEMBERSHIP_H_
