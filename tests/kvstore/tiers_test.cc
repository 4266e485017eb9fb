// What the store promises between DRAM and SSD: planes are read once, brought in ahead, moved out ahead of demand, and
// memory goes to those that are worth it. With the remote tier: replication_test.cc.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "held_tiers.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using pod::PlaneKind;

class TiersTest : public testing::Test {
 protected:
  TiersTest() {
    options_.recompute_us_per_token = 1e5;  // Moving a plane out is worth it.
    options_.ssd = SsdOptions{.path = folder_.path(), .segment_bytes = 1 << 20, .reserve_bytes = 0};
  }
  // Anew, with only what is on disk.
  Store& Open(size_t pages) {
    store_.reset();
    if (slab_ == nullptr || slab_->span().size() != pages * 4096) slab_ = std::make_unique<FakeSlab>(pages * 4096);
    files_ = std::make_shared<HeldFiles>();
    if (options_.ssd) {
      options_.ssd->files = files_;
      options_.ssd->scrub_bytes_per_s = 0;  // Only the store's reads count.
    }
    auto store = Store::Open(options_, slab_->span());
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    return *store_;
  }
  void WriteAll(uint64_t n, size_t bytes, Durability durability = Durability::kSynced) {
    std::vector<TestPlane> some;
    for (uint64_t i = 0; i < n; ++i) {
      some.push_back(MakePlane(i, bytes));
      Follow(some.back(), i);
      if (some.size() == 8 || i + 1 == n) {
        ASSERT_TRUE(Write(*store_, some, durability).ok());
        some.clear();
      }
    }
  }
  TestPlane ChainPlane(uint64_t i, size_t bytes) {
    TestPlane plane = MakePlane(i, bytes);
    Follow(plane, i);
    return plane;
  }
  Tier TierOf(const PlaneId& id) {
    const auto info = store_->Lookup({&id.key, 1}, "");
    for (const FoundPlane& plane : (*info)[0].planes) {
      if (plane.kind == id.kind) return plane.tier;
    }
    return Tier{};
  }
  void ExpectNothingHeld() {
    const StoreStats stats = store_->Stats();
    EXPECT_EQ(stats.leases, 0u);
    EXPECT_EQ(stats.leased_bytes, 0u);
    EXPECT_EQ(stats.reserved_bytes, 0u);
    EXPECT_EQ(stats.slab_used_bytes,
              stats.counts[0][0].payload_bytes + stats.counts[0][1].payload_bytes + stats.counts[0][2].payload_bytes)
        << "planes of whole pages";
  }

  TempFolder folder_;
  std::shared_ptr<HeldFiles> files_;
  std::unique_ptr<FakeSlab> slab_;
  StoreOptions options_;
  std::unique_ptr<Store> store_;
};

TEST_F(TiersTest, AnSsdPlaneThatManyWantAtOnceIsReadOnce) {
  Open(64);
  WriteAll(1, 8192);
  Open(64);
  files_->Hold();
  const TestPlane plane = ChainPlane(0, 8192);
  const uint64_t before = files_->reads();
  std::vector<std::thread> readers;
  std::atomic<int> good = 0, leased = 0;
  for (int i = 0; i < 12; ++i) {
    readers.emplace_back([&] {
      auto lease = store_->Acquire({&plane.id, 1}, absl::Seconds(60));
      ++leased;
      good += lease.ok() && lease->planes[0].found && Peek(lease->planes[0]) == plane.payload &&
              lease->planes[0].header == plane.encoded() && store_->Release(lease->id, 0, 0).ok();
    });
  }
  EXPECT_TRUE(Eventually([&] { return files_->held() == 1; }));
  EXPECT_EQ(leased, 0);
  files_->LetGo();
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(good, 12);
  EXPECT_EQ(files_->reads() - before, 1u);
  ExpectNothingHeld();
}

