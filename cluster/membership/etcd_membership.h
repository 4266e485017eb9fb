// Membership in etcd (3.4 or later), for clusters over several machines.
//
// A node's record is a key under a lease that its process keeps alive: a process that dies is out of the cluster when
// the lease ends, one that leaves is out at once. States that an operator sets, and removals, are keys without a
// lease: they outlive restarts. docs/formats.md, section 8.3, has the keys.
//
// The placement, that is the stores with their epoch, is a key of its own. Members come and go in more ways than there
// are transactions of ours (a lease that ends deletes a key by itself), so no revision of theirs can be a number
// that a process which looks later would find too. Instead each process compares the stores that it sees with the
// placement key, and where they differ one of them replaces it, by compare-and-swap, under the next epoch. The key
// holds number and stores together: whoever sees the same epoch sees the same stores. Views show stores as the key has
// them.
//
// While etcd cannot be reached, views stay as they are and the calls here answer UNAVAILABLE within the call deadline.
// A node whose lease ended meanwhile enters itself again. After every break of the connection, nodes that are
// missing are kept for one ttl more, because they may be entering themselves again just now; and so are stores of the
// placement when a process begins to look. When etcd itself has lost its data, the epoch goes on above the highest that
// a process has seen.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_ETCD_MEMBERSHIP_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_ETCD_MEMBERSHIP_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/membership/membership.h"

namespace perigee::cluster {

struct EtcdOptions {
  std::vector<std::string> endpoints;  // host:port each.
  std::string prefix = "/perigee/default/";
  absl::Duration ttl = absl::Seconds(10);  // In whole seconds: after so long without a sign of life a node is out.
  absl::Duration call_deadline = absl::Seconds(3);  // Of one call, over all endpoints.
  absl::Duration load_interval = absl::Seconds(2);  // A node tells its load no more often.
  // PEM files. With a CA (or a certificate) the endpoints are spoken to over TLS.
  std::string ca_path;
  std::string certificate_path;
  std::string key_path;
};

// Reads the cluster once: UNAVAILABLE when no endpoint answers.
absl::StatusOr<std::unique_ptr<Membership>> OpenEtcdMembership(const EtcdOptions& options);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_ETCD_MEMBERSHIP_H_
