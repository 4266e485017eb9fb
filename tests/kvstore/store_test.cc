// The store's core in DRAM and its life cycles; the SSD's side is in ssd_test.cc.
#include "kvstore/store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <thread>

#include "planes.h"

namespace perigee::kvstore {
namespace {

using pod::PlaneKind;
using ::testing::HasSubstr;

class StoreTest : public testing::Test {
 protected:
  // Room for 16 planes of one page.
  explicit StoreTest(size_t pages = 16) : slab_(pages * 4096) {
    StoreOptions options;
    options.now = [this] { return now_; };
    store_ = *Store::Open(options, slab_.span());
  }
  absl::StatusOr<Lease> AcquireOne(const PlaneId& id, absl::Duration ttl = absl::Seconds(10)) {
    return store_->Acquire({&id, 1}, ttl);
  }
  bool Stored(const PlaneId& id) {
    const auto info = store_->Lookup({&id.key, 1}, "");
    return std::any_of((*info)[0].planes.begin(), (*info)[0].planes.end(),
                       [&](const FoundPlane& plane) { return plane.kind == id.kind; });
  }
  MissReason MissOf(const PlaneId& id) {
    auto lease = AcquireOne(id);
    EXPECT_TRUE(lease.ok() && !lease->planes[0].found);
    return lease->planes[0].miss.reason;
  }

