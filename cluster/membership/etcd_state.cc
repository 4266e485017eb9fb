#include "cluster/membership/etcd_state.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "cluster/membership/record.h"

namespace perigee::cluster {
namespace {

bool SameMap(const kvstore::StoreMap& a, const kvstore::StoreMap& b) {
  return a.epoch == b.epoch && a.stores == b.stores;
}

// The value, or nothing and a line in the log: what cannot be read is as if it were not there, in every process.
template <typename T>
std::optional<T> Read(const std::string& key, absl::StatusOr<T> value) {
  if (value.ok()) return *std::move(value);
  spdlog::warn("etcd's key {} is ignored: {}", key, std::string(value.status().message()));
  return std::nullopt;
}

template <typename T>
void Assign(std::map<std::string, T>& map, const std::string& id, std::optional<T> value) {
  if (value.has_value()) {
    map[id] = *std::move(value);
  } else {
    map.erase(id);
  }
}

absl::StatusOr<NodeRecord> RecordOf(absl::string_view id, const std::string& value) {
  absl::StatusOr<NodeRecord> record = RecordFromJson(value);
  if (record.ok() && record->id != id) {
    return absl::InvalidArgumentError(absl::StrCat("it is the record of node ", record->id));
  }
  return record;
}

kvstore::StoreState ToStoreState(NodeState state) {
  return state == NodeState::kDraining ? kvstore::StoreState::kDraining : kvstore::StoreState::kServing;
}

}  // namespace

std::string EtcdKeys::Node(absl::string_view id) const { return absl::StrCat(prefix, "nodes/", id); }
std::string EtcdKeys::Load(absl::string_view id) const { return absl::StrCat(prefix, "load/", id); }
std::string EtcdKeys::State(absl::string_view id) const { return absl::StrCat(prefix, "states/", id); }
std::string EtcdKeys::Removed(absl::string_view id) const { return absl::StrCat(prefix, "removed/", id); }
std::string EtcdKeys::Placement() const { return absl::StrCat(prefix, "placement"); }

std::map<std::string, NodeRecord> EtcdState::Clear() {
  loads_.clear();
  states_.clear();
  removed_.clear();
  placement_ = {};
  placement_revision_ = 0;
  return std::exchange(nodes_, {});
}

void EtcdState::Apply(const mvccpb::Event& event, absl::Time now) {
  if (event.type() == mvccpb::Event::DELETE) {
    Delete(event.kv().key(), now);
  } else {
    Put(event.kv());
  }
}

void EtcdState::Put(const mvccpb::KeyValue& kv) {
  const std::string& key = kv.key();
  absl::string_view rest = key;
  if (!absl::ConsumePrefix(&rest, keys_.prefix)) return;
  if (rest == "placement") {
    placement_revision_ = kv.mod_revision();
    placement_ = Read(key, StoreMapFromJson(kv.value())).value_or(kvstore::StoreMap{});
    if (placement_.epoch > shown_.epoch) shown_ = placement_;
  } else if (absl::ConsumePrefix(&rest, "nodes/")) {
    const std::string id(rest);
    Assign(nodes_, id, Read(key, RecordOf(rest, kv.value())));
    missing_.erase(id);
  } else if (absl::ConsumePrefix(&rest, "load/")) {
    Assign(loads_, std::string(rest), Read(key, LoadFromJson(kv.value())));
  } else if (absl::ConsumePrefix(&rest, "states/")) {
    Assign(states_, std::string(rest), Read(key, StateFromJson(kv.value())));
  } else if (absl::ConsumePrefix(&rest, "removed/")) {
    Assign(removed_, std::string(rest), Read(key, RemovalFromJson(kv.value())));
  }
}

void EtcdState::Delete(const std::string& key, absl::Time now) {
  absl::string_view rest = key;
  if (!absl::ConsumePrefix(&rest, keys_.prefix)) return;
  if (rest == "placement") {
    placement_ = {};
    placement_revision_ = 0;
  } else if (absl::ConsumePrefix(&rest, "nodes/")) {
    const auto node = nodes_.find(std::string(rest));
    if (node == nodes_.end()) return;
    Miss(node->first, node->second, now);
    nodes_.erase(node);
  } else if (absl::ConsumePrefix(&rest, "load/")) {
    loads_.erase(std::string(rest));
  } else if (absl::ConsumePrefix(&rest, "states/")) {
    states_.erase(std::string(rest));
  } else if (absl::ConsumePrefix(&rest, "removed/")) {
    removed_.erase(std::string(rest));
  }
}

void EtcdState::Miss(const std::string& id, const NodeRecord& record, absl::Time now) {
  if (now < hold_until_) missing_[id] = record;
}

const NodeRecord* EtcdState::Find(const std::string& id, absl::Time now) const {
  if (const auto node = nodes_.find(id); node != nodes_.end()) return &node->second;
  const auto node = missing_.find(id);
  if (node == missing_.end() || now >= hold_until_) return nullptr;
  return IsRemoved(id) ? nullptr : &node->second;
}

NodeState EtcdState::StateOf(const NodeRecord& node) const {
  const auto state = states_.find(node.id);
  return state == states_.end() ? node.state : state->second;
}

std::vector<NodeRecord> EtcdState::Nodes(absl::Time now) const {
  std::map<std::string, NodeRecord> nodes;
  const auto show = [&](const NodeRecord& node) {
    if (node.role == Role::kStore) return;
    NodeRecord& shown = nodes[node.id] = node;
    shown.state = StateOf(node);
  };
  for (const auto& [id, node] : nodes_) show(node);
  for (const auto& [id, node] : missing_) {
    if (Find(id, now) == &node) show(node);
  }
  for (const kvstore::StoreEntry& store : shown_.stores) {
    const NodeRecord* record = Find(store.id, now);
    NodeRecord& shown = nodes[store.id];
    // A store that left before this process began to look is still placed on: what the placement knows of it.
    shown = record != nullptr && record->role == Role::kStore ? *record : NodeRecord();
    shown.id = store.id;
    shown.address = store.address;
    shown.weight = store.weight;
    shown.state = store.state == kvstore::StoreState::kDraining ? NodeState::kDraining : NodeState::kServing;
  }
  std::vector<NodeRecord> out;
  for (auto& [id, node] : nodes) {
    const auto load = loads_.find(id);
    if (load != loads_.end()) node.load = load->second;
    out.push_back(std::move(node));
  }
  return out;
}

bool EtcdState::IsRemoved(const std::string& id) const {
  const auto removed = removed_.find(id);
  if (removed == removed_.end()) return false;
  const auto missing = missing_.find(id);
  return missing == missing_.end() || missing->second.incarnation == removed->second;
}

std::vector<kvstore::StoreEntry> EtcdState::WantedStores(absl::Time now) const {
  std::vector<kvstore::StoreEntry> stores;
  for (const auto& [id, node] : nodes_) {
    if (node.role != Role::kStore) continue;
    stores.push_back({.id = id, .address = node.address, .weight = node.weight, .state = ToStoreState(StateOf(node))});
  }
  // Missing stores are kept where they are placed, and never put back: others may know better that they are gone, and
  // the two would replace each other's placement in turns.
  for (const kvstore::StoreEntry& store : shown_.stores) {
    if (now < hold_until_ && !nodes_.contains(store.id) && !IsRemoved(store.id)) stores.push_back(store);
  }
  std::sort(stores.begin(), stores.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
  return stores;
}

std::optional<kvstore::StoreMap> EtcdState::WantedPlacement(absl::Time now) const {
  std::vector<kvstore::StoreEntry> stores = WantedStores(now);
  if (stores == placement_.stores && SameMap(placement_, shown_)) return std::nullopt;
  return kvstore::StoreMap{.epoch = std::max(placement_.epoch, shown_.epoch) + 1, .stores = std::move(stores)};
}

}  // namespace perigee::cluster
