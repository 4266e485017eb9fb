#include "pod/layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <optional>
#include <random>

#include "plans.h"

namespace perigee::pod {
namespace {

using ::testing::HasSubstr;

Layout Of(const Plan& plan, int block_tokens = 64) { return *Layout::Create(plan, block_tokens); }

struct Placed {
  Tile tile;
  int layer;
};

// Every tile that is present, once, sorted by plane and offset.
std::vector<Placed> DistinctTiles(const Layout& layout) {
  std::vector<Placed> tiles;
  const KvShape& shape = layout.plan().shape();
  for (int l = 0; l < shape.layers; ++l) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      const SlotTiles& slot = layout.slot(l, h);
      tiles.push_back({slot.near_keys, l});
      tiles.push_back({slot.near_values, l});
      tiles.push_back({slot.far_values, l});
      // A follower's far keys are its lead's tile: the lead lists it.
      if (layout.plan().slot(l, h).role == Role::kLead) tiles.push_back({slot.far_keys, l});
    }
  }
  std::erase_if(tiles, [](const Placed& p) { return !p.tile.present(); });
  const auto place = [](const Placed& p) { return std::pair(p.tile.plane, p.tile.offset_bytes); };
  std::sort(tiles.begin(), tiles.end(), [&](const Placed& a, const Placed& b) { return place(a) < place(b); });
  tiles.erase(
      std::unique(tiles.begin(), tiles.end(), [&](const Placed& a, const Placed& b) { return place(a) == place(b); }),
      tiles.end());
  return tiles;
}

bool SameTile(const Tile& a, const Tile& b) {
  return a.present() && a.plane == b.plane && a.offset_bytes == b.offset_bytes && a.bytes == b.bytes &&
         a.codec == b.codec;
}

void ExpectSections(const Layout& layout, PlaneKind kind, const std::vector<std::array<int, 3>>& expected) {
  std::vector<std::array<int, 3>> found;
  for (const Section& s : layout.sections(kind)) {
    found.push_back({static_cast<int>(s.offset_bytes), static_cast<int>(s.bytes), s.last_layer});
  }
  EXPECT_EQ(found, expected) << PlaneKindName(kind);
}

TEST(Layout, TilesStandWhereTheFormatsPageSays) {
  const Layout layout = Of(MixedPlan());
  auto golden = Golden();
  int tiles = 0;
  for (const auto& [name, value] : golden) {
    char plane[16], what[16];
    int layer, kv_head;
    if (std::sscanf(name.c_str(), "tile.%15[a-z].%d.%d.%15s", plane, &layer, &kv_head, what) != 4) continue;
    const SlotTiles& slot = layout.slot(layer, kv_head);
    const bool keys = std::string(what) == "keys";
    const bool distant = std::string(plane) == "distant";
    const Tile& tile = distant ? (keys ? slot.far_keys : slot.far_values) : (keys ? slot.near_keys : slot.near_values);
    EXPECT_EQ(tile.plane, distant ? PlaneKind::kDistant : PlaneKind::kProximal) << name;
    EXPECT_EQ(std::to_string(tile.offset_bytes), value) << name;
    EXPECT_EQ(tile.bytes, 4096u);
    ++tiles;
  }
  EXPECT_EQ(tiles, 15);
  EXPECT_EQ(std::to_string(layout.plane_bytes(PlaneKind::kDistant)), golden["plane.distant"]);
  EXPECT_EQ(std::to_string(layout.plane_bytes(PlaneKind::kProximal)), golden["plane.proximal"]);
}

