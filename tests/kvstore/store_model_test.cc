// Random operations on a small store with all its tiers, from several threads, and restarts in between. Afterwards:
// nothing is left over, all counts agree, and never did a reader get a wrong byte.
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "held_tiers.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using Call = HeldRemote::Call;
constexpr uint64_t kPlanes = 120;
constexpr const char* kTenants[] = {"a", "b", "c"};

// The n-th plane, always the same: chains of 20 blocks, three kinds, three tenants.
TestPlane Nth(uint64_t n) {
  const uint64_t block = n / 3;
  TestPlane plane = MakePlane(block, 500 + 3000 * (n % 5), pod::kPlaneKinds[n % 3], kTenants[block / 20 % 3]);
  plane.header.base_position = static_cast<int64_t>(block % 20) * 64;
  Follow(plane, block % 20 == 0 ? 0 : block);
  return plane;
}

class ModelTest : public testing::TestWithParam<const char*> {
 protected:
  ModelTest() {
    for (uint64_t n = 0; n < kPlanes; ++n) planes_.push_back(Nth(n));
    options_.policy = GetParam();
    options_.remote = remote_ = std::make_shared<HeldRemote>(shared_.path());
    options_.ssd = SsdOptions{.path = folder_.path(),
                              .segment_bytes = 64 << 10,
                              .capacity_bytes = 1 << 20,
                              .reserve_bytes = 0,
                              .scrub_bytes_per_s = 64 << 20};
    options_.quotas = {{.tenant = "a", .dram_bytes = 30 * 4096, .ssd_bytes = 60 * 4096}};
    options_.free_low = 0.1, options_.free_high = 0.2;
    options_.recompute_us_per_token = 1e4;
    options_.reclaim_grace = absl::Milliseconds(1);
    options_.now = [this] { return absl::Now() + absl::Seconds(ahead_s_.load()); };
    Open();
  }
  void Open() {
    store_.reset();
    auto store = Store::Open(options_, slab_.span());
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  void Write(std::mt19937_64& random) {
    std::vector<uint64_t> chosen;
    std::vector<PlaneRequest> requests;
    for (uint64_t i = 0, first = random() % kPlanes; i < 1 + random() % 4 && first + i < kPlanes; ++i) {
      chosen.push_back(first + i);
      requests.push_back(planes_[first + i].request());
    }
    const auto reserved = store_->Reserve(requests, absl::Seconds(60), planes_[chosen[0]].header.tenant);
    if (!reserved.ok()) return Expect(absl::IsResourceExhausted(reserved.status()), reserved.status());
    std::vector<CommitItem> items;
    std::vector<uint64_t> ids;
    const uint32_t ttl_s = random() % 8 == 0 ? 1 : 0;
    for (size_t i = 0; i < chosen.size(); ++i) {
      if ((*reserved)[i].already_committed) continue;
      Poke((*reserved)[i].address, planes_[chosen[i]].payload);
      if (random() % 50 == 0) *reinterpret_cast<char*>((*reserved)[i].address) ^= 1;  // Refused.
      items.push_back({(*reserved)[i].id, planes_[chosen[i]].encoded(), ttl_s});
      ids.push_back((*reserved)[i].id);
    }
    if (random() % 8 != 0) {
      const auto statuses = store_->Commit(items, static_cast<Durability>(random() % 4));
      Expect(statuses.ok(), statuses.status());
    }
    store_->Abort(ids, random() % 2 == 0);  // What is left of them.
  }
  void Read(std::mt19937_64& random) {
    std::vector<PlaneId> ids;
    std::vector<uint64_t> chosen;
    for (uint64_t i = 0; i < 1 + random() % 6; ++i) {
      chosen.push_back(random() % kPlanes);
      ids.push_back(planes_[chosen.back()].id);
    }
    AcquireOptions options;
    if (random() % 4 == 0) {
      const auto asked = std::make_shared<int>(0);
      const int patience = static_cast<int>(random() % 3);
      options.cancelled = [asked, patience] { return (*asked)++ >= patience; };
    }
    options.resident_only = random() % 8 == 0;
    // Now and then one that ends by itself.
    const auto lease = store_->Acquire(ids, random() % 16 == 0 ? absl::Milliseconds(1) : absl::Seconds(60), options);
    if (!lease.ok()) {
      return Expect(absl::IsCancelled(lease.status()) || absl::IsUnimplemented(lease.status()), lease.status());
    }
    if (lease->id == 0) return;
    for (size_t i = 0; i < chosen.size(); ++i) {
      const LeasedPlane& plane = lease->planes[i];
      if (!plane.found) continue;
      const TestPlane& wanted = planes_[chosen[i]];
      // Only what is still leased counts.
      const bool same = Peek(plane) == wanted.payload && plane.header == wanted.encoded();
      if (!same && store_->Renew(lease->id, absl::Seconds(60)).ok()) ++wrong_;
    }
    if (random() % 32 != 0) {
      store_->Release(lease->id, 0, 0).IgnoreError();
    } else {
      absl::MutexLock lock(&mu_);
      forgotten_.push_back(lease->id);
    }
  }
  void Step(std::mt19937_64& random) {
    const uint64_t n = random() % kPlanes;
    const pod::BlockKey key = planes_[n].id.key;
    std::vector<PlaneId> some;
    for (uint64_t i = n; i < std::min(n + 10, kPlanes); ++i) some.push_back(planes_[i].id);
    const uint64_t what = random() % 100;
    if (what < 30) {
      Write(random);
    } else if (what < 75) {
      Read(random);
    } else if (what < 80) {
      const auto deleted = store_->Delete({&key, 1});
      Expect(deleted.ok(), deleted.status());
    } else if (what < 84) {
      const auto pinned = store_->Pin({&key, 1}, static_cast<PinMode>(random() % 3), "");
      Expect(pinned.ok() || absl::IsResourceExhausted(pinned.status()), pinned.status());
    } else if (what < 88) {
      Expect(store_->Promote(some, "").ok(), absl::OkStatus());
    } else if (what < 90) {
      store_->DropPromotions(some, "");
    } else if (what < 93) {
      store_->Tidy();
    } else if (what < 95) {
      store_->ReportCorrupt(planes_[n].id);
    } else if (what < 97) {
      Expect(store_->Lookup({&key, 1}, "").ok() && store_->List("", 10, "").ok(), absl::OkStatus());
    } else if (what < 98) {
      remote_->Fail(Call::kGet, absl::UnavailableError("for a while"));
    } else if (what < 99) {
      remote_->Refuse(Call::kGet, 2);
    } else {
      remote_->Fail(Call::kGet, absl::OkStatus());
    }
  }
  void Expect(bool is_so, const absl::Status& status) {
    if (!is_so) ADD_FAILURE() << status;
  }

  void CheckAtRest() {
    remote_->Fail(Call::kGet, absl::OkStatus());
    for (const uint64_t id : forgotten_) store_->Release(id, 0, 0).IgnoreError();
    forgotten_.clear();
    ahead_s_ += 70;  // What was aborted keeps its memory until now, for PUTs on their way.
    ASSERT_TRUE(Eventually([&] {
      store_->ReapExpired();
      const StoreStats s = store_->Stats();
      return s.leased_bytes == 0 && s.reservations == 0 && s.leases == 0;
    })) << "leaked: "
        << store_->Stats().leased_bytes << " bytes leased, " << store_->Stats().reservations << " reservations, "
        << store_->Stats().leases << " leases";
    store_->Tidy();
    store_->Tidy();
    // Moves and expiries may go on beside us; at some moment all agrees.
    std::string why;
    EXPECT_TRUE(Eventually(
        [&] {
          why = Disagreement();
          return why.empty();
        },
        absl::Seconds(5)))
        << why;
    EXPECT_EQ(wrong_, 0);
    EXPECT_EQ(store_->Stats().checksum_failures, 0u);
  }
  std::string Disagreement() {
    const auto listed = store_->List("", 10000, "");
    const StoreStats s = store_->Stats();
    uint64_t dram_bytes = 0, hard_bytes = 0, planes[4] = {};
    for (const ListedPlane& plane : listed->planes) {
      const uint64_t bytes = RoundUpToPage(plane.meta.payload_bytes);
      const bool in_dram = plane.tier == Tier::kDram;
      if (in_dram) dram_bytes += bytes;
      if (plane.pin == PinMode::kHard) hard_bytes += bytes;
      ++planes[0];
      planes[1] += in_dram;
      planes[2] += plane.on_ssd;
      planes[3] += plane.on_remote;
      if (!in_dram && !plane.on_ssd && !plane.on_remote) return "a plane that is nowhere";
    }
    for (int tier = 1; tier <= 3; ++tier) {
      uint64_t counted = 0;
      for (const TierCount& count : s.counts[tier - 1]) counted += count.planes;
      if (counted != planes[tier]) return absl::StrCat("tier ", tier, ": ", counted, " counted, ", planes[tier]);
    }
    if (s.slab_used_bytes != dram_bytes) return absl::StrCat("slab ", s.slab_used_bytes, ", planes ", dram_bytes);
    if (s.hard_pinned_bytes != hard_bytes) return absl::StrCat("pinned ", s.hard_pinned_bytes, " ", hard_bytes);
    if (s.reserved_bytes != 0 || s.leased_bytes != 0) return "reserved or leased";
    return "";
  }

  TempFolder shared_, folder_;
  FakeSlab slab_{100 * 4096};
  std::shared_ptr<HeldRemote> remote_;
  StoreOptions options_;
  std::unique_ptr<Store> store_;
  std::vector<TestPlane> planes_;
  std::atomic<int> wrong_ = 0;
  std::atomic<int64_t> ahead_s_ = 0;
  absl::Mutex mu_;
  std::vector<uint64_t> forgotten_ ABSL_GUARDED_BY(mu_);
};

TEST_P(ModelTest, OneAfterTheOtherNothingLeaksAndNoByteIsWrong) {
  std::mt19937_64 random(7);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 1500; ++i) Step(random);
    CheckAtRest();
    if (HasFailure()) return;
    Open();
    forgotten_.clear();
  }
}

