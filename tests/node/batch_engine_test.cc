// What shares a pass with what, and what becomes of those that wait when the engine ends.
#include "node/batch_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <deque>
#include <numeric>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "model/plane_cache.h"
#include "model/served_model.h"

namespace perigee::node {
namespace {

const model::ServedModel& Model() {
  static const auto* const model = [] {
    auto loaded = model::ServedModel::Load({.folder = PERIGEE_SOURCE_DIR "/models/podling", .plan_file = "identity"});
    EXPECT_TRUE(loaded.ok()) << loaded.status();
    return loaded->release();
  }();
  return *model;
}

class Sequence {
 public:
  explicit Sequence(size_t tokens, int32_t first = 5)
      : ids_(tokens),
        cache_(&Model().layout(), &Model().transformer().rope(), Model().transformer().rank_config().q_heads,
               model::HeapPlanes()) {
    std::iota(ids_.begin(), ids_.end(), first);
  }
  model::BatchItem Item() {
    return {.tokens = ids_, .cache = &cache_, .which = model::Logits::kLast, .logits = &logits_};
  }
  const std::vector<float>& logits() const { return logits_; }
  int64_t done() const { return cache_.tokens(); }

 private:
  std::vector<int32_t> ids_;
  model::PlaneCache cache_;
  std::vector<float> logits_;
};

// Holds the engine's thread until the test has submitted what is to wait together.
class Held {
 public:
  explicit Held(BatchEngine& engine) : sequence_(2) {
    engine.Submit(sequence_.Item(), [this](const absl::Status&) {
      held_.Notify();
      go_on_.WaitForNotificationWithTimeout(absl::Seconds(20));
    });
    held_.WaitForNotificationWithTimeout(absl::Seconds(20));
  }
  void GoOn() { go_on_.Notify(); }

