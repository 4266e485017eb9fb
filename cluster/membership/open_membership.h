// A membership from what stands on a command line.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_OPEN_MEMBERSHIP_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_OPEN_MEMBERSHIP_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cluster/membership/etcd_membership.h"
#include "cluster/membership/membership.h"

namespace perigee::cluster {

struct MembershipSpec {
  std::string static_path;  // Empty: etcd.
  EtcdOptions etcd;
};

// "static:PATH" or "etcd:HOST:PORT[,HOST:PORT...][/NAME]"; NAME is the cluster's, "default" if it is not given. etcd:
// what the text does not say, like TLS files. INVALID_ARGUMENT for other texts.
absl::StatusOr<MembershipSpec> ParseMembershipSpec(absl::string_view spec, EtcdOptions etcd = {});

absl::StatusOr<std::unique_ptr<Membership>> OpenMembership(absl::string_view spec, EtcdOptions etcd = {});

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_OPEN_MEMBERSHIP_H_
