#include "prefill_node/computing.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace perigee::prefill_node {
namespace {

const absl::Time kSoon = absl::InfinitePast();  // Does not wait.

std::vector<pod::BlockKey> Chain(std::initializer_list<uint8_t> blocks) {
  std::vector<pod::BlockKey> keys;
  for (const uint8_t block : blocks) keys.emplace_back().digest.fill(block);
  return keys;
}

TEST(ComputingTest, OneClaimsTheOtherWaitsUntilThatOneEnds) {
  Computing computing;
  Computing::Claim second;
  std::atomic<bool> first_ended{false};
  std::thread waiter;
  {
    Computing::Claim first;
    ASSERT_TRUE(computing.ClaimOrWait(Chain({1, 2, 3}), kSoon, &first));
    EXPECT_FALSE(computing.ClaimOrWait(Chain({1, 2, 3}), kSoon, &second));
    waiter = std::thread([&] {
      Computing::Claim claim;
      // It waits, or comes when the first has ended already; never gets what the first still has.
      const bool mine = computing.ClaimOrWait(Chain({1, 2, 4}), absl::Now() + absl::Seconds(20), &claim);
      EXPECT_TRUE(first_ended);
      EXPECT_TRUE(mine || computing.ClaimOrWait(Chain({1, 2, 4}), kSoon, &claim));
    });
    first_ended = true;
  }
  waiter.join();
  EXPECT_TRUE(computing.ClaimOrWait(Chain({1, 2, 3}), kSoon, &second));
}

TEST(ComputingTest, NothingToComputeIsNeverWaitedFor) {
  Computing computing;
  Computing::Claim one, two;
  EXPECT_TRUE(computing.ClaimOrWait({}, kSoon, &one));
  EXPECT_TRUE(computing.ClaimOrWait({}, kSoon, &two));
}

TEST(ComputingTest, ChainsThatBeginOtherwiseDoNotMeet) {
  Computing computing;
  Computing::Claim one, two;
  EXPECT_TRUE(computing.ClaimOrWait(Chain({1, 2}), kSoon, &one));
  EXPECT_TRUE(computing.ClaimOrWait(Chain({3, 4}), kSoon, &two));
}

TEST(ComputingTest, BlocksFurtherOnStayTheirOwners) {
  Computing computing;
  Computing::Claim tail, whole;
  // The first has found blocks 1 and 2 in the store; they were lost since.
  ASSERT_TRUE(computing.ClaimOrWait(Chain({3, 4}), kSoon, &tail));
  ASSERT_TRUE(computing.ClaimOrWait(Chain({1, 2, 3, 4}), kSoon, &whole));
  { const Computing::Claim ends = std::move(whole); }
  Computing::Claim third;
  EXPECT_FALSE(computing.ClaimOrWait(Chain({3, 4}), kSoon, &third));
  EXPECT_TRUE(computing.ClaimOrWait(Chain({1, 2}), kSoon, &third));
}

TEST(ComputingTest, AClaimMovesWithItsBlocks) {
  Computing computing;
  Computing::Claim kept, other;
  {
    Computing::Claim claim;
    ASSERT_TRUE(computing.ClaimOrWait(Chain({1}), kSoon, &claim));
    kept = std::move(claim);
  }
  EXPECT_FALSE(computing.ClaimOrWait(Chain({1}), kSoon, &other));
  kept = Computing::Claim();
  EXPECT_TRUE(computing.ClaimOrWait(Chain({1}), kSoon, &other));
}

TEST(ComputingTest, ACallerWhoIsGoneOrLateWaitsNoLonger) {
  Computing computing;
  Computing::Claim claim, other;
  ASSERT_TRUE(computing.ClaimOrWait(Chain({1}), kSoon, &claim));
  int asked = 0;
  EXPECT_FALSE(computing.ClaimOrWait(Chain({1}), absl::InfiniteFuture(), &other, [&] { return ++asked == 2; }));
  EXPECT_EQ(asked, 2);
  EXPECT_FALSE(computing.ClaimOrWait(Chain({1}), absl::Now() + absl::Milliseconds(10), &other));
}

TEST(ComputingTest, OfManyThreadsOneAtATimeComputesABlock) {
  Computing computing;
  std::atomic<int> computing_now{0}, computed{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) {
        for (bool mine = false; !mine;) {
          Computing::Claim claim;
          mine = computing.ClaimOrWait(Chain({1, 2, static_cast<uint8_t>(3 + i % 3)}), absl::Now() + absl::Seconds(20),
                                       &claim);
          if (!mine) continue;
          EXPECT_EQ(++computing_now, 1);
          ++computed;
          --computing_now;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(computed, 8 * 50);
}

}  // namespace
}  // namespace perigee::prefill_node
