// The flags of `perigee serve store` that say how it keeps planes: tiers, policy, quotas.
#ifndef PERIGEE_CLUSTER_CLI_STORE_FLAGS_H_
#define PERIGEE_CLUSTER_CLI_STORE_FLAGS_H_

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/store.h"

namespace perigee::cli {

struct StoreFlags {
  std::vector<std::string> data_folders;
  uint64_t ssd_mib = 4096;
  uint64_t scrub_mib_per_s = 8;
  std::string remote, remote_prefix = "perigee", ceph_config = "/etc/ceph/ceph.conf", ceph_client = "client.admin";
  bool remote_create = false;
  std::string policy = "default";
  std::vector<std::string> quotas;
  uint32_t max_planes = 0;

  void Add(CLI::App& verb);
  // Opens the remote tier, where there is one: may take its connect time.
  absl::StatusOr<kvstore::StoreOptions> Options() const;
};

// "TENANT,dram-mib=N,ssd-mib=N,mib-per-s=N": at least one of the three. INVALID_ARGUMENT says what is wrong.
absl::StatusOr<kvstore::TenantQuota> ParseQuota(absl::string_view text);

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_STORE_FLAGS_H_
