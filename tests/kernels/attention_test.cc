#include "kernels/attention.h"

#include <limits>

#include "kernels/cpu/attention_internal.h"
#include "kernels/cpu/merge.h"
#include "kernels_testing.h"

namespace perigee::kernels {
namespace {

using internal::AttendTuned;
using internal::Tuning;
using pod::Codec;
using pod::Role;
using pod::Sharing;
using pod::Slot;
using testing::AlignedBytes;
using testing::ExpectNear;
using testing::ForEachTarget;
using testing::IdentityPlan;
using testing::MixedPlan;
using testing::World;

constexpr float kTolerance = 3e-6f;
constexpr Tuning::Path kPaths[] = {Tuning::Path::kAuto, Tuning::Path::kTile, Tuning::Path::kDot};

std::vector<float> Attended(const World& world, int layer, Tuning tuning = {}) {
  std::vector<float> out(world.OutSize(), -12345.0f);
  const absl::Status status = AttendTuned(world.Input(layer), tuning, out.data());
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

// Every path and target against the reference, all layers.
void Check(const World& world) {
  for (int layer = 0; layer < world.plan.shape().layers; ++layer) {
    SCOPED_TRACE(absl::StrCat("layer ", layer));
    const std::vector<float> expected = world.Expected(layer);
    ForEachTarget([&] {
      for (Tuning::Path path : kPaths) {
        SCOPED_TRACE(absl::StrCat("path ", static_cast<int>(path)));
        ExpectNear(Attended(world, layer, {path, 0}), expected, kTolerance);
        if (::testing::Test::HasFatalFailure()) return;
      }
    });
  }
}

TEST(Attention, OneTokenReturnsItsValue) {
  World world(IdentityPlan({1, 2, 64}), 64, 4, 1, 1);
  world.SetQueries(0, 1, 2);
  Check(world);
  const std::vector<float> out = Attended(world, 0);
  for (int d = 0; d < 64; ++d)
    EXPECT_NEAR(out[static_cast<size_t>(d)], world.cache.values[0][0][static_cast<size_t>(d)], 1e-6);
}

TEST(Attention, EveryHeadDimAndBlockSizeMatchesTheReference) {
  for (int dim : {2, 6, 8, 24, 32, 40, 64, 96, 128, 256}) {
    for (int block : {16, 32, 64, 128}) {
      SCOPED_TRACE(absl::StrCat("head_dim ", dim, ", block ", block));
      World world(IdentityPlan({1, 1, dim}), block, 2, 150, static_cast<uint32_t>(dim + block));
      world.SetQueries(149, 1, 3);
      Check(world);
      world.SetQueries(111, 39, 4);
      Check(world);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Attention, EveryGroupSizeMatchesTheReference) {
  for (int group = 1; group <= 16; ++group) {
    SCOPED_TRACE(absl::StrCat("group ", group));
    World world(IdentityPlan({1, 2, 32}), 16, 2 * group, 75, static_cast<uint32_t>(group));
    for (auto [first, count] : {std::pair{74, 1}, {72, 3}, {40, 35}}) {
      world.SetQueries(first, count, 5);
      Check(world);
      if (HasFatalFailure()) return;
    }
  }
  World wide(IdentityPlan({1, 1, 32}), 16, 71, 40, 9);  // More heads in a group than rows in a unit.
  wide.SetQueries(37, 3, 6);
  Check(wide);
}

TEST(Attention, BlockEdgesMatchTheReference) {
  for (int tokens : {15, 16, 17, 63, 64, 65, 127, 128, 129}) {
    for (int block : {16, 64}) {
      SCOPED_TRACE(absl::StrCat(tokens, " tokens, block ", block));
      World world(IdentityPlan({1, 1, 32}), block, 4, tokens, static_cast<uint32_t>(tokens));
      world.SetQueries(tokens - 1, 1, 7);
      Check(world);
      world.SetQueries(0, tokens, 8);
      Check(world);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Attention, SharingPlansMatchTheReferenceInBothForms) {
  for (Sharing sharing : {Sharing::kKey, Sharing::kScore}) {
    for (auto [near, far] : {std::pair{Codec::kBf16, Codec::kBf16},
                             {Codec::kFp16, Codec::kFp16},
                             {Codec::kBf16, Codec::kFp16},
                             {Codec::kFp16, Codec::kBf16}}) {
      SCOPED_TRACE(
          absl::StrCat("sharing ", static_cast<int>(sharing), ", near ", CodecName(near), ", far ", CodecName(far)));
      World world(MixedPlan(32, {20, 40}, sharing, near, far), 16, 4, 120, 11);
      for (auto [first, count] : {std::pair{119, 1}, {80, 40}, {0, 120}, {47, 2}}) {
        SCOPED_TRACE(absl::StrCat(count, " queries from ", first));
        world.SetQueries(first, count, 12);
        Check(world);
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Attention, WindowEdgesMatchTheReference) {
  for (int sink : {0, 1, 16, 17}) {
    for (int recent : {1, 15, 16, 17, 33, 1000}) {
      SCOPED_TRACE(absl::StrCat("sink ", sink, ", recent ", recent));
      World world(MixedPlan(8, {sink, recent}, Sharing::kScore, Codec::kBf16, Codec::kBf16), 16, 4, 97, 13);
      world.SetQueries(0, 97, 14);
      Check(world);
      world.SetQueries(96, 1, 15);
      Check(world);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Attention, EmptyFarPartIsPlainAttention) {
  World shared(MixedPlan(32, {16, 4096}, Sharing::kScore, Codec::kBf16, Codec::kFp16), 16, 4, 100, 16);
  World plain(IdentityPlan({4, 2, 32}), 16, 4, 100, 16);
  shared.SetQueries(60, 40, 17);
  plain.SetQueries(60, 40, 17);
  for (int layer = 0; layer < 4; ++layer) ExpectNear(Attended(shared, layer), plain.Expected(layer), kTolerance);
}

TEST(Attention, NearOnlySlotsTouchNoFarPlane) {
  std::vector<Slot> slots = {Slot{Role::kNearOnly, {0, 0}, Codec::kBf16}};
  const pod::Plan plan = *pod::Plan::Create({1, 1, 32}, {16, 16}, Sharing::kKey, Codec::kBf16, slots, Digest{});
  World world(plan, 16, 4, 128, 18);
  for (auto [first, count] : {std::pair{127, 1}, {120, 8}}) {
    world.SetQueries(first, count, 19);
    const std::vector<float> expected = world.Expected(0);
    for (size_t i = 1; i < 6; ++i) world.blocks[i].distant = world.blocks[i].proximal = nullptr;
    ForEachTarget([&] {
      for (Tuning::Path path : kPaths) ExpectNear(Attended(world, 0, {path, 0}), expected, kTolerance);
    });
  }
}

TEST(Attention, FarBlocksNeedNoProximalPlane) {
  World world(MixedPlan(32, {16, 32}, Sharing::kKey, Codec::kBf16, Codec::kFp16), 16, 4, 128, 20);
  world.SetQueries(127, 1, 21);
  const std::vector<float> expected = world.Expected(2);
  for (size_t i = 1; i < 6; ++i) world.blocks[i].proximal = nullptr;
  ExpectNear(Attended(world, 2), expected, kTolerance);
  world.blocks[6].proximal = nullptr;  // Holds position 96, which is near.
  std::vector<float> out(world.OutSize());
  const absl::Status status = Attend(world.Input(2), out.data());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
}

TEST(Attention, AProximalPlaneIsAskedForByTheFirstQueryOfAChunk) {
  World world(MixedPlan(32, {0, 32}, Sharing::kKey, Codec::kBf16, Codec::kBf16), 16, 4, 128, 20);
  world.SetQueries(90, 38, 21);
  world.blocks[3].proximal =
      nullptr;  // [48, 64): near to the query at 90 (59 is its first near token), not to the last.
  std::vector<float> out(world.OutSize());
  EXPECT_EQ(Attend(world.Input(2), out.data()).code(), absl::StatusCode::kFailedPrecondition);
  world.SetQueries(95, 33, 21);  // First near token: 64.
  EXPECT_TRUE(Attend(world.Input(2), out.data()).ok());
}

TEST(Attention, BadViewsAreRefused) {
  World world(IdentityPlan({1, 1, 32}), 16, 2, 48, 22);
  world.SetQueries(47, 1, 23);
  std::vector<float> out(world.OutSize());
  const auto code = [&] { return Attend(world.Input(0), out.data()).code(); };
  const auto blocks = world.blocks;
  EXPECT_EQ(code(), absl::StatusCode::kOk);
  const auto expect_refused = [&](const char* what) {
    EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument) << what;
    world.blocks = blocks;
  };
  world.blocks.pop_back();
  expect_refused("query beyond the view");
  world.blocks.clear();
  expect_refused("no blocks");
  world.blocks[0].position = -1;
  expect_refused("before the beginning");
  world.blocks[2].tokens = 17;
  expect_refused("too many tokens");
  world.blocks[2].tokens = 0;
  expect_refused("no tokens");
  world.blocks[2].tokens = 15;
  expect_refused("query past the last token");
  world.SetQueries(30, 18, 23);
  out.resize(world.OutSize());
  world.blocks.erase(world.blocks.begin() + 1);
  expect_refused("a hole where queries stand");
  world.q_heads = 0;
  expect_refused("no heads");
}

TEST(Attention, ABlockThatIsLeftOutIsNotAttended) {
  World world(IdentityPlan({1, 1, 32}), 16, 2, 64, 24);
  world.SetQueries(63, 1, 25);
  world.blocks.erase(world.blocks.begin() + 1);
  std::vector<float> expected(world.OutSize());
  for (int h = 0; h < 2; ++h) {
    double total = 0;
    std::vector<double> sum(32);
    for (int t = 0; t < 64; ++t) {
      if (t >= 16 && t < 32) continue;
      double score = 0;
      for (int d = 0; d < 32; ++d)
        score += double{world.queries[0][h * 32 + d]} * world.cache.keys[0][0][static_cast<size_t>(t * 32 + d)];
      const double p = std::exp(score / std::sqrt(32.0));
      total += p;
      for (int d = 0; d < 32; ++d)
        sum[static_cast<size_t>(d)] += p * world.cache.values[0][0][static_cast<size_t>(t * 32 + d)];
    }
    for (int d = 0; d < 32; ++d)
      expected[static_cast<size_t>(h * 32 + d)] = static_cast<float>(sum[static_cast<size_t>(d)] / total);
  }
  for (Tuning::Path path : kPaths) ExpectNear(Attended(world, 0, {path, 0}), expected, kTolerance);
}

// A key rotated at b and read at p must score as if it had been rewritten to p.
TEST(Attention, MovedBlocksScoreAsIfTheirKeysWereRewritten) {
  for (Sharing sharing : {Sharing::kKey, Sharing::kScore}) {
    World world(MixedPlan(64, {16, 48}, sharing, Codec::kBf16, Codec::kBf16), 16, 8, 160, 26);
    // Block i was stored at base_positions[i]; the reference gets its stored keys rotated on, in double.
    const int64_t bases[] = {0, 16, 0, 16, 32, 1000000, 48, 112, 128, 144};
    for (size_t b = 0; b < world.blocks.size(); ++b) {
      world.blocks[b].base_position = bases[b];
      const int64_t offset = world.blocks[b].position - bases[b];
      for (auto& layer : world.cache.keys) {
        for (auto& head : layer) {
          for (int t = 0; t < 16; ++t) {
            float* key = head.data() + (world.blocks[b].position + t) * 64;
            std::vector<double> exact(key, key + 64);
            reference::ApplyRope(world.rope, offset, 1, exact.data());
            for (int d = 0; d < 64; ++d) key[d] = static_cast<float>(exact[static_cast<size_t>(d)]);
          }
        }
      }
    }
    for (auto [first, count] : {std::pair{159, 1}, {100, 60}}) {
      world.SetQueries(first, count, 27);
      Check(world);
      if (HasFatalFailure()) return;
    }
  }
}

TEST(Attention, ChunksAndSingleTokensAgree) {
  World world(MixedPlan(32, {16, 48}, Sharing::kScore, Codec::kBf16, Codec::kFp16), 16, 8, 150, 28);
  world.SetQueries(0, 150, 29);
  for (int layer = 0; layer < 4; ++layer) {
    const std::vector<float> whole = Attended(world, layer);
    for (int chunk : {1, 7, 64}) {
      std::vector<float> pieces(whole.size());
      for (int begin = 0; begin < 150; begin += chunk) {
        AttentionInput input = world.Input(layer);
        std::vector<const float*> shifted;
        for (const float* q : world.queries) shifted.push_back(q + begin * 8 * 32);
        input.queries = shifted;
        input.positions =
            input.positions.subspan(static_cast<size_t>(begin), static_cast<size_t>(std::min(chunk, 150 - begin)));
        ASSERT_TRUE(Attend(input, pieces.data() + begin * 8 * 32).ok());
      }
      ExpectNear(pieces, whole, 2e-6f);
    }
  }
}

TEST(Attention, SplittingTheBlocksChangesNothing) {
  World world(MixedPlan(32, {16, 64}, Sharing::kScore, Codec::kBf16, Codec::kBf16), 16, 8, 500, 30, 3.0f);
  for (auto [first, count] : {std::pair{499, 1}, {480, 20}}) {
    world.SetQueries(first, count, 31);
    for (int layer = 0; layer < 4; ++layer) {
      const std::vector<float> expected = world.Expected(layer);
      for (int splits : {1, 2, 3, 8, 32, 1000}) {
        SCOPED_TRACE(absl::StrCat(splits, " splits"));
        for (Tuning::Path path : kPaths) ExpectNear(Attended(world, layer, {path, splits}), expected, 5e-6f);
      }
    }
  }
}

TEST(Attention, MergingStatesIsExact) {
  // Powers of two and halves, so that every step is exact in float: (m, l, o) of {0}, of {-1, 3}, and an empty one.
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  float m = kNone, l = 0, o[2] = {0, 0};
  const float first[2] = {4, 8}, second[2] = {2, 16}, none[2] = {0, 0};
  internal::MergeState(1.0f, 2, &m, &l, o, kNone, 0, none);
  EXPECT_EQ(l, 0);
  internal::MergeState(1.0f, 2, &m, &l, o, 0, 1, first);
  EXPECT_EQ(m, 0);
  EXPECT_EQ(o[1], 8);
  internal::MergeState(1.0f, 2, &m, &l, o, 3, 1.0625f, second);
  EXPECT_EQ(m, 3);
  EXPECT_EQ(l, 1.1875f);  // 1 * 2^-3 + 1.0625
  EXPECT_EQ(o[0], 2.5f);
  EXPECT_EQ(o[1], 17);
  internal::MergeState(1.0f, 2, &m, &l, o, kNone, 0, none);
  EXPECT_EQ(l, 1.1875f);
  EXPECT_EQ(o[0], 2.5f);
}

TEST(Attention, HugeNumbersDoNotOverflow) {
  const float huge = testing::Bf16ToFloat(0x7F7F);
  for (int dim : {32, 128}) {
    World world(IdentityPlan({1, 1, dim}), 16, 4, 50, 32);
    for (size_t i = 0; i < world.cache.values[0][0].size(); ++i) {
      float& v = world.cache.values[0][0][i];
      v = huge;
      float& k = world.cache.keys[0][0][i];
      if ((i / static_cast<size_t>(dim)) % 3 == 0) k = k < 0 ? -huge : huge;
    }
    world.Pack();
    for (auto [first, count] : {std::pair{49, 1}, {0, 50}}) {
      world.SetQueries(first, count, 33);
      const std::vector<float> expected = world.Expected(0);
      ForEachTarget([&] {
        for (Tuning::Path path : kPaths) {
          const std::vector<float> out = Attended(world, 0, {path, 0});
          for (size_t i = 0; i < out.size(); ++i) {
            ASSERT_TRUE(std::isfinite(out[i])) << i;
            ASSERT_NEAR(out[i] / huge, 1, 1e-5) << i;
          }
        }
      });
    }
  }
  // A query as large as bf16 reaches, ordinary keys: one key wins outright.
  World world(IdentityPlan({1, 1, 32}), 16, 4, 50, 34);
  world.SetQueries(40, 10, 35);
  for (float& q : world.query_data[0]) q = q < 0 ? -1e37f : 1e37f;
  Check(world);
}

TEST(Attention, LargeScoresMatchTheReference) {
  World world(IdentityPlan({1, 1, 64}), 64, 4, 300, 36, 30.0f);
  for (auto [first, count] : {std::pair{299, 1}, {200, 100}}) {
    world.SetQueries(first, count, 37, 3.0f);
    const std::vector<float> expected = world.Expected(0);
    ForEachTarget([&] {
      // Logits near 1000 carry an error of 1e-4 in float.
      for (Tuning::Path path : kPaths) ExpectNear(Attended(world, 0, {path, 0}), expected, 1e-3f);
    });
  }
}

TEST(Attention, NaNReachesOnlyTheQueriesThatAttendToIt) {
  for (bool in_key : {true, false}) {
    for (int at : {5, 40, 49}) {
      SCOPED_TRACE(absl::StrCat(in_key ? "key " : "value ", at));
      World world(IdentityPlan({1, 1, 32}), 16, 4, 50, 38);
      world.SetQueries(0, 50, 39);
      const std::vector<float> clean = world.Expected(0);
      const pod::SlotTiles& tiles = world.layout.slot(0, 0);
      *world.Element(world.blocks[static_cast<size_t>(at / 16)], in_key ? tiles.near_keys : tiles.near_values, in_key,
                     at % 16, 3) = 0x7FC0;
      ForEachTarget([&] {
        for (Tuning::Path path : kPaths) {
          const std::vector<float> out = Attended(world, 0, {path, 0});
          for (int q = 0; q < 50; ++q) {
            for (int d = 0; d < 32; ++d) {
              const size_t i = static_cast<size_t>(q * 4 * 32 + d);
              if (q < at || (!in_key && d != 3)) {
                ASSERT_NEAR(out[i], clean[i], kTolerance * 4) << "query " << q << " dim " << d;
              } else {
                ASSERT_TRUE(std::isnan(out[i])) << "query " << q << " dim " << d;
              }
            }
          }
        }
      });
    }
  }
}

TEST(Attention, NaNInAFarTileDoesNotReachNearReaders) {
  // Slot (1, 0) follows (0, 0): its near readers must not see the lead's keys, nor its far readers its own.
  World world(MixedPlan(32, {0, 32}, Sharing::kKey, Codec::kBf16, Codec::kBf16), 16, 4, 96, 40);
  world.SetQueries(0, 96, 41);
  const std::vector<float> clean = world.Expected(1);
  for (int t = 0; t < 16; ++t) *world.Element(world.blocks[1], world.layout.slot(1, 0).far_keys, true, t, 0) = 0x7FC0;
  ForEachTarget([&] {
    const std::vector<float> out = Attended(world, 1, {Tuning::Path::kTile, 0});
    for (int q = 0; q < 96; ++q) {
      const size_t i = static_cast<size_t>(q * 4 * 32);
      const bool far = q >= 16 && !pod::IsNear(world.plan.window(), 16, 16, q);
      if (far) {
        ASSERT_TRUE(std::isnan(out[i])) << q;
      } else {
        ASSERT_NEAR(out[i], clean[i], kTolerance * 4) << q;
      }
    }
  });
}

}  // namespace
}  // namespace perigee::kernels
