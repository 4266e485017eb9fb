#include "kvstore/policy/tenant_quotas.h"

#include <algorithm>
#include <cassert>
#include <string>

#include "absl/strings/str_cat.h"

namespace perigee::kvstore {

absl::StatusOr<uint32_t> TenantQuotas::SetQuota(absl::string_view tenant, uint64_t quota_bytes) {
  const auto known = numbers_.find(tenant);
  uint32_t number;
  if (known != numbers_.end()) {
    number = known->second;
  } else {
    if (accounts_.size() > kMaxTenants) {
      return absl::ResourceExhaustedError(
          absl::StrCat("a quota for tenant \"", tenant, "\": ", kMaxTenants, " tenants have one already, no more can"));
    }
    number = static_cast<uint32_t>(accounts_.size());
    numbers_.emplace(std::string(tenant), number);
    accounts_.emplace_back();
  }
  Account& account = accounts_[number];
  over_ -= account.over();
  account.quota_bytes = quota_bytes;
  over_ += account.over();
  return number;
}

uint32_t TenantQuotas::NumberOf(absl::string_view tenant) const {
  const auto it = numbers_.find(tenant);
  return it == numbers_.end() ? 0 : it->second;
}

void TenantQuotas::Add(uint32_t tenant, uint64_t bytes) {
  Account& account = accounts_[tenant];
  over_ -= account.over();
  account.used_bytes += bytes;
  over_ += account.over();
}

void TenantQuotas::Subtract(uint32_t tenant, uint64_t bytes) {
  Account& account = accounts_[tenant];
  assert(account.used_bytes >= bytes);
  over_ -= account.over();
  account.used_bytes -= std::min(bytes, account.used_bytes);
  over_ += account.over();
}

uint64_t TenantQuotas::UsedBytes(uint32_t tenant) const { return accounts_[tenant].used_bytes; }
uint64_t TenantQuotas::QuotaBytes(uint32_t tenant) const { return accounts_[tenant].quota_bytes; }

std::optional<uint32_t> TenantQuotas::MustGive(uint32_t tenant, uint64_t bytes) const {
  const auto over_by = [&](uint32_t t) {
    const Account& account = accounts_[t];
    const double used = static_cast<double>(account.used_bytes) + (t == tenant ? static_cast<double>(bytes) : 0);
    return used / std::max(static_cast<double>(account.quota_bytes), 1.0);
  };
  if (over_ == 0) return over_by(tenant) > 1 ? std::optional(tenant) : std::nullopt;
  std::optional<uint32_t> most;
  for (uint32_t t = 0; t < accounts_.size(); ++t) {
    if (over_by(t) > 1 && (!most || over_by(t) > over_by(*most))) most = t;
  }
  return most;
}

}  // namespace perigee::kvstore
