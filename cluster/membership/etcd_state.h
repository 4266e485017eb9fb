// What etcd's keys say, as a view: no calls, no threads, no clock of its own.
//
// The rules of etcd_membership.h stand here: operators' states over records, stores as the placement key has them,
// missing nodes kept for a while after a break, and which placement should be written. Times are SteadyNow's.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_ETCD_STATE_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_ETCD_STATE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cluster/membership/membership.h"
#include "etcd/kv.pb.h"
#include "kvstore/placement.h"

namespace perigee::cluster {

// Names of keys under a cluster's prefix.
struct EtcdKeys {
  std::string prefix;
  std::string Node(absl::string_view id) const;     // The record, under the node's lease.
  std::string Load(absl::string_view id) const;     // Its load, under the same.
  std::string State(absl::string_view id) const;    // What an operator wants it to be.
  std::string Removed(absl::string_view id) const;  // Which of its starts an operator has removed.
  std::string Placement() const;
};

class EtcdState {
 public:
  explicit EtcdState(const std::string& prefix) : keys_{prefix} {}

  // Contact was made, for the first time or after a break: what is missing is kept until then.
  void HoldUntil(absl::Time until) { hold_until_ = until; }
  absl::Time hold_until() const { return hold_until_; }
  // All keys there are.
  template <typename KeyValues>
  void Replace(const KeyValues& all, absl::Time now) {
    const std::map<std::string, NodeRecord> before = Clear();
    for (const mvccpb::KeyValue& kv : all) Put(kv);
    for (const auto& [id, record] : before) {
      if (!nodes_.contains(id)) Miss(id, record, now);
    }
  }
  void Apply(const mvccpb::Event& event, absl::Time now);

  std::vector<NodeRecord> Nodes(absl::Time now) const;
  uint64_t placement_epoch() const { return shown_.epoch; }

  // The placement that ought to be written, where the key has another one, or none.
  std::optional<kvstore::StoreMap> WantedPlacement(absl::Time now) const;
  // Of the placement key; 0: there is none.
  int64_t placement_revision() const { return placement_revision_; }

 private:
  std::map<std::string, NodeRecord> Clear();
  void Put(const mvccpb::KeyValue& kv);
  void Delete(const std::string& key, absl::Time now);
  void Miss(const std::string& id, const NodeRecord& record, absl::Time now);
  // The record of a node that is there, or is still kept; null for others.
  const NodeRecord* Find(const std::string& id, absl::Time now) const;
  NodeState StateOf(const NodeRecord& node) const;
  std::vector<kvstore::StoreEntry> WantedStores(absl::Time now) const;
  // An operator has removed this start of a node that is missing, or a start of which nothing is known.
  bool IsRemoved(const std::string& id) const;

  const EtcdKeys keys_;
  std::map<std::string, NodeRecord> nodes_;
  std::map<std::string, NodeRecord> missing_;  // Kept until hold_until_.
  std::map<std::string, NodeLoad> loads_;
  std::map<std::string, NodeState> states_;
  std::map<std::string, uint64_t> removed_;  // Incarnations.
  kvstore::StoreMap placement_;              // The key's.
  int64_t placement_revision_ = 0;
  kvstore::StoreMap shown_;  // The one with the highest epoch seen: epochs never go back, whatever happens to etcd.
  absl::Time hold_until_ = absl::InfinitePast();
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_ETCD_STATE_H_