TEST(Layout, OfTheMixedPlanByHand) {
  const Layout layout = Of(MixedPlan());
  ExpectSections(layout, PlaneKind::kDistant, {{0, 16384, 2}, {16384, 12288, 2}});
  ExpectSections(layout, PlaneKind::kProximal, {{0, 8192, 2}, {8192, 16384, 2}, {24576, 8192, 0}});
  ExpectSections(layout, PlaneKind::kSummary, {{0, 128, 0}, {128, 128, 1}});
  EXPECT_EQ(layout.summary_offset(0, 0), 0);
  EXPECT_EQ(layout.summary_offset(1, 1), 128);
  EXPECT_EQ(layout.summary_offset(0, 1), -1);
  EXPECT_EQ(layout.summary_offset(2, 0), -1);
  // Layer 0 writes its lead's keys and values; layer 2 the values of (2,1) in the first group and of (2,0) in the
  // second.
  const auto& first = layout.layer_ranges(PlaneKind::kDistant, 0);
  ASSERT_EQ(first.size(), 1u);
  EXPECT_EQ(first[0].bytes, 8192u);
  const auto& last = layout.layer_ranges(PlaneKind::kDistant, 2);
  ASSERT_EQ(last.size(), 2u);
  EXPECT_EQ(last[0].offset_bytes, 12288u);
  EXPECT_EQ(last[1].offset_bytes, 24576u);
  EXPECT_EQ(last[1].bytes, 4096u);
}

TEST(Layout, OfPodlingByHand) {
  const Layout layout = Of(PodlingPlan());
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kDistant), 20u * 4096);   // Keys of 4 leads, values of 16 slots.
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kProximal), 12u * 4096);  // Keys of 12 followers.
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kSummary), 4u * 128);
  EXPECT_EQ(layout.dense_bytes_per_token(), 2048u);
  ExpectSections(layout, PlaneKind::kDistant, {{0, 8192, 0}, {8192, 36864, 7}, {45056, 8192, 1}, {53248, 28672, 7}});
  ExpectSections(layout, PlaneKind::kProximal, {{0, 28672, 7}, {28672, 20480, 7}});
}

TEST(Layout, OnlyTheFourBlockSizesAreMade) {
  for (int block_tokens : {16, 32, 64, 128}) EXPECT_TRUE(Layout::Create(MixedPlan(), block_tokens).ok());
  for (int block_tokens : {0, -64, 1, 15, 48, 256, INT32_MAX, INT32_MIN}) {
    const absl::Status status = Layout::Create(MixedPlan(), block_tokens).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(std::to_string(block_tokens)));
  }
}

TEST(Layout, IdentityNeedsNoProximalPlane) {
  const Plan plan = *Plan::Identity({4, 2, 64}, {}, {});
  const Layout layout = Of(plan);
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kProximal), 0u);
  EXPECT_TRUE(layout.sections(PlaneKind::kProximal).empty());
  for (int l = 0; l < 4; ++l) EXPECT_TRUE(layout.layer_ranges(PlaneKind::kProximal, l).empty());
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kDistant), 64 * layout.dense_bytes_per_token());
}

TEST(Layout, NearOnlySlotsCostNothingFar) {
  const Layout layout = Of(*TryPlan({2, 2, 64}, {NearOnly(), NearOnly(), NearOnly(), NearOnly()}));
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kDistant), 0u);
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kSummary), 0u);
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kProximal), 64 * layout.dense_bytes_per_token());
  EXPECT_EQ(layout.sections(PlaneKind::kProximal).size(), 4u);
  EXPECT_FALSE(layout.slot(0, 0).far_keys.present());
  EXPECT_FALSE(layout.slot(0, 0).far_values.present());
}

TEST(Layout, AFarCodecOfItsOwnPutsEverySlotIntoTheProximalPlaneToo) {
  const std::vector<Slot> slots = {Lead(Codec::kFp16), Follows(0, 0, Codec::kFp16), Follows(0, 0, Codec::kFp16)};
  const Layout layout = Of(*TryPlan({3, 1, 32}, slots));
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kDistant), 4u * 4096);
  EXPECT_EQ(layout.plane_bytes(PlaneKind::kProximal), 6u * 4096);
  for (int l = 0; l < 3; ++l) {
    const SlotTiles& slot = layout.slot(l, 0);
    for (const Tile& tile : {slot.near_keys, slot.near_values}) {
      EXPECT_EQ(tile.plane, PlaneKind::kProximal);
      EXPECT_EQ(tile.codec, Codec::kBf16);
    }
    for (const Tile& tile : {slot.far_keys, slot.far_values}) {
      EXPECT_EQ(tile.plane, PlaneKind::kDistant);
      EXPECT_EQ(tile.codec, Codec::kFp16);
    }
  }
}

