// What tenants may take: memory, SSD, bandwidth. That nothing leaks is seen from behaviour: a tenant that has given all
// back may take its whole quota again.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "held_tiers.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;
constexpr auto kDistant = pod::PlaneKind::kDistant;

class QuotasTest : public testing::Test {
 protected:
  QuotasTest() {
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
  static TestPlane PlaneOf(const std::string& tenant, uint64_t n, size_t pages = 1) {
    return MakePlane(n, pages * 4096, kDistant, tenant);
  }
  absl::Status WriteOf(const TestPlane& plane, uint32_t ttl_s = 0, Durability durability = Durability::kBest) {
    const PlaneRequest request = plane.request();
    const auto reserved = store_->Reserve({&request, 1}, absl::Seconds(60), plane.header.tenant);
    if (!reserved.ok()) return reserved.status();
    if ((*reserved)[0].already_committed) return absl::OkStatus();
    Poke((*reserved)[0].address, plane.payload);
    const CommitItem item{(*reserved)[0].id, plane.encoded(), ttl_s};
    const auto statuses = store_->Commit({&item, 1}, durability);
    return statuses.ok() ? (*statuses)[0] : statuses.status();
  }
  uint64_t Resident(const std::string& tenant) {
    uint64_t n = 0;
    const auto page = store_->List("", 0, tenant);
    for (const ListedPlane& plane : page->planes) n += plane.tier == Tier::kDram;
    return n;
  }
  uint64_t OnSsd(const std::string& tenant) {
    uint64_t n = 0;
    const auto page = store_->List("", 0, tenant);
    for (const ListedPlane& plane : page->planes) n += plane.on_ssd;
    return n;
  }
  // Of memory, by leasing all that fits: nothing of it was lost to what came before.
  void ExpectWholeQuotaFree(const std::string& tenant, uint64_t pages) {
    for (uint64_t i = 0; i < pages; ++i) {
      const TestPlane plane = PlaneOf(tenant, 900000 + i);
      ASSERT_TRUE(WriteOf(plane, 0, Durability::kDram).ok()) << i << " of " << pages;
      ASSERT_TRUE(store_->Acquire({&plane.id, 1}, absl::Seconds(3600))->planes[0].found);
    }
    EXPECT_EQ(WriteOf(PlaneOf(tenant, 990000), 0, Durability::kDram).code(), absl::StatusCode::kResourceExhausted);
  }

  TempFolder folder_;
  std::unique_ptr<FakeSlab> slab_;
  std::atomic<int64_t> wall_us_ = 1700000000000000, now_us_ = 0;
  StoreOptions options_;
  std::unique_ptr<Store> store_;
};

TEST_F(QuotasTest, ATenantOverItsQuotaEvictsItsOwnPlanesOnly) {
  options_.quotas = {{.tenant = "greedy", .dram_bytes = 10 * 4096}, {.tenant = "other", .dram_bytes = 40 * 4096}};
  Open(false);
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(WriteOf(PlaneOf("other", i)).ok());
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(WriteOf(PlaneOf("free", 100 + i)).ok());
  for (uint64_t i = 0; i < 200; ++i) {
    ASSERT_TRUE(WriteOf(PlaneOf("greedy", 1000 + i)).ok()) << i;
    ASSERT_LE(Resident("greedy"), 10u);
  }
  EXPECT_EQ(Resident("greedy"), 10u) << "all that it may have";
  for (uint64_t i = 0; i < 20; ++i) {
    EXPECT_TRUE(ReadAndCompare(*store_, PlaneOf("other", i)).ok()) << i;
    EXPECT_TRUE(ReadAndCompare(*store_, PlaneOf("free", 100 + i)).ok()) << i;
  }
  EXPECT_EQ(store_->Stats().slab_used_bytes, 50 * 4096u) << "though there was room";
}

TEST_F(QuotasTest, PlanesReadFromTheSsdCountToo) {
  options_.quotas = {{.tenant = "greedy", .dram_bytes = 10 * 4096}};
  options_.read_ahead_bytes = 0;
  Open(true);
  for (uint64_t i = 0; i < 30; ++i) ASSERT_TRUE(WriteOf(PlaneOf("greedy", i)).ok());
  ASSERT_TRUE(WriteOf(PlaneOf("other", 500, 20)).ok());
  std::vector<PlaneId> all;
  for (uint64_t i = 0; i < 30; ++i) {
    ASSERT_TRUE(ReadAndCompare(*store_, PlaneOf("greedy", i)).ok()) << i;
    ASSERT_LE(Resident("greedy"), 10u);
    all.push_back(PlaneOf("greedy", i).id);
  }
  const auto lease = store_->Acquire(all, absl::Seconds(60));
  uint64_t found = 0;
  for (const LeasedPlane& plane : lease->planes) {
    found += plane.found;
    if (!plane.found) {
      EXPECT_EQ(plane.miss.reason, MissReason::kNoRoom);
    }
  }
  EXPECT_EQ(found, 10u);
  EXPECT_EQ(*store_->Promote(all, ""), 0u);
  EXPECT_TRUE(store_->Release(lease->id, 0, 0).ok());
  EXPECT_EQ(Resident("other"), 1u);
}

TEST_F(QuotasTest, ATenantWhosePlanesAreAllLeasedIsRefusedAndOthersAreNot) {
  options_.quotas = {{.tenant = "full", .dram_bytes = 8 * 4096}};
  Open(false);
  std::vector<PlaneId> leased;
  for (uint64_t i = 0; i < 8; ++i) {
    ASSERT_TRUE(WriteOf(PlaneOf("full", i)).ok());
    leased.push_back(PlaneOf("full", i).id);
  }
  ASSERT_TRUE(WriteOf(PlaneOf("other", 100)).ok());
  const auto lease = store_->Acquire(leased, absl::Seconds(60));
  const absl::Status refused = WriteOf(PlaneOf("full", 50));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("quota"));
  EXPECT_EQ(Resident("other"), 1u);
  for (uint64_t i = 200; i < 300; ++i) ASSERT_TRUE(WriteOf(PlaneOf("other", i)).ok());
  ASSERT_TRUE(store_->Release(lease->id, 0, 0).ok());
  EXPECT_TRUE(WriteOf(PlaneOf("full", 50)).ok());
  EXPECT_LE(Resident("full"), 8u);
}

