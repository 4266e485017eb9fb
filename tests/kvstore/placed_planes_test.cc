// What a store remembers of where its planes belong: placement group, number of replicas; and planes that others have
// taken over.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "held_tiers.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using testing::UnorderedElementsAre;

class PlacedPlanesTest : public testing::Test {
 protected:
  absl::Status WriteWith(Store& store, const TestPlane& plane, uint32_t replicas,
                         Durability durability = Durability::kBest) {
    const PlaneRequest request = plane.request();
    const auto reserved = store.Reserve({&request, 1}, absl::Seconds(60));
    if (!reserved.ok()) return reserved.status();
    return CommitWith(store, (*reserved)[0], plane, replicas, durability);
  }
  absl::Status CommitWith(Store& store, const Reservation& reservation, const TestPlane& plane, uint32_t replicas,
                          Durability durability = Durability::kBest) {
    Poke(reservation.address, plane.payload);
    const CommitItem item{reservation.id, plane.encoded(), 0, replicas};
    const auto statuses = store.Commit({&item, 1}, durability);
    if (statuses.ok()) return (*statuses)[0];
    store.Abort({&reservation.id, 1}, false);
    return statuses.status();
  }
  PlaneMeta MetaIn(Store& store, const TestPlane& plane) {
    const auto page = store.List("", 0, "");
    for (const ListedPlane& listed : page->planes) {
      if (listed.id == plane.id) return listed.meta;
    }
    ADD_FAILURE() << "not listed";
    return {};
  }
  std::vector<PlaneId> IdsIn(Store& store, const ListFilter& filter) {
    std::vector<PlaneId> ids;
    const auto page = store.List("", 0, "", filter);
    for (const ListedPlane& listed : page->planes) ids.push_back(listed.id);
    return ids;
  }

  TempFolder folder_;
  FakeSlab slab_{64 * 4096};
};

TEST_F(PlacedPlanesTest, GroupAndReplicasAreKnownInMemoryOnTheSsdAndAfterARestart) {
  TestPlane first = MakePlane(1, 5000), follower = MakePlane(2, 5000), old = MakePlane(3, 5000);
  follower.header.has_parent = true;
  follower.header.parent = follower.header.root = first.id.key;
  old.header.root = {};
  auto store = OpenStore(slab_, folder_.path());
  ASSERT_TRUE(WriteWith(*store, first, 0).ok());
  ASSERT_TRUE(WriteWith(*store, follower, 3).ok());
  ASSERT_TRUE(WriteWith(*store, old, 8).ok());
  for (int start = 0; start < 3; ++start) {
    EXPECT_EQ(MetaIn(*store, first).group, GroupOf(first.id.key));
    EXPECT_EQ(MetaIn(*store, first).replicas, 1);
    EXPECT_EQ(MetaIn(*store, follower).group, GroupOf(first.id.key));
    EXPECT_EQ(MetaIn(*store, follower).replicas, 3);
    EXPECT_EQ(MetaIn(*store, old).group, std::nullopt);
    EXPECT_EQ(MetaIn(*store, old).replicas, 8);
    const pod::BlockKey key = follower.id.key;
    EXPECT_EQ((*store->Lookup({&key, 1}, ""))[0].planes[0].replicas, 3u);
    store.reset();
    store = OpenStore(slab_, folder_.path());
  }
}

TEST_F(PlacedPlanesTest, WhatIsDemotedOrQuarantinedKeepsThem) {
  {
    auto store = OpenStore(slab_, folder_.path());
    for (uint64_t i = 0; i < 200; ++i) {  // More than memory holds.
      ASSERT_TRUE(WriteWith(*store, MakePlane(i, 5000), 5, Durability::kDram).ok());
      store->Tidy();
    }
    EXPECT_GT(store->Stats().demoted_to_ssd, 0u);
  }
  auto store = OpenStore(slab_, folder_.path());
  const auto page = store->List("", 0, "");
  ASSERT_FALSE(page->planes.empty());
  for (const ListedPlane& listed : page->planes) {
    EXPECT_EQ(listed.meta.replicas, 5);
    EXPECT_EQ(listed.meta.group, GroupOf(listed.id.key));
  }
  const PlaneId id = page->planes[0].id;
  auto lease = store->Acquire({&id, 1}, absl::Seconds(1));
  ASSERT_TRUE(lease.ok() && lease->planes[0].found);
  *reinterpret_cast<uint8_t*>(lease->planes[0].address) ^= 1;
  const CorruptReport report = store->ReportCorrupt(id);
  EXPECT_TRUE(report.dram_copy_dropped && report.still_stored);
  const auto after = store->List("", 0, "");
  ASSERT_EQ(after->planes.size(), page->planes.size());
  for (const ListedPlane& listed : after->planes) {
    EXPECT_EQ(listed.meta.replicas, 5);
    EXPECT_EQ(listed.meta.group, GroupOf(listed.id.key));
  }
}

