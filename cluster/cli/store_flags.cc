#include "cluster/cli/store_flags.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "base/status.h"
#include "cluster/cli/command.h"
#include "kvstore/policy/eviction_policy.h"
#include "kvstore/remote/folder_tier.h"
#include "kvstore/remote/rados_tier.h"

namespace perigee::cli {
namespace {

absl::StatusOr<std::shared_ptr<kvstore::RemoteTier>> OpenRemote(const StoreFlags& flags) {
  absl::string_view where = flags.remote;
  absl::StatusOr<std::unique_ptr<kvstore::RemoteTier>> tier = absl::InvalidArgumentError(
      absl::StrCat("--remote '", flags.remote, "' is not folder:PATH, rados:POOL or rados:POOL/NAMESPACE"));
  if (absl::ConsumePrefix(&where, "folder:")) {
    kvstore::FolderOptions options;
    options.path = std::string(where);
    options.prefix = flags.remote_prefix;
    options.create = flags.remote_create;
    tier = kvstore::OpenFolderTier(options);
  } else if (absl::ConsumePrefix(&where, "rados:")) {
    const std::pair<std::string, std::string> pool = absl::StrSplit(where, absl::MaxSplits('/', 1));
    kvstore::RadosOptions options;
    options.config_path = flags.ceph_config;
    options.pool = pool.first;
    options.name_space = pool.second;
    options.client_name = flags.ceph_client;
    options.prefix = flags.remote_prefix;
    options.start_unconnected = true;
    tier = kvstore::OpenRadosTier(options);
  }
  if (!tier.ok()) return tier.status();
  return std::shared_ptr<kvstore::RemoteTier>(*std::move(tier));
}

}  // namespace

absl::StatusOr<kvstore::TenantQuota> ParseQuota(absl::string_view text) {
  const auto wrong = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--quota '", text, "': ", what, "; it is TENANT,dram-mib=N,ssd-mib=N,mib-per-s=N, any of the three"));
  };
  const std::vector<absl::string_view> parts = absl::StrSplit(text, ',');
  kvstore::TenantQuota quota;
  quota.tenant = std::string(parts[0]);
  if (quota.tenant.empty() || absl::StrContains(quota.tenant, '=')) return wrong("it names no tenant");
  if (parts.size() < 2) return wrong("it limits nothing");
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::pair<absl::string_view, absl::string_view> limit = absl::StrSplit(parts[i], absl::MaxSplits('=', 1));
    uint64_t mib = 0;
    if (!absl::SimpleAtoi(limit.second, &mib) || mib == 0 || mib > uint64_t{1} << 40) {
      return wrong(absl::StrCat("'", parts[i], "' has no number above 0"));
    }
    if (limit.first == "dram-mib") {
      quota.dram_bytes = mib << 20;
    } else if (limit.first == "ssd-mib") {
      quota.ssd_bytes = mib << 20;
    } else if (limit.first == "mib-per-s") {
      quota.bytes_per_s = mib << 20;
    } else {
      return wrong(absl::StrCat("'", limit.first, "' is no limit"));
    }
  }
  return quota;
}

void StoreFlags::Add(CLI::App& verb) {
  verb.add_option(
          "--data-dir", data_folders,
          "The disk tier's folder; given several times, on a disk each, they are striped (default: memory only)")
      ->allow_extra_args(false);
  verb.add_option("--ssd-mib", ssd_mib, "Disk tier")->capture_default_str()->check(kMebibytes);
  verb.add_option("--scrub-mib-per-s", scrub_mib_per_s,
                  "How fast each disk is read through and checked while it is idle; 0: never")
      ->capture_default_str()
      ->check(CLI::Range(uint64_t{0}, uint64_t{1} << 20));
  verb.add_option("--remote", remote,
                  "The remote tier: rados:POOL, rados:POOL/NAMESPACE or folder:PATH (default: none)");
  verb.add_option("--remote-prefix", remote_prefix, "Of the names of this store's objects there")
      ->capture_default_str();
  verb.add_flag("--remote-create", remote_create, "Make the folder of --remote folder: where it is missing");
  verb.add_option("--ceph-config", ceph_config, "Ceph's configuration, for --remote rados:")->capture_default_str();
  verb.add_option("--ceph-client", ceph_client, "Ceph's name for this store")->capture_default_str();
  verb.add_option("--policy", policy,
                  absl::StrCat("Which planes go first when a tier is full: ",
                               absl::StrJoin(kvstore::EvictionPolicyNames(), ", ")))
      ->capture_default_str();
  verb.add_option("--quota", quotas, "TENANT,dram-mib=N,ssd-mib=N,mib-per-s=N: what a tenant may use; repeatable")
      ->allow_extra_args(false);
  verb.add_option("--max-planes", max_planes,
                  "In all tiers (default: by their sizes); the index needs 200 bytes each, headers as much");
}

absl::StatusOr<kvstore::StoreOptions> StoreFlags::Options() const {
  kvstore::StoreOptions options;
  options.policy = policy;
  options.max_planes = max_planes;
  for (const std::string& quota : quotas) {
    PERIGEE_ASSIGN_OR_RETURN(options.quotas.emplace_back(), ParseQuota(quota));
  }
  if (!data_folders.empty()) {
    options.ssd = kvstore::SsdOptions{
        .paths = data_folders, .capacity_bytes = ssd_mib << 20, .scrub_bytes_per_s = scrub_mib_per_s << 20};
  }
  if (!remote.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(options.remote, OpenRemote(*this));
  }
  return options;
}

}  // namespace perigee::cli