TEST_F(QuotasTest, WhatCanNeverFitAQuotaIsRefusedAndEvictsNothing) {
  options_.quotas = {{.tenant = "small", .dram_bytes = 8 * 4096}};
  Open(false);
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(WriteOf(PlaneOf("small", i)).ok());
  EXPECT_EQ(WriteOf(PlaneOf("small", 100, 9)).code(), absl::StatusCode::kResourceExhausted);
  std::vector<PlaneRequest> many;
  for (uint64_t i = 0; i < 9; ++i) many.push_back(PlaneOf("small", 200 + i).request());
  EXPECT_EQ(store_->Reserve(many, absl::Seconds(1), "small").status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Resident("small"), 8u);
  many.pop_back();
  EXPECT_TRUE(store_->Reserve(many, absl::Seconds(1), "small").ok());
}

TEST_F(QuotasTest, NoQuotaLeaksWhateverEndsAPlane) {
  options_.quotas = {{.tenant = "a", .dram_bytes = 12 * 4096}};
  for (const bool with_ssd : {false, true}) {
    Open(with_ssd);
    for (uint64_t round = 0; round < 6; ++round) {
      std::vector<pod::BlockKey> keys;
      for (uint64_t i = 0; i < 10; ++i) {
        const TestPlane plane = PlaneOf("a", 100 * round + i);
        ASSERT_TRUE(WriteOf(plane, /*ttl_s=*/i < 3 ? 10 : 0).ok());
        keys.push_back(plane.id.key);
      }
      const PlaneRequest aborted = PlaneOf("a", 100 * round + 50).request();
      const auto one = store_->Reserve({&aborted, 1}, absl::Seconds(10), "a");
      const auto two = store_->Reserve({&aborted, 1}, absl::Seconds(10), "a");
      ASSERT_TRUE(one.ok() && two.ok());
      EXPECT_EQ(store_->Abort({&(*one)[0].id, 1}, false), 1u);
      EXPECT_EQ(store_->Abort({&(*two)[0].id, 1}, true), 1u);
      const auto three = store_->Reserve({&aborted, 1}, absl::Seconds(10), "a");  // Expires.
      // A wrong one.
      const TestPlane wrong = PlaneOf("a", 100 * round + 60);
      const PlaneRequest request = wrong.request();
      const auto four = store_->Reserve({&request, 1}, absl::Seconds(10), "a");
      ASSERT_TRUE(three.ok() && four.ok());
      const CommitItem item{(*four)[0].id, PlaneOf("a", 1).encoded()};
      EXPECT_FALSE((*store_->Commit({&item, 1}, Durability::kDram))[0].ok());
      // One deleted, one expired while it is leased, one reported.
      const PlaneId leased[2] = {{keys[5], kDistant}, {keys[2], kDistant}};
      const auto lease = store_->Acquire(leased, absl::Seconds(60));
      const PlaneId reported{keys[6], kDistant};
      const auto look = store_->Acquire({&reported, 1}, absl::Seconds(60));
      ASSERT_TRUE(look.ok() && look->planes[0].found);
      *reinterpret_cast<char*>(look->planes[0].address) ^= 1;
      EXPECT_TRUE(store_->ReportCorrupt(reported).dram_copy_dropped);
      wall_us_ += 11 * 1000000;
      EXPECT_TRUE(store_->Delete(keys).ok());
      EXPECT_TRUE(store_->Release(look->id, 0, 0).ok());
      EXPECT_TRUE(store_->Release(lease->id, 0, 0).ok());
      now_us_ += 20 * 1000000;
      store_->ReapExpired();
      store_->Tidy();
      ASSERT_EQ(store_->Stats().slab_used_bytes, 0u) << round;
      ASSERT_TRUE(store_->List("", 0, "a")->planes.empty());
    }
    ExpectWholeQuotaFree("a", 12);
  }
}

