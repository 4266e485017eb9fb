#include "kvstore/dram/deadline_heap.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <vector>

namespace perigee::kvstore {
namespace {

TEST(DeadlineHeap, TakesInOrderWhateverIsAddedMovedAndCancelled) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    std::mt19937_64 random(seed);
    DeadlineHeap heap;
    std::set<std::pair<int64_t, uint64_t>> oracle;  // (when, what)
    std::map<uint64_t, std::pair<DeadlineHeap::Handle, int64_t>> live;
    std::vector<uint64_t> ids;
    const int64_t spread = seed % 2 == 0 ? 50 : 1'000'000'000;  // With and without many equal ones.
    int64_t now = 0;
    uint64_t next = 1;
    const auto forget = [&](uint64_t id) {
      oracle.erase({live.at(id).second, id});
      live.erase(id);
      std::erase(ids, id);
    };
    const auto time = [&] {
      return now + static_cast<int64_t>(random() % static_cast<uint64_t>(spread)) - spread / 10;
    };
    for (int step = 0; step < 8000; ++step) {
      const bool grow = step / 2000 % 2 == 0;
      switch (random() % (grow ? 5 : 8)) {
        case 0:
        case 1:
        case 2: {
          const int64_t when = time();
          live[next] = {heap.Add(when, next), when};
          oracle.insert({when, next});
          ids.push_back(next++);
          break;
        }
        case 3:
          if (!ids.empty()) {
            const uint64_t id = ids[random() % ids.size()];
            auto& [handle, when] = live.at(id);
            ASSERT_EQ(heap.When(handle), when);
            oracle.erase({when, id});
            when = time();
            heap.Move(handle, when);
            oracle.insert({when, id});
          }
          break;
        case 4:
        case 5:
          if (!ids.empty()) {
            const uint64_t id = ids[random() % ids.size()];
            heap.Cancel(live.at(id).first);
            forget(id);
          }
          break;
        default:
          now += spread / 100;
          for (;;) {
            const auto due = heap.Take(now);
            ASSERT_EQ(due.has_value(), !oracle.empty() && oracle.begin()->first <= now);
            if (!due) break;
            ASSERT_EQ(due->when, oracle.begin()->first);
            ASSERT_EQ(live.at(due->what).second, due->when);
            forget(due->what);
          }
      }
      ASSERT_EQ(heap.size(), oracle.size());
      ASSERT_EQ(heap.Earliest().has_value(), !oracle.empty());
      if (!oracle.empty()) {
        ASSERT_EQ(heap.Earliest()->when, oracle.begin()->first);
      }
    }
  }
}

TEST(DeadlineHeap, ADeadlineIsDueAtItsTimeNotBefore) {
  DeadlineHeap heap;
  heap.Add(1000, 7);
  EXPECT_FALSE(heap.Take(999));
  const auto due = heap.Take(1000);
  ASSERT_TRUE(due);
  EXPECT_EQ(due->what, 7u);
  EXPECT_FALSE(heap.Take(INT64_MAX));
}

TEST(DeadlineHeap, MemoryIsUsedAgain) {
  DeadlineHeap heap;
  std::vector<DeadlineHeap::Handle> handles;
  for (int i = 0; i < 1000; ++i) handles.push_back(heap.Add(i, 0));
  const size_t bytes = heap.MemoryBytes();
  for (int round = 0; round < 10; ++round) {
    for (DeadlineHeap::Handle& h : handles) heap.Cancel(h);
    for (DeadlineHeap::Handle& h : handles) h = heap.Add(round, 0);
  }
  EXPECT_EQ(heap.MemoryBytes(), bytes);
}

}  // namespace
}  // namespace perigee::kvstore
