#include "cluster/cli/member_flags.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/process.h"

namespace perigee::cli {
namespace {

constexpr absl::Duration kAskAgainAfter = absl::Milliseconds(500);
constexpr absl::Duration kLeaseEnds = absl::Seconds(15);

// Until the membership has said something. A machine that starts while etcd is away joins when etcd is back, instead of
// depending on somebody who starts its processes again.
absl::Status Await(absl::FunctionRef<absl::Status()> call) {
  for (bool said = false;; said = true) {
    const absl::Status status = call();
    if (!absl::IsUnavailable(status)) return status;
    if (!said) spdlog::warn("waiting for the cluster: {}", std::string(status.message()));
    if (cluster::WaitForTermination(absl::Now() + kAskAgainAfter)) {
      return absl::CancelledError(absl::StrCat("told to stop before it was in the cluster: ", status.message()));
    }
  }
}

}  // namespace

std::string HostOf(const std::string& address) { return address.substr(0, address.rfind(':')); }

std::string UnderHostOf(const std::string& told, const std::string& listening) {
  return absl::StrCat(HostOf(told), listening.substr(listening.rfind(':')));
}

bool IsWildcard(const std::string& address) {
  const std::string host = HostOf(address);
  return host.empty() || host == "0.0.0.0" || host == "[::]" || host == "::";
}

bool IsLoopback(const std::string& address) {
  const std::string host = HostOf(address);
  return absl::StartsWith(host, "127.") || host == "localhost" || host == "[::1]" || host == "::1";
}

void MemberFlags::Add(CLI::App& verb) {
  verb.add_option("--join", spec,
                  "The cluster to be a member of: static:FILE, or etcd:HOST:PORT[,HOST:PORT...][/NAME]");
  verb.add_option("--id", id, "This process's name in the cluster, the same after a restart (default: role-address)");
  verb.add_option("--advertise", advertise, "host:port at which the others reach it (default: where it listens)");
  verb.add_option("--etcd-ca", etcd.ca_path, "CA certificate of etcd (PEM): TLS");
  verb.add_option("--etcd-cert", etcd.certificate_path, "This process's certificate for etcd");
  verb.add_option("--etcd-key", etcd.key_path, "And its key");
}

absl::StatusOr<std::unique_ptr<cluster::Member>> MemberFlags::Open() const {
  if (spec.empty()) return nullptr;
  std::unique_ptr<cluster::Member> member;
  PERIGEE_RETURN_IF_ERROR(Await([&]() -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(member, cluster::Member::Open(spec, etcd));
    return absl::OkStatus();
  }));
  return member;
}

absl::Status MemberFlags::Join(cluster::Member& member, const cluster::NodeRecord& node,
                               const std::function<cluster::NodeLoad()>& load) const {
  // Its former life, killed, keeps the id until its lease ends: seconds.
  const absl::Time until = absl::Now() + kLeaseEnds;
  return Await([&] {
    const absl::Status status = member.Join(node, load);
    return absl::IsAlreadyExists(status) && absl::Now() < until ? absl::UnavailableError(status.message()) : status;
  });
}

absl::StatusOr<cluster::NodeRecord> MemberFlags::Record(cluster::Role role, const std::string& listening) const {
  cluster::NodeRecord node;
  node.role = role;
  node.address = advertise.empty() ? listening : advertise;
  if (IsWildcard(node.address) && !spec.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("it listens on ", listening, ", which others cannot connect to: say with --advertise where"));
  }
  node.id = id;
  if (id.empty()) {
    node.id = absl::StrCat(cluster::RoleName(role), "-", node.address);
    for (char& c : node.id) {
      if (!absl::ascii_isalnum(c) && c != '.') c = '-';
    }
  }
  node.weight = weight;
  node.started_unix_us = absl::ToUnixMicros(absl::Now());
  return node;
}

cluster::AdminOptions MemberFlags::Admin(const CLI::App& verb, cluster::Member* member) const {
  cluster::AdminOptions admin;
  admin.version = PERIGEE_VERSION;
  admin.membership = member == nullptr ? nullptr : &member->membership();
  admin.keeps_entries = absl::StartsWith(spec, "static:");
  for (const CLI::Option* option : verb.get_options()) {
    if (option->get_lnames().empty() || option->get_lnames()[0] == "help") continue;
    const bool given = option->count() > 0;
    admin.settings.push_back({.name = option->get_lnames()[0],
                              .value = given ? absl::StrJoin(option->results(), ",") : option->get_default_str(),
                              .given = given});
  }
  return admin;
}

}  // namespace perigee::cli
