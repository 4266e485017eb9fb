// Members and their parts as protobuf messages, and back: what the admin service and its client share.
#ifndef PERIGEE_CLUSTER_ADMIN_WIRE_H_
#define PERIGEE_CLUSTER_ADMIN_WIRE_H_

#include "absl/status/statusor.h"
#include "cluster/membership/membership.h"
#include "perigee/v1/admin.pb.h"

namespace perigee::cluster {

// Where a caller's secret travels.
inline constexpr char kAdminSecretMetadata[] = "perigee-secret-bin";

v1::NodeRole RoleToWire(Role role);
v1::MemberState StateToWire(NodeState state);
absl::StatusOr<NodeState> StateFromWire(v1::MemberState state);
void NodeToWire(const NodeRecord& node, v1::MemberNode* wire);
// INVALID_ARGUMENT for what is no member (CheckRecord in membership/record.h).
absl::StatusOr<NodeRecord> NodeFromWire(const v1::MemberNode& wire);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_ADMIN_WIRE_H_
