// The store with a remote tier: replicated commits, what is found again after the loss of a machine, and a remote tier
// that hangs, fails or lies.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <thread>

#include "held_tiers.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using Call = HeldRemote::Call;
namespace fs = std::filesystem;

class ReplicationTest : public testing::Test {
 protected:
  ReplicationTest() { NewRemote(); }
  void NewRemote() {
    remote_ = std::make_shared<HeldRemote>(shared_.path());
    options_.remote = remote_;
  }
  // A machine: what it has on disk is its own.
  Store& Open(bool with_ssd, size_t pages = 64) {
    store_.reset();
    if (slab_ == nullptr || slab_->span().size() != pages * 4096) slab_ = std::make_unique<FakeSlab>(pages * 4096);
    options_.ssd.reset();
    if (with_ssd) {
      options_.ssd = SsdOptions{.path = folder_.path(),
                                .segment_bytes = segment_bytes_,
                                .capacity_bytes = capacity_bytes_,
                                .reserve_bytes = 0,
                                .scrub_bytes_per_s = 0};
    }
    auto store = Store::Open(options_, slab_->span());
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    return *store_;
  }
  uint64_t OnRemote() {
    const StoreStats s = store_->Stats();
    return s.counts[2][0].planes + s.counts[2][1].planes + s.counts[2][2].planes;
  }
  // Opened with nothing but the remote tier, and knows of so many planes.
  void OpenAfterLoss(uint64_t planes) {
    Open(false);
    ASSERT_TRUE(Eventually([&] { return OnRemote() == planes; })) << OnRemote();
  }
  MissReason MissOf(const PlaneId& id) {
    auto lease = store_->Acquire({&id, 1}, absl::Seconds(1));
    EXPECT_TRUE(lease.ok() && !lease->planes[0].found);
    return lease->planes[0].miss.reason;
  }
  fs::path FileOf(const PlaneId& id) {
    for (const auto& entry : fs::recursive_directory_iterator(shared_.path())) {
      if (entry.path().filename().string().find(id.key.ToString()) != std::string::npos) return entry.path();
    }
    return {};
  }
  void ExpectNothingHeld() {
    const StoreStats stats = store_->Stats();
    EXPECT_EQ(stats.leases, 0u);
    EXPECT_EQ(stats.leased_bytes, 0u);
    EXPECT_EQ(stats.reservations, 0u);
    EXPECT_EQ(stats.reserved_bytes, 0u);
  }

  TempFolder shared_, folder_;
  uint64_t segment_bytes_ = 1 << 20, capacity_bytes_ = 0;
  std::shared_ptr<HeldRemote> remote_;
  std::unique_ptr<FakeSlab> slab_;
  StoreOptions options_;
  std::unique_ptr<Store> store_;
};

TEST_F(ReplicationTest, AReplicatedCommitIsAcknowledgedOnlyOnceTheRemoteTierHasIt) {
  for (const bool with_ssd : {false, true}) {
    Open(with_ssd);
    const TestPlane plane = MakePlane(1 + with_ssd, 5000);
    remote_->Hold(Call::kPut);
    std::atomic<bool> acknowledged = false;
    absl::Status status;
    std::thread writer([&] {
      status = Write(*store_, plane, Durability::kReplicated);
      acknowledged = true;
    });
    ASSERT_TRUE(Eventually([&] { return remote_->held(Call::kPut) == 1; }));
    EXPECT_EQ(MissOf(plane.id), MissReason::kNeverStored) << "not visible yet";
    EXPECT_FALSE(acknowledged);
    remote_->LetGo(Call::kPut);
    writer.join();
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_FALSE(FileOf(plane.id).empty());
    const auto listed = store_->List("", 0, "");
    ASSERT_EQ(listed->planes.size(), 1u + with_ssd);
    EXPECT_TRUE(listed->planes.back().on_remote);
    EXPECT_EQ(listed->planes.back().on_ssd, with_ssd);
    EXPECT_TRUE(ReadAndCompare(*store_, plane).ok());
  }
}