TEST(Layout, ASlotsCodecIsItsOwnNotItsLeads) {
  const Layout layout = Of(*TryPlan({2, 1, 32}, {Lead(Codec::kFp16), Follows(0, 0, Codec::kBf16)}));
  const SlotTiles& follower = layout.slot(1, 0);
  EXPECT_EQ(follower.far_keys.codec, Codec::kFp16);
  EXPECT_EQ(follower.far_values.codec, Codec::kBf16);
  EXPECT_TRUE(SameTile(follower.near_values, follower.far_values));
}

TEST(Layout, ASameLayerFollowerBeforeItsLeadComesAfterTheLeadsKeys) {
  const Layout layout = Of(*TryPlan({1, 2, 32}, {Follows(0, 1), Lead()}));
  EXPECT_EQ(layout.slot(0, 1).far_keys.offset_bytes, 0);
  EXPECT_EQ(layout.slot(0, 0).far_values.offset_bytes, 4096);
  EXPECT_EQ(layout.slot(0, 1).far_values.offset_bytes, 8192);
}

TEST(Layout, NearAndFarAreOneTileWhereNothingDistinguishesThem) {
  std::mt19937 rng(3);
  for (int round = 0; round < 300; ++round) {
    const Plan plan = RandomPlan(rng);
    const Layout layout = Of(plan, 16 << rng() % 4);
    for (int l = 0; l < plan.shape().layers; ++l) {
      for (int h = 0; h < plan.shape().kv_heads; ++h) {
        const Slot& slot = plan.slot(l, h);
        const SlotTiles& tiles = layout.slot(l, h);
        EXPECT_TRUE(tiles.near_keys.present());
        EXPECT_TRUE(tiles.near_values.present());
        EXPECT_EQ(tiles.near_keys.codec, plan.near_codec());
        EXPECT_EQ(tiles.near_values.codec, plan.near_codec());
        if (slot.role == Role::kNearOnly) {
          EXPECT_FALSE(tiles.far_keys.present() || tiles.far_values.present());
          EXPECT_EQ(tiles.near_keys.plane, PlaneKind::kProximal);
          continue;
        }
        EXPECT_TRUE(SameTile(tiles.far_keys, layout.slot(slot.lead.layer, slot.lead.kv_head).far_keys));
        EXPECT_EQ(tiles.far_values.codec, slot.far_codec);
        const bool native = slot.far_codec == plan.near_codec();
        EXPECT_EQ(SameTile(tiles.near_values, tiles.far_values), native);
        EXPECT_EQ(SameTile(tiles.near_keys, tiles.far_keys), native && slot.role == Role::kLead);
      }
    }
  }
}

// Oracle: the sizes by counting roles, not by walking groups.
TEST(Layout, PlaneBytesAreTheSumOfTheirTiles) {
  std::mt19937 rng(4);
  for (int round = 0; round < 300; ++round) {
    const Plan plan = RandomPlan(rng);
    const int block_tokens = 16 << rng() % 4;
    const Layout layout = Of(plan, block_tokens);
    const size_t raw = static_cast<size_t>(block_tokens * plan.shape().head_dim * 2);
    const size_t space = raw >= 1024 ? (raw + 1023) / 1024 * 1024 : (raw + 63) / 64 * 64;
    const size_t bounds = static_cast<size_t>(plan.shape().head_dim) * 4;
    size_t far_tiles = 0, near_tiles = 0;
    for (int l = 0; l < plan.shape().layers; ++l) {
      for (int h = 0; h < plan.shape().kv_heads; ++h) {
        const Slot& slot = plan.slot(l, h);
        const bool other_codec = slot.far_codec != plan.near_codec();
        if (slot.role == Role::kLead) far_tiles += 2, near_tiles += other_codec ? 2 : 0;
        if (slot.role == Role::kFollower) far_tiles += 1, near_tiles += other_codec ? 2 : 1;
        if (slot.role == Role::kNearOnly) near_tiles += 2;
      }
    }
    EXPECT_EQ(layout.plane_bytes(PlaneKind::kDistant), far_tiles * space);
    EXPECT_EQ(layout.plane_bytes(PlaneKind::kProximal), near_tiles * space);
    EXPECT_EQ(layout.plane_bytes(PlaneKind::kSummary),
              static_cast<size_t>(plan.CountRole(Role::kLead)) * ((bounds + 63) / 64 * 64));
  }
}

