#include "kvstore/policy/tenant_quotas.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/str_cat.h"
#include "test_tier.h"

namespace perigee::kvstore {
namespace {

TEST(TenantQuotasTest, WhoIsOverByTheLargestShareGivesFirstAndWithoutQuotaNobodyMust) {
  TenantQuotas quotas;
  const uint32_t a = *quotas.SetQuota("a", 100), b = *quotas.SetQuota("b", 1000);
  EXPECT_EQ(quotas.NumberOf("a"), a);
  EXPECT_EQ(quotas.NumberOf("nobody"), 0u);
  quotas.Add(0, 1 << 30);
  EXPECT_EQ(quotas.MustGive(0, 1 << 30), std::nullopt);
  quotas.Add(a, 100);
  EXPECT_EQ(quotas.MustGive(b, 10), std::nullopt);
  EXPECT_EQ(quotas.MustGive(a, 1), a);  // It would be over with it.
  quotas.Add(a, 50);
  quotas.Add(b, 1200);
  EXPECT_EQ(quotas.MustGive(0, 1), a);
  quotas.Subtract(a, 60);
  EXPECT_EQ(quotas.MustGive(0, 1), b);
  quotas.Subtract(b, 200);
  EXPECT_EQ(quotas.MustGive(0, 1), std::nullopt);
  EXPECT_EQ(*quotas.SetQuota("b", 500), b);  // Smaller now.
  EXPECT_EQ(quotas.MustGive(0, 1), b);
}

TEST(TenantQuotasTest, TheAccountsAndWhoIsOverStayRightUnderRandomUse) {
  std::mt19937 random(1);
  TenantQuotas quotas;
  std::vector<uint64_t> used(6), quota(6);
  for (int step = 0; step < 20000; ++step) {
    const uint32_t t = 1 + random() % 5;
    if (quota[t] == 0 || random() % 50 == 0) {
      quota[t] = 1 + random() % 1000;
      ASSERT_TRUE(quotas.SetQuota(absl::StrCat("tenant", t), quota[t]).ok());
    }
    const uint32_t number = quotas.NumberOf(absl::StrCat("tenant", t));
    const uint64_t bytes = random() % 300;
    if (used[t] >= bytes && random() % 2 == 0) {
      quotas.Subtract(number, bytes);
      used[t] -= bytes;
    } else {
      quotas.Add(number, bytes);
      used[t] += bytes;
    }
    ASSERT_EQ(quotas.UsedBytes(number), used[t]);
    double most = 1;
    std::optional<uint32_t> expected;
    for (uint32_t i = 1; i < 6; ++i) {
      const uint32_t n = quotas.NumberOf(absl::StrCat("tenant", i));
      if (n == 0 || static_cast<double>(used[i]) / static_cast<double>(quota[i]) <= most) continue;
      most = static_cast<double>(used[i]) / static_cast<double>(quota[i]);
      expected = n;
    }
    const auto gives = quotas.MustGive(0, 1);
    ASSERT_EQ(gives.has_value(), expected.has_value());
    if (expected) {
      ASSERT_EQ(quotas.UsedBytes(*gives), quotas.UsedBytes(*expected));
    }
  }
}

TEST(TenantQuotasTest, MoreTenantsThanThePoliciesCanSearchAreRefused) {
  TenantQuotas quotas;
  for (size_t i = 0; i < TenantQuotas::kMaxTenants; ++i) ASSERT_TRUE(quotas.SetQuota(absl::StrCat(i), 1).ok());
  EXPECT_EQ(quotas.SetQuota("one more", 1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(quotas.SetQuota("0", 2).ok());
}

// A loud tenant cannot push out a quiet one that keeps within its quota.
TEST(TenantQuotasTest, ATenantOverItsQuotaGivesBeforeTheOthers) {
  constexpr uint64_t kBytes = 1 << 20, kEntries = 100;
  TestTier tier("default", {.max_entries = kEntries});
  TenantQuotas quotas;
  const uint32_t loud = *quotas.SetQuota("loud", 50 * kBytes), quiet = *quotas.SetQuota("quiet", 50 * kBytes);
  std::vector<uint32_t> tenant_of(10000);
  const auto insert = [&](uint64_t key, uint32_t tenant) {
    while (tier.size() == kEntries || quotas.MustGive(tenant, kBytes) == tenant) {
      const uint64_t victim = tier.Evict(quotas.MustGive(tenant, kBytes));
      ASSERT_NE(victim, kNoKey);
      quotas.Subtract(tenant_of[victim], kBytes);
    }
    PlaneFacts facts = TestTier::DefaultFacts();
    facts.tenant = tenant_of[key] = tenant;
    tier.Insert(key, kNoKey, facts);
    quotas.Add(tenant, kBytes);
  };
  for (uint64_t key = 1; key <= 40; ++key) insert(key, quiet);
  for (uint64_t key = 100; key < 5000; ++key) insert(key, loud);
  for (uint64_t key = 1; key <= 40; ++key) EXPECT_TRUE(tier.Has(key)) << key;
  EXPECT_EQ(quotas.UsedBytes(loud), 50 * kBytes);
  // Without a quota, but never at the expense of who is within his.
  for (uint64_t key = 5000; key < 5100; ++key) insert(key, 0);
  EXPECT_LE(quotas.UsedBytes(quiet) + quotas.UsedBytes(loud) + quotas.UsedBytes(0), kEntries * kBytes);
}

}  // namespace
}  // namespace perigee::kvstore
