#include "cluster/contexts/open_registry.h"

#include <filesystem>

#include "base/status.h"
#include "cluster/contexts/etcd_registry.h"
#include "cluster/contexts/folder_registry.h"
#include "cluster/membership/open_membership.h"

namespace perigee::cluster {

absl::StatusOr<std::unique_ptr<ContextRegistry>> OpenContextRegistry(const std::string& spec, const EtcdOptions& etcd,
                                                                     const std::string& folder) {
  PERIGEE_ASSIGN_OR_RETURN(const MembershipSpec parsed, ParseMembershipSpec(spec, etcd));
  if (!parsed.static_path.empty()) {
    const std::filesystem::path beside = std::filesystem::path(parsed.static_path).parent_path() / "contexts";
    return FolderContextRegistry::Open(folder.empty() ? beside.string() : folder);
  }
  if (folder.empty()) return EtcdContextRegistry::Open(parsed.etcd);
  return absl::InvalidArgumentError(
      absl::StrCat("a folder for contexts (", folder, ") is given, but contexts stand in etcd where members do"));
}

}  // namespace perigee::cluster
