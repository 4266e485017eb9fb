#include <gtest/gtest.h>

#include <algorithm>
#include <deque>
#include <map>
#include <random>
#include <set>

#include "test_tier.h"

namespace perigee::kvstore {
namespace {

// After the paper's algorithm 1, without bounds on the ghosts: tests keep fewer keys than either would remember.
class PlainS3Fifo {
 public:
  bool Has(uint64_t key) const { return frequency_.contains(key); }
  void Touch(uint64_t key) { frequency_[key] = std::min(frequency_[key] + 1, 3); }
  void Insert(uint64_t key) {
    (ghosts_.erase(key) > 0 ? main_ : small_).push_front(key);
    frequency_[key] = 0;
  }
  uint64_t Evict() {
    for (;;) {
      if (!small_.empty() && (main_.empty() || small_.size() * 10 >= small_.size() + main_.size())) {
        const uint64_t tail = small_.back();
        small_.pop_back();
        if (frequency_[tail] > 1) {
          main_.push_front(tail);
          frequency_[tail] = 0;
          continue;
        }
        ghosts_.insert(tail);
        frequency_.erase(tail);
        return tail;
      }
      const uint64_t tail = main_.back();
      main_.pop_back();
      if (frequency_[tail] == 0) {
        frequency_.erase(tail);
        return tail;
      }
      --frequency_[tail];
      main_.push_front(tail);
    }
  }

 private:
  std::deque<uint64_t> small_, main_;
  std::map<uint64_t, int> frequency_;
  std::set<uint64_t> ghosts_;
};

TEST(S3FifoPolicyTest, IsThePapersAlgorithmUnderRandomUse) {
  for (int seed = 0; seed < 20; ++seed) {
    std::mt19937 random(seed);
    TestTier tier("s3fifo", {.max_entries = 100, .ghost_entries = 1 << 14});
    PlainS3Fifo plain;
    for (int step = 0; step < 5000; ++step) {
      // Some keys are hot, most are not.
      const uint64_t key = 1 + (random() % 2 == 0 ? random() % 60 : random() % 600);
      ASSERT_EQ(tier.Has(key), plain.Has(key));
      if (tier.Has(key)) {
        tier.Touch(key);
        plain.Touch(key);
        continue;
      }
      if (tier.size() == 100) {
        ASSERT_EQ(tier.Evict(), plain.Evict()) << "seed " << seed << " step " << step;
      }
      tier.Insert(key);
      plain.Insert(key);
    }
  }
}

TEST(S3FifoPolicyTest, AdmitsWhatWasUsedAgainOrComesASecondTime) {
  TestTier tier("s3fifo", {.max_entries = 100});
  PlaneFacts facts = TestTier::DefaultFacts();
  facts.key_hash = TestTier::Hash(7);
  EXPECT_FALSE(tier.policy().Admit(facts, 10));
  EXPECT_TRUE(tier.policy().Admit(facts, 10));
  facts.key_hash = TestTier::Hash(8);
  facts.past.uses = 1;
  EXPECT_TRUE(tier.policy().Admit(facts, 10));
}

}  // namespace
}  // namespace perigee::kvstore
