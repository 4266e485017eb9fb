// Who gets a place, who waits, and who is told at once that it makes no sense.
#include "cluster/scheduler/fair_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace perigee::cluster {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(20);
bool Never() { return false; }

bool Becomes(const std::function<bool()>& so) {
  for (const absl::Time deadline = absl::Now() + kLong; !so(); absl::SleepFor(absl::Milliseconds(1))) {
    if (absl::Now() > deadline) return false;
  }
  return true;
}

// Requests that wait on threads of their own, one after the other into the queue.
class Waiters {
 public:
  explicit Waiters(FairQueue* queue) : queue_(queue) {}
  ~Waiters() { Join(); }
  void Join() {
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }
  // Enters, says so, and leaves at once.
  void Add(const std::string& tenant, double cost) {
    const size_t before = queue_->waiting();
    threads_.emplace_back([this, tenant, cost] {
      const auto turn = queue_->Enter(tenant, cost, absl::Now() + kLong, Never);
      EXPECT_TRUE(turn.ok()) << turn.status();
      absl::MutexLock lock(&mu_);
      served_.push_back(tenant);
    });
    EXPECT_TRUE(Becomes([&] { return queue_->waiting() > before; }));
  }
  std::vector<std::string> served() {
    absl::MutexLock lock(&mu_);
    return served_;
  }

 private:
  FairQueue* const queue_;
  absl::Mutex mu_;
  std::vector<std::string> served_;
  std::vector<std::thread> threads_;
};

absl::StatusOr<FairQueue::Turn> Enter(FairQueue& queue, const std::string& tenant = "a") {
  return queue.Enter(tenant, 1, absl::Now() + kLong, Never);
}

TEST(FairQueueTest, PlacesAreTakenAndGivenBack) {
  FairQueue queue({});
  queue.SetPlaces(2);
  {
    auto one = Enter(queue), two = Enter(queue);
    ASSERT_TRUE(one.ok() && two.ok());
    EXPECT_EQ(queue.serving(), 2u);
    const FairQueue::Turn moved = *std::move(one);
    EXPECT_EQ(queue.serving(), 2u);
  }
  EXPECT_EQ(queue.serving(), 0u);
  EXPECT_EQ(queue.waiting(), 0u);
}

TEST(FairQueueTest, ATenantWithManyRequestsDoesNotHoldUpOneWithFew) {
  FairQueue queue({});
  Waiters waiters(&queue);
  {
    const auto held = Enter(queue, "nobody");
    for (int i = 0; i < 6; ++i) waiters.Add("much", 10);
    for (int i = 0; i < 2; ++i) waiters.Add("little", 10);
  }
  waiters.Join();
  const std::vector<std::string> served = waiters.served();
  ASSERT_EQ(served.size(), 8u);
  // They take turns, as long as both wait.
  EXPECT_EQ(std::count(served.begin(), served.begin() + 4, "little"), 2) << absl::StrCat(served[0], served[1]);
}

TEST(FairQueueTest, SharesGoByCostNotByNumber) {
  FairQueue queue({});
  Waiters waiters(&queue);
  {
    const auto held = Enter(queue, "nobody");
    for (int i = 0; i < 3; ++i) waiters.Add("large", 30);
    for (int i = 0; i < 9; ++i) waiters.Add("small", 10);
  }
  waiters.Join();
  const std::vector<std::string> served = waiters.served();
  // While one of the large ones is served, three of the small ones are.
  EXPECT_GE(std::count(served.begin(), served.begin() + 8, "small"), 5);
  EXPECT_GE(std::count(served.begin(), served.begin() + 8, "large"), 2);
}

TEST(FairQueueTest, AFullQueueRefusesAtOnce) {
  FairQueue queue({.max_waiting = 2});
  Waiters waiters(&queue);
  const auto held = std::make_unique<absl::StatusOr<FairQueue::Turn>>(Enter(queue));
  waiters.Add("a", 1);
  waiters.Add("a", 1);
  const absl::Status refused = Enter(queue, "b").status();
  EXPECT_TRUE(absl::IsResourceExhausted(refused)) << refused;
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2 requests"));
  queue.SetPlaces(3);
}

