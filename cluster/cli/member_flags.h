// The flags by which a process becomes a member of a cluster.
#ifndef PERIGEE_CLUSTER_CLI_MEMBER_FLAGS_H_
#define PERIGEE_CLUSTER_CLI_MEMBER_FLAGS_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cluster/admin/admin_service.h"
#include "cluster/cli/command.h"
#include "cluster/member.h"

namespace perigee::cli {

// Of host:port. "" is every address of the machine, as "0.0.0.0" and "[::]" are.
std::string HostOf(const std::string& address);
// The port of `listening` under the host of `told`: what others are told of a server on all addresses.
std::string UnderHostOf(const std::string& told, const std::string& listening);
bool IsWildcard(const std::string& address);  // Nobody can connect to it under that name.
bool IsLoopback(const std::string& address);  // Only this machine can.

struct MemberFlags {
  std::string spec;       // "": no cluster.
  std::string id;         // "": role and address.
  std::string advertise;  // "": the address it listens on.
  double weight = 1;
  cluster::EtcdOptions etcd;

  void Add(CLI::App& verb);
  // Null without --join. For servers, with termination signals blocked: both wait until the cluster's etcd answers, and
  // are CANCELLED by such a signal.
  absl::StatusOr<std::unique_ptr<cluster::Member>> Open() const;
  absl::Status Join(cluster::Member& member, const cluster::NodeRecord& node,
                    const std::function<cluster::NodeLoad()>& load) const;
  // What all roles have in common. FAILED_PRECONDITION for an address that others cannot reach.
  absl::StatusOr<cluster::NodeRecord> Record(cluster::Role role, const std::string& listening) const;
  // For the admin service of a process that `verb` started. member: null for none.
  cluster::AdminOptions Admin(const CLI::App& verb, cluster::Member* member) const;
};

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_MEMBER_FLAGS_H_