TEST(Layout, TilesAreAlignedDoNotOverlapAndStandInOneSection) {
  std::mt19937 rng(5);
  for (int round = 0; round < 300; ++round) {
    const Layout layout = Of(RandomPlan(rng), 16 << rng() % 4);
    const std::vector<Placed> tiles = DistinctTiles(layout);
    std::optional<Tile> previous;
    for (const auto& [tile, layer] : tiles) {
      EXPECT_EQ(tile.bytes, static_cast<size_t>(layout.block_tokens() * layout.plan().shape().head_dim * 2));
      EXPECT_EQ(tile.offset_bytes % (tile.bytes >= 1024 ? 1024 : 64), 0);
      const size_t begin = static_cast<size_t>(tile.offset_bytes);
      const size_t end = begin + tile.bytes;
      if (previous && previous->plane == tile.plane) {
        EXPECT_LE(static_cast<size_t>(previous->offset_bytes) + previous->bytes, begin);
      }
      previous = tile;
      EXPECT_LE(end, layout.plane_bytes(tile.plane));
      const auto& sections = layout.sections(tile.plane);
      EXPECT_EQ(std::count_if(sections.begin(), sections.end(),
                              [&](const Section& s) {
                                return s.offset_bytes <= begin && end <= s.offset_bytes + s.bytes &&
                                       s.last_layer >= layer;
                              }),
                1);
      const auto& ranges = layout.layer_ranges(tile.plane, layer);
      EXPECT_EQ(
          std::count_if(ranges.begin(), ranges.end(),
                        [&](const Section& s) { return s.offset_bytes <= begin && end <= s.offset_bytes + s.bytes; }),
          1);
    }
  }
}

TEST(Layout, SectionsTileThePlaneAndEndWithTheirLastLayer) {
  std::mt19937 rng(6);
  for (int round = 0; round < 300; ++round) {
    const Layout layout = Of(RandomPlan(rng), 16 << rng() % 4);
    const std::vector<Placed> tiles = DistinctTiles(layout);
    for (const PlaneKind kind : kPlaneKinds) {
      size_t at = 0;
      for (const Section& section : layout.sections(kind)) {
        EXPECT_EQ(section.offset_bytes, at);
        EXPECT_GT(section.bytes, 0u);
        at += section.bytes;
        if (kind == PlaneKind::kSummary) continue;
        int last_layer = -1;
        for (const auto& [tile, layer] : tiles) {
          const size_t begin = static_cast<size_t>(tile.offset_bytes);
          if (tile.plane == kind && begin >= section.offset_bytes && begin < at)
            last_layer = std::max(last_layer, layer);
        }
        EXPECT_EQ(section.last_layer, last_layer);
      }
      EXPECT_EQ(at, layout.plane_bytes(kind));
    }
  }
}

TEST(Layout, LayerRangesPartitionThePlaneAndNeighboursAreJoined) {
  std::mt19937 rng(7);
  for (int round = 0; round < 300; ++round) {
    const Layout layout = Of(RandomPlan(rng), 16 << rng() % 4);
    for (const PlaneKind kind : kPlaneKinds) {
      std::vector<Section> all;
      for (int l = 0; l < layout.plan().shape().layers; ++l) {
        const std::vector<Section>& ranges = layout.layer_ranges(kind, l);
        for (size_t i = 0; i < ranges.size(); ++i) {
          EXPECT_EQ(ranges[i].last_layer, l);
          if (i > 0) {
            EXPECT_LT(ranges[i - 1].offset_bytes + ranges[i - 1].bytes, ranges[i].offset_bytes);
          }
        }
        all.insert(all.end(), ranges.begin(), ranges.end());
      }
      std::sort(all.begin(), all.end(),
                [](const Section& a, const Section& b) { return a.offset_bytes < b.offset_bytes; });
      size_t at = 0;
      for (const Section& range : all) {
        EXPECT_EQ(range.offset_bytes, at);
        at += range.bytes;
      }
      EXPECT_EQ(at, layout.plane_bytes(kind));
    }
  }
}

