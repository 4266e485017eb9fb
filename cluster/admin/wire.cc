#include "cluster/admin/wire.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/membership/record.h"

namespace perigee::cluster {
namespace {

absl::StatusOr<Role> RoleFromWire(v1::NodeRole role) {
  for (const Role known : {Role::kStore, Role::kPrefill, Role::kDecode, Role::kGateway}) {
    if (RoleToWire(known) == role) return known;
  }
  return absl::InvalidArgumentError(absl::StrCat("role ", static_cast<int>(role), " is not known"));
}

}  // namespace

v1::NodeRole RoleToWire(Role role) {
  switch (role) {
    case Role::kStore:
      return v1::NODE_ROLE_STORE;
    case Role::kPrefill:
      return v1::NODE_ROLE_PREFILL;
    case Role::kDecode:
      return v1::NODE_ROLE_DECODE;
    case Role::kGateway:
      return v1::NODE_ROLE_GATEWAY;
  }
  return v1::NODE_ROLE_UNSPECIFIED;
}

v1::MemberState StateToWire(NodeState state) {
  return state == NodeState::kDraining ? v1::MEMBER_STATE_DRAINING : v1::MEMBER_STATE_SERVING;
}

absl::StatusOr<NodeState> StateFromWire(v1::MemberState state) {
  if (state == v1::MEMBER_STATE_SERVING) return NodeState::kServing;
  if (state == v1::MEMBER_STATE_DRAINING) return NodeState::kDraining;
  return absl::InvalidArgumentError(absl::StrCat("state ", static_cast<int>(state), " is not known"));
}

void NodeToWire(const NodeRecord& node, v1::MemberNode* wire) {
  wire->set_id(node.id);
  wire->set_role(RoleToWire(node.role));
  wire->set_address(node.address);
  wire->set_http_address(node.http_address);
  wire->set_metrics_address(node.metrics_address);
  wire->set_state(StateToWire(node.state));
  wire->set_weight(node.weight);
  wire->set_dram_bytes(node.capacity.dram_bytes);
  wire->set_ssd_bytes(node.capacity.ssd_bytes);
  wire->set_pool_bytes(node.capacity.pool_bytes);
  wire->set_max_sequences(node.capacity.max_sequences);
  wire->set_dram_used_bytes(node.load.dram_used_bytes);
  wire->set_ssd_used_bytes(node.load.ssd_used_bytes);
  wire->set_pool_used_bytes(node.load.pool_used_bytes);
  wire->set_running(node.load.running);
  wire->set_queued(node.load.queued);
  wire->set_model_fingerprint(node.model_fingerprint);
  wire->set_plan_id(node.plan_id);
  wire->set_started_unix_us(node.started_unix_us);
  wire->set_incarnation(node.incarnation);
}

absl::StatusOr<NodeRecord> NodeFromWire(const v1::MemberNode& wire) {
  NodeRecord node;
  node.id = wire.id();
  PERIGEE_ASSIGN_OR_RETURN(node.role, RoleFromWire(wire.role()));
  node.address = wire.address();
  node.http_address = wire.http_address();
  node.metrics_address = wire.metrics_address();
  PERIGEE_ASSIGN_OR_RETURN(node.state, StateFromWire(wire.state()));
  node.weight = wire.weight();
  node.capacity = {.dram_bytes = wire.dram_bytes(),
                   .ssd_bytes = wire.ssd_bytes(),
                   .pool_bytes = wire.pool_bytes(),
                   .max_sequences = wire.max_sequences()};
  node.load = {.dram_used_bytes = wire.dram_used_bytes(),
               .ssd_used_bytes = wire.ssd_used_bytes(),
               .pool_used_bytes = wire.pool_used_bytes(),
               .running = wire.running(),
               .queued = wire.queued()};
  node.model_fingerprint = wire.model_fingerprint();
  node.plan_id = wire.plan_id();
  node.started_unix_us = wire.started_unix_us();
  node.incarnation = wire.incarnation();
  PERIGEE_RETURN_IF_ERROR(CheckRecord(node));
  return node;
}

}  // namespace perigee::cluster
