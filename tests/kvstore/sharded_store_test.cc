// Many stores as one, all of them well: who is asked, what is merged, where planes are written. Failures:
// sharded_failures_test.cc.
#include "kvstore/sharded_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "absl/time/clock.h"
#include "store_cluster.h"

namespace perigee::kvstore {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

using pod::PlaneKind;

class ShardedStoreTest : public ::testing::Test {
 protected:
  void Start(size_t stores, ShardedStoreOptions options = {}) {
    std::vector<std::string> addresses;
    for (size_t i = 0; i < stores; ++i) {
      servers_.push_back(StartServer());
      addresses.push_back(servers_.back()->address());
    }
    map_ = MapAt(addresses);
    directory_ = std::make_shared<StoreDirectory>(map_);
    sharded_ = std::make_unique<ShardedStore>(directory_, engine_.get(), std::move(options));
  }
  Store& store(size_t i) { return servers_[i]->store(); }
  void Change() {
    ++map_.epoch;
    directory_->Set(map_);
  }

  const std::unique_ptr<transport::Context> engine_ = MakeEngine();
  std::vector<std::unique_ptr<StoreServer>> servers_;
  StoreMap map_;
  std::shared_ptr<StoreDirectory> directory_;
  std::unique_ptr<ShardedStore> sharded_;
};

TEST_F(ShardedStoreTest, WithOneStoreResultsAndErrorsAreStoreClients) {
  Start(1);
  auto client = StoreClient::Connect(servers_[0]->address(), engine_.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  const pod::BlockKey root = TestKey(0);
  const std::vector<TestPlane> planes = Planes(0, 3, 9000);
  ASSERT_TRUE(WriteAll(*sharded_, root, planes).ok());
  std::vector<PlaneId> ids = IdsOf(planes);
  ids.push_back(MakePlane(77, 1).id);
  std::vector<pod::BlockKey> keys = KeysOf(planes);
  keys.push_back(TestKey(77));
  keys.push_back(TestKey(78));

  for (const LookupMode mode : {LookupMode::kAll, LookupMode::kPrefix}) {
    const auto want = (*client)->Lookup(keys, mode), got = sharded_->Lookup(root, keys, mode);
    ASSERT_TRUE(want.ok() && got.ok()) << got.status();
    EXPECT_EQ(got->estimated_fetch_us, want->estimated_fetch_us);
    ASSERT_EQ(got->blocks.size(), want->blocks.size());
    for (size_t b = 0; b < want->blocks.size(); ++b) {
      ASSERT_EQ(got->blocks[b].planes.size(), want->blocks[b].planes.size());
      ASSERT_EQ(got->blocks[b].misses.size(), want->blocks[b].misses.size());
      for (size_t i = 0; i < want->blocks[b].misses.size(); ++i) {
        EXPECT_EQ(got->blocks[b].misses[i].kind, want->blocks[b].misses[i].kind);
        EXPECT_EQ(got->blocks[b].misses[i].miss.reason, want->blocks[b].misses[i].miss.reason);
      }
    }
  }

  auto theirs = (*client)->Acquire(ids);
  auto ours = sharded_->Acquire(root, ids);
  ASSERT_TRUE(theirs.ok() && ours.ok());
  std::vector<std::byte> right(planes[0].payload.size()), small(10);
  const std::vector<FetchRequest> requests = {{.plane = 0, .destination = right},
                                              {.plane = 1, .destination = small},
                                              {.plane = 3, .destination = small},
                                              {.plane = 9, .destination = small}};
  EXPECT_EQ(ours->Fetch(requests), theirs->Fetch(requests));
  for (const FetchRequest& request : std::span(requests).subspan(1)) {
    EXPECT_EQ(ours->StartFetch({{request}}).status(), theirs->StartFetch({{request}}).status());
  }
  EXPECT_TRUE(ours->Renew(absl::Seconds(90)).ok());
  auto nothing = sharded_->Acquire(root, {});
  EXPECT_EQ(nothing->Renew(absl::Seconds(1)), (*client)->Acquire({})->Renew(absl::Seconds(1)));
  EXPECT_EQ(ShardedLease().Fetch(requests), ReadLease().Fetch(requests));
  EXPECT_EQ(ShardedLease().StartFetch({}).status(), ReadLease().StartFetch({}).status());

  const PlaneRequest too_much{MakePlane(80, 1).id, uint64_t{1} << 40};
  EXPECT_EQ(sharded_->Reserve(root, {&too_much, 1}).status(), (*client)->Reserve({&too_much, 1}).status());
  const PlaneRequest plane{MakePlane(81, 1).id, 100};
  auto our_batch = sharded_->Reserve(root, {&plane, 1});
  auto their_batch = (*client)->Reserve({&plane, 1});
  ASSERT_TRUE(our_batch.ok() && their_batch.ok());
  EXPECT_EQ(our_batch->Put(0, 99, small), their_batch->Put(0, 99, small));
  EXPECT_EQ(our_batch->Put(4, 0, small), their_batch->Put(4, 0, small));
  EXPECT_EQ(our_batch->Commit({}).status(), their_batch->Commit({}).status());
  EXPECT_EQ(ShardedBatch().Commit({}).status(), WriteBatch().Commit({}).status());

  // And so is the error of a store that has gone.
  servers_[0]->Shutdown();
  const absl::Status want = (*client)->Lookup(keys).status();
  EXPECT_TRUE(absl::IsUnavailable(want)) << want;
  for (int i = 0; i < 2; ++i) EXPECT_EQ(sharded_->Lookup(root, keys).status(), want);
  EXPECT_EQ(sharded_->Acquire(root, ids).status(), (*client)->Acquire(ids).status());
  EXPECT_EQ(sharded_->Reserve(root, {&plane, 1}).status(), (*client)->Reserve({&plane, 1}).status());
}

TEST_F(ShardedStoreTest, OneStoreIsAskedWhereItHasEverything) {
  Start(3);
  const pod::BlockKey root = RootOf(map_, {2, 0, 1});
  const std::vector<TestPlane> planes = Planes(0, 4, 5000);
  ASSERT_TRUE(WriteAll(*sharded_, root, planes).ok());
  ASSERT_TRUE(ReadAll(*sharded_, root, planes).ok());
  for (const LookupMode mode : {LookupMode::kAll, LookupMode::kPrefix}) {
    const auto found = sharded_->Lookup(root, KeysOf(planes), mode);
    ASSERT_TRUE(found.ok()) << found.status();
    EXPECT_THAT(found->blocks, SizeIs(4));
    EXPECT_GT(found->estimated_fetch_us, 0u);
  }
  auto lease = sharded_->Acquire(root, IdsOf(planes));
  ASSERT_TRUE(lease.ok()) << lease.status();
  Memory memory(planes);
  auto fetch = lease->StartFetch(memory.groups());
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  EXPECT_TRUE(fetch->Wait(1).ok());
  EXPECT_TRUE(memory.right());
  EXPECT_EQ(fetch->arrived(), 2u);
  EXPECT_GT(fetch->duration(), absl::ZeroDuration());
  EXPECT_EQ(fetch->Wait(2).code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(sharded_->stats().clients.connects, 1u) << "the others were not even connected to";
  EXPECT_EQ(store(2).Stats().committed_bytes, sharded_->stats().clients.put_bytes);
}

TEST_F(ShardedStoreTest, ALookupMergesWhatSeveralStoresHave) {
  Start(3, {.read_stores = 3});
  const pod::BlockKey root = RootOf(map_, {0, 1, 2});
  const auto write = [&](size_t at, uint64_t n, PlaneKind kind) {
    ASSERT_TRUE(Write(store(at), MakePlane(n, 4096, kind)).ok());
  };
  write(0, 1, PlaneKind::kProximal);
  write(1, 1, PlaneKind::kDistant);
  write(1, 1, PlaneKind::kProximal);
  write(2, 2, PlaneKind::kDistant);
  // Gone from the first, still at the second.
  write(0, 3, PlaneKind::kDistant);
  write(0, 3, PlaneKind::kProximal);
  write(1, 3, PlaneKind::kProximal);
  const PlaneId damaged{TestKey(3), PlaneKind::kProximal};
  Damage(store(0), damaged, 17);
  ASSERT_TRUE(store(0).ReportCorrupt(damaged).dram_copy_dropped);
  const std::vector<pod::BlockKey> keys = {TestKey(1), TestKey(2), TestKey(3), TestKey(4)};
  const auto found = sharded_->Lookup(root, keys);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_THAT(found->blocks, SizeIs(4));
  const auto kinds = [&](size_t b) {
    std::vector<PlaneKind> kinds;
    for (const FoundPlane& plane : found->blocks[b].planes) kinds.push_back(plane.kind);
    return kinds;
  };
  EXPECT_THAT(kinds(0), ElementsAre(PlaneKind::kDistant, PlaneKind::kProximal));
  EXPECT_THAT(found->blocks[0].misses, SizeIs(1));
  EXPECT_THAT(kinds(1), ElementsAre(PlaneKind::kDistant));
  EXPECT_THAT(found->blocks[1].misses, SizeIs(2));
  EXPECT_THAT(kinds(2), ElementsAre(PlaneKind::kDistant, PlaneKind::kProximal));
  EXPECT_THAT(kinds(3), IsEmpty());
  EXPECT_THAT(found->blocks[3].misses, SizeIs(3));
  uint64_t sum_us = 0;
  for (const BlockInfo& block : found->blocks) {
    for (const FoundPlane& plane : block.planes) sum_us += plane.estimated_fetch_us;
    for (const MissedPlane& missed : block.misses) EXPECT_EQ(missed.miss.reason, MissReason::kNeverStored);
  }
  EXPECT_EQ(found->estimated_fetch_us, sum_us);

  // Of two reasons for a miss the one that says more.
  write(1, 5, PlaneKind::kDistant);
  const pod::BlockKey deleted = TestKey(5);
  ASSERT_EQ(*store(1).Delete({&deleted, 1}), 1u);
  const auto missed = sharded_->Lookup(root, {&deleted, 1});
  EXPECT_EQ(missed->blocks[0].misses[0].miss.reason, MissReason::kDeleted);
  const PlaneId id{deleted, PlaneKind::kDistant};
  EXPECT_EQ(sharded_->Acquire(root, {&id, 1})->planes()[0].miss.reason, MissReason::kDeleted);
}

TEST_F(ShardedStoreTest, APrefixGoesOnWhereAnotherStoreHasTheNextBlock) {
  Start(3, {.read_stores = 3});
  const pod::BlockKey root = RootOf(map_, {0, 1, 2});
  const std::vector<TestPlane> chain = Planes(0, 9, 4096);
  for (const size_t n : {0, 1, 4, 5}) ASSERT_TRUE(Write(store(0), chain[n]).ok());
  for (const size_t n : {2, 3}) ASSERT_TRUE(Write(store(1), chain[n]).ok());
  for (const size_t n : {6, 8}) ASSERT_TRUE(Write(store(2), chain[n]).ok());
  const auto found = sharded_->Lookup(root, KeysOf(chain), LookupMode::kPrefix);
  ASSERT_TRUE(found.ok()) << found.status();
  ASSERT_THAT(found->blocks, SizeIs(8)) << "seven, and the first that is missing";
  for (size_t b = 0; b < 7; ++b) EXPECT_THAT(found->blocks[b].planes, SizeIs(1)) << b;
  EXPECT_THAT(found->blocks[7].planes, IsEmpty());
  EXPECT_THAT(found->blocks[7].misses, SizeIs(3));
  ASSERT_TRUE(Write(store(1), chain[7]).ok());
  EXPECT_THAT(sharded_->Lookup(root, KeysOf(chain), LookupMode::kPrefix)->blocks, SizeIs(9));
}

TEST_F(ShardedStoreTest, ALeaseJoinsPlanesOfSeveralStoresUnderTheCallersIndices) {
  Start(3, {.read_stores = 3});
  const pod::BlockKey root = RootOf(map_, {0, 1, 2});
  const std::vector<TestPlane> planes = Planes(0, 6, 30000);
  for (const size_t n : {1, 4}) ASSERT_TRUE(Write(store(0), planes[n]).ok());
  for (const size_t n : {0, 3, 4}) ASSERT_TRUE(Write(store(1), planes[n]).ok());
  for (const size_t n : {2, 5}) ASSERT_TRUE(Write(store(2), planes[n]).ok());
  {
    auto lease = sharded_->Acquire(root, IdsOf(planes));
    ASSERT_TRUE(lease.ok()) << lease.status();
    for (size_t i = 0; i < planes.size(); ++i) {
      EXPECT_TRUE(lease->planes()[i].found) << i;
      EXPECT_EQ(lease->planes()[i].id, planes[i].id);
      EXPECT_EQ(lease->planes()[i].header, planes[i].header);
    }
    EXPECT_GT(lease->expiry(), absl::Now());
    EXPECT_TRUE(lease->Renew(absl::Seconds(100)).ok());
    EXPECT_GT(lease->expiry(), absl::Now() + absl::Seconds(80));
    for (size_t i = 0; i < 3; ++i) EXPECT_EQ(store(i).Stats().leases, 1u);
    Memory memory(planes);
    EXPECT_THAT(lease->Fetch(memory.requests()), Each(absl::OkStatus()));
    EXPECT_TRUE(memory.right());
    Memory again(planes);
    auto fetch = lease->StartFetch(again.groups());
    ASSERT_TRUE(fetch.ok()) << fetch.status();
    EXPECT_EQ(fetch->groups(), 2u);
    *lease = ShardedLease();  // May go meanwhile.
    EXPECT_TRUE(fetch->Wait(0).ok());
    EXPECT_TRUE(fetch->Wait(1).ok());
    EXPECT_TRUE(again.right());
    EXPECT_EQ(fetch->arrived(), 2u);
    EXPECT_EQ(fetch->Wait(2).code(), absl::StatusCode::kOutOfRange);
  }
  for (size_t i = 0; i < 3; ++i) EXPECT_EQ(store(i).Stats().leases, 0u);

  const std::vector<PlaneId> not_at_the_first = {planes[0].id, planes[2].id};
  auto later = sharded_->Acquire(root, not_at_the_first);
  ASSERT_TRUE(later.ok());
  EXPECT_TRUE(later->Renew(absl::Seconds(100)).ok());
  EXPECT_GT(later->expiry(), absl::Now() + absl::Seconds(80));

  std::vector<PlaneId> with_hole = IdsOf(planes);
  with_hole[3] = MakePlane(99, 1).id;
  auto lease = sharded_->Acquire(root, with_hole);
  ASSERT_TRUE(lease.ok());
  Memory memory(planes);
  const std::vector<absl::Status> statuses = lease->Fetch(memory.requests());
  for (size_t i = 0; i < planes.size(); ++i) EXPECT_EQ(statuses[i].ok(), i != 3) << statuses[i];
  EXPECT_TRUE(absl::IsNotFound(statuses[3]));
  EXPECT_THAT(std::string(statuses[3].message()), HasSubstr(with_hole[3].ToString()));
  EXPECT_TRUE(absl::IsNotFound(lease->StartFetch(memory.groups()).status()));
  const FetchRequest outside{.plane = 17, .destination = memory.bytes[0]};
  EXPECT_TRUE(absl::IsInvalidArgument(lease->Fetch({&outside, 1})[0]));
}

TEST_F(ShardedStoreTest, WrongBytesFromOneOfSeveralStoresAreNamedByTheCallersIndex) {
  Start(2);
  const pod::BlockKey root = RootOf(map_, {0, 1});
  const std::vector<TestPlane> planes = Planes(0, 4, 9000);
  for (const size_t n : {0, 1}) ASSERT_TRUE(Write(store(0), planes[n]).ok());
  for (const size_t n : {2, 3}) ASSERT_TRUE(Write(store(1), planes[n]).ok());
  Damage(store(1), planes[3].id, 8000);  // In its second section.
  auto lease = sharded_->Acquire(root, IdsOf(planes));
  ASSERT_TRUE(lease.ok()) << lease.status();
  Memory memory(planes);
  auto fetch = lease->StartFetch(memory.groups());
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  const absl::Status last = fetch->Wait(1);
  EXPECT_TRUE(absl::IsDataLoss(last)) << last;
  EXPECT_THAT(fetch->wrong_planes(), ElementsAre(3));
  EXPECT_EQ(fetch->Wait(1), last);
  EXPECT_EQ(store(1).Stats().checksum_failures, 1u);
  EXPECT_EQ(sharded_->stats().clients.checksum_failures, 1u);
  EXPECT_EQ(sharded_->stats().stores_avoided, 0u) << "wrong bytes are an answer";
}

TEST_F(ShardedStoreTest, ReplicasAreWrittenToTheOwnersAndPutOnlyWhereTheyAreMissing) {
  Start(3, {.read_stores = 3, .replicas = 2});
  const pod::BlockKey root = RootOf(map_, {1, 2, 0});
  const std::vector<TestPlane> planes = Planes(0, 3, 20000);
  ASSERT_TRUE(Write(store(1), planes[0]).ok());
  for (const size_t at : {1, 2}) ASSERT_TRUE(Write(store(at), planes[1]).ok());
  auto batch = ReserveAndPut(*sharded_, root, planes);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->size(), 3u);
  EXPECT_EQ(batch->replicas(), 2);
  EXPECT_FALSE(batch->already_committed(0)) << "only one of the two has it";
  EXPECT_TRUE(batch->already_committed(1));
  EXPECT_FALSE(batch->already_committed(2));
  EXPECT_TRUE(batch->WaitForPuts().ok());
  EXPECT_EQ(sharded_->stats().clients.put_bytes, planes[0].payload.size() + 2 * planes[2].payload.size());
  EXPECT_EQ(batch->replicas_written(0), 0);
  const auto statuses = batch->Commit(HeadersOf(planes));
  ASSERT_TRUE(statuses.ok()) << statuses.status();
  EXPECT_THAT(*statuses, Each(absl::OkStatus()));
  for (size_t i = 0; i < planes.size(); ++i) EXPECT_EQ(batch->replicas_written(i), 2);
  for (const size_t at : {1, 2}) {
    for (const TestPlane& p : planes) EXPECT_TRUE(ReadAndCompare(store(at), p).ok());
  }
  EXPECT_TRUE(absl::IsNotFound(ReadAndCompare(store(0), planes[0])));
  ASSERT_TRUE(WriteAll(*sharded_, root, Planes(50, 1, 100), 1).ok()) << "fewer where the caller says so";
  EXPECT_EQ(store(1).Stats().hits_dram + store(2).Stats().hits_dram, 6u);
  EXPECT_TRUE(absl::IsNotFound(ReadAndCompare(store(2), MakePlane(50, 100))));

  // More than there are stores is all of them; a header that no store takes is nobody's plane.
  TestPlane wrong = MakePlane(60, 1000);
  wrong.header.sections[0].crc32c ^= 1;
  auto refused = ReserveAndPut(*sharded_, root, {&wrong, 1}, 9);
  ASSERT_TRUE(refused.ok()) << refused.status();
  const auto said = refused->Commit({&wrong.header, 1});
  ASSERT_TRUE(said.ok()) << said.status();
  EXPECT_FALSE((*said)[0].ok());
  EXPECT_EQ(refused->replicas_written(0), 0);
  for (size_t at = 0; at < 3; ++at) EXPECT_EQ(store(at).Stats().refused_commits, 1u);
}

TEST_F(ShardedStoreTest, AnAbandonedBatchLeavesNothingAtAnyStore) {
  Start(2, {.replicas = 2});
  const std::vector<TestPlane> planes = Planes(0, 2, 9000);
  {
    auto batch = ReserveAndPut(*sharded_, TestKey(0), planes);
    ASSERT_TRUE(batch.ok()) << batch.status();
    for (size_t at = 0; at < 2; ++at) EXPECT_EQ(store(at).Stats().reservations, 2u);
    EXPECT_TRUE(absl::IsOutOfRange(batch->Put(0, 1, planes[0].payload)));
  }
  for (size_t at = 0; at < 2; ++at) EXPECT_EQ(store(at).Stats().slab_used_bytes, 0u);
}

TEST_F(ShardedStoreTest, AnOwnerWithoutRoomIsLeftOutWhereAnotherHasSome) {
  servers_.push_back(StartServer(1 << 20));
  servers_.push_back(StartServer());
  map_ = MapAt({servers_[0]->address(), servers_[1]->address()});
  directory_ = std::make_shared<StoreDirectory>(map_);
  sharded_ = std::make_unique<ShardedStore>(directory_, engine_.get(), ShardedStoreOptions{});
  const pod::BlockKey root = RootOf(map_, {0, 1});
  const TestPlane big = MakePlane(0, 3 << 20);
  EXPECT_TRUE(absl::IsResourceExhausted(WriteAll(*sharded_, root, {&big, 1}))) << "placement is not given up for room";
  auto batch = ReserveAndPut(*sharded_, root, {&big, 1}, 2);
  ASSERT_TRUE(batch.ok()) << batch.status();
  ASSERT_TRUE(batch->Commit({&big.header, 1}).ok());
  EXPECT_EQ(batch->replicas_written(0), 1);
  EXPECT_EQ(sharded_->stats().stores_avoided, 0u) << "to be full is an answer";
  EXPECT_EQ(sharded_->stats().failovers, 1u);
  EXPECT_TRUE(ReadAll(*sharded_, root, {&big, 1}).ok());
}

TEST_F(ShardedStoreTest, ADrainingStoreIsReadAndNotWrittenTo) {
  Start(3);
  const pod::BlockKey root = RootOf(map_, {1, 0, 2});
  const std::vector<TestPlane> old = Planes(0, 3, 9000), fresh = Planes(10, 3, 9000);
  ASSERT_TRUE(WriteAll(*sharded_, root, old).ok());
  map_.stores[1].state = StoreState::kDraining;
  Change();
  ASSERT_TRUE(WriteAll(*sharded_, root, fresh).ok());
  EXPECT_TRUE(ReadAll(*sharded_, root, old).ok());
  EXPECT_TRUE(ReadAll(*sharded_, root, fresh).ok());
  EXPECT_TRUE(absl::IsNotFound(ReadAndCompare(store(1), fresh[0])));
  EXPECT_TRUE(ReadAndCompare(store(0), fresh[0]).ok());
  EXPECT_EQ(sharded_->stats().clients.connects, 2u) << "the same client before and after";
  for (StoreEntry& entry : map_.stores) entry.state = StoreState::kDraining;
  Change();
  EXPECT_TRUE(ReadAll(*sharded_, root, old).ok());
  EXPECT_TRUE(absl::IsUnavailable(WriteAll(*sharded_, root, Planes(20, 1, 100))));
}

TEST_F(ShardedStoreTest, PromotePinAndDeleteReachAllReaders) {
  Start(3, {.replicas = 2});
  const pod::BlockKey root = RootOf(map_, {0, 1, 2});
  const std::vector<TestPlane> planes = Planes(0, 2, 9000);
  ASSERT_TRUE(WriteAll(*sharded_, root, planes).ok());
  EXPECT_EQ(*sharded_->Promote(root, IdsOf(planes)), 0u) << "all in memory";
  EXPECT_EQ(*sharded_->Pin(root, KeysOf(planes), PinMode::kHard), 4u);
  for (const size_t at : {0, 1}) EXPECT_GT(store(at).Stats().hard_pinned_bytes, 0u);
  EXPECT_EQ(*sharded_->Delete(root, KeysOf(planes)), 4u);
  for (const size_t at : {0, 1}) EXPECT_TRUE(absl::IsNotFound(ReadAndCompare(store(at), planes[0])));
}

TEST_F(ShardedStoreTest, ToolsVisitEveryStoreByItself) {
  Start(3);
  std::atomic<int> reservations{0};
  const auto visited = sharded_->ForEachStore([&](const StoreEntry& entry, StoreClient& client) -> absl::Status {
    ++reservations;
    const auto stat = client.GetStat();
    if (!stat.ok()) return stat.status();
    return stat->epoch == client.epoch() && client.address() == entry.address ? absl::OkStatus()
                                                                              : absl::InternalError(entry.id);
  });
  ASSERT_THAT(visited, SizeIs(3));
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(visited[i].store, map_.stores[i]);
    EXPECT_TRUE(visited[i].status.ok()) << visited[i].status;
  }
  EXPECT_EQ(reservations, 3);
}

TEST_F(ShardedStoreTest, AMapWithoutStoresIsUnavailableAndSaysSo) {
  directory_ = std::make_shared<StoreDirectory>();
  sharded_ = std::make_unique<ShardedStore>(directory_, engine_.get(), ShardedStoreOptions{});
  const PlaneRequest plane = MakePlane(0, 10).request();
  const pod::BlockKey key = plane.id.key;
  for (const absl::Status& status :
       {sharded_->Lookup(key, {&key, 1}).status(), sharded_->Lookup(key, {&key, 1}, LookupMode::kPrefix).status(),
        sharded_->Acquire(key, {&plane.id, 1}).status(), sharded_->Reserve(key, {&plane, 1}).status(),
        sharded_->Delete(key, {&key, 1}).status()}) {
    EXPECT_TRUE(absl::IsUnavailable(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr("no store is serving"));
  }
  EXPECT_THAT(sharded_->ForEachStore([](const auto&, auto&) { return absl::OkStatus(); }), IsEmpty());
}

TEST_F(ShardedStoreTest, WhoLeavesTheMapIsForgottenAndItsCountsStay) {
  Start(2, {.replicas = 2});
  const pod::BlockKey root = RootOf(map_, {0, 1});
  const std::vector<TestPlane> planes = Planes(0, 2, 9000);
  ASSERT_TRUE(WriteAll(*sharded_, root, planes).ok());
  auto lease = sharded_->Acquire(root, IdsOf(planes));
  ASSERT_TRUE(lease.ok());
  const ShardedStats before = sharded_->stats();
  map_.stores.erase(map_.stores.begin());
  Change();
  EXPECT_TRUE(ReadAll(*sharded_, root, planes).ok()) << "at the replica";
  Memory memory(planes);
  EXPECT_THAT(lease->Fetch(memory.requests()), Each(absl::OkStatus())) << "what was leased before still is";
  const uint64_t bytes = planes[0].payload.size() + planes[1].payload.size();
  EXPECT_EQ(sharded_->stats().clients.fetched_bytes, before.clients.fetched_bytes + 2 * bytes);
  *lease = ShardedLease();
  EXPECT_EQ(sharded_->stats().clients.fetched_bytes, before.clients.fetched_bytes + 2 * bytes);
  EXPECT_EQ(sharded_->stats().clients.connects, 2u);
  // The same store at another address is another client; the index of a store does not matter.
  map_.stores = {{.id = "s7", .address = servers_[0]->address()}, map_.stores[0]};
  Change();
  EXPECT_EQ(sharded_->ForEachStore([](const auto&, auto& client) { return client.GetStat().status(); }).size(), 2u);
  EXPECT_EQ(sharded_->stats().clients.connects, 3u);
}

TEST_F(ShardedStoreTest, AllStaysReadableWhileTheMapChangesUnderManyCalls) {
  Start(4, {.read_stores = 4, .replicas = 2});
  constexpr size_t kWriters = 3;
  std::atomic<bool> stop{false};
  std::atomic<int> failed{0}, rounds{0};
  std::vector<std::thread> threads;
  for (size_t t = 0; t < kWriters; ++t) {
    threads.emplace_back([&, t] {
      std::vector<std::pair<pod::BlockKey, std::vector<TestPlane>>> written;
      for (uint64_t i = 0; !stop; ++i) {
        const uint64_t first = (t + 1) * 10000 + i * 10;
        written.emplace_back(TestKey(first), Planes(first, 2, 3000));
        const absl::Status wrote = WriteAll(*sharded_, written.back().first, written.back().second);
        const auto& [root, planes] = written[i * 7919 % written.size()];
        const absl::Status read = ReadAll(*sharded_, root, planes);
        const auto found = sharded_->Lookup(root, KeysOf(planes));
        const bool all = found.ok() && found->blocks[0].planes.size() == 1 && found->blocks[1].planes.size() == 1;
        if (!wrote.ok() || !read.ok() || !all) {
          ++failed;
          ADD_FAILURE() << wrote << " " << read << " " << found.status();
          return;
        }
        ++rounds;
        if (written.size() > 100) written.erase(written.begin());
      }
    });
  }
  // One store at a time leaves, drains or is back; planes are at two, and nobody dies.
  const StoreMap all = map_;
  const absl::Time limit = absl::Now() + absl::Seconds(60);
  for (int change = 0; change < 60 && failed == 0; ++change) {
    map_.stores = all.stores;
    const size_t which = static_cast<size_t>(change / 3) % 4;
    if (change % 3 == 0) map_.stores[which].state = StoreState::kDraining;
    if (change % 3 == 1) map_.stores.erase(map_.stores.begin() + static_cast<ptrdiff_t>(which));
    Change();
    const int before = rounds;
    while (rounds < before + 3 && failed == 0 && absl::Now() < limit) std::this_thread::yield();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(failed, 0);
  EXPECT_LT(absl::Now(), limit);
  EXPECT_EQ(sharded_->stats().stores_avoided, 0u);
}

}  // namespace
}  // namespace perigee::kvstore