  FakeSlab slab_;
  absl::Time now_ = absl::UnixEpoch();
  std::unique_ptr<Store> store_;
};

TEST_F(StoreTest, APlaneExistsOnlyAfterCommit) {
  const TestPlane p = MakePlane(1, 3000);
  const PlaneRequest request = p.request();
  auto reserved = store_->Reserve({&request, 1}, absl::Seconds(10));
  ASSERT_TRUE(reserved.ok()) << reserved.status();
  Poke((*reserved)[0].address, p.payload);
  EXPECT_EQ(MissOf(p.id), MissReason::kNeverStored);
  const CommitItem item{(*reserved)[0].id, p.encoded()};
  ASSERT_TRUE((*store_->Commit({&item, 1}, Durability::kDram))[0].ok());
  EXPECT_TRUE(ReadAndCompare(*store_, p).ok());
  EXPECT_TRUE((*store_->Reserve({&request, 1}, absl::Seconds(10)))[0].already_committed);
  EXPECT_EQ(store_->Stats().committed_bytes, 3000u);
  EXPECT_EQ((*store_->Commit({&item, 1}, Durability::kDram))[0].code(), absl::StatusCode::kNotFound)
      << "committed twice";
}

TEST_F(StoreTest, EventsTellWhatComesAndGoesAndWhy) {
  EXPECT_TRUE(store_->events().Read(0, 10, "", absl::InfinitePast()).events.empty());
  for (uint64_t i = 0; i < 17; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());  // one more than fit
  const pod::BlockKey fifth = MakePlane(5, 4096).id.key;
  ASSERT_EQ(*store_->Delete({&fifth, 1}), 1u);
  const EventPage page = store_->events().Read(0, 100, "", absl::InfinitePast());
  ASSERT_EQ(page.events.size(), 19u);
  for (uint64_t i = 0; i < 16; ++i) {
    EXPECT_EQ(page.events[i].kind, EventKind::kStored);
    EXPECT_EQ(page.events[i].id, MakePlane(i, 4096).id);
    EXPECT_EQ(page.events[i].payload_bytes, 4096u);
  }
  EXPECT_EQ(page.events[16].kind, EventKind::kRemoved);
  EXPECT_EQ(page.events[16].id, MakePlane(0, 4096).id);
  EXPECT_EQ(page.events[16].reason, MissReason::kEvicted);
  EXPECT_EQ(page.events[17].id, MakePlane(16, 4096).id);
  EXPECT_EQ(page.events[18].id, MakePlane(5, 4096).id);
  EXPECT_EQ(page.events[18].reason, MissReason::kDeleted);
}

TEST_F(StoreTest, APrefixLookupEndsWithTheFirstBlockThatIsNotThereAndSaysWhy) {
  std::vector<pod::BlockKey> chain;
  for (uint64_t i = 0; i < 6; ++i) {
    const TestPlane p = MakePlane(i, 4096);
    chain.push_back(p.id.key);
    if (i != 4) {
      ASSERT_TRUE(Write(*store_, p).ok());
    }
  }
  ASSERT_EQ(*store_->Delete({&chain[2], 1}), 1u);
  const auto prefix = store_->Lookup(chain, "", LookupMode::kPrefix);
  ASSERT_TRUE(prefix.ok());
  ASSERT_EQ(prefix->size(), 3u);
  EXPECT_EQ((*prefix)[0].planes.size(), 1u);
  EXPECT_EQ((*prefix)[1].planes.size(), 1u);
  EXPECT_TRUE((*prefix)[2].planes.empty());
  ASSERT_FALSE((*prefix)[2].misses.empty());
  EXPECT_EQ((*prefix)[2].misses[0].miss.reason, MissReason::kDeleted);
  EXPECT_EQ(store_->Lookup(chain, "")->size(), 6u);
  EXPECT_EQ(store_->Lookup({}, "", LookupMode::kPrefix)->size(), 0u);
  EXPECT_EQ(store_->Lookup(std::span(chain).first(2), "", LookupMode::kPrefix)->size(), 2u);
}

TEST_F(StoreTest, ReserveIsAllOrNothing) {
  std::vector<PlaneRequest> many;
  for (uint64_t i = 0; i < 17; ++i) many.push_back(MakePlane(i, 4096).request());
  const auto refused = store_->Reserve(many, absl::Seconds(10));
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr("17 planes"));
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
  many.pop_back();
  EXPECT_TRUE(store_->Reserve(many, absl::Seconds(10)).ok());
}

TEST_F(StoreTest, ARefusedReserveEvictsNothing) {
  const TestPlane kept = MakePlane(100, 4096);
  ASSERT_TRUE(Write(*store_, kept).ok());
  std::vector<PlaneRequest> many;
  for (uint64_t i = 0; i < 17; ++i) many.push_back(MakePlane(i, 4096).request());
  EXPECT_FALSE(store_->Reserve(many, absl::Seconds(10)).ok());
  EXPECT_TRUE(ReadAndCompare(*store_, kept).ok());
}

TEST_F(StoreTest, EmptyAndAbsurdPlanesAreRefused) {
  PlaneRequest request{MakePlane(1, 1).id, 0};
  EXPECT_EQ(store_->Reserve({&request, 1}, absl::Seconds(1)).status().code(), absl::StatusCode::kInvalidArgument);
  for (const uint64_t bytes : {uint64_t{1} << 40, UINT64_MAX, UINT64_MAX - 4095}) {
    request.payload_bytes = bytes;
    EXPECT_EQ(store_->Reserve({&request, 1}, absl::Seconds(1)).status().code(), absl::StatusCode::kResourceExhausted);
  }
  request.payload_bytes = 1;
  EXPECT_EQ(store_->Reserve({&request, 1}, absl::ZeroDuration()).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(StoreTest, AnOrphanReservationIsReclaimedAfterItsTtlAndGrace) {
  const TestPlane p = MakePlane(1, 4096 * 16);
  const PlaneRequest request = p.request();
  auto reserved = store_->Reserve({&request, 1}, absl::Seconds(10));
  ASSERT_TRUE(reserved.ok());
  now_ += absl::Seconds(11);
  const CommitItem item{(*reserved)[0].id, p.encoded()};
  Poke((*reserved)[0].address, p.payload);
  EXPECT_EQ((*store_->Commit({&item, 1}, Durability::kDram))[0].code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(store_->Reserve({&request, 1}, absl::Seconds(10)).ok()) << "PUTs may still be on their way";
  now_ += absl::Seconds(2);
  EXPECT_TRUE(store_->Reserve({&request, 1}, absl::Seconds(10)).ok());
  EXPECT_EQ(store_->Stats().expired_reservations, 1u);
}

TEST_F(StoreTest, BeforeReclaimIsToldWhatIsAboutToBeReused) {
  std::vector<std::pair<uint64_t, size_t>> told;
  StoreOptions options;
  options.now = [this] { return now_; };
  std::vector<uint64_t> ids;
  bool ready = false;
  options.before_reclaim = [&](std::span<const StoreOptions::Reclaimed> reclaimed) {
    for (const StoreOptions::Reclaimed& gone : reclaimed) {
      ids.push_back(gone.reservation_id);
      told.emplace_back(reinterpret_cast<uint64_t>(gone.memory.data()), gone.memory.size());
      EXPECT_GT(store_->Stats().slab_used_bytes, 0u) << "it may look at the store, and the memory is not free yet";
    }
    return ready;
  };
  store_ = *Store::Open(options, slab_.span());
  const std::vector<PlaneRequest> requests = {MakePlane(1, 4096).request(), MakePlane(2, 5000).request()};
  const auto reserved = store_->Reserve(requests, absl::Seconds(10));
  ASSERT_TRUE(reserved.ok());
  now_ += absl::Seconds(11);
  store_->ReapExpired();
  EXPECT_TRUE(told.empty()) << "within the grace";
  now_ += absl::Seconds(2);
  EXPECT_GT(store_->Stats().slab_used_bytes, 0u) << "only ReapExpired reclaims";
  store_->ReapExpired();
  EXPECT_GT(store_->Stats().slab_used_bytes, 0u) << "it was not ready";
  ready = true;
  told.clear();
  ids.clear();
  store_->ReapExpired();
  EXPECT_THAT(ids, testing::UnorderedElementsAre((*reserved)[0].id, (*reserved)[1].id));
  EXPECT_THAT(told, testing::UnorderedElementsAre(testing::Pair((*reserved)[0].address, 4096u),
                                                  testing::Pair((*reserved)[1].address, 5000u)));
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
  EXPECT_EQ(store_->Stats().expired_reservations, 2u);
}

TEST_F(StoreTest, AbortFreesAtOnceUnlessWritesMayArrive) {
  const PlaneRequest request = MakePlane(1, 4096 * 16).request();
  uint64_t id = (*store_->Reserve({&request, 1}, absl::Seconds(10)))[0].id;
  EXPECT_EQ(store_->Abort({&id, 1}, false), 1u);
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
  EXPECT_EQ(store_->Abort({&id, 1}, false), 0u);
  id = (*store_->Reserve({&request, 1}, absl::Seconds(10)))[0].id;
  EXPECT_EQ(store_->Abort({&id, 1}, true), 1u);
  EXPECT_EQ(store_->Stats().slab_used_bytes, 4096u * 16);
  now_ += absl::Seconds(13);
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
}

TEST_F(StoreTest, CommitRefusesWrongPayloadAndForeignHeaders) {
  const TestPlane p = MakePlane(1, 5000);
  const TestPlane other = MakePlane(2, 5000);
  const TestPlane other_kind = MakePlane(1, 5000, PlaneKind::kProximal);
  const TestPlane other_size = MakePlane(1, 4999);
  const auto commit = [&](const std::string& header, bool flip) {
    const PlaneRequest request = p.request();
    auto reserved = store_->Reserve({&request, 1}, absl::Seconds(10));
    Poke((*reserved)[0].address, p.payload);
    if (flip) *reinterpret_cast<char*>((*reserved)[0].address + 4999) ^= 1;
    const CommitItem item{(*reserved)[0].id, header};
    return (*store_->Commit({&item, 1}, Durability::kDram))[0];
  };
  EXPECT_EQ(commit(p.encoded(), true).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(commit(other.encoded(), false).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(commit(other_kind.encoded(), false).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(commit(other_size.encoded(), false).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(commit("", false).ok());
  EXPECT_FALSE(commit(std::string(2 << 20, 'x'), false).ok());
  EXPECT_FALSE(commit(p.encoded() + "x", false).ok());
  EXPECT_EQ(MissOf(p.id), MissReason::kNeverStored);
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u) << "refused planes leave nothing behind";
  EXPECT_EQ(store_->Stats().refused_commits, 7u);
  EXPECT_TRUE(commit(p.encoded(), false).ok());
}

TEST_F(StoreTest, TwoWritersOfOnePlaneBothSucceedAndItIsStoredOnce) {
  const TestPlane p = MakePlane(1, 4096);
  const PlaneRequest request = p.request();
  std::vector<uint64_t> ids;
  for (int i = 0; i < 2; ++i) {
    auto reserved = store_->Reserve({&request, 1}, absl::Seconds(10));
    Poke((*reserved)[0].address, p.payload);
    ids.push_back((*reserved)[0].id);
  }
  const std::vector<CommitItem> both = {{ids[0], p.encoded()}, {ids[1], p.encoded()}};
  const auto statuses = store_->Commit(both, Durability::kDram);
  EXPECT_TRUE((*statuses)[0].ok());
  EXPECT_EQ((*statuses)[1].code(), absl::StatusCode::kAborted) << "twice in one batch";
  EXPECT_TRUE((*store_->Commit({&both[1], 1}, Durability::kDram))[0].ok());
  EXPECT_EQ(store_->Stats().slab_used_bytes, 4096u);
}

TEST_F(StoreTest, SyncedWithoutAnSsdIsRefused) {
  EXPECT_EQ(store_->Commit({}, Durability::kSynced).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(StoreTest, ALeasePreventsEvictionUntilItEndsOrExpires) {
  const TestPlane p = MakePlane(1, 4096);
  ASSERT_TRUE(Write(*store_, p).ok());
  const auto lease = AcquireOne(p.id);
  ASSERT_TRUE(lease.ok() && lease->planes[0].found);
  const PlaneRequest all = MakePlane(2, 4096 * 16).request();
  EXPECT_EQ(store_->Reserve({&all, 1}, absl::Seconds(1)).status().code(), absl::StatusCode::kResourceExhausted);
  now_ += absl::Seconds(9);
  ASSERT_TRUE(store_->Renew(lease->id, absl::Seconds(10)).ok());
  now_ += absl::Seconds(9);
  EXPECT_FALSE(store_->Reserve({&all, 1}, absl::Seconds(1)).ok()) << "renewed";
  EXPECT_EQ(Peek(lease->planes[0]), p.payload);
  now_ += absl::Seconds(2);
  EXPECT_TRUE(store_->Reserve({&all, 1}, absl::Seconds(1)).ok());
  EXPECT_EQ(store_->Stats().expired_leases, 1u);
  EXPECT_EQ(store_->Renew(lease->id, absl::Seconds(1)).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store_->Release(lease->id, 0, 0).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(MissOf(p.id), MissReason::kEvicted);
}

TEST_F(StoreTest, EvictsTheLongestUnusedAndSaysSo) {
  for (uint64_t i = 0; i < 16; ++i) ASSERT_TRUE(Write(*store_, MakePlane(i, 4096)).ok());
  ASSERT_TRUE(ReadAndCompare(*store_, MakePlane(0, 4096)).ok());  // Now 1 is the oldest.
  ASSERT_TRUE(Write(*store_, MakePlane(50, 4096)).ok());
  EXPECT_TRUE(ReadAndCompare(*store_, MakePlane(0, 4096)).ok());
  EXPECT_EQ(MissOf(MakePlane(1, 1).id), MissReason::kEvicted);
  const pod::BlockKey key = TestKey(1);
  const auto info = store_->Lookup({&key, 1}, "");
  ASSERT_EQ((*info)[0].misses.size(), 3u);
  EXPECT_EQ((*info)[0].misses[0].miss.reason, MissReason::kEvicted);
  EXPECT_GT((*info)[0].misses[0].miss.when_unix_us, 0);
  EXPECT_EQ((*info)[0].misses[1].miss.reason, MissReason::kNeverStored);
  EXPECT_EQ(store_->Stats().dram_only_evictions, 1u);
}

TEST_F(StoreTest, ProximalPlanesGoBeforeTheirDistantPlanesAndAChainsEndBeforeItsStart) {
  std::vector<TestPlane> planes;
  for (uint64_t i = 0; i < 8; ++i) {
    planes.push_back(MakePlane(i, 4096, PlaneKind::kDistant));
    planes.push_back(MakePlane(i, 4096, PlaneKind::kProximal));
    for (TestPlane& p : std::span(planes).last(2)) Follow(p, i);
  }
  std::shuffle(planes.begin(), planes.end(), std::mt19937_64(3));  // They come in any order.
  ASSERT_TRUE(Write(*store_, planes).ok());
  size_t before = 16;
  for (uint64_t round = 0; round < 14; ++round) {
    ASSERT_TRUE(Write(*store_, MakePlane(100 + round, 4096)).ok());
    size_t left = 0;
    bool distant_before = true;
    for (uint64_t i = 0; i < 8; ++i) {
      const bool distant = Stored({TestKey(i), PlaneKind::kDistant});
      const bool proximal = Stored({TestKey(i), PlaneKind::kProximal});
      EXPECT_TRUE(distant || !proximal) << "round " << round << " block " << i;
      EXPECT_TRUE(distant_before || !distant) << "round " << round << " block " << i;
      distant_before = distant;
      left += distant + proximal;
    }
    EXPECT_LE(left, before);
    before = left;
  }
  EXPECT_LT(before, 12u);  // Not only the new ones went.
}

TEST_F(StoreTest, DeletedUnderLeaseStaysReadableUntilTheLeaseEnds) {
  const TestPlane p = MakePlane(1, 4096 * 16);
  ASSERT_TRUE(Write(*store_, p).ok());
  const auto lease = AcquireOne(p.id);
  EXPECT_EQ(*store_->Delete({&p.id.key, 1}), 1u);
  EXPECT_EQ(MissOf(p.id), MissReason::kDeleted);
  EXPECT_FALSE(Write(*store_, MakePlane(2, 4096)).ok()) << "its bytes are still leased";
  EXPECT_EQ(Peek(lease->planes[0]), p.payload);
  ASSERT_TRUE(store_->Release(lease->id, 0, 0).ok());
  EXPECT_EQ(store_->Stats().slab_used_bytes, 0u);
  EXPECT_TRUE(Write(*store_, p).ok());
  EXPECT_TRUE(ReadAndCompare(*store_, p).ok());
}

TEST_F(StoreTest, AnotherTenantsPlaneIsAMissThatSaysSo) {
  const TestPlane p = MakePlane(1, 100, PlaneKind::kDistant, "alice");
  ASSERT_TRUE(Write(*store_, p).ok());
  const auto lease = store_->Acquire({&p.id, 1}, absl::Seconds(1), {.tenant = "bob"});
  EXPECT_EQ(lease->id, 0u);
  EXPECT_EQ(lease->planes[0].miss.reason, MissReason::kOtherTenant);
  EXPECT_TRUE(store_->Acquire({&p.id, 1}, absl::Seconds(1), {.tenant = "alice"})->planes[0].found);
  EXPECT_EQ((*store_->Lookup({&p.id.key, 1}, "bob"))[0].planes.size(), 0u);
  EXPECT_TRUE(store_->List("", 0, "bob")->planes.empty());
}

TEST_F(StoreTest, AReportedCorruptPlaneIsQuarantinedAndAGoodOneStays) {
  const TestPlane good = MakePlane(1, 4096), bad = MakePlane(2, 4096);
  ASSERT_TRUE(Write(*store_, good).ok());
  ASSERT_TRUE(Write(*store_, bad).ok());
  const auto lease = AcquireOne(bad.id);
  *reinterpret_cast<char*>(lease->planes[0].address + 7) ^= 4;
  CorruptReport report = store_->ReportCorrupt(bad.id);
  EXPECT_TRUE(report.dram_copy_dropped);
  EXPECT_FALSE(report.still_stored);
  EXPECT_EQ(MissOf(bad.id), MissReason::kChecksum);
  report = store_->ReportCorrupt(good.id);
  EXPECT_FALSE(report.dram_copy_dropped);
  EXPECT_TRUE(report.still_stored);
  EXPECT_EQ(store_->Stats().checksum_failures, 1u);
  EXPECT_FALSE(store_->ReportCorrupt(MakePlane(77, 1).id).still_stored);
}

TEST_F(StoreTest, ListPagesThroughEverythingOnce) {
  for (uint64_t i = 0; i < 10; ++i) {
    ASSERT_TRUE(Write(*store_, MakePlane(i, 10, PlaneKind::kDistant, i % 2 ? "odd" : "even")).ok());
  }
  std::vector<PlaneId> seen;
  std::string token;
  do {
    const auto page = store_->List(token, 3, "");
    ASSERT_TRUE(page.ok());
    for (const ListedPlane& p : page->planes) seen.push_back(p.id);
    token = page->next_page_token;
  } while (!token.empty());
  EXPECT_EQ(seen.size(), 10u);
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::unique(seen.begin(), seen.end()), seen.end());
  EXPECT_EQ(store_->List("", 0, "odd")->planes.size(), 5u);
  for (const char* hostile : {"x", "0123456789012345678901234567890123"}) {
    EXPECT_EQ(store_->List(hostile, 3, "").status().code(), absl::StatusCode::kInvalidArgument);
  }
}

TEST(StoreThreads, ManyWritersReadersAndDeletersAgree) {
  TempFolder folder;
  FakeSlab slab(4096 * 64);
  auto store = OpenStore(slab, folder.path(), 0, 256 << 10);
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (uint64_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int i = 0; i < 150; ++i) {
        const uint64_t n = random() % 40;
        const TestPlane p = MakePlane(n, 1000 + 900 * (n % 10));
        if (t < 2) {
          const absl::Status written = Write(*store, p, random() % 2 ? Durability::kSynced : Durability::kDram);
          if (!written.ok() && !absl::IsResourceExhausted(written)) ++wrong;
        } else if (t < 5) {
          const absl::Status read = ReadAndCompare(*store, p);
          if (!read.ok() && !absl::IsNotFound(read)) ++wrong;
        } else if (i % 10 == 0) {
          if (!store->Delete({&p.id.key, 1}).ok()) ++wrong;
        }
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(wrong, 0);
  const StoreStats stats = store->Stats();
  EXPECT_EQ(stats.checksum_failures, 0u);
  EXPECT_EQ(stats.leases, 0u);
  EXPECT_EQ(stats.reservations, 0u);
  EXPECT_EQ(stats.leased_bytes, 0u);
  EXPECT_EQ(stats.reserved_bytes, 0u);
}

}  // namespace
}  // namespace perigee::kvstore
