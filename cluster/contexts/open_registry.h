// The registry of contexts that goes with a membership.
#ifndef PERIGEE_CLUSTER_CONTEXTS_OPEN_REGISTRY_H_
#define PERIGEE_CLUSTER_CONTEXTS_OPEN_REGISTRY_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cluster/contexts/registry.h"
#include "cluster/membership/etcd_membership.h"

namespace perigee::cluster {

// spec: as OpenMembership's. Members in etcd: there; in a file: `folder`, or "contexts" beside the file where it is "".
// INVALID_ARGUMENT for a folder where members are in etcd.
absl::StatusOr<std::unique_ptr<ContextRegistry>> OpenContextRegistry(const std::string& spec, const EtcdOptions& etcd,
                                                                     const std::string& folder);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_OPEN_REGISTRY_H_
