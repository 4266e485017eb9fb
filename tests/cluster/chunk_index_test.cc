// Which chunks become contexts, and that no sequence of requests makes the index or a tenant's share of it grow.
#include "cluster/contexts/chunk_index.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;

std::vector<int32_t> Chunk(int32_t number, size_t tokens = 100) {
  std::vector<int32_t> ids(tokens, 5);
  ids[0] = number;
  return ids;
}

bool See(ChunkIndex& index, const std::vector<int32_t>& ids, const std::string& tenant = "t",
         const std::string& salt = "") {
  const std::span<const int32_t> chunk = ids;
  return index.See(tenant, salt, {&chunk, 1}).at(0);
}

TEST(ChunkIndexTest, AChunkIsAContextFromItsSecondSightOn) {
  ChunkIndex index;
  EXPECT_FALSE(See(index, Chunk(1)));
  EXPECT_FALSE(See(index, Chunk(2)));
  EXPECT_TRUE(See(index, Chunk(1)));
  EXPECT_TRUE(See(index, Chunk(1)));
  EXPECT_FALSE(See(index, Chunk(1, 101))) << "more tokens";
  const ChunkIndexStats stats = index.stats();
  EXPECT_EQ(stats.seen, 5u);
  EXPECT_EQ(stats.reused, 2u);
  EXPECT_EQ(stats.admitted, 1u);
  EXPECT_EQ(stats.entries, 3u);
  EXPECT_EQ(stats.admitted_now, 1u);
}

TEST(ChunkIndexTest, WhatStandsTwiceInOneRequestWasSeenOnce) {
  ChunkIndex index;
  const std::vector<int32_t> a = Chunk(1), b = Chunk(2);
  const std::vector<std::span<const int32_t>> request = {a, b, a};
  EXPECT_THAT(index.See("t", "", request), ElementsAre(false, false, false));
  EXPECT_THAT(index.See("t", "", request), ElementsAre(true, true, true));
  EXPECT_TRUE(index.See("t", "", {}).empty());
}

TEST(ChunkIndexTest, TenantsAndSaltsAreApart) {
  ChunkIndex index;
  EXPECT_FALSE(See(index, Chunk(1), "ann"));
  EXPECT_FALSE(See(index, Chunk(1), "bob"));
  EXPECT_FALSE(See(index, Chunk(1), "ann", "s"));
  EXPECT_FALSE(See(index, Chunk(1), "anns", ""));
  EXPECT_FALSE(See(index, Chunk(1), "", "anns"));
  EXPECT_TRUE(See(index, Chunk(1), "ann"));
  EXPECT_TRUE(See(index, Chunk(1), "ann", "s"));
}

TEST(ChunkIndexTest, NoMoreThanItsEntriesAreRememberedAndNovelOnesPushOutNovelOnes) {
  ChunkIndex index({.entries = 100});
  for (int32_t i = 0; i < 20; ++i) See(index, Chunk(i));
  for (int32_t i = 0; i < 20; ++i) EXPECT_TRUE(See(index, Chunk(i)));
  for (int32_t i = 1000; i < 3000; ++i) {
    EXPECT_FALSE(See(index, Chunk(i), i % 2 == 0 ? "t" : "other"));
    EXPECT_LE(index.stats().entries, 100u);
  }
  for (int32_t i = 0; i < 20; ++i) EXPECT_TRUE(See(index, Chunk(i))) << i;
  EXPECT_FALSE(See(index, Chunk(1000))) << "forgotten";
  EXPECT_TRUE(See(index, Chunk(2999), "other"));
}

TEST(ChunkIndexTest, ContextsThatNobodySeesMakeRoomForNewOnes) {
  ChunkIndex index({.entries = 100});
  for (int round = 0; round < 2; ++round) {
    for (int32_t i = 0; i < 40; ++i) See(index, Chunk(i));
  }
  for (int32_t i = 1000; i < 1200; ++i) {
    See(index, Chunk(i));
    EXPECT_TRUE(See(index, Chunk(i))) << "seen just before";
    EXPECT_LE(index.stats().entries, 100u);
  }
  EXPECT_FALSE(See(index, Chunk(0)));
  ChunkIndex one({.entries = 1});
  EXPECT_FALSE(See(one, Chunk(1)));
  EXPECT_TRUE(See(one, Chunk(1)));
  EXPECT_FALSE(See(one, Chunk(2)));
  EXPECT_TRUE(See(one, Chunk(2)));
}

TEST(ChunkIndexTest, ATenantsContextsKeepToItsQuota) {
  ChunkIndex index({.entries = 1000, .tokens_per_tenant = 1000});
  for (int round = 0; round < 2; ++round) {
    for (int32_t i = 0; i < 10; ++i) EXPECT_EQ(See(index, Chunk(i)), round == 1);
    for (int32_t i = 0; i < 10; ++i) EXPECT_EQ(See(index, Chunk(i), "other"), round == 1);
  }
  EXPECT_TRUE(See(index, Chunk(0)));
  EXPECT_FALSE(See(index, Chunk(99)));
  EXPECT_TRUE(See(index, Chunk(99)));
  EXPECT_EQ(index.stats().admitted_now, 20u);
  EXPECT_TRUE(See(index, Chunk(0))) << "was seen lately";
  EXPECT_FALSE(See(index, Chunk(1))) << "the least recently seen";
  for (int32_t i = 0; i < 10; ++i) EXPECT_TRUE(See(index, Chunk(i), "other")) << "another tenant's";
  EXPECT_FALSE(See(index, Chunk(7, 1001)));
  EXPECT_FALSE(See(index, Chunk(7, 1001))) << "larger than the quota";
  EXPECT_FALSE(See(index, Chunk(8, 1000)));
  EXPECT_TRUE(See(index, Chunk(8, 1000))) << "as large";
  EXPECT_EQ(index.stats().admitted_now, 11u);
}

TEST(ChunkIndexTest, GoingRoundThroughMoreThanTheQuotaDoesNotAdmitEverythingEachTime) {
  ChunkIndex index({.entries = 1000, .tokens_per_tenant = 1000});
  for (int round = 0; round < 20; ++round) {
    for (int32_t i = 0; i < 20; ++i) See(index, Chunk(i));
  }
  EXPECT_LE(index.stats().admitted, 200u) << "of 400 sights";
}

TEST(ChunkIndexTest, ManyThreadsMayCall) {
  ChunkIndex index({.entries = 64, .tokens_per_tenant = 2000});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int32_t i = 0; i < 2000; ++i) See(index, Chunk(i * (t + 1) % 97), t % 2 == 0 ? "a" : "b");
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(index.stats().seen, 8000u);
  EXPECT_LE(index.stats().entries, 64u);
  EXPECT_LE(index.stats().admitted_now, 40u);
}

}  // namespace
}  // namespace perigee::cluster
