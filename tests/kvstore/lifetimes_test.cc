// How long planes stay: times to live, soft and hard pins, leases.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "held_tiers.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

class LifetimesTest : public testing::Test {
 protected:
  LifetimesTest() {
    options_.wall = [this] { return absl::FromUnixMicros(wall_us_); };
    options_.now = [this] { return absl::FromUnixMicros(now_us_); };
  }
  Store& Open(bool with_ssd, size_t pages = 64) {
    store_.reset();
    if (slab_ == nullptr || slab_->span().size() != pages * 4096) slab_ = std::make_unique<FakeSlab>(pages * 4096);
    if (with_ssd) {
      options_.ssd =
          SsdOptions{.path = folder_.path(), .segment_bytes = 1 << 20, .reserve_bytes = 0, .scrub_bytes_per_s = 0};
    }
    auto store = Store::Open(options_, slab_->span());
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    return *store_;
  }
  absl::Status WriteFor(const TestPlane& plane, uint32_t ttl_s, Durability durability = Durability::kBest) {
    const PlaneRequest request = plane.request();
    const auto reserved = store_->Reserve({&request, 1}, absl::Seconds(60));
    if (!reserved.ok()) return reserved.status();
    Poke((*reserved)[0].address, plane.payload);
    const CommitItem item{(*reserved)[0].id, plane.encoded(), ttl_s};
    const auto statuses = store_->Commit({&item, 1}, durability);
    if (!statuses.ok()) store_->Abort({&(*reserved)[0].id, 1}, false);
    return statuses.ok() ? (*statuses)[0] : statuses.status();
  }
  MissReason MissOf(const PlaneId& id) {
    auto lease = store_->Acquire({&id, 1}, absl::Seconds(1));
    EXPECT_TRUE(lease.ok() && !lease->planes[0].found);
    return lease->planes[0].miss.reason;
  }
  Tier TierOf(const PlaneId& id) {
    const auto info = store_->Lookup({&id.key, 1}, "");
    return (*info)[0].planes.empty() ? Tier{} : (*info)[0].planes[0].tier;
  }
  absl::StatusOr<uint32_t> Pin(const TestPlane& plane, PinMode mode) {
    return store_->Pin({&plane.id.key, 1}, mode, "");
  }
  void Pass(int64_t seconds) { wall_us_ += seconds * 1000000; }

  TempFolder folder_;
  std::unique_ptr<FakeSlab> slab_;
  std::atomic<int64_t> wall_us_ = 1700000000000000, now_us_ = 0;
  StoreOptions options_;
  std::unique_ptr<Store> store_;
};

TEST_F(LifetimesTest, PlanesAreGoneOnceTheirTimeHasPassed) {
  for (const bool with_ssd : {false, true}) {
    Open(with_ssd);
    const TestPlane shorter = MakePlane(1, 4096), longer = MakePlane(2, 4096), forever = MakePlane(3, 4096);
    ASSERT_TRUE(WriteFor(shorter, 10).ok());
    ASSERT_TRUE(WriteFor(longer, 20).ok());
    ASSERT_TRUE(WriteFor(forever, 0).ok());
    EXPECT_EQ(store_->List("", 0, "")->planes[0].meta.ttl_s, 10u);
    Pass(9);
    EXPECT_TRUE(ReadAndCompare(*store_, shorter).ok());
    Pass(1);
    // At once, without waiting for the store's thread.
    EXPECT_EQ(TierOf(shorter.id), Tier{});
    EXPECT_EQ(MissOf(shorter.id), MissReason::kExpired);
    EXPECT_TRUE(ReadAndCompare(*store_, longer).ok());
    Pass(100000);
    EXPECT_EQ(MissOf(longer.id), MissReason::kExpired);
    EXPECT_TRUE(ReadAndCompare(*store_, forever).ok());
    store_->Tidy();
    StoreStats stats = store_->Stats();
    EXPECT_EQ(stats.expired_planes, 2u);
    EXPECT_EQ(stats.slab_used_bytes, 4096u);
    if (with_ssd) {
      EXPECT_EQ(stats.ssd.live_bytes, 2 * 4096u);
    }
    const EventPage told = store_->events().Read(0, 100, "", absl::InfinitePast());
    ASSERT_EQ(told.events.size(), 5u);
    EXPECT_EQ(told.events[3].id, shorter.id);
    EXPECT_EQ(told.events[3].kind, EventKind::kRemoved);
    EXPECT_EQ(told.events[3].reason, MissReason::kExpired);
    EXPECT_TRUE(WriteFor(shorter, 10).ok()) << "it may come again";
    EXPECT_TRUE(ReadAndCompare(*store_, shorter).ok());
    EXPECT_EQ(store_->Delete({&forever.id.key, 1}).value_or(0), 1u);
    EXPECT_EQ(store_->Delete({&shorter.id.key, 1}).value_or(0), 1u);
    Pass(1000);
    store_->Tidy();
    EXPECT_EQ(store_->Stats().expired_planes, 2u) << "a deleted plane's time does not matter";
  }
}

