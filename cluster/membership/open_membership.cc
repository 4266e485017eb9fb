#include "cluster/membership/open_membership.h"

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "cluster/membership/record.h"
#include "cluster/membership/static_membership.h"

namespace perigee::cluster {

absl::StatusOr<MembershipSpec> ParseMembershipSpec(absl::string_view spec, EtcdOptions etcd) {
  const auto refuse = [spec](absl::string_view why) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", spec, "': ", why, "; a membership is static:PATH or etcd:HOST:PORT[,HOST:PORT...][/NAME]"));
  };
  absl::string_view rest = spec;
  if (absl::ConsumePrefix(&rest, "static:")) {
    if (rest.empty()) return refuse("there is no path");
    return MembershipSpec{.static_path = std::string(rest), .etcd = std::move(etcd)};
  }
  if (!absl::ConsumePrefix(&rest, "etcd:")) return refuse("it names neither a file nor etcd");

  std::string name = "default";
  if (const size_t slash = rest.find('/'); slash != absl::string_view::npos) {
    name = std::string(rest.substr(slash + 1));
    rest = rest.substr(0, slash);
    if (!CheckNodeId(name).ok()) return refuse("a cluster's name is 1 to 128 of A-Z a-z 0-9 . _ -");
  }
  etcd.prefix = absl::StrCat("/perigee/", name, "/");
  etcd.endpoints = absl::StrSplit(rest, ',');
  for (const std::string& endpoint : etcd.endpoints) {
    if (!CheckAddress("endpoint", endpoint).ok()) {
      return refuse(absl::StrCat("the endpoint '", endpoint, "' is not host:port"));
    }
  }
  return MembershipSpec{.static_path = "", .etcd = std::move(etcd)};
}

absl::StatusOr<std::unique_ptr<Membership>> OpenMembership(absl::string_view spec, EtcdOptions etcd) {
  PERIGEE_ASSIGN_OR_RETURN(const MembershipSpec parsed, ParseMembershipSpec(spec, std::move(etcd)));
  if (parsed.static_path.empty()) return OpenEtcdMembership(parsed.etcd);
  return StaticMembership::Open(parsed.static_path);
}

}  // namespace perigee::cluster