TEST_F(TiersTest, EvictDropsOnlyCopiesInMemoryThatASlowerTierHas) {
  int64_t now_us = 1'700'000'000'000'000;
  options_.wall = [&now_us] { return absl::FromUnixMicros(now_us); };
  Open(64);
  WriteAll(4, 8192);
  ASSERT_TRUE(Write(*store_, ChainPlane(4, 8192), Durability::kDram).ok());
  const std::vector<pod::BlockKey> pinned = {TestKey(1)};
  ASSERT_TRUE(store_->Pin(pinned, PinMode::kSoft, "").ok());
  const PlaneId leased = ChainPlane(2, 8192).id;
  const auto lease = store_->Acquire({&leased, 1}, absl::Seconds(60));
  ASSERT_TRUE(lease.ok());
  now_us += 60'000'000;

  EXPECT_EQ(store_->Evict({.dry_run = true})->planes, 2u) << "0 and 3: 1 is pinned, 2 leased, 4 only in memory";
  EXPECT_EQ(TierOf(ChainPlane(0, 8192).id), Tier::kDram);
  EXPECT_EQ(store_->Evict({.tenant = "somebody else"})->planes, 0u);
  EXPECT_EQ(store_->Evict({.idle = absl::Seconds(61)})->planes, 0u);
  const std::vector<pod::BlockKey> some = {TestKey(0), TestKey(4), TestKey(99)};
  const absl::StatusOr<Evicted> first = store_->Evict({.keys = some, .idle = absl::Seconds(60)});
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->planes, 1u);
  EXPECT_EQ(first->payload_bytes, 8192u);
  EXPECT_EQ(TierOf(ChainPlane(0, 8192).id), Tier::kSsd);
  EXPECT_EQ(store_->Evict({.tenant = "tenant-a"})->planes, 1u);
  for (uint64_t i : {1, 2, 4}) EXPECT_EQ(TierOf(ChainPlane(i, 8192).id), Tier::kDram) << i;
  for (uint64_t i : {0, 3}) EXPECT_TRUE(ReadAndCompare(*store_, ChainPlane(i, 8192)).ok()) << i;
  EXPECT_TRUE(store_->Release(lease->id, 0, 0).ok());
}

TEST_F(TiersTest, ListSaysWhichBlockIsBeforeInWhateverTierAPlaneIs) {
  Open(64);
  WriteAll(3, 8192);
  const std::vector<pod::BlockKey> some = {TestKey(2)};
  ASSERT_EQ(store_->Evict({.keys = some})->planes, 1u);
  const auto page = store_->List("", 0, "", {.parents = true});
  ASSERT_TRUE(page.ok());
  ASSERT_EQ(page->planes.size(), 3u);
  for (const ListedPlane& plane : page->planes) {
    EXPECT_TRUE(plane.parent_known);
    const auto i = static_cast<uint64_t>(plane.meta.base_position / 64);
    EXPECT_EQ(plane.meta.parent, i == 0 ? std::nullopt : std::optional(TestKey(i - 1))) << i;
  }
  EXPECT_FALSE(store_->List("", 0, "")->planes[0].parent_known);
}

