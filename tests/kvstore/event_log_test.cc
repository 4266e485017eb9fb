#include "kvstore/event_log.h"

#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

absl::Time Soon() { return absl::Now() + absl::Seconds(20); }
PlaneId Id(uint64_t i) { return MakePlane(i, 1).id; }

std::vector<uint64_t> Numbers(const EventPage& page) {
  std::vector<uint64_t> out;
  for (const Event& event : page.events) out.push_back(event.sequence);
  return out;
}

TEST(EventLogTest, EventsAreNumberedWithoutGapsAndReadFromAnyNumber) {
  EventLog log(10);
  log.Stored(Id(1), 100, "a", 5);
  log.Stored(Id(2), 200, "a", 6);
  log.Removed(Id(1), MissReason::kEvicted, "a", 7);
  const EventPage all = log.Read(0, 10, "", Soon());
  EXPECT_EQ(Numbers(all), (std::vector<uint64_t>{1, 2, 3}));
  EXPECT_FALSE(all.gap);
  EXPECT_EQ(all.up_to, 3u);
  EXPECT_EQ(all.events[0].payload_bytes, 100u);
  EXPECT_EQ(all.events[2].kind, EventKind::kRemoved);
  EXPECT_EQ(all.events[2].reason, MissReason::kEvicted);
  EXPECT_EQ(all.events[2].id, Id(1));
  EXPECT_EQ(Numbers(log.Read(2, 10, "", Soon())), (std::vector<uint64_t>{3}));
}

TEST(EventLogTest, AFullPageSaysWhereToGoOn) {
  EventLog log(10);
  for (uint64_t i = 0; i < 5; ++i) log.Stored(Id(i), 1, "", 0);
  EventPage page = log.Read(0, 2, "", Soon());
  EXPECT_EQ(Numbers(page), (std::vector<uint64_t>{1, 2}));
  EXPECT_EQ(page.up_to, 2u);
  page = log.Read(page.up_to, 3, "", Soon());
  EXPECT_EQ(Numbers(page), (std::vector<uint64_t>{3, 4, 5}));
  EXPECT_EQ(page.up_to, 5u);
}

TEST(EventLogTest, WhoWasAwayForTooLongIsToldSo) {
  EventLog log(3);
  for (uint64_t i = 0; i < 5; ++i) log.Stored(Id(i), 1, "", 0);
  EXPECT_TRUE(log.Read(0, 10, "", Soon()).gap);
  EXPECT_TRUE(log.Read(1, 10, "", Soon()).gap);
  const EventPage page = log.Read(2, 10, "", Soon());
  EXPECT_FALSE(page.gap) << "3, 4 and 5 are all there";
  EXPECT_EQ(Numbers(page), (std::vector<uint64_t>{3, 4, 5}));
  EXPECT_TRUE(log.Read(99, 10, "", Soon()).gap) << "a number that has not been given";
}

TEST(EventLogTest, ALogThatKeepsNothingStillCounts) {
  EventLog log(0);
  log.Stored(Id(1), 1, "", 0);
  const EventPage page = log.Read(0, 10, "", Soon());
  EXPECT_TRUE(page.gap);
  EXPECT_TRUE(page.events.empty());
  EXPECT_EQ(page.up_to, 1u);
}

TEST(EventLogTest, ATenantSeesItsOwnEventsAndSkipsTheOthers) {
  EventLog log(10);
  log.Stored(Id(1), 1, "a", 0);
  log.Stored(Id(2), 1, "b", 0);
  log.Stored(Id(3), 1, "a", 0);
  const EventPage page = log.Read(0, 10, "a", Soon());
  EXPECT_EQ(Numbers(page), (std::vector<uint64_t>{1, 3}));
  const EventPage none = log.Read(1, 10, "c", absl::InfinitePast());
  EXPECT_TRUE(none.events.empty());
  EXPECT_FALSE(none.gap);
  EXPECT_EQ(none.up_to, 3u);
}

TEST(EventLogTest, AReaderWaitsForItsTenantsNextEvent) {
  EventLog log(10);
  std::thread writer([&] {
    log.Stored(Id(1), 1, "other", 0);
    log.Stored(Id(2), 1, "mine", 0);
  });
  const EventPage page = log.Read(0, 10, "mine", Soon());
  writer.join();
  ASSERT_EQ(page.events.size(), 1u);
  EXPECT_EQ(page.events[0].id, Id(2));
}

TEST(EventLogTest, WaitingEndsAtItsTimeAndWithTheLog) {
  EventLog log(10);
  const EventPage page = log.Read(0, 10, "", absl::Now() + absl::Milliseconds(5));
  EXPECT_TRUE(page.events.empty());
  EXPECT_FALSE(page.gap);
  std::thread closer([&] { log.Close(); });
  const absl::Time start = absl::Now();
  EXPECT_TRUE(log.Read(0, 10, "", absl::Now() + absl::Hours(1)).events.empty());
  EXPECT_LT(absl::Now() - start, absl::Minutes(1));
  closer.join();
}

TEST(EventLogTest, ConcurrentWritersAndReadersMissNothing) {
  constexpr uint64_t kEach = 2000, kWriters = 4;
  EventLog log(kEach * kWriters);
  std::vector<std::thread> writers;
  for (uint64_t w = 0; w < kWriters; ++w) {
    writers.emplace_back([&] {
      for (uint64_t i = 0; i < kEach; ++i) log.Stored(Id(i), 1, "", 0);
    });
  }
  uint64_t seen = 0;
  while (seen < kEach * kWriters) {
    const EventPage page = log.Read(seen, 100, "", Soon());
    ASSERT_FALSE(page.events.empty());
    ASSERT_FALSE(page.gap);
    for (const Event& event : page.events) ASSERT_EQ(event.sequence, ++seen);
  }
  for (std::thread& writer : writers) writer.join();
}

}  // namespace
}  // namespace perigee::kvstore
