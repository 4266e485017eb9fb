#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kvstore/policy/reuse_model.h"
#include "test_tier.h"

namespace perigee::kvstore {
namespace {

// How much of a hot set, used all the time, is still there after a scan ten times the tier's size. Every use is a chain
// of 4 entries.
double HotLeftAfterScan(const char* policy) {
  constexpr uint64_t kEntries = 2000, kHotChains = 200;
  TestTier tier(policy, {.max_entries = kEntries});
  std::mt19937 random(1);
  const auto use = [&](uint64_t chain) {
    uint64_t parent = kNoKey;
    for (uint64_t key = chain * 4 + 1; key <= chain * 4 + 4; ++key) {
      if (tier.Has(key)) {
        tier.Touch(key);
      } else {
        if (tier.size() == kEntries) {
          if (parent != kNoKey) tier.Pin(parent);
          tier.Evict();
          if (parent != kNoKey) tier.Unpin(parent);
        }
        tier.Insert(key, parent);
      }
      parent = key;
    }
  };
  uint64_t once = 1000000;
  for (int i = 0; i < 10000; ++i) use(random() % 4 == 0 ? once++ : random() % kHotChains);
  for (uint64_t i = 0; i < 10 * kEntries / 4; ++i) use(once++);
  int left = 0;
  for (uint64_t key = 1; key <= kHotChains * 4; ++key) left += tier.Has(key);
  return left / (4.0 * kHotChains);
}

TEST(ValuePolicyTest, AScanOfTenTimesTheCapacityLeavesTheHotSet) {
  EXPECT_EQ(HotLeftAfterScan("lru"), 0);  // The scan does flush one that knows recency only.
  EXPECT_GT(HotLeftAfterScan("value"), 0.95);
}
TEST(S3FifoPolicyTest, AScanOfTenTimesTheCapacityLeavesTheHotSet) { EXPECT_GT(HotLeftAfterScan("s3fifo"), 0.95); }

TEST(ValuePolicyTest, OfEqualAgeAndUseTheCheapestPerByteGoesFirst) {
  TestTier tier("value", {.max_entries = 10000});
  // Cost per byte in the order of the keys' last digit; inserted in turns, so that ages do not tell them apart.
  PlaneFacts facts = TestTier::DefaultFacts();
  for (uint64_t i = 0; i < 100; ++i) {
    facts.payload_bytes = 1 << 20;
    facts.cost_us = 100;
    tier.Insert(i * 10 + 1, kNoKey, facts);
    facts.cost_us = 10000;
    tier.Insert(i * 10 + 2, kNoKey, facts);
    facts.payload_bytes = 1 << 10;
    tier.Insert(i * 10 + 3, kNoKey, facts);
  }
  for (uint64_t digit = 1; digit <= 3; ++digit) {
    for (int i = 0; i < 100; ++i) ASSERT_EQ(tier.Evict() % 10, digit);
  }
}

TEST(ValuePolicyTest, WhatGotACopyBelowGoesBeforeWhatWouldHaveToBeComputedAgain) {
  TestTier tier("value", {.max_entries = 100});
  for (uint64_t key = 1; key <= 20; ++key) tier.Insert(key);
  for (uint64_t key = 11; key <= 20; ++key) tier.policy().CostChanged(tier.id(key), 1 << 20, 20, false);
  for (int i = 0; i < 10; ++i) EXPECT_GT(tier.Evict(), 10u);
  for (int i = 0; i < 10; ++i) EXPECT_LE(tier.Evict(), 10u);
}

TEST(ValuePolicyTest, UsesSurviveEvictionInTheHistoryButNotRemoval) {
  TestTier tier("value", {.max_entries = 100});
  tier.Insert(1);
  tier.Touch(1);
  tier.Touch(1);
  EXPECT_EQ(tier.policy().PastOf(tier.id(1)).uses, 2);
  ASSERT_EQ(tier.Evict(), 1u);
  tier.Insert(1);
  EXPECT_EQ(tier.policy().PastOf(tier.id(1)).uses, 3);
  tier.Remove(1);
  tier.Insert(1);
  EXPECT_EQ(tier.policy().PastOf(tier.id(1)).uses, 0);
}

TEST(ValuePolicyTest, ASummaryLeftAloneGoesNext) {
  TestTier tier("value", {.max_entries = 100});
  PlaneFacts summary = TestTier::DefaultFacts();
  summary.kind = pod::PlaneKind::kSummary;
  summary.payload_bytes = 4096;
  tier.Insert(1, kNoKey, summary);
  tier.Insert(2, 1);
  for (uint64_t key = 3; key <= 20; ++key) tier.Insert(key);
  tier.Insert(21, kNoKey, summary);  // Its distant plane has not come yet: not alone.
  tier.Remove(2);
  EXPECT_EQ(tier.Evict(), 1u);
  EXPECT_NE(tier.Evict(), 21u);
}

TEST(ValuePolicyTest, AdmitsWhatSavesMoreThanItsWriteTakes) {
  TestTier tier("value", {.max_entries = 1000});
  // Keys up to 100 are used again and again, the others never.
  uint64_t once = 1000;
  for (int round = 0; round < 200; ++round) {
    for (uint64_t key = 1; key <= 100; ++key) {
      if (tier.Has(key)) {
        tier.Touch(key);
      } else {
        tier.Insert(key);
      }
    }
    for (int i = 0; i < 100; ++i) {
      if (tier.size() == 1000) tier.Evict();
      tier.Insert(once++);
    }
  }
  PlaneFacts facts = TestTier::DefaultFacts();
  facts.key_hash = TestTier::Hash(99999999);
  facts.cost_us = 1000;
  facts.past = {.uses = 9, .continued = true};
  EXPECT_TRUE(tier.policy().Admit(facts, 500));
  EXPECT_FALSE(tier.policy().Admit(facts, 2000));  // Computing it again is cheaper.
  facts.past.uses = 0;
  EXPECT_FALSE(tier.policy().Admit(facts, 500));
  EXPECT_TRUE(tier.policy().Admit(facts, 1e-3));
}

// Entries whose chance of use falls as 0.5 / (age + scale), and others at 0.05: the model finds both numbers.
TEST(ReuseModelTest, FindsTheRatesThatTheDataWereMadeWith) {
  constexpr size_t kResident = 4000;
  const double scale = 16 + 0.25 * kResident;
  ReuseModel model;
  model.Update(kResident);
  std::mt19937 random(3);
  std::uniform_real_distribution<double> uniform(1e-9, 1);
  for (int update = 0; update < 100; ++update) {
    for (int i = 0; i < 4000; ++i) {
      for (const auto& [group, weight] : {std::pair{1, 0.05}, {4, 0.5}}) {
        // By inversion; watched until used or until the age of 5000.
        const double age = scale * (std::pow(uniform(random), -1 / weight) - 1);
        model.Watched(group, 0, static_cast<float>(std::min(age, 5000.0)));
        if (age <= 5000) model.Used(group);
      }
    }
    model.Update(kResident);
  }
  EXPECT_NEAR(model.weight(1), 0.05, 0.005);
  EXPECT_NEAR(model.weight(4), 0.5, 0.02);
  EXPECT_NEAR(model.ProbabilityBefore(4, 3 * scale), 1 - std::pow(0.25, model.weight(4)), 1e-6);
}

}  // namespace
}  // namespace perigee::kvstore
