// A split over ranks moves sections and nothing else: gathered and put together again they are the full plane.
#include "pod/head_shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "plans.h"
#include "pod/plane_header.h"

namespace perigee::pod {
namespace {

using ::testing::HasSubstr;

constexpr int kBlockSizes[] = {16, 32, 64, 128};

// A valid plan of random roles and codecs in which groups keep to runs of `heads` kv heads.
Plan RandomSplittablePlan(std::mt19937& rng, int size, int heads) {
  const auto pick = [&](int n) { return static_cast<int>(rng() % static_cast<unsigned>(n)); };
  const KvShape shape{1 + pick(6), size * heads, 2 * (1 + pick(70))};
  std::vector<Slot> slots;
  for (int i = 0; i < shape.slots(); ++i) {
    slots.push_back({static_cast<Role>(pick(3)), {}, pick(3) == 0 ? Codec::kFp16 : Codec::kBf16});
  }
  for (int i = 0; i < shape.slots(); ++i) {
    if (slots[static_cast<size_t>(i)].role != Role::kFollower) continue;
    std::vector<SlotId> leads;
    for (int j = 0; j < (i / shape.kv_heads + 1) * shape.kv_heads; ++j) {
      const bool same_rank = j % shape.kv_heads / heads == i % shape.kv_heads / heads;
      if (same_rank && slots[static_cast<size_t>(j)].role == Role::kLead) {
        leads.push_back({j / shape.kv_heads, j % shape.kv_heads});
      }
    }
    if (leads.empty()) {
      slots[static_cast<size_t>(i)].role = Role::kNearOnly;
    } else {
      slots[static_cast<size_t>(i)].lead = leads[static_cast<size_t>(pick(static_cast<int>(leads.size())))];
    }
  }
  return *Plan::Create(shape, {pick(100), 1 + pick(300)}, pick(2) ? Sharing::kKey : Sharing::kScore,
                       pick(2) ? Codec::kBf16 : Codec::kFp16, std::move(slots), TestFingerprint());
}

std::vector<std::byte> RandomBytes(std::mt19937& rng, size_t bytes) {
  std::vector<std::byte> out(bytes);
  for (std::byte& b : out) b = static_cast<std::byte>(rng());
  return out;
}

struct Case {
  Plan plan;
  int size;
};

std::vector<Case> Cases() {
  std::mt19937 rng(1);
  std::vector<Case> cases;
  for (int i = 0; i < 200; ++i) {
    const int size = 1 + i % 4, heads = 1 + i / 4 % 3;
    cases.push_back({RandomSplittablePlan(rng, size, heads), size});
  }
  const Plan identity = *Plan::Identity({5, 8, 64}, {16, 128}, TestFingerprint());
  for (int size : {1, 2, 4, 8}) cases.push_back({identity, size});
  return cases;
}

TEST(HeadShardTest, PlanesGatheredByRankAndPutTogetherAgainAreTheFullPlanes) {
  std::mt19937 rng(2);
  for (const Case& c : Cases()) {
    const Layout full = *Layout::Create(c.plan, kBlockSizes[rng() % 4]);
    for (PlaneKind kind : kPlaneKinds) {
      const std::vector<std::byte> plane = RandomBytes(rng, full.plane_bytes(kind));
      const std::vector<SectionSum> sums = SumSections(full, kind, plane);
      std::vector<std::byte> by_runs(plane.size()), by_layers(plane.size());
      std::vector<int> by_runs_count(plane.size()), by_layers_count(plane.size());
      for (int rank = 0; rank < c.size; ++rank) {
        const auto shard = HeadShard::Create(full, rank, c.size);
        ASSERT_TRUE(shard.ok()) << shard.status();
        std::vector<std::byte> local(shard->local().plane_bytes(kind));
        size_t next = 0;
        for (const SectionRun& run : shard->runs(kind)) {
          EXPECT_EQ(run.local, next);
          next += run.count;
          for (size_t i = 0; i < run.count; ++i) {
            const Section& from = full.sections(kind)[run.full + i];
            const Section& to = shard->local().sections(kind)[run.local + i];
            ASSERT_EQ(from.bytes, to.bytes);
            EXPECT_EQ(from.last_layer, to.last_layer);
            EXPECT_EQ(shard->owner(kind, run.full + i), rank);
            std::memcpy(&local[to.offset_bytes], &plane[from.offset_bytes], from.bytes);
            std::memcpy(&by_runs[from.offset_bytes], &local[to.offset_bytes], to.bytes);
            for (size_t b = 0; b < from.bytes; ++b) ++by_runs_count[from.offset_bytes + b];
          }
        }
        EXPECT_EQ(next, shard->local().sections(kind).size());
        // A rank's own sums are those of its sections of the full plane.
        const std::vector<SectionSum> local_sums = SumSections(shard->local(), kind, local);
        for (const SectionRun& run : shard->runs(kind)) {
          for (size_t i = 0; i < run.count; ++i) EXPECT_EQ(local_sums[run.local + i], sums[run.full + i]);
        }
        for (int l = 0; l < c.plan.shape().layers; ++l) {
          for (const ShardExtent& e : shard->layer_extents(kind, l)) {
            std::memcpy(&by_layers[e.full_offset], &local[e.local_offset], e.bytes);
            for (size_t b = 0; b < e.bytes; ++b) ++by_layers_count[e.full_offset + b];
          }
        }
      }
      EXPECT_EQ(by_runs, plane);
      EXPECT_EQ(by_layers, plane);
      // Every byte of every section once; planes have no others.
      EXPECT_EQ(by_runs_count, std::vector<int>(plane.size(), 1));
      EXPECT_EQ(by_layers_count, std::vector<int>(plane.size(), 1));
    }
  }
}

TEST(HeadShardTest, EverySlotReadsItsOwnTilesThroughTheLocalLayout) {
  std::mt19937 rng(3);
  for (const Case& c : Cases()) {
    const Layout full = *Layout::Create(c.plan, 16);
    for (int rank = 0; rank < c.size; ++rank) {
      const HeadShard shard = *HeadShard::Create(full, rank, c.size);
      for (PlaneKind kind : kPlaneKinds) {
        const std::vector<std::byte> plane = RandomBytes(rng, full.plane_bytes(kind));
        std::vector<std::byte> local(shard.local().plane_bytes(kind));
        for (const SectionRun& run : shard.runs(kind)) {
          for (size_t i = 0; i < run.count; ++i) {
            const Section& from = full.sections(kind)[run.full + i];
            std::memcpy(&local[shard.local().sections(kind)[run.local + i].offset_bytes], &plane[from.offset_bytes],
                        from.bytes);
          }
        }
        for (int l = 0; l < c.plan.shape().layers; ++l) {
          for (int h = 0; h < shard.heads(); ++h) {
            const SlotTiles &a = full.slot(l, shard.first_head() + h), &b = shard.local().slot(l, h);
            for (const auto tile :
                 {&SlotTiles::near_keys, &SlotTiles::near_values, &SlotTiles::far_keys, &SlotTiles::far_values}) {
              if (!(a.*tile).present() || (a.*tile).plane != kind) continue;
              EXPECT_EQ(0, std::memcmp(&plane[static_cast<size_t>((a.*tile).offset_bytes)],
                                       &local[static_cast<size_t>((b.*tile).offset_bytes)], (a.*tile).bytes));
            }
          }
        }
      }
    }
  }
}

TEST(HeadShardTest, OneRankHasTheFullLayout) {
  const Layout full = *Layout::Create(MixedPlan(), 32);
  const HeadShard shard = *HeadShard::Create(full, 0, 1);
  EXPECT_EQ(shard.local().plan().id(), full.plan().id());
  for (PlaneKind kind : kPlaneKinds) {
    EXPECT_EQ(shard.local().plane_bytes(kind), full.plane_bytes(kind));
    ASSERT_EQ(shard.runs(kind).size(), full.sections(kind).empty() ? 0u : 1u);
  }
}

TEST(HeadShardTest, ALocalPlanIsAnotherPlan) {
  const Plan identity = *Plan::Identity({2, 4, 8}, {16, 128}, TestFingerprint());
  const Layout full = *Layout::Create(identity, 16);
  const HeadShard shard = *HeadShard::Create(full, 1, 2);
  EXPECT_EQ(shard.first_head(), 2);
  EXPECT_EQ(shard.heads(), 2);
  EXPECT_NE(shard.local().plan().id(), identity.id());
  EXPECT_EQ(shard.local().plan().window(), identity.window());
}

TEST(HeadShardTest, RefusesHeadsThatDoNotDivideAndRanksThatAreNone) {
  const Layout full = *Layout::Create(*Plan::Identity({2, 6, 8}, {16, 128}, TestFingerprint()), 16);
  const absl::Status odd = HeadShard::Create(full, 0, 4).status();
  EXPECT_EQ(odd.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(odd.message()), HasSubstr("6 kv heads do not divide by 4"));
  EXPECT_TRUE(HeadShard::Create(full, 0, 3).ok());
  for (const auto& [rank, size] : {std::pair{2, 2}, {-1, 2}, {0, 0}, {0, 12}}) {
    EXPECT_EQ(HeadShard::Create(full, rank, size).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

// Slot (1, 3) follows (0, 1): heads 0..1 and 2..3 cannot part, heads 0..3 and 4..7 can. Every rank is told the same.
TEST(HeadShardTest, RefusesAPlanWhoseFollowerWouldPartFromItsLead) {
  std::vector<Slot> slots(16, Lead());
  slots[8 + 3] = Follows(0, 1);
  const Layout full = *Layout::Create(*TryPlan({2, 8, 8}, slots), 16);
  EXPECT_TRUE(HeadShard::Create(full, 1, 2).ok());
  for (int rank = 0; rank < 4; ++rank) {
    const absl::Status status = HeadShard::Create(full, rank, 4).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                HasSubstr("slot (layer 1, kv head 3) follows slot (layer 0, kv head 1)"));
  }
}

TEST(HeadShardTest, APlanOfSomeHeadsKeepsTheirRolesAndLeads) {
  const std::vector<Slot> slots = {Lead(), Lead(), Lead(Codec::kFp16), NearOnly(),
                                   Lead(), Lead(), Follows(0, 2),      Follows(0, 2),
                                   Lead(), Lead(), NearOnly(),         Lead()};
  const Plan plan = *TryPlan({3, 4, 8}, slots);
  const Plan upper = *plan.ForHeads(2, 2);
  EXPECT_EQ(upper.shape(), (KvShape{3, 2, 8}));
  EXPECT_EQ(upper.slot(0, 0), (Slot{Role::kLead, {0, 0}, Codec::kFp16}));
  EXPECT_EQ(upper.slot(0, 1).role, Role::kNearOnly);
  EXPECT_EQ(upper.slot(1, 0), (Slot{Role::kFollower, {0, 0}, Codec::kBf16}));
  EXPECT_EQ(upper.slot(1, 1), (Slot{Role::kFollower, {0, 0}, Codec::kBf16}));
  EXPECT_EQ(upper.slot(2, 0).role, Role::kNearOnly);
  EXPECT_EQ(plan.ForHeads(0, 4)->id(), plan.id());
  for (const auto& [first, heads] : {std::pair{-1, 2}, {3, 2}, {0, 0}, {0, 5}}) {
    EXPECT_EQ(plan.ForHeads(first, heads).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace perigee::pod