TEST_F(PlacedPlanesTest, OfAPlaneThatIsThereTheHigherNumberCountsAndPinSaysItAnew) {
  auto store = OpenStore(slab_, "");
  const TestPlane plane = MakePlane(1, 5000);
  const PlaneRequest request = plane.request();
  std::vector<Reservation> reservations;
  for (int i = 0; i < 3; ++i) reservations.push_back((*store->Reserve({&request, 1}, absl::Seconds(60)))[0]);
  ASSERT_TRUE(CommitWith(*store, reservations[0], plane, 2).ok());
  ASSERT_TRUE(CommitWith(*store, reservations[1], plane, 4).ok());
  EXPECT_EQ(MetaIn(*store, plane).replicas, 4);
  ASSERT_TRUE(CommitWith(*store, reservations[2], plane, 3).ok());
  EXPECT_EQ(MetaIn(*store, plane).replicas, 4);
  ASSERT_EQ(*store->Pin({&plane.id.key, 1}, PinMode::kSoft, "", 2), 1u);
  EXPECT_EQ(MetaIn(*store, plane).replicas, 2);
  ASSERT_EQ(*store->Pin({&plane.id.key, 1}, PinMode::kKeep, "", 7), 1u);
  EXPECT_EQ(MetaIn(*store, plane).replicas, 7);
  EXPECT_EQ(store->List("", 0, "")->planes[0].pin, PinMode::kSoft);
  ASSERT_EQ(*store->Pin({&plane.id.key, 1}, PinMode::kNone, ""), 1u);
  EXPECT_EQ(MetaIn(*store, plane).replicas, 7) << "0: as it is";
  EXPECT_EQ(*store->Pin({&plane.id.key, 1}, PinMode::kKeep, "tenant-b", 2), 0u) << "another's";
}

TEST_F(PlacedPlanesTest, ANumberThatIsToldLaterSurvivesARestartToo) {
  const TestPlane raised = MakePlane(1, 5000), pinned = MakePlane(2, 5000), left = MakePlane(3, 5000);
  auto store = OpenStore(slab_, folder_.path());
  const PlaneRequest request = raised.request();
  const auto first = store->Reserve({&request, 1}, absl::Seconds(60));
  const auto second = store->Reserve({&request, 1}, absl::Seconds(60));
  ASSERT_TRUE(CommitWith(*store, (*first)[0], raised, 1).ok());
  ASSERT_TRUE(CommitWith(*store, (*second)[0], raised, 3).ok());
  ASSERT_TRUE(WriteWith(*store, pinned, 4).ok());
  ASSERT_TRUE(WriteWith(*store, left, 6).ok());
  ASSERT_EQ(*store->Pin({&pinned.id.key, 1}, PinMode::kKeep, "", 2), 1u);
  store.reset();
  store = OpenStore(slab_, folder_.path());
  EXPECT_EQ(MetaIn(*store, raised).replicas, 3);
  EXPECT_EQ(MetaIn(*store, pinned).replicas, 2);
  EXPECT_EQ(MetaIn(*store, left).replicas, 6);
  for (const TestPlane* plane : {&raised, &pinned, &left}) EXPECT_TRUE(ReadAndCompare(*store, *plane).ok());
}