TEST(Layout, OddTilesArePaddedToTheirAlignment) {
  // 16 tokens x 10 dims: 320 bytes, a multiple of 64. x 6: 192. x 34: 1088, padded to 2048. x 2: 64.
  for (const auto& [head_dim, space] :
       std::vector<std::pair<int, size_t>>{{10, 320}, {6, 192}, {34, 2048}, {2, 64}, {32, 1024}, {31 * 2, 2048}}) {
    const Layout layout = Of(*Plan::Identity({1, 1, head_dim}, {}, {}), 16);
    EXPECT_EQ(layout.slot(0, 0).far_values.offset_bytes, static_cast<int64_t>(space)) << head_dim;
    EXPECT_EQ(layout.plane_bytes(PlaneKind::kDistant), 2 * space) << head_dim;
  }
  // Bounds of 6 dims have 24 bytes in 64; of 256 dims 1024 in 1024; of 272 dims 1088 in 2048.
  for (const auto& [head_dim, space] :
       std::vector<std::pair<int, size_t>>{{6, 64}, {32, 128}, {256, 1024}, {272, 2048}}) {
    EXPECT_EQ(Of(*Plan::Identity({1, 1, head_dim}, {}, {})).plane_bytes(PlaneKind::kSummary), space) << head_dim;
  }
}

TEST(Layout, RefusesSectionsThatAHeaderCannotCount) {
  // 1024 x 64 slots of 256 KiB under one lead: 16 GiB in one section.
  const KvShape shape{1024, 64, 1024};
  std::vector<Slot> slots(static_cast<size_t>(shape.slots()), Follows(0, 0));
  slots[0] = Lead();
  const absl::Status status = Layout::Create(*TryPlan(shape, slots), 128).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("section"));
  EXPECT_TRUE(Layout::Create(*Plan::Identity(shape, {}, {}), 128).ok());
}

// Oracle: every block asked for its nearness, every tile added up.
TEST(Layout, PredictedSavingIsWhatCountingTheBytesGives) {
  std::mt19937 rng(8);
  for (int round = 0; round < 60; ++round) {
    const Plan plan = round == 0 ? PodlingPlan() : round == 1 ? MixedPlan() : RandomPlan(rng);
    const int block_tokens = 16 << rng() % 4;
    const Layout layout = Of(plan, block_tokens);
    size_t distant = 0, proximal = 0;
    for (const Section& s : layout.sections(PlaneKind::kDistant)) distant += s.bytes;
    for (const Section& s : layout.sections(PlaneKind::kProximal)) proximal += s.bytes;
    const size_t dense = static_cast<size_t>(plan.shape().slots() * plan.shape().head_dim * 4 * block_tokens);
    for (int64_t tokens = 1; tokens < 1500; tokens += 1 + static_cast<int64_t>(rng() % 7)) {
      size_t stored = 0, blocks = 0;
      for (int64_t begin = 0; begin < tokens; begin += block_tokens, ++blocks) {
        stored += distant + (IsNear(plan.window(), block_tokens, begin, tokens - 1) ? proximal : 0);
      }
      ASSERT_NEAR(layout.PredictedSaving(tokens), 1 - static_cast<double>(stored) / static_cast<double>(dense * blocks),
                  1e-12)
          << tokens << " tokens";
    }
  }
}

TEST(Layout, PredictedSavingOfKnownPlans) {
  const Layout podling = Of(PodlingPlan());
  EXPECT_EQ(podling.PredictedSaving(0), 0);
  EXPECT_EQ(podling.PredictedSaving(-1), 0);
  EXPECT_DOUBLE_EQ(podling.PredictedSaving(64), 0);
  // 1024 tokens: 16 blocks, 1 sink and 2 recent; the other 13 lack 12 of 32 tiles.
  EXPECT_DOUBLE_EQ(podling.PredictedSaving(1024), 13.0 / 16 * 12 / 32);
  EXPECT_NEAR(podling.PredictedSaving(int64_t{1} << 40), 12.0 / 32, 1e-6);
  EXPECT_DOUBLE_EQ(Of(*Plan::Identity({4, 2, 64}, {}, {})).PredictedSaving(5000), 0);
  // The near copies of slots in another far codec cost more than they save while everything is near.
  EXPECT_LT(Of(MixedPlan()).PredictedSaving(64), 0);
}

}  // namespace
}  // namespace perigee::pod