TEST_F(TiersTest, ScrubChecksTheDiskWhenItIsAskedTo) {
  Open(64);
  WriteAll(3, 8192);
  EXPECT_TRUE(store_->Scrub().ok());
  EXPECT_TRUE(Eventually([&] { return store_->Stats().ssd.counters.scrub_passes == 1; }));
  options_.ssd.reset();
  Open(64);
  EXPECT_EQ(store_->Scrub().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(TiersTest, ACancelledAcquireEndsSoonAndWhatNobodyElseWantsIsNotRead) {
  Open(512);
  WriteAll(200, 4096);
  Open(512);
  files_->Hold();
  std::vector<PlaneId> all;
  for (uint64_t i = 0; i < 200; ++i) all.push_back(TestPlane(ChainPlane(i, 4096)).id);
  std::atomic<bool> gone = false;
  absl::Status ended;
  std::thread first(
      [&] { ended = store_->Acquire(all, absl::Seconds(60), {.cancelled = [&] { return gone.load(); }}).status(); });
  ASSERT_TRUE(Eventually([&] { return files_->held() == 64; }));
  // Another one wants one of those that still wait for their turn.
  const TestPlane shared = ChainPlane(199, 4096);
  absl::Status read = absl::UnknownError("");
  std::thread second([&] { read = ReadAndCompare(*store_, shared); });
  ASSERT_TRUE(Eventually([&] { return store_->Stats().slab_used_bytes == 200 * 4096u; }));
  absl::SleepFor(absl::Milliseconds(20));  // For the second one to be waiting; the other order is right too.
  gone = true;
  first.join();
  EXPECT_EQ(ended.code(), absl::StatusCode::kCancelled);
  EXPECT_GE(store_->Stats().cancelled_reads, 134u);
  files_->LetGo();
  second.join();
  EXPECT_TRUE(read.ok()) << read;
  EXPECT_TRUE(Eventually([&] { return store_->Stats().leased_bytes == 0; }));
  EXPECT_LE(files_->reads(), 66u);
  ExpectNothingHeld();
  EXPECT_TRUE(ReadAndCompare(*store_, ChainPlane(150, 4096)).ok());
}

TEST_F(TiersTest, PromoteBringsPlanesInWithoutALease) {
  Open(64);
  WriteAll(20, 4096);
  Open(64);
  std::vector<PlaneId> some;
  for (uint64_t i = 0; i < 10; ++i) some.push_back(ChainPlane(i, 4096).id);
  some.push_back(MakePlane(900, 4096).id);  // Never stored.
  ASSERT_EQ(*store_->Promote(some, "somebody else"), 0u);
  ASSERT_EQ(*store_->Promote(some, "tenant-a"), 10u);
  EXPECT_TRUE(Eventually([&] { return store_->Stats().promoted_ahead == 10; }));
  for (uint64_t i = 0; i < 20; ++i) EXPECT_EQ(TierOf(ChainPlane(i, 1).id), i < 10 ? Tier::kDram : Tier::kSsd) << i;
  ExpectNothingHeld();
  EXPECT_EQ(*store_->Promote(some, ""), 0u) << "they are there";
  EXPECT_TRUE(ReadAndCompare(*store_, ChainPlane(3, 4096)).ok());
}

TEST_F(TiersTest, PromoteTakesNoMoreThanWhatIsFree) {
  options_.free_low = 0.25, options_.free_high = 0.25;
  Open(256);
  WriteAll(64, 4096);
  Open(64);
  ASSERT_TRUE(Write(*store_, MakePlane(500, 40 * 4096), Durability::kSynced).ok());
  std::vector<PlaneId> all;
  for (uint64_t i = 0; i < 64; ++i) all.push_back(ChainPlane(i, 4096).id);
  EXPECT_EQ(*store_->Promote(all, ""), 8u) << "64 pages, 40 used, 16 to be kept free";
  EXPECT_TRUE(Eventually([&] { return store_->Stats().promoted_ahead == 8; }));
  EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(500, 40 * 4096)).ok());
  EXPECT_EQ(store_->Stats().dram_evictions, 0u);
}

TEST_F(TiersTest, PromotionsInTheQueueCanBeDroppedUnlessSomebodyWaits) {
  Open(512);
  WriteAll(100, 4096);
  Open(512);
  files_->Hold();
  std::vector<PlaneId> all;
  for (uint64_t i = 0; i < 100; ++i) all.push_back(ChainPlane(i, 4096).id);
  ASSERT_EQ(*store_->Promote(all, ""), 100u);
  absl::Status read = absl::UnknownError("");
  std::thread reader([&] { read = ReadAndCompare(*store_, ChainPlane(99, 4096)); });
  // Its lease and the plane's way in.
  ASSERT_TRUE(Eventually([&] { return store_->Stats().leased_bytes == 100 * 4096u && files_->held() == 64; }));
  absl::SleepFor(absl::Milliseconds(20));
  EXPECT_EQ(store_->DropPromotions(all, "somebody else"), 0u);
  EXPECT_EQ(store_->DropPromotions(all, "tenant-a"), 35u);
  EXPECT_EQ(store_->DropPromotions(all, "tenant-a"), 0u);
  files_->LetGo();
  reader.join();
  EXPECT_TRUE(read.ok()) << read;
  EXPECT_TRUE(Eventually([&] { return store_->Stats().leased_bytes == 0; }));
  EXPECT_EQ(store_->Stats().counts[0][0].planes, 65u);
  ExpectNothingHeld();
}

TEST_F(TiersTest, AChainsNextBlocksAreReadAheadUpToTheBound) {
  options_.read_ahead_bytes = 5 * 4096;
  Open(64);
  WriteAll(20, 4096);
  Open(64);
  ASSERT_TRUE(ReadAndCompare(*store_, ChainPlane(3, 4096)).ok());
  EXPECT_TRUE(Eventually([&] { return store_->Stats().promoted_ahead == 5; }));
  for (uint64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(TierOf(ChainPlane(i, 1).id), i >= 3 && i <= 8 ? Tier::kDram : Tier::kSsd) << i;
  }
  ExpectNothingHeld();
  // What is there already counts, too.
  ASSERT_TRUE(ReadAndCompare(*store_, ChainPlane(2, 4096)).ok());
  EXPECT_TRUE(Eventually([&] { return store_->Stats().leased_bytes == 0; }));
  EXPECT_EQ(store_->Stats().promoted_ahead, 5u);
}