 private:
  Sequence sequence_;
  absl::Notification held_, go_on_;
};

TEST(BatchEngineTest, WhatWaitsGoesTogetherAndComputesWhatItWouldAlone) {
  std::vector<std::unique_ptr<Sequence>> together;
  {
    BatchEngine engine(&Model().transformer(), 512);
    Held held(engine);
    for (int i = 0; i < 8; ++i) together.push_back(std::make_unique<Sequence>(i < 6 ? 1 : 40, 5 + i));
    absl::BlockingCounter ended(8);
    for (auto& sequence : together) {
      engine.Submit(sequence->Item(), [&](const absl::Status& status) {
        EXPECT_TRUE(status.ok()) << status;
        ended.DecrementCount();
      });
    }
    EXPECT_EQ(engine.stats().waiting, 8u);
    EXPECT_FALSE(engine.idle());
    held.GoOn();
    ended.Wait();
    EXPECT_EQ(engine.stats().passes, 2u);
    EXPECT_EQ(engine.stats().largest_pass, 8u);
    EXPECT_EQ(engine.stats().answers, 6u);
    EXPECT_EQ(engine.stats().tokens, 2u + 6 + 80);
  }
  for (int i = 0; i < 8; ++i) {
    Sequence alone(i < 6 ? 1 : 40, 5 + i);
    BatchEngine engine(&Model().transformer(), 512);
    ASSERT_TRUE(engine.Run(alone.Item()).ok());
    // Matrix products of other sizes sum in another order, which other machines' kernels round to other bf16 numbers:
    // a few steps of bf16 at the logits' size (4), where another token's or position's logits differ by 1 and more.
    EXPECT_THAT(together[static_cast<size_t>(i)]->logits(),
                ::testing::Pointwise(::testing::FloatNear(3e-2f), alone.logits()))
        << i;
  }
}

TEST(BatchEngineTest, StretchesShareAPassOnlyAsFarAsItsTokensReachAndNeverHoldAnswersUpForMore) {
  BatchEngine engine(&Model().transformer(), 100);
  Held held(engine);
  std::vector<std::unique_ptr<Sequence>> stretches;
  absl::Mutex mu;
  std::vector<std::string> order;
  absl::BlockingCounter ended(6);
  const auto submit = [&](const std::string& name, size_t tokens) {
    stretches.push_back(std::make_unique<Sequence>(tokens));
    engine.Submit(stretches.back()->Item(), [&, name](const absl::Status&) {
      {
        absl::MutexLock lock(&mu);
        order.push_back(name + std::to_string(engine.stats().passes));
      }
      ended.DecrementCount();
    });
  };
  submit("a", 60);
  submit("b", 39);
  submit("c", 60);
  submit("d", 500);  // More than a pass should have: alone.
  submit("e", 10);
  submit("answer", 1);
  held.GoOn();
  ended.Wait();
  absl::MutexLock lock(&mu);
  EXPECT_THAT(order, ::testing::ElementsAre("answer2", "a2", "b2", "c3", "d4", "e5"));
}

TEST(BatchEngineTest, AnItemThatFailsDoesNotDisturbTheOthers) {
  BatchEngine engine(&Model().transformer(), 512);
  Held held(engine);
  Sequence good(3), other(1), bad(3, 100000);  // No such tokens.
  absl::BlockingCounter ended(3);
  absl::Status bad_status, good_status;
  engine.Submit(bad.Item(), [&](const absl::Status& status) {
    bad_status = status;
    ended.DecrementCount();
  });
  engine.Submit(good.Item(), [&](const absl::Status& status) {
    good_status = status;
    ended.DecrementCount();
  });
  engine.Submit(other.Item(), [&](const absl::Status& status) { ended.DecrementCount(); });
  held.GoOn();
  ended.Wait();
  EXPECT_FALSE(bad_status.ok());
  EXPECT_TRUE(good_status.ok()) << good_status;
  EXPECT_EQ(good.done(), 3);
  EXPECT_EQ(other.done(), 1);
}

TEST(BatchEngineTest, DoneMaySubmitIntoTheVeryNextPass) {
  BatchEngine engine(&Model().transformer(), 512);
  Sequence sequence(1);
  absl::Notification ended;
  int passes = 0;
  std::function<void(const absl::Status&)> again = [&](const absl::Status& status) {
    ASSERT_TRUE(status.ok());
    if (++passes == 5) return ended.Notify();
    engine.Submit(sequence.Item(), again);
  };
  engine.Submit(sequence.Item(), again);
  ASSERT_TRUE(ended.WaitForNotificationWithTimeout(absl::Seconds(20)));
  EXPECT_EQ(sequence.done(), 5);
}

TEST(BatchEngineTest, WhatStillWaitsAtTheEndIsCancelled) {
  Sequence first(1), second(30), third(1);
  std::deque<Sequence> probes;
  std::vector<absl::StatusCode> codes;
  {
    auto engine = std::make_unique<BatchEngine>(&Model().transformer(), 512);
    BatchEngine* const raw = engine.get();
    absl::Notification held;
    raw->Submit(first.Item(), [&](const absl::Status&) {
      held.Notify();
      // An answer that goes on is ended by its next step.
      raw->Submit(second.Item(), [&](const absl::Status& status) {
        codes.push_back(status.code());
        raw->Submit(third.Item(), [&](const absl::Status& last) { codes.push_back(last.code()); });
      });
      // Until destruction has begun: then submitting ends at once.
      for (const auto refused = std::make_shared<bool>(false); !*refused; absl::SleepFor(absl::Milliseconds(1))) {
        raw->Submit(probes.emplace_back(1).Item(), [refused](const absl::Status&) { *refused = true; });
      }
    });
    ASSERT_TRUE(held.WaitForNotificationWithTimeout(absl::Seconds(20)));
    engine.reset();
  }
  EXPECT_THAT(codes, ::testing::ElementsAre(absl::StatusCode::kCancelled, absl::StatusCode::kCancelled));
  EXPECT_EQ(second.done(), 0);
}

}  // namespace
}  // namespace perigee::node
