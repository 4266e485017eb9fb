#include "cluster/membership/membership.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace perigee::cluster {

const char* RoleName(Role role) {
  switch (role) {
    case Role::kStore:
      return "store";
    case Role::kPrefill:
      return "prefill";
    case Role::kDecode:
      return "decode";
    case Role::kGateway:
      return "gateway";
  }
  return "unknown";
}

absl::StatusOr<Role> RoleFromName(absl::string_view name) {
  for (const Role role : {Role::kStore, Role::kPrefill, Role::kDecode, Role::kGateway}) {
    if (name == RoleName(role)) return role;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("unknown role '", absl::CHexEscape(name.substr(0, 40)), "': store, prefill, decode or gateway"));
}

kvstore::StoreMap StoresOf(const ClusterView& view) {
  kvstore::StoreMap map{.epoch = view.placement_epoch, .stores = {}};
  for (const NodeRecord& node : view.nodes) {
    if (node.role != Role::kStore) continue;
    map.stores.push_back(
        {.id = node.id,
         .address = node.address,
         .weight = node.weight,
         .state = node.state == NodeState::kDraining ? kvstore::StoreState::kDraining : kvstore::StoreState::kServing});
  }
  return map;
}

const NodeRecord* FindNode(const ClusterView& view, absl::string_view id) {
  const auto found =
      std::lower_bound(view.nodes.begin(), view.nodes.end(), id,
                       [](const NodeRecord& node, absl::string_view wanted) { return node.id < wanted; });
  return found != view.nodes.end() && found->id == id ? &*found : nullptr;
}

}  // namespace perigee::cluster