TEST_F(TiersTest, NothingIsReadAheadIntoFullMemory) {
  options_.free_low = 0.1, options_.free_high = 0.1;
  Open(100);
  WriteAll(80, 4096);
  Open(100);
  const TestPlane kept = MakePlane(500, 89 * 4096);
  ASSERT_TRUE(Write(*store_, kept, Durability::kDram).ok());
  const auto lease = store_->Acquire({&kept.id, 1}, absl::Seconds(60));  // Full, and cannot be made free.
  ASSERT_TRUE(ReadAndCompare(*store_, ChainPlane(0, 4096)).ok());
  EXPECT_EQ(store_->Stats().promoted_ahead, 0u);
  EXPECT_EQ(TierOf(ChainPlane(1, 1).id), Tier::kSsd);
  EXPECT_TRUE(store_->Release(lease->id, 0, 0).ok());
}

TEST_F(TiersTest, WhatIsReadOnceIntoFullMemoryIsServedAndNotKeptTheSecondTimeItIs) {
  options_.policy = "s3fifo";  // What it admits is plain: who was used, or seen, before.
  options_.free_low = 0.1, options_.free_high = 0.1;
  options_.read_ahead_bytes = 0;
  Open(100);
  WriteAll(20, 4096);
  Open(100);
  const TestPlane kept = MakePlane(500, 90 * 4096);
  ASSERT_TRUE(Write(*store_, kept, Durability::kDram).ok());
  const auto lease = store_->Acquire({&kept.id, 1}, absl::Seconds(60));
  for (uint64_t i = 0; i < 5; ++i) ASSERT_TRUE(ReadAndCompare(*store_, ChainPlane(i, 4096)).ok()) << i;
  EXPECT_EQ(store_->Stats().unadmitted_reads, 5u);
  for (uint64_t i = 0; i < 5; ++i) EXPECT_EQ(TierOf(ChainPlane(i, 1).id), Tier::kSsd) << i;
  ASSERT_TRUE(ReadAndCompare(*store_, ChainPlane(2, 4096)).ok());
  EXPECT_EQ(store_->Stats().unadmitted_reads, 5u);
  EXPECT_EQ(TierOf(ChainPlane(2, 1).id), Tier::kDram);
  // Two readers at the same time are two uses.
  const PlaneId twice = ChainPlane(7, 1).id;
  const auto one = store_->Acquire({&twice, 1}, absl::Seconds(60));
  const auto two = store_->Acquire({&twice, 1}, absl::Seconds(60));
  ASSERT_TRUE(store_->Release(one->id, 0, 0).ok() && store_->Release(two->id, 0, 0).ok());
  EXPECT_EQ(TierOf(twice), Tier::kDram);
  ASSERT_TRUE(store_->Release(lease->id, 0, 0).ok());
}

TEST_F(TiersTest, APassingPlaneThatIsPinnedHardStays) {
  options_.policy = "s3fifo";
  options_.free_low = 0.1, options_.free_high = 0.1;
  options_.read_ahead_bytes = 0;
  Open(100);
  WriteAll(5, 4096);
  Open(100);
  const TestPlane kept = MakePlane(500, 90 * 4096);
  ASSERT_TRUE(Write(*store_, kept, Durability::kDram).ok());
  const auto held = store_->Acquire({&kept.id, 1}, absl::Seconds(60));
  const PlaneId id = ChainPlane(0, 1).id;
  const auto lease = store_->Acquire({&id, 1}, absl::Seconds(60));
  ASSERT_EQ(store_->Stats().unadmitted_reads, 1u);
  ASSERT_EQ(*store_->Pin({&id.key, 1}, PinMode::kHard, ""), 1u);
  ASSERT_TRUE(store_->Release(lease->id, 0, 0).ok());
  EXPECT_EQ(TierOf(id), Tier::kDram);
  ASSERT_TRUE(store_->Release(held->id, 0, 0).ok());
}

TEST_F(TiersTest, MemoryAloneTakesWritesForEver) {
  options_.ssd.reset();
  for (const char* policy : {"value", "lru", "s3fifo"}) {
    options_.policy = policy;
    Open(64);
    for (uint64_t i = 0; i < 2000; ++i) {
      ASSERT_TRUE(Write(*store_, MakePlane(i, 4096 * (1 + i % 3)), Durability::kDram).ok()) << policy << " " << i;
    }
    EXPECT_GT(store_->Stats().dram_only_evictions, 1800u);
    EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(1999, 4096 * (1 + 1999 % 3))).ok());
    store_->Tidy();
    ExpectNothingHeld();
  }
}