TEST_F(LifetimesTest, TheRestOfTheTimeHoldsAfterARestart) {
  Open(true);
  ASSERT_TRUE(WriteFor(MakePlane(1, 4096), 10).ok());
  ASSERT_TRUE(WriteFor(MakePlane(2, 4096), 100).ok());
  Pass(8);
  Open(true);
  EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(1, 4096)).ok());
  Pass(2);
  EXPECT_EQ(MissOf(MakePlane(1, 1).id), MissReason::kExpired);
  Pass(50);
  // What passed while the store was away is gone from the start.
  store_.reset();
  Pass(60);
  Open(true);
  EXPECT_EQ(TierOf(MakePlane(2, 1).id), Tier{});
  EXPECT_FALSE(ReadAndCompare(*store_, MakePlane(2, 4096)).ok());
  EXPECT_TRUE(store_->List("", 0, "")->planes.empty());
  store_->Tidy();
  EXPECT_EQ(store_->Stats().ssd.live_bytes, 0u);
}

TEST_F(LifetimesTest, ATimeMovesWithItsPlaneToTheSsdAndToTheRemoteTier) {
  TempFolder shared;
  options_.free_low = 0.5, options_.free_high = 0.5;
  options_.recompute_us_per_token = 1e5;
  for (const bool with_ssd : {true, false}) {
    if (!with_ssd) {
      options_.ssd.reset();
      options_.remote = std::make_shared<HeldRemote>(shared.path());
    }
    Open(with_ssd, 16);
    for (uint64_t i = 0; i < 10; ++i) ASSERT_TRUE(WriteFor(MakePlane(i, 4096), 100, Durability::kDram).ok());
    store_->Tidy();
    const StoreStats stats = store_->Stats();
    ASSERT_GT(stats.demoted_to_ssd + stats.demoted_to_remote, 0u);
    Pass(99);
    Open(with_ssd, 16);
    EXPECT_TRUE(Eventually([&] { return !store_->List("", 0, "")->planes.empty(); }));
    Pass(1);
    EXPECT_TRUE(store_->List("", 0, "")->planes.empty());
    store_->Tidy();
    Open(with_ssd, 16);
    EXPECT_TRUE(store_->List("", 0, "")->planes.empty());
  }
}

TEST_F(LifetimesTest, APlaneThatExpiredInTheRemoteTierAndIsStoredAgainStays) {
  TempFolder shared;
  const auto remote = std::make_shared<HeldRemote>(shared.path());
  options_.remote = remote;
  Open(false);
  ASSERT_TRUE(WriteFor(MakePlane(1, 4096), 10, Durability::kReplicated).ok());
  Pass(11);
  EXPECT_TRUE(WriteFor(MakePlane(1, 4096), 1000, Durability::kReplicated).ok());
  Open(false);
  EXPECT_TRUE(Eventually([&] { return !store_->List("", 0, "")->planes.empty(); }, absl::Seconds(5)));
  EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(1, 4096)).ok());
}

TEST_F(LifetimesTest, TimesBeyondTheBoundAreRefused) {
  Open(false);
  EXPECT_EQ(WriteFor(MakePlane(1, 4096), kMaxTtlSeconds + 1).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteFor(MakePlane(1, 4096), ~uint32_t{0}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(WriteFor(MakePlane(1, 4096), kMaxTtlSeconds).ok());
  Pass(kMaxTtlSeconds - 1);
  EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(1, 4096)).ok());
  Pass(1);
  EXPECT_EQ(MissOf(MakePlane(1, 1).id), MissReason::kExpired);
}

TEST_F(LifetimesTest, AnExpiredPlanesBytesStayForItsLeases) {
  Open(false);
  const TestPlane plane = MakePlane(1, 4096);
  ASSERT_TRUE(WriteFor(plane, 10).ok());
  const auto lease = store_->Acquire({&plane.id, 1}, absl::Seconds(60));
  Pass(20);
  store_->Tidy();
  EXPECT_EQ(MissOf(plane.id), MissReason::kExpired);
  EXPECT_EQ(Peek(lease->planes[0]), plane.payload);
  EXPECT_TRUE(store_->Release(lease->id, 0, 0).ok());
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
}