TEST_F(PlacedPlanesTest, MoreReplicasThanThereMayBeAreRefused) {
  auto store = OpenStore(slab_, "");
  const TestPlane plane = MakePlane(1, 5000);
  EXPECT_EQ(WriteWith(*store, plane, 9).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store->Pin({&plane.id.key, 1}, PinMode::kKeep, "", 9).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(PlacedPlanesTest, AreListedByGroupAndReplicas) {
  auto store = OpenStore(slab_, "");
  TestPlane one = MakePlane(1, 5000), two = MakePlane(2, 5000), old = MakePlane(3, 5000);
  old.header.root = {};
  ASSERT_TRUE(WriteWith(*store, one, 1).ok());
  ASSERT_TRUE(WriteWith(*store, two, 2).ok());
  ASSERT_TRUE(WriteWith(*store, old, 3).ok());
  EXPECT_THAT(IdsIn(*store, {.group = GroupOf(two.id.key)}), UnorderedElementsAre(two.id));
  EXPECT_THAT(IdsIn(*store, {.least_replicas = 2}), UnorderedElementsAre(two.id, old.id));
  EXPECT_THAT(IdsIn(*store, {.placed = [](PlacementGroup, uint32_t) { return true; }}),
              UnorderedElementsAre(one.id, two.id));
  EXPECT_THAT(
      IdsIn(*store, {.placed = [&](PlacementGroup group,
                                   uint32_t replicas) { return group == GroupOf(one.id.key) && replicas == 1; }}),
      UnorderedElementsAre(one.id));
}

TEST_F(PlacedPlanesTest, WhatIsHandedOverIsGoneForGoodButNotUnderALease) {
  auto store = OpenStore(slab_, folder_.path());
  const TestPlane plane = MakePlane(1, 5000), other = MakePlane(1, 5000, pod::PlaneKind::kSummary);
  ASSERT_TRUE(Write(*store, std::vector{plane, other}).ok());
  auto lease = store->Acquire({&plane.id, 1}, absl::Seconds(60));
  ASSERT_TRUE(lease.ok());
  const std::vector<PlaneId> ids = {plane.id, MakePlane(2, 1).id};
  EXPECT_EQ(*store->HandOver(ids), 1u);
  EXPECT_EQ(Peek(lease->planes[0]), plane.payload);
  EXPECT_TRUE(store->Release(lease->id, 0, 0).ok());
  EXPECT_EQ(ReadAndCompare(*store, plane).message(), MissReasonName(MissReason::kMoved));
  EXPECT_TRUE(ReadAndCompare(*store, other).ok()) << "another plane of the block stays";
  store.reset();
  store = OpenStore(slab_, folder_.path());
  EXPECT_EQ(store->List("", 0, "")->planes.size(), 1u);
}

TEST_F(PlacedPlanesTest, WhatIsHandedOverStaysInTheRemoteTier) {
  TempFolder shared;
  StoreOptions options;
  options.remote = std::make_shared<HeldRemote>(shared.path());
  auto store = *Store::Open(options, slab_.span());
  const TestPlane plane = MakePlane(1, 5000);
  ASSERT_TRUE(Write(*store, plane, Durability::kReplicated).ok());
  EXPECT_EQ(*store->HandOver({&plane.id, 1}), 1u);
  EXPECT_EQ(ReadAndCompare(*store, plane).code(), absl::StatusCode::kNotFound);
  store.reset();
  store = *Store::Open(options, slab_.span());
  ASSERT_TRUE(Eventually([&] { return !store->List("", 0, "")->planes.empty(); }));
  EXPECT_TRUE(ReadAndCompare(*store, plane).ok());
  EXPECT_EQ(MetaIn(*store, plane).group, GroupOf(plane.id.key));
}

TEST_F(PlacedPlanesTest, ReadingInTheBackgroundIsNoUse) {
  auto store = OpenStore(slab_, folder_.path());
  const TestPlane plane = MakePlane(1, 5000);
  ASSERT_TRUE(Write(*store, plane).ok());
  store.reset();
  store = OpenStore(slab_, folder_.path());
  const int64_t used = store->List("", 0, "")->planes[0].last_used_unix_us;
  auto lease = store->Acquire({&plane.id, 1}, absl::Seconds(60), {.background = true});
  ASSERT_TRUE(lease.ok() && lease->planes[0].found);
  EXPECT_EQ(Peek(lease->planes[0]), plane.payload);
  ASSERT_TRUE(store->Release(lease->id, 0, 0).ok());
  const ListedPlane listed = store->List("", 0, "")->planes[0];
  EXPECT_EQ(listed.last_used_unix_us, used);
  EXPECT_EQ(listed.tier, Tier::kSsd) << "it did not stay in memory";
  const StoreStats stats = store->Stats();
  EXPECT_EQ(stats.hits_ssd + stats.misses, 0u);
}

}  // namespace
}  // namespace perigee::kvstore