TEST_F(TiersTest, WhereTheIndexIsFullBeforeMemoryOrDisksOldPlanesMakeRoomToo) {
  options_.max_planes = 100;
  for (const bool with_ssd : {true, false}) {
    if (!with_ssd) options_.ssd.reset();
    Open(64);
    for (uint64_t i = 0; i < 400; ++i) {
      ASSERT_TRUE(Write(*store_, MakePlane(i, 100), Durability::kBest).ok()) << i;
    }
    EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(399, 100)).ok());
    EXPECT_FALSE(ReadAndCompare(*store_, MakePlane(0, 100)).ok());
    store_.reset();
  }
}

TEST_F(TiersTest, PlanesInMemoryAloneMoveToTheSsdAheadOfDemand) {
  options_.free_low = 0.3, options_.free_high = 0.5;
  Open(100);
  WriteAll(96, 4096, Durability::kDram);
  store_->Tidy();
  StoreStats stats = store_->Stats();
  EXPECT_GE(stats.slab_bytes - stats.slab_used_bytes, stats.slab_bytes / 2);
  EXPECT_GT(stats.demoted_to_ssd, 40u);
  EXPECT_EQ(stats.dram_only_evictions, 0u);
  ExpectNothingHeld();
  for (uint64_t i = 0; i < 96; ++i) ASSERT_TRUE(ReadAndCompare(*store_, ChainPlane(i, 4096)).ok()) << i;
  // What was moved outlives the store.
  stats = store_->Stats();
  const uint64_t on_ssd = stats.counts[1][0].planes;
  Open(100);
  EXPECT_GE(store_->Stats().counts[1][0].planes, on_ssd) << "the reads may have moved out more";
}

TEST_F(TiersTest, TidyGoesOnUntilThereIsEnough) {
  // More than what moves at a time (32 MiB).
  options_.free_low = 0.05, options_.free_high = 0.5;
  options_.ssd->segment_bytes = 32 << 20;
  Open(24 << 10);
  for (uint64_t i = 0; i < 12; ++i) {
    ASSERT_TRUE(Write(*store_, MakePlane(i, 8 << 20), Durability::kDram).ok());
  }
  store_->Tidy();
  const StoreStats stats = store_->Stats();
  EXPECT_GE(stats.slab_bytes - stats.slab_used_bytes, stats.slab_bytes / 2);
  EXPECT_EQ(stats.dram_only_evictions, 0u);
}

TEST_F(TiersTest, TidyTakesNothingThatIsLeasedOrPinnedHard) {
  options_.free_low = 0.5, options_.free_high = 0.5;
  Open(100);
  std::vector<PlaneId> leased;
  std::vector<pod::BlockKey> pinned;
  for (uint64_t i = 0; i < 90; ++i) {
    ASSERT_TRUE(Write(*store_, MakePlane(i, 4096), i % 2 ? Durability::kDram : Durability::kSynced).ok());
    if (i < 30) leased.push_back(MakePlane(i, 1).id);
    if (i >= 30 && i < 45) pinned.push_back(TestKey(i));
    if (i == 29) {
      // Kept until the end.
      ASSERT_TRUE(store_->Acquire(leased, absl::Seconds(3600)).ok());
    } else if (i == 44) {
      ASSERT_EQ(*store_->Pin(pinned, PinMode::kHard, ""), 15u);
    }
  }
  store_->Tidy();
  for (uint64_t i = 0; i < 45; ++i) EXPECT_EQ(TierOf(MakePlane(i, 1).id), Tier::kDram) << i;
  const StoreStats stats = store_->Stats();
  EXPECT_GE(stats.slab_bytes - stats.slab_used_bytes, 50u * 4096);
  EXPECT_EQ(stats.dram_only_evictions, 0u);
}

TEST_F(TiersTest, APlaneThatIsDeletedWhileItMovesOutDoesNotComeBack) {
  options_.free_low = 0.3, options_.free_high = 0.5;
  Open(100);
  std::vector<pod::BlockKey> keys;
  for (uint64_t i = 0; i < 95; ++i) keys.push_back(TestKey(i));
  for (int round = 0; round < 20; ++round) {
    WriteAll(95, 4096, Durability::kDram);
    std::thread tidier([&] { store_->Tidy(); });
    EXPECT_TRUE(store_->Delete(keys).ok());
    tidier.join();
    ASSERT_TRUE(store_->List("", 0, "")->planes.empty());
    ASSERT_EQ(store_->Stats().ssd.live_bytes, 0u);
    ASSERT_EQ(store_->Stats().slab_used_bytes, 0u);
  }
  Open(100);
  EXPECT_TRUE(store_->List("", 0, "")->planes.empty());
}