TEST_F(QuotasTest, ATenantOverItsSsdQuotaGivesItsOwn) {
  options_.quotas = {{.tenant = "greedy", .ssd_bytes = 10 * 4096}};
  Open(true);
  for (uint64_t i = 0; i < 20; ++i) ASSERT_TRUE(WriteOf(PlaneOf("other", i)).ok());
  for (uint64_t i = 0; i < 40; ++i) ASSERT_TRUE(WriteOf(PlaneOf("greedy", 100 + i)).ok());
  store_->Tidy();
  EXPECT_EQ(OnSsd("greedy"), 10u);
  EXPECT_EQ(OnSsd("other"), 20u);
  Open(true);
  EXPECT_EQ(OnSsd("greedy"), 10u);
  EXPECT_EQ(OnSsd("other"), 20u);
  options_.quotas[0].ssd_bytes = 4 * 4096;  // Less at the next start.
  Open(true);
  store_->Tidy();
  EXPECT_EQ(OnSsd("greedy"), 4u);
  EXPECT_EQ(OnSsd("other"), 20u);
}

TEST_F(QuotasTest, SoftPinsPutNobodyAboveItsSsdQuota) {
  options_.quotas = {{.tenant = "greedy", .ssd_bytes = 10 * 4096}};
  Open(true);
  std::vector<pod::BlockKey> keys;
  for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(WriteOf(PlaneOf("other", i)).ok());
  for (uint64_t i = 0; i < 40; ++i) {
    ASSERT_TRUE(WriteOf(PlaneOf("greedy", 100 + i)).ok());
    keys.assign(1, TestKey(100 + i));
    store_->Pin(keys, PinMode::kSoft, "greedy").IgnoreError();
  }
  store_->Tidy();
  EXPECT_EQ(OnSsd("greedy"), 10u);
  EXPECT_EQ(OnSsd("other"), 8u);
}

TEST_F(QuotasTest, WhoCommitsWithoutSayingItsTenantIsChargedToThePlanes) {
  options_.quotas = {{.tenant = "busy", .bytes_per_s = 8 * 4096}, {.tenant = "small", .dram_bytes = 4 * 4096}};
  Open(false);
  ASSERT_TRUE(Write(*store_, PlaneOf("busy", 1, 24)).ok());
  const absl::Status refused = Write(*store_, PlaneOf("busy", 2));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("bandwidth"));
  now_us_ += 3 * 1000000;
  EXPECT_TRUE(Write(*store_, PlaneOf("busy", 2)).ok());
  for (uint64_t i = 10; i < 20; ++i) ASSERT_TRUE(Write(*store_, PlaneOf("small", i)).ok());
  store_->Tidy();
  EXPECT_LE(Resident("small"), 4u);
  EXPECT_EQ(Resident("busy"), 2u);
}

TEST_F(QuotasTest, ATenantDeletesNothingOfAnothersBlock) {
  Open(true);
  const TestPlane mine = MakePlane(1, 4096, kDistant, "a"), yours = MakePlane(1, 4096, pod::PlaneKind::kProximal, "b");
  ASSERT_TRUE(WriteOf(mine).ok());
  ASSERT_TRUE(WriteOf(yours).ok());
  EXPECT_EQ(*store_->Delete({&mine.id.key, 1}, "b"), 1u);
  EXPECT_TRUE(ReadAndCompare(*store_, mine).ok());
  EXPECT_FALSE(ReadAndCompare(*store_, yours).ok());
  EXPECT_FALSE(store_->ReportCorrupt(mine.id, "b").still_stored) << "it learns nothing of it";
}

TEST_F(QuotasTest, BeyondItsBandwidthATenantsWritesAreRefusedAndItsReadsAreMisses) {
  options_.quotas = {{.tenant = "busy", .bytes_per_s = 8 * 4096}};
  Open(false);
  const TestPlane large = PlaneOf("busy", 1, 24);
  ASSERT_TRUE(WriteOf(large).ok()) << "one call may go below zero";
  const absl::Status refused = WriteOf(PlaneOf("busy", 2));
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("2s"));
  const auto read = [&](absl::string_view tenant) {
    const auto lease = store_->Acquire({&large.id, 1}, absl::Seconds(60), {.tenant = tenant});
    EXPECT_EQ(store_->Release(lease->id, 0, 0).ok(), lease->id != 0);
    return lease->planes[0];
  };
  EXPECT_FALSE(read("busy").found);
  EXPECT_EQ(read("busy").miss.reason, MissReason::kOverQuota);
  EXPECT_EQ(store_->Stats().over_quota, 3u);
  EXPECT_TRUE(WriteOf(PlaneOf("other", 3)).ok());
  EXPECT_FALSE(read("").found) << "whoever reads, it is the tenant's";
  now_us_ += 2 * 1000000;
  EXPECT_TRUE(read("busy").found);
  EXPECT_EQ(WriteOf(PlaneOf("busy", 2)).code(), absl::StatusCode::kResourceExhausted);
  now_us_ += 4 * 1000000;
  EXPECT_TRUE(WriteOf(PlaneOf("busy", 2)).ok());
  EXPECT_EQ(store_->Stats().leased_bytes, 0u);
}

}  // namespace
}  // namespace perigee::kvstore