TEST_F(ReplicationTest, AFailingRemoteTierRefusesThePlaneKeepsItsReservationAndShowsNothing) {
  for (const bool with_ssd : {false, true}) {
    Open(with_ssd);
    const TestPlane plane = MakePlane(1 + with_ssd, 5000);
    const PlaneRequest request = plane.request();
    const auto reserved = store_->Reserve({&request, 1}, absl::Seconds(60));
    Poke((*reserved)[0].address, plane.payload);
    const CommitItem item{(*reserved)[0].id, plane.encoded()};
    remote_->Fail(Call::kPut, absl::UnavailableError("no network"));
    EXPECT_EQ((*store_->Commit({&item, 1}, Durability::kReplicated))[0].code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(MissOf(plane.id), MissReason::kNeverStored);
    EXPECT_EQ(store_->Stats().reservations, 1u);
    EXPECT_EQ(store_->Stats().ssd.live_bytes, 0u);
    remote_->Fail(Call::kPut, absl::OkStatus());
    EXPECT_TRUE((*store_->Commit({&item, 1}, Durability::kReplicated))[0].ok()) << "tried again";
    EXPECT_TRUE(ReadAndCompare(*store_, plane).ok());
    ExpectNothingHeld();
  }
}

TEST_F(ReplicationTest, WithoutARemoteTierReplicatedIsRefused) {
  options_.remote.reset();
  Open(true);
  EXPECT_EQ(store_->Commit({}, Durability::kReplicated).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(ReplicationTest, ReplicatedPlanesOutliveTheLossOfTheMachine) {
  Open(true);
  std::vector<TestPlane> planes;
  for (uint64_t i = 0; i < 12; ++i) planes.push_back(MakePlane(i, 3000 + i, pod::kPlaneKinds[i % 3]));
  ASSERT_TRUE(Write(*store_, planes, Durability::kReplicated).ok());
  ASSERT_TRUE(Write(*store_, MakePlane(100, 4096), Durability::kSynced).ok());
  OpenAfterLoss(12);
  for (const TestPlane& plane : planes) EXPECT_TRUE(ReadAndCompare(*store_, plane).ok());
  EXPECT_EQ(store_->Stats().hits_remote, 12u);
  EXPECT_EQ(MissOf(MakePlane(100, 1).id), MissReason::kNeverStored);
  const EventPage told = store_->events().Read(0, 100, "", absl::InfinitePast());
  EXPECT_EQ(told.events.size(), 12u);
  ExpectNothingHeld();
}

TEST_F(ReplicationTest, DeletedPlanesDoNotComeBackFromTheRemoteTier) {
  Open(false);
  std::vector<TestPlane> planes;
  std::vector<pod::BlockKey> keys;
  for (uint64_t i = 0; i < 10; ++i) {
    planes.push_back(MakePlane(i, 4096));
    keys.push_back(TestKey(i));
  }
  ASSERT_TRUE(Write(*store_, planes, Durability::kReplicated).ok());
  EXPECT_EQ(*store_->Delete(std::span(keys).first(4)), 4u);
  OpenAfterLoss(6);
  EXPECT_EQ(MissOf(planes[0].id), MissReason::kNeverStored);
  // Also those that this start has not heard of yet.
  remote_->Hold(Call::kList);
  Open(false);
  EXPECT_EQ(*store_->Delete(std::span(keys).subspan(4, 3)), 0u);
  remote_->LetGo(Call::kList);
  EXPECT_TRUE(Eventually([&] { return OnRemote() == 3; }));
  OpenAfterLoss(3);
}

TEST_F(ReplicationTest, ADeleteWhileTheRemoteTierIsListedIsNotUndone) {
  Open(false);
  const TestPlane gone = MakePlane(1, 4096), stays = MakePlane(2, 4096);
  ASSERT_TRUE(Write(*store_, gone, Durability::kReplicated).ok());
  ASSERT_TRUE(Write(*store_, stays, Durability::kReplicated).ok());
  store_.reset();
  // The store has been told of both when one is deleted.
  class LateStat : public HeldRemote {
   public:
    using HeldRemote::HeldRemote;
    absl::StatusOr<OperationId> Stat(std::vector<PlaneId> ids, absl::Time deadline, StatDone done) override {
      return HeldRemote::Stat(ids, deadline, [this, done = std::move(done)](auto heads) mutable {
        told.store(true);
        while (!go_on.load()) absl::SleepFor(absl::Milliseconds(1));
        done(std::move(heads));
      });
    }
    std::atomic<bool> told = false, go_on = false;
  };
  const auto late = std::make_shared<LateStat>(shared_.path());
  options_.remote = late;
  Open(false);
  ASSERT_TRUE(Eventually([&] { return late->told.load(); }));
  EXPECT_TRUE(store_->Delete({&gone.id.key, 1}).ok());
  late->go_on = true;
  EXPECT_TRUE(Eventually([&] { return OnRemote() > 0; }));
  EXPECT_EQ(store_->List("", 0, "")->planes.size(), 1u);
  EXPECT_EQ(MissOf(gone.id), MissReason::kNeverStored);
  EXPECT_TRUE(ReadAndCompare(*store_, stays).ok());
  store_.reset();
}

TEST_F(ReplicationTest, AnUnreachableRemoteTierIsAMissThatSaysSoAndNoLoss) {
  Open(false);
  const TestPlane plane = MakePlane(1, 4096);
  ASSERT_TRUE(Write(*store_, plane, Durability::kReplicated).ok());
  OpenAfterLoss(1);
  remote_->Fail(Call::kGet, absl::UnavailableError("no network"));
  EXPECT_EQ(MissOf(plane.id), MissReason::kUnreachable);
  EXPECT_EQ(OnRemote(), 1u);
  ExpectNothingHeld();
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
  remote_->Fail(Call::kGet, absl::OkStatus());
  EXPECT_TRUE(ReadAndCompare(*store_, plane).ok());
}

TEST_F(ReplicationTest, ARemoteTierThatCannotBeListedAtTheStartIsAskedAgain) {
  Open(false);
  ASSERT_TRUE(Write(*store_, MakePlane(1, 4096), Durability::kReplicated).ok());
  for (const Call call : {Call::kList, Call::kStat}) {
    store_.reset();
    remote_->Fail(call, absl::UnavailableError("no network"));
    const uint64_t before = remote_->count(call);
    Open(false);
    ASSERT_TRUE(Eventually([&] { return remote_->count(call) > before; }));
    EXPECT_EQ(OnRemote(), 0u);
    remote_->Fail(call, absl::OkStatus());
    EXPECT_TRUE(Eventually([&] { return OnRemote() == 1; })) << static_cast<int>(call);
  }
}

TEST_F(ReplicationTest, WhatTheRemoteTierHasNoRoomForIsAskedAgain) {
  Open(false);
  const TestPlane plane = MakePlane(1, 4096);
  ASSERT_TRUE(Write(*store_, plane, Durability::kReplicated).ok());
  OpenAfterLoss(1);
  remote_->Refuse(Call::kGet, 3);
  EXPECT_TRUE(ReadAndCompare(*store_, plane).ok()) << "others' operations are no outage";
  ExpectNothingHeld();
}

TEST_F(ReplicationTest, AWrongRemoteCopyIsNeverServedAndGoes) {
  Open(false);
  const TestPlane plane = MakePlane(1, 5000), missing = MakePlane(2, 5000);
  ASSERT_TRUE(Write(*store_, plane, Durability::kReplicated).ok());
  ASSERT_TRUE(Write(*store_, missing, Durability::kReplicated).ok());
  OpenAfterLoss(2);
  {
    std::fstream file(FileOf(plane.id), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096 + 77);
    file.put('\x5A');
    file.seekp(4096 + 78);
    file.put('\x5A');
    file.seekp(4096 + 79);
    file.put('\x5A');
  }
  EXPECT_EQ(MissOf(plane.id), MissReason::kChecksum);
  EXPECT_EQ(MissOf(plane.id), MissReason::kChecksum) << "and stays so";
  EXPECT_EQ(store_->Stats().checksum_failures, 1u);
  EXPECT_TRUE(Eventually([&] { return FileOf(plane.id).empty(); }));
  fs::remove(FileOf(missing.id));
  EXPECT_EQ(MissOf(missing.id), MissReason::kDiskLost);
  EXPECT_EQ(OnRemote(), 0u);
  EXPECT_TRUE(Write(*store_, plane, Durability::kReplicated).ok());
  OpenAfterLoss(1);
  EXPECT_TRUE(ReadAndCompare(*store_, plane).ok());
}

TEST_F(ReplicationTest, AWrongSsdCopyIsReplacedByTheRemoteOneWithoutTheReaderNoticing) {
  const TestPlane plane = MakePlane(1, 5000);
  Open(true);
  ASSERT_TRUE(Write(*store_, plane, Durability::kReplicated).ok());
  Open(true);
  ASSERT_TRUE(Eventually([&] { return OnRemote() == 1; }));
  for (const auto& entry : fs::directory_iterator(folder_.path() + "/segments")) {
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(5000);
    file.write("wrong", 5);
  }
  EXPECT_TRUE(ReadAndCompare(*store_, plane).ok());
  const StoreStats stats = store_->Stats();
  EXPECT_EQ(stats.checksum_failures, 1u);
  EXPECT_EQ(stats.misses, 0u);
  EXPECT_EQ(stats.counts[1][0].planes, 0u) << "the SSD's copy has gone";
  EXPECT_EQ(OnRemote(), 1u);
  ExpectNothingHeld();
}

TEST_F(ReplicationTest, ASlowRemoteTierHoldsUpOnlyThoseWhoNeedIt) {
  std::vector<TestPlane> far;
  for (uint64_t i = 0; i < 100; ++i) far.push_back(MakePlane(i, 4096));
  Open(false, 256);
  ASSERT_TRUE(Write(*store_, far, Durability::kReplicated).ok());
  store_.reset();
  const TestPlane on_ssd = MakePlane(1000, 4096), in_dram = MakePlane(1001, 4096);
  Open(true, 256);
  ASSERT_TRUE(Write(*store_, on_ssd, Durability::kSynced).ok());
  Open(true, 256);
  ASSERT_TRUE(Eventually([&] { return OnRemote() == 100; }));
  ASSERT_TRUE(Write(*store_, in_dram, Durability::kDram).ok());
  remote_->Hold(Call::kGet);
  std::vector<std::thread> readers;
  std::atomic<int> good = 0, ended = 0;
  for (const TestPlane& plane : far) {
    readers.emplace_back([&] {
      good += ReadAndCompare(*store_, plane).ok();
      ++ended;
    });
  }
  ASSERT_TRUE(Eventually([&] { return remote_->held(Call::kGet) == 64; })) << "as many as may be under way";
  EXPECT_TRUE(ReadAndCompare(*store_, in_dram).ok());
  EXPECT_TRUE(ReadAndCompare(*store_, on_ssd).ok());
  EXPECT_EQ(store_->Stats().hits_ssd, 1u);
  EXPECT_TRUE(Write(*store_, MakePlane(1002, 4096), Durability::kSynced).ok());
  EXPECT_EQ(ended, 0);
  remote_->LetGo(Call::kGet);
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(good, 100);
  ExpectNothingHeld();
}

TEST_F(ReplicationTest, WithoutAnSsdPlanesMoveToTheRemoteTierAheadOfDemand) {
  options_.free_low = 0.3, options_.free_high = 0.5;
  options_.recompute_us_per_token = 1e5;  // Worth a write.
  Open(false, 100);
  for (uint64_t i = 0; i < 90; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096), Durability::kDram).ok());
  store_->Tidy();
  const StoreStats stats = store_->Stats();
  EXPECT_GE(stats.slab_bytes - stats.slab_used_bytes, stats.slab_bytes / 2);
  EXPECT_GE(stats.demoted_to_remote, 40u);
  EXPECT_EQ(stats.dram_only_evictions, 0u);
  for (uint64_t i = 0; i < 90; ++i) {
    const absl::Status read = ReadAndCompare(*store_, MakePlane(i, 4096));
    ASSERT_TRUE(read.ok()) << i << " " << read;
  }
}

TEST_F(ReplicationTest, PlanesLeavingAFullSsdAreCopiedToTheRemoteTierFirst) {
  segment_bytes_ = 64 << 10, capacity_bytes_ = 2 << 20;
  options_.recompute_us_per_token = 1e5;  // Worth a write.
  Open(true, 32);
  for (uint64_t i = 0; i < 400; ++i) {
    ASSERT_TRUE(Write(*store_, MakePlane(i, 4096), Durability::kSynced).ok());
    if (i % 10 == 0) store_->Tidy();
  }
  store_->Tidy();
  const StoreStats stats = store_->Stats();
  EXPECT_GT(stats.demoted_to_remote, 100u);
  EXPECT_EQ(OnRemote(), stats.demoted_to_remote);
  uint64_t good = 0;
  for (uint64_t i = 0; i < 400; ++i) good += ReadAndCompare(*store_, MakePlane(i, 4096)).ok();
  EXPECT_GE(good, stats.demoted_to_remote + stats.counts[1][0].planes) << "what is stored is readable";
  ExpectNothingHeld();
}

TEST_F(ReplicationTest, APlaneDeletedAndReplicatedAgainAtTheSameTimeIsThereIfTheStoreSaysSo) {
  Open(false);
  const TestPlane plane = MakePlane(1, 4096);
  ASSERT_TRUE(Write(*store_, plane, Durability::kReplicated).ok());
  remote_->Hold(Call::kDelete);
  std::thread deleter([&] { EXPECT_EQ(*store_->Delete({&plane.id.key, 1}), 1u); });
  ASSERT_TRUE(Eventually([&] { return remote_->held(Call::kDelete) == 1; }));
  absl::Status written = absl::UnknownError("");
  std::atomic<bool> done = false;
  std::thread writer([&] {
    written = Write(*store_, plane, Durability::kReplicated);
    done = true;
  });
  // It may wait for the end of the deletion, or not.
  Eventually([&] { return done.load(); }, absl::Milliseconds(100));
  remote_->LetGo(Call::kDelete);
  deleter.join();
  writer.join();
  ASSERT_TRUE(written.ok()) << written;
  OpenAfterLoss(1);
  EXPECT_TRUE(ReadAndCompare(*store_, plane).ok());
}

TEST_F(ReplicationTest, AStoreMayEndWhileTheRemoteTierHangs) {
  std::vector<TestPlane> far;
  std::vector<PlaneId> ids;
  for (uint64_t i = 0; i < 100; ++i) {
    far.push_back(MakePlane(i, 4096));
    ids.push_back(far.back().id);
  }
  Open(false, 256);
  ASSERT_TRUE(Write(*store_, far, Durability::kReplicated).ok());
  Open(false, 256);
  ASSERT_TRUE(Eventually([&] { return OnRemote() == 100; }));
  remote_->Hold(Call::kGet);
  ASSERT_EQ(*store_->Promote(ids, ""), 100u);
  ASSERT_TRUE(Eventually([&] { return remote_->held(Call::kGet) == 64; }));
  store_.reset();
  EXPECT_EQ(remote_->held(Call::kGet), 0u);
  remote_->LetGo(Call::kGet);
  OpenAfterLoss(100);
  EXPECT_TRUE(ReadAndCompare(*store_, far[99]).ok());
}

}  // namespace
}  // namespace perigee::kvstore