TEST_F(TiersTest, APlaneThatIsDeletedAndStoredAgainWhileItMovesOutIsKept) {
  options_.free_low = 0.5, options_.free_high = 0.5;
  for (int round = 0; round < 10; ++round) {
    Open(40);
    std::vector<pod::BlockKey> keys;
    std::vector<TestPlane> planes;
    for (uint64_t i = 0; i < 15; ++i) {
      planes.push_back(MakePlane(1000 * round + i, 4096));
      keys.push_back(planes.back().id.key);
    }
    ASSERT_TRUE(Write(*store_, planes, Durability::kDram).ok());
    ASSERT_TRUE(Write(*store_, MakePlane(1000 * round + 999, 10 * 4096), Durability::kDram).ok());
    std::thread tidier([&] { store_->Tidy(); });
    EXPECT_TRUE(store_->Delete(keys).ok());
    EXPECT_TRUE(Write(*store_, planes, Durability::kSynced).ok());
    tidier.join();
    Open(40);
    for (const TestPlane& plane : planes) ASSERT_TRUE(ReadAndCompare(*store_, plane).ok()) << round;
  }
}

TEST_F(TiersTest, AnSsdAlmostFullLetsPlanesGoByPolicyBeforeSegmentsHaveTo) {
  options_.ssd->segment_bytes = 64 << 10;
  options_.ssd->capacity_bytes = 2 << 20;
  Open(32);
  const TestPlane hot = MakePlane(0, 4096);
  for (uint64_t i = 0; i < 600; ++i) {
    ASSERT_TRUE(Write(*store_, MakePlane(i, 4096), Durability::kSynced).ok()) << i;
    if (i % 4 == 0) {
      ASSERT_TRUE(ReadAndCompare(*store_, hot).ok()) << i;
    }
    if (i % 10 == 0) store_->Tidy();
  }
  store_->Tidy();
  const StoreStats stats = store_->Stats();
  EXPECT_GT(stats.ssd_evictions, 300u);
  EXPECT_LE(stats.ssd.live_bytes, 2u << 20);
  EXPECT_LE(stats.counts[1][0].planes, (2u << 20) * 9 / 10 / 8192);
  EXPECT_TRUE(ReadAndCompare(*store_, hot).ok());
}

TEST_F(TiersTest, AStoreMayEndWhilePlanesAreOnTheirWay) {
  for (int round = 0; round < 3; ++round) {
    Open(512);
    if (round == 0) WriteAll(200, 4096);
    if (round == 0) Open(512);
    files_->Hold();
    std::vector<PlaneId> all;
    for (uint64_t i = 0; i < 200; ++i) all.push_back(ChainPlane(i, 4096).id);
    ASSERT_EQ(*store_->Promote(all, ""), 200u);
    ASSERT_TRUE(Eventually([&] { return files_->held() == 64; }));
    std::thread later([files = files_] {
      absl::SleepFor(absl::Milliseconds(20));
      files->LetGo();
    });
    store_.reset();
    later.join();
  }
  Open(512);
  for (uint64_t i = 0; i < 200; ++i) ASSERT_TRUE(ReadAndCompare(*store_, ChainPlane(i, 4096)).ok()) << i;
}

TEST_F(TiersTest, AReportOfAPlaneThatIsDeletedWhileItComesInEnds) {
  Open(64);
  WriteAll(1, 4096);
  Open(64);
  files_->Hold();
  const PlaneId id = ChainPlane(0, 1).id;
  ASSERT_EQ(*store_->Promote({&id, 1}, ""), 1u);
  ASSERT_TRUE(Eventually([&] { return files_->held() == 1; }));
  std::thread reporter([&] { EXPECT_FALSE(store_->ReportCorrupt(id).still_stored); });
  absl::SleepFor(absl::Milliseconds(20));
  for (const auto& entry : std::filesystem::directory_iterator(folder_.path() + "/segments")) {
    std::filesystem::resize_file(entry.path(), 4096);
  }
  EXPECT_EQ(*store_->Delete({&id.key, 1}), 1u);
  files_->LetGo();
  reporter.join();
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
}

}  // namespace
}  // namespace perigee::kvstore
