#include <gtest/gtest.h>

#include <map>
#include <random>

#include "test_tier.h"

namespace perigee::kvstore {
namespace {

// The definition, with no structure: of those that may go and are nobody's parent, the longest unused.
class PlainLru {
 public:
  void Use(uint64_t key, uint64_t parent) { entries_[key] = {++clock_, parent}; }
  void Remove(uint64_t key) { entries_.erase(key); }
  template <typename Pinned>
  uint64_t Victim(const Pinned& pinned) const {
    std::map<uint64_t, int> children;
    for (const auto& [key, e] : entries_) ++children[e.parent];
    uint64_t best = kNoKey;
    for (const auto& [key, e] : entries_) {
      if (!pinned(key) && !children.contains(key) && (best == kNoKey || e.used < entries_.at(best).used)) best = key;
    }
    return best;
  }

 private:
  struct Entry {
    uint64_t used = 0, parent = kNoKey;
  };
  std::map<uint64_t, Entry> entries_;
  uint64_t clock_ = 0;
};

TEST(LruPolicyTest, IsThePlainDefinitionUnderRandomUse) {
  for (int seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    TestTier tier("lru", {.max_entries = 100});
    PlainLru plain;
    for (int step = 0; step < 3000; ++step) {
      const uint64_t key = 1 + random() % 200;
      if (tier.Has(key) && random() % 10 == 0) {
        tier.Remove(key);
        plain.Remove(key);
        continue;
      }
      if (tier.Has(key)) {
        tier.Touch(key);
      } else {
        if (tier.size() == 100) {
          const uint64_t expected = plain.Victim([](uint64_t) { return false; });
          ASSERT_EQ(tier.Evict(), expected) << "seed " << seed << " step " << step;
          plain.Remove(expected);
        }
        tier.Insert(key);
      }
      plain.Use(key, kNoKey);
    }
  }
}

// Requests walk random paths of a tree from its root; a few keys are pinned for a while.
TEST(LruPolicyTest, IsThePlainDefinitionWithChainsAndPins) {
  for (int seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    TestTier tier("lru", {.max_entries = 120});
    PlainLru plain;
    std::vector<uint64_t> pinned;
    const auto evict = [&] {
      const uint64_t expected = plain.Victim([&](uint64_t key) { return tier.Pinned(key); });
      const uint64_t victim = tier.Evict();
      EXPECT_EQ(victim, expected);
      plain.Remove(victim);
      return victim == expected && victim != kNoKey;
    };
    for (int request = 0; request < 400; ++request) {
      uint64_t parent = kNoKey, node = 1 + random() % 4;
      for (int depth = 0; depth < 6; ++depth) {
        if (tier.Has(node)) {
          tier.Touch(node);
        } else {
          tier.Pin(parent);  // Of the request under way: the chain must not break under it.
          if (tier.size() == 120) {
            ASSERT_TRUE(evict()) << "seed " << seed << " request " << request;
          }
          if (std::find(pinned.begin(), pinned.end(), parent) == pinned.end()) tier.Unpin(parent);
          tier.Insert(node, parent);
        }
        plain.Use(node, parent);
        if (pinned.size() < 5 && random() % 20 == 0 && !tier.Pinned(node)) {
          tier.Pin(node);
          pinned.push_back(node);
        }
        parent = node;
        node = node * 4 + 1 + random() % 4;
      }
      if (!pinned.empty() && random() % 4 == 0) {
        const size_t which = random() % pinned.size();
        tier.Unpin(pinned[which]);
        pinned.erase(pinned.begin() + static_cast<ptrdiff_t>(which));
      }
    }
  }
}

TEST(LruPolicyTest, LastCopiesGoAfterAllOthersAndCostChangedMovesBetweenThem) {
  TestTier tier("lru", {.max_entries = 10});
  PlaneFacts precious = TestTier::DefaultFacts();
  precious.last_copy = true;
  tier.Insert(1, kNoKey, precious);
  tier.Insert(2, kNoKey, precious);
  tier.Insert(3);
  tier.Insert(4);
  EXPECT_EQ(tier.Evict(), 3u);
  tier.policy().CostChanged(tier.id(2), 1 << 20, 10, false);
  tier.policy().CostChanged(tier.id(4), 1 << 20, 1000, true);
  EXPECT_EQ(tier.Evict(), 2u);
  EXPECT_EQ(tier.Evict(), 1u);
  EXPECT_EQ(tier.Evict(), 4u);
  EXPECT_EQ(tier.Evict(), kNoKey);
}

}  // namespace
}  // namespace perigee::kvstore