TEST(FairQueueTest, AWaitThatWouldBeTooLongIsRefusedAtOnce) {
  FairQueue queue({.max_wait = absl::Milliseconds(30)});
  {
    const auto slow = Enter(queue);
    absl::SleepFor(absl::Milliseconds(60));  // That is how long requests take here.
  }
  const auto held = Enter(queue);
  ASSERT_TRUE(held.ok());
  const absl::Status hopeless = Enter(queue).status();
  EXPECT_TRUE(absl::IsResourceExhausted(hopeless)) << hopeless;
  EXPECT_THAT(std::string(hopeless.message()), HasSubstr("try again"));
  // More places, shorter waits.
  queue.SetPlaces(2);
  EXPECT_TRUE(Enter(queue).ok());
}

TEST(FairQueueTest, AWaitBeyondTheDeadlineIsRefusedAtOnce) {
  FairQueue queue({.max_wait = absl::Hours(1)});
  {
    const auto slow = Enter(queue);
    absl::SleepFor(absl::Milliseconds(60));
  }
  const auto held = Enter(queue);
  const absl::Status hopeless = queue.Enter("a", 1, absl::Now() + absl::Milliseconds(20), Never).status();
  EXPECT_TRUE(absl::IsResourceExhausted(hopeless)) << hopeless;
}

TEST(FairQueueTest, TheDeadlineEndsAWait) {
  FairQueue queue({});
  const auto held = Enter(queue);
  const absl::Status late = queue.Enter("a", 1, absl::Now() + absl::Milliseconds(30), Never).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(late)) << late;
  EXPECT_EQ(queue.waiting(), 0u);
  EXPECT_EQ(queue.serving(), 1u);
}

TEST(FairQueueTest, ACallerWhoIsGoneEndsItsWaitAndCostsItsTenantNothing) {
  FairQueue queue({});
  Waiters waiters(&queue);
  {
    const auto held = Enter(queue, "nobody");
    for (int i = 0; i < 5; ++i) {
      const absl::Status gone = queue.Enter("a", 1000, absl::Now() + kLong, [] { return true; }).status();
      EXPECT_TRUE(absl::IsCancelled(gone)) << gone;
    }
    EXPECT_EQ(queue.waiting(), 0u);
    waiters.Add("b", 10);
    waiters.Add("b", 10);
    waiters.Add("a", 10);
  }
  waiters.Join();
  EXPECT_NE(waiters.served().back(), "a");
}

TEST(FairQueueTest, WhoIsAskedWhetherHeIsThereMayLookAtTheQueue) {
  FairQueue queue({});
  const auto held = Enter(queue);
  const absl::Status gone = queue.Enter("a", 1, absl::Now() + kLong, [&] { return queue.waiting() == 1; }).status();
  EXPECT_TRUE(absl::IsCancelled(gone)) << gone;
}

TEST(FairQueueTest, NewPlacesGoToThoseWhoWait) {
  FairQueue queue({});
  Waiters waiters(&queue);
  const auto held = Enter(queue);
  waiters.Add("a", 1);
  waiters.Add("b", 1);
  queue.SetPlaces(3);
  waiters.Join();
  EXPECT_EQ(waiters.served().size(), 2u);
  queue.SetPlaces(1);
  EXPECT_EQ(queue.serving(), 1u);
}

TEST(FairQueueTest, ManyThreadsNeverHaveMoreThanThePlaces) {
  FairQueue queue({});
  queue.SetPlaces(3);
  std::atomic<int> inside{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const auto turn = queue.Enter(absl::StrCat(t % 3), 1 + i % 5, absl::Now() + kLong, Never);
        ASSERT_TRUE(turn.ok()) << turn.status();
        EXPECT_LE(++inside, 3);
        --inside;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(queue.serving() + queue.waiting(), 0u);
}

}  // namespace
}  // namespace perigee::cluster
