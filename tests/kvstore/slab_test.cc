#include "kvstore/slab.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace perigee::kvstore {
namespace {

TEST(Slab, RandomUseNeverOverlapsAndCoalescesCompletely) {
  constexpr uint64_t kCapacity = 4096 * 1000;
  Slab slab(kCapacity);
  std::mt19937_64 random(1);
  std::map<uint64_t, uint64_t> live;  // offset -> bytes
  uint64_t used = 0;
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0) {
      const uint64_t bytes = 1 + random() % (4096 * 40);
      const uint64_t padded = (bytes + 4095) / 4096 * 4096;
      const auto offset = slab.Allocate(bytes);
      if (!offset) {
        EXPECT_LT(slab.largest_free_bytes(), padded);
        continue;
      }
      ASSERT_EQ(*offset % 4096, 0u);
      ASSERT_LE(*offset + padded, kCapacity);
      const auto next = live.lower_bound(*offset);
      if (next != live.end()) {
        ASSERT_LE(*offset + padded, next->first);
      }
      if (next != live.begin()) {
        ASSERT_LE(std::prev(next)->first + std::prev(next)->second, *offset);
      }
      live[*offset] = padded;
      used += padded;
    } else if (!live.empty()) {
      auto it = std::next(live.begin(), static_cast<long>(random() % live.size()));
      ASSERT_TRUE(slab.Free(it->first));
      used -= it->second;
      live.erase(it);
    }
    ASSERT_EQ(slab.used_bytes(), used);
    // Coalescing: never more free pieces than gaps between live extents.
    ASSERT_LE(slab.free_extents(), live.size() + 1);
  }
  for (const auto& [offset, bytes] : live) ASSERT_TRUE(slab.Free(offset));
  EXPECT_EQ(slab.free_extents(), 1u);
  EXPECT_EQ(slab.largest_free_bytes(), kCapacity);
  EXPECT_EQ(slab.fragmentation(), 0.0);
}

TEST(Slab, FullAndImpossibleRequestsAreRefused) {
  Slab slab(4096 * 4 + 100);
  EXPECT_EQ(slab.capacity_bytes(), 4096u * 4);
  EXPECT_FALSE(slab.Allocate(0));
  EXPECT_FALSE(slab.Allocate(4096 * 4 + 1));
  EXPECT_FALSE(slab.Allocate(UINT64_MAX));
  ASSERT_TRUE(slab.Allocate(4096 * 4));
  EXPECT_FALSE(slab.Allocate(1));
  EXPECT_FALSE(slab.Free(4096)) << "inside an extent";
  EXPECT_TRUE(slab.Free(0));
  EXPECT_FALSE(slab.Free(0)) << "twice";
}

TEST(Slab, TakesTheSmallestExtentThatFits) {
  Slab slab(4096 * 10);
  const auto a = slab.Allocate(4096 * 3), b = slab.Allocate(4096), c = slab.Allocate(4096 * 2), d = slab.Allocate(4096);
  ASSERT_TRUE(a && b && c && d);
  slab.Free(*a);
  slab.Free(*c);  // Free: 3, 2 and 3 pages.
  EXPECT_EQ(slab.Allocate(4096 * 2), c);
  EXPECT_GT(slab.fragmentation(), 0.0);
}

}  // namespace
}  // namespace perigee::kvstore