TEST_P(ModelTest, AllAtOnceNothingLeaksAndNoByteIsWrong) {
  for (int round = 0; round < 3; ++round) {
    std::vector<std::thread> threads;
    for (uint64_t t = 0; t < 4; ++t) {
      threads.emplace_back([this, t, round] {
        std::mt19937_64 random(100 * round + t);
        for (int i = 0; i < 600; ++i) Step(random);
      });
    }
    for (std::thread& thread : threads) thread.join();
    CheckAtRest();
    if (HasFailure()) return;
    Open();
    forgotten_.clear();
  }
}

TEST_P(ModelTest, AllThatIsDeletedLeavesNothingBehind) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 800; ++i) Step(random);
  CheckAtRest();
  std::vector<pod::BlockKey> keys;
  for (const TestPlane& plane : planes_) keys.push_back(plane.id.key);
  ASSERT_TRUE(store_->Delete(keys).ok());
  EXPECT_TRUE(Eventually([&] { return store_->Stats().slab_used_bytes == 0; }));
  EXPECT_EQ(store_->Stats().ssd.live_bytes, 0u);
  EXPECT_EQ(store_->Stats().hard_pinned_bytes, 0u);
  Open();
  absl::SleepFor(absl::Milliseconds(50));  // For the remote tier's listing.
  EXPECT_TRUE(store_->List("", 0, "")->planes.empty());
  // The whole of memory is free, for a tenant with a quota the whole of it.
  const PlaneRequest quota{MakePlane(7000, 1).id, 30 * 4096}, rest{MakePlane(7001, 1).id, 70 * 4096};
  EXPECT_TRUE(store_->Reserve({&quota, 1}, absl::Seconds(60), "a").ok());
  EXPECT_TRUE(store_->Reserve({&rest, 1}, absl::Seconds(60), "b").ok());
}

INSTANTIATE_TEST_SUITE_P(Policies, ModelTest, testing::Values("value", "lru", "s3fifo"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace perigee::kvstore
