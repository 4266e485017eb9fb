// What every policy promises: children before parents, pinned ones kept, bounded memory, tenants apart.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "test_tier.h"

namespace perigee::kvstore {
namespace {

class PolicyOrderTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(All, PolicyOrderTest, testing::Values("lru", "s3fifo", "value"));

PlaneFacts Plane(pod::PlaneKind kind, uint64_t bytes) {
  PlaneFacts facts = TestTier::DefaultFacts();
  facts.kind = kind;
  facts.payload_bytes = bytes;
  return facts;
}

TEST_P(PolicyOrderTest, NoParentGoesBeforeItsChildWhateverWasTouchedRemovedOrPinned) {
  for (int seed = 0; seed < 10; ++seed) {
    std::mt19937 random(seed);
    TestTier tier(GetParam(), {.max_entries = 400});
    std::map<uint64_t, uint64_t> parent_of;
    std::map<uint64_t, int> children;
    uint64_t next = 1;
    std::vector<uint64_t> pinned;
    const auto gone = [&](uint64_t key) {
      if (const uint64_t parent = parent_of[key]; parent != kNoKey) --children[parent];
      parent_of.erase(key);
    };
    for (int step = 0; step < 6000; ++step) {
      auto it = parent_of.lower_bound(random() % next);
      const uint64_t some = it == parent_of.end() ? kNoKey : it->first;
      switch (random() % 8) {
        case 0:
          if (some != kNoKey && children[some] == 0) {
            tier.Remove(some);
            gone(some);
          }
          break;
        case 1:
        case 2:
          if (some != kNoKey) tier.Touch(some);
          break;
        case 3:
          if (some != kNoKey && pinned.size() < 30) {
            // With its ancestors, as a reader does.
            for (uint64_t key = some; key != kNoKey; key = parent_of[key]) {
              tier.Pin(key);
              pinned.push_back(key);
            }
          } else {
            for (uint64_t key : pinned) tier.Unpin(key);
            pinned.clear();
          }
          break;
        default:
          if (tier.size() == 400) {
            const uint64_t victim = tier.Evict();
            ASSERT_NE(victim, kNoKey);
            ASSERT_EQ(children[victim], 0) << GetParam() << " seed " << seed << " step " << step;
            gone(victim);
          }
          const uint64_t parent = some != kNoKey && parent_of.contains(some) && random() % 8 != 0 ? some : kNoKey;
          tier.Insert(next, parent);
          parent_of[next++] = parent;
          if (parent != kNoKey) ++children[parent];
      }
    }
  }
}

TEST_P(PolicyOrderTest, OfABlockTheProximalPlaneGoesFirstThenTheDistantAndTheChainsEndBeforeItsStart) {
  TestTier tier(GetParam(), {.max_entries = 100});
  // A chain of 4 blocks, each of which is summary, distant and proximal plane, inserted start first.
  uint64_t before = kNoKey;
  for (uint64_t block = 1; block <= 4; ++block) {
    tier.Insert(block * 10 + 1, before, Plane(pod::PlaneKind::kSummary, 4096));
    tier.Insert(block * 10 + 2, block * 10 + 1, Plane(pod::PlaneKind::kDistant, 1 << 20));
    tier.Insert(block * 10 + 3, block * 10 + 2, Plane(pod::PlaneKind::kProximal, 1 << 20));
    before = block * 10 + 2;
  }
  std::map<uint64_t, int> order;
  for (int i = 0; i < 12; ++i) order[tier.Evict()] = i;
  for (uint64_t block = 1; block <= 4; ++block) {
    EXPECT_LT(order.at(block * 10 + 3), order.at(block * 10 + 2)) << "block " << block;
    EXPECT_LT(order.at(block * 10 + 2), order.at(block * 10 + 1)) << "block " << block;
    if (block < 4) {
      EXPECT_LT(order.at(block * 10 + 12), order.at(block * 10 + 2)) << "block " << block;
    }
  }
}

TEST_P(PolicyOrderTest, PinnedOnesAreNoVictimsAndGoOnceUnpinned) {
  TestTier tier(GetParam(), {.max_entries = 1000});
  for (uint64_t key = 1; key <= 500; ++key) {
    tier.Insert(key);
    if (key <= 400) tier.Pin(key);
  }
  for (int i = 0; i < 100; ++i) EXPECT_GT(tier.Evict(), 400u);
  EXPECT_EQ(tier.Evict(), kNoKey);
  for (uint64_t key = 501; key <= 520; ++key) tier.Insert(key);
  for (uint64_t key = 1; key <= 10; ++key) tier.Unpin(key);
  for (int i = 0; i < 30; ++i) EXPECT_NE(tier.Evict(), kNoKey);
  EXPECT_EQ(tier.Evict(), kNoKey);
  for (uint64_t key = 11; key <= 400; ++key) EXPECT_TRUE(tier.Has(key));
}

TEST_P(PolicyOrderTest, WhereAllWerePinnedTheyGoOnceUnpinned) {
  TestTier tier(GetParam(), {.max_entries = 1000});
  for (uint64_t key = 1; key <= 8; ++key) tier.Insert(key);
  for (uint64_t key = 1; key <= 8; ++key) tier.Pin(key);
  EXPECT_EQ(tier.Evict(), kNoKey);
  for (uint64_t key = 1; key <= 8; ++key) tier.Unpin(key);
  for (int i = 0; i < 8; ++i) EXPECT_NE(tier.Evict(), kNoKey);
}

// Ten thousand leases over a store that evicts all the time: what was seen pinned once is not looked at again.
TEST_P(PolicyOrderTest, PinnedEntriesAreLookedAtOnceNotAtEveryEviction) {
  auto policy = *MakeEvictionPolicy(GetParam(), {.max_entries = 20000});
  for (EntryId id = 0; id < 10000; ++id) policy->Inserted(id, TestTier::DefaultFacts());
  uint64_t looks = 0;
  const auto evictable = [&](EntryId id) {
    ++looks;
    return id >= 10000;
  };
  for (EntryId id = 10000; id < 20000; ++id) {
    PlaneFacts facts = TestTier::DefaultFacts();
    facts.key_hash = TestTier::Hash(id);
    policy->Inserted(id, facts);
    const auto victim = policy->Victim(std::nullopt, evictable);
    ASSERT_TRUE(victim.has_value());
    policy->Evicted(*victim, TestTier::Hash(id));
  }
  EXPECT_LE(looks, 10000u + 2 * 10000u);
}

TEST_P(PolicyOrderTest, WhereOnlyParentsOfPinnedOnesAreLeftOneOfThoseGoes) {
  TestTier tier(GetParam(), {.max_entries = 10});
  tier.Insert(1);
  tier.Insert(2, 1);
  tier.Insert(3, 2);
  tier.Pin(3);
  const uint64_t first = tier.Evict();
  EXPECT_TRUE(first == 1 || first == 2) << first;
  EXPECT_NE(tier.Evict(), kNoKey);
  EXPECT_EQ(tier.Evict(), kNoKey);
  // Its parent's number is another's by now; its going must not hurt that one's children.
  tier.Insert(4);
  tier.Insert(5, 4);
  tier.Unpin(3);
  EXPECT_EQ(tier.Evict(), 3u);
  EXPECT_EQ(tier.Evict(), 5u);
  EXPECT_EQ(tier.Evict(), 4u);
}

TEST_P(PolicyOrderTest, AVictimOfATenantIsThatTenants) {
  TestTier tier(GetParam(), {.max_entries = 100});
  PlaneFacts facts = TestTier::DefaultFacts();
  for (uint64_t key = 1; key <= 90; ++key) {
    facts.tenant = key % 3;
    tier.Insert(key, kNoKey, facts);
  }
  for (int i = 0; i < 30; ++i) EXPECT_EQ(tier.Evict(1) % 3, 1u);
  EXPECT_EQ(tier.Evict(1), kNoKey);
  EXPECT_EQ(tier.Evict(7), kNoKey);
  for (int i = 0; i < 60; ++i) EXPECT_NE(tier.Evict(), kNoKey);
  EXPECT_EQ(tier.size(), 0u);
}

TEST_P(PolicyOrderTest, MemoryStaysBoundedUnderEndlessNewKeys) {
  constexpr size_t kEntries = 8192;
  TestTier tier(GetParam(), {.max_entries = kEntries});
  size_t settled = 0;
  for (uint64_t key = 1; key <= 40 * kEntries; ++key) {
    if (tier.size() == kEntries) tier.Evict();
    tier.Insert(key);
    if (key == 4 * kEntries) settled = tier.policy().MemoryBytes();
  }
  EXPECT_EQ(tier.policy().MemoryBytes(), settled);
  EXPECT_LE(settled, kEntries * 72);
}

TEST(EvictionPolicyTest, AnUnknownNameIsRefusedWithThoseThereAre) {
  const auto policy = MakeEvictionPolicy("mru", {.max_entries = 1});
  ASSERT_FALSE(policy.ok());
  EXPECT_NE(policy.status().message().find("mru"), absl::string_view::npos);
  for (absl::string_view name : EvictionPolicyNames()) {
    EXPECT_NE(policy.status().message().find(name), absl::string_view::npos);
    EXPECT_TRUE(MakeEvictionPolicy(name, {.max_entries = 1}).ok());
  }
  EXPECT_FALSE(MakeEvictionPolicy("lru", {.max_entries = 0}).ok());
}

}  // namespace
}  // namespace perigee::kvstore
