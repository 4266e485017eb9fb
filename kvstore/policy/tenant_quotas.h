// Who has how much of a tier, and who must give first when room is needed. A tenant over its quota gives before anybody
// else does; the one that is over by the largest share of its quota gives first. A quota is not a reservation: what a
// tenant does not use others may, and it gets it back by eviction from the others as soon as they are over theirs.
//
// Not thread-safe. Tenants are the small dense numbers of PlaneFacts; 0 (everybody without a quota) never is over.
#ifndef PERIGEE_KVSTORE_POLICY_TENANT_QUOTAS_H_
#define PERIGEE_KVSTORE_POLICY_TENANT_QUOTAS_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::kvstore {

class TenantQuotas {
 public:
  // Queues of a policy are per tenant, and a search visits all of them.
  static constexpr size_t kMaxTenants = 1024;

  // Sets or changes a quota; returns the tenant's number, which it keeps. RESOURCE_EXHAUSTED beyond kMaxTenants.
  absl::StatusOr<uint32_t> SetQuota(absl::string_view tenant, uint64_t quota_bytes);
  // 0 for a tenant without a quota.
  uint32_t NumberOf(absl::string_view tenant) const;

  void Add(uint32_t tenant, uint64_t bytes);
  void Subtract(uint32_t tenant, uint64_t bytes);
  uint64_t UsedBytes(uint32_t tenant) const;
  uint64_t QuotaBytes(uint32_t tenant) const;  // Of tenant 0: all there is.

  // Tenants that use more than their quota.
  size_t over() const { return over_; }

  // Who must give when `tenant` is about to get `bytes` more; nobody: any victim will do. Constant time unless
  // somebody is over. To be asked again after every victim. Where all of that tenant's entries are pinned, its own
  // write is refused; for another's write the next best victim goes.
  std::optional<uint32_t> MustGive(uint32_t tenant, uint64_t bytes) const;

 private:
  struct Account {
    uint64_t quota_bytes = ~uint64_t{0};
    uint64_t used_bytes = 0;
    bool over() const { return used_bytes > quota_bytes; }
  };

  absl::flat_hash_map<std::string, uint32_t> numbers_;
  std::vector<Account> accounts_ = {Account{}};
  size_t over_ = 0;  // How many are.
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_POLICY_TENANT_QUOTAS_H_