TEST_F(LifetimesTest, SoftlyPinnedPlanesGoLast) {
  Open(false, 16);
  for (uint64_t i = 0; i < 16; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
  for (uint64_t i = 0; i < 4; ++i) ASSERT_EQ(*Pin(MakePlane(i, 1), PinMode::kSoft), 1u);
  EXPECT_EQ(store_->List("", 1, "")->planes[0].pin, PinMode::kSoft);
  for (uint64_t i = 100; i < 140; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
  for (uint64_t i = 0; i < 4; ++i) EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(i, 4096)).ok()) << i;
  // They go where nothing else can.
  EXPECT_TRUE(Write(*store_, MakePlane(500, 14 * 4096)).ok());
  ASSERT_TRUE(Write(*store_, MakePlane(501, 16 * 4096)).ok());
  EXPECT_EQ(store_->Stats().counts[0][0].planes, 1u);
}

TEST_F(LifetimesTest, AnUnpinnedPlaneIsOneOfManyAgain) {
  for (const PinMode mode : {PinMode::kSoft, PinMode::kHard}) {
    Open(false, 16);
    for (uint64_t i = 0; i < 16; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
    ASSERT_EQ(*Pin(MakePlane(0, 1), mode), 1u);
    for (uint64_t i = 100; i < 140; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
    ASSERT_EQ(*Pin(MakePlane(0, 1), PinMode::kNone), 1u);
    EXPECT_EQ(store_->Stats().hard_pinned_bytes, 0u);
    for (uint64_t i = 200; i < 240; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
    EXPECT_EQ(MissOf(MakePlane(0, 1).id), MissReason::kEvicted);
  }
}

TEST_F(LifetimesTest, AHardPinnedPlaneNeverGoes) {
  for (const char* policy : {"value", "lru", "s3fifo"}) {
    options_.policy = policy;
    Open(false, 16);
    const TestPlane kept = MakePlane(0, 4 * 4096);
    ASSERT_TRUE(Write(*store_, kept).ok());
    ASSERT_EQ(*Pin(kept, PinMode::kHard), 1u);
    ASSERT_EQ(*Pin(kept, PinMode::kHard), 1u) << "again";
    EXPECT_EQ(store_->Stats().hard_pinned_bytes, 4 * 4096u);
    for (uint64_t i = 1; i < 100; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
    EXPECT_EQ(Write(*store_, MakePlane(500, 13 * 4096)).code(), absl::StatusCode::kResourceExhausted);
    EXPECT_TRUE(ReadAndCompare(*store_, kept).ok());
    EXPECT_EQ(store_->List("", 0, "")->planes[0].pin, PinMode::kHard);
    EXPECT_EQ(*store_->Delete({&kept.id.key, 1}), 1u) << "but its owner may delete it";
    EXPECT_EQ(store_->Stats().hard_pinned_bytes, 0u);
    EXPECT_TRUE(Write(*store_, MakePlane(500, 16 * 4096)).ok());
  }
}

TEST_F(LifetimesTest, HardPinsBeyondTheirShareAreRefusedAndChangeNothing) {
  options_.max_hard_pinned = 0.25;
  Open(false, 16);
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
  std::vector<pod::BlockKey> keys;
  for (uint64_t i = 0; i < 5; ++i) keys.push_back(TestKey(i));
  EXPECT_EQ(store_->Pin(keys, PinMode::kHard, "").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(store_->Stats().hard_pinned_bytes, 0u);
  EXPECT_EQ(*store_->Pin(std::span(keys).first(4), PinMode::kHard, ""), 4u);
  EXPECT_EQ(Pin(MakePlane(7, 1), PinMode::kHard).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(*Pin(MakePlane(7, 1), PinMode::kSoft), 1u);
  EXPECT_EQ(*Pin(MakePlane(0, 1), PinMode::kNone), 1u);
  EXPECT_EQ(*Pin(MakePlane(7, 1), PinMode::kHard), 1u);
  EXPECT_EQ(*store_->Pin(keys, PinMode::kNone, "somebody else"), 0u);
  EXPECT_EQ(store_->Stats().hard_pinned_bytes, 4 * 4096u);
}

TEST_F(LifetimesTest, AHardPinBringsAPlaneIntoMemoryAndDropPromotionsLeavesIt) {
  Open(true);
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
  const auto files = std::make_shared<HeldFiles>();
  store_.reset();
  StoreOptions options = options_;
  options.ssd->files = files;
  store_ = *Store::Open(options, slab_->span());
  files->Hold();
  EXPECT_EQ(TierOf(MakePlane(3, 1).id), Tier::kSsd);
  ASSERT_EQ(*Pin(MakePlane(3, 1), PinMode::kHard), 1u);
  const PlaneId id = MakePlane(3, 1).id;
  EXPECT_EQ(store_->DropPromotions({&id, 1}, ""), 0u);
  files->LetGo();
  EXPECT_TRUE(Eventually([&] { return TierOf(id) == Tier::kDram; }));
  for (uint64_t i = 100; i < 200; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
  EXPECT_EQ(TierOf(id), Tier::kDram);
  EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(3, 4096)).ok());
  store_.reset();
}

TEST_F(LifetimesTest, AHardPinnedPlaneForWhichThereWasNoRoomComesInLater) {
  Open(true, 16);
  ASSERT_TRUE(Write(*store_, MakePlane(1, 4096)).ok());
  const TestPlane all = MakePlane(2, 16 * 4096);
  ASSERT_TRUE(Write(*store_, all).ok());
  const auto lease = store_->Acquire({&all.id, 1}, absl::Seconds(60));
  ASSERT_EQ(TierOf(MakePlane(1, 1).id), Tier::kSsd);
  ASSERT_EQ(*Pin(MakePlane(1, 1), PinMode::kHard), 1u);
  ASSERT_TRUE(store_->Release(lease->id, 0, 0).ok());
  store_->Tidy();
  EXPECT_TRUE(Eventually([&] { return TierOf(MakePlane(1, 1).id) == Tier::kDram; }, absl::Seconds(5)));
}

TEST_F(LifetimesTest, MakingRoomForOneOfSeveralHardPinsDropsNoneOfTheOthers) {
  options_.max_hard_pinned = 1;
  Open(true, 2);
  const TestPlane on_ssd = MakePlane(1, 4096), in_memory = MakePlane(2, 4096), leased = MakePlane(3, 4096);
  ASSERT_TRUE(Write(*store_, on_ssd).ok());
  ASSERT_TRUE(Write(*store_, leased, Durability::kDram).ok());
  const auto lease = store_->Acquire({&leased.id, 1}, absl::Seconds(60));
  ASSERT_TRUE(lease.ok() && lease->planes[0].found);
  ASSERT_TRUE(Write(*store_, in_memory, Durability::kDram).ok());
  ASSERT_EQ(TierOf(on_ssd.id), Tier::kSsd);
  const std::vector<pod::BlockKey> keys = {on_ssd.id.key, in_memory.id.key};
  EXPECT_EQ(*store_->Pin(keys, PinMode::kHard, ""), 2u);
  EXPECT_EQ(TierOf(in_memory.id), Tier::kDram);
  EXPECT_TRUE(ReadAndCompare(*store_, in_memory).ok());
  EXPECT_EQ(*store_->Pin(keys, PinMode::kNone, ""), 2u);
  EXPECT_EQ(store_->Stats().hard_pinned_bytes, 0u);
}

TEST_F(LifetimesTest, OneExpiredLeaseOfManyHurtsNoOther) {
  Open(false);
  std::vector<Lease> leases;
  for (uint64_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
    const PlaneId id = MakePlane(i, 1).id;
    leases.push_back(*store_->Acquire({&id, 1}, absl::Seconds(i == 4 ? 10 : 60)));
  }
  now_us_ += 20 * 1000000;
  for (uint64_t i = 0; i < 10; ++i) {
    const absl::Status renewed = store_->Renew(leases[i].id, absl::Seconds(60));
    EXPECT_EQ(renewed.code(), i == 4 ? absl::StatusCode::kNotFound : absl::StatusCode::kOk) << i;
  }
  EXPECT_EQ(store_->Stats().leased_bytes, 9 * 4096u);
  std::vector<PlaneId> all;
  for (uint64_t i = 0; i < 10; ++i) all.push_back(MakePlane(i, 1).id);
  const auto again = store_->Acquire(all, absl::Seconds(60));
  for (uint64_t i = 0; i < 10; ++i) EXPECT_TRUE(again->planes[i].found) << i;
  EXPECT_TRUE(store_->Release(again->id, 0, 0).ok());
  for (uint64_t i = 0; i < 10; ++i) EXPECT_EQ(store_->Release(leases[i].id, 0, 0).ok(), i != 4) << i;
  EXPECT_EQ(store_->Stats().leased_bytes, 0u);
}

}  // namespace
}  // namespace perigee::kvstore
