// General views: blocks of several texts anywhere, hidden tokens, overlays, blocks that are far to everyone.
#include <gmock/gmock.h>

#include <cmath>
#include <string>

#include "kernels/attention.h"
#include "view_testing.h"

namespace perigee::kernels {
namespace {

using pod::Codec;
using pod::Sharing;
using testing::BlockSpec;
using testing::ExpectNear;
using testing::ForEachTarget;
using ::testing::HasSubstr;
using testing::IdentityPlan;
using testing::MixedPlan;
using testing::View;

constexpr internal::Tuning::Path kPaths[] = {internal::Tuning::Path::kTile, internal::Tuning::Path::kDot};

std::set<int> Scattered(View& view, int tokens, double chance) {
  std::set<int> hidden;
  for (int t = 0; t < tokens; ++t) {
    if (view.Chance(chance)) hidden.insert(t);
  }
  return hidden;
}

// Texts from elsewhere, in ragged blocks, some of them hidden or far only; overlays; a text of its own at the end.
void Fill(View& view) {
  const int block = view.layout.block_tokens();
  int64_t at = 0;
  for (int text = 1 + view.Below(4); text > 0; --text) {
    if (view.Chance(0.3)) at = view.Below(50);  // In parallel with others.
    BlockSpec spec{.position = at, .base_position = view.Chance(0.3) ? at : view.Below(3000)};
    const double hidden = view.Chance(0.5) ? 0 : view.Chance(0.2) ? 0.95 : 0.2;
    const double far_only = view.Chance(0.5) ? 0 : 0.4;
    for (int blocks = 1 + view.Below(5); blocks > 0; --blocks) {
      spec.tokens = view.Chance(0.5) ? block : 1 + view.Below(block);
      spec.hidden = Scattered(view, spec.tokens, hidden);
      spec.far_only = view.Chance(far_only);
      view.Add(spec);
      spec.position += spec.tokens;
      spec.base_position += spec.tokens;
    }
    at = spec.position + view.Below(20);
  }
  for (int overlays = view.Below(3); overlays > 0; --overlays) {
    BlockSpec spec{.tokens = 1 + view.Below(block)};
    for (int64_t p = view.Below(20); spec.positions.size() < static_cast<size_t>(spec.tokens); p += 1 + view.Below(9)) {
      spec.positions.push_back(p);
    }
    spec.position = spec.base_position = spec.positions[0];
    spec.hidden = Scattered(view, spec.tokens, view.Chance(0.5) ? 0 : 0.2);
    spec.far_only = view.Chance(0.2);
    view.Add(spec);
  }
  view.AddText({.position = at, .base_position = at}, 1 + view.Below(3 * block));
  std::shuffle(view.blocks.begin(), view.blocks.end(), view.random);
}

TEST(AttentionView, AnyViewMatchesTheReference) {
  constexpr pod::Window kWindows[] = {{0, 1}, {1, 17}, {16, 48}, {40, 100}, {0, 4096}};
  for (uint32_t seed = 0; seed < 20; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    const pod::Window window = kWindows[seed % 5];
    const int dim = (std::array{8, 24, 32, 40, 64})[(seed + seed / 5) % 5];
    const Sharing sharing = seed % 2 == 0 ? Sharing::kKey : Sharing::kScore;
    const Codec near = seed % 4 < 2 ? Codec::kBf16 : Codec::kFp16, far = seed % 3 < 2 ? Codec::kBf16 : Codec::kFp16;
    const pod::Plan plan =
        seed % 6 == 0 ? IdentityPlan({2, 2, dim}, window, near) : MixedPlan(dim, window, sharing, near, far);
    View view(plan, (std::array{16, 32, 64, 128})[seed % 4], seed % 3 == 0 ? 2 : 6, seed);
    Fill(view);
    const std::vector<int64_t> all = view.Standable();
    view.SetQueries({all.back()});
    view.Check();
    view.SetQueries({all[static_cast<size_t>(view.Below(static_cast<int>(all.size())))]});
    view.Check();
    std::vector<int64_t> some;  // In the middle, apart from each other.
    std::sample(all.begin(), all.end(), std::back_inserter(some), 20, view.random);
    view.SetQueries(some);
    view.Check();
    view.SetQueries({all.end() - std::min<std::ptrdiff_t>(40, static_cast<std::ptrdiff_t>(all.size())), all.end()});
    view.Check();
    if (HasFatalFailure()) return;
  }
}

TEST(AttentionView, AQueryWithoutDotPathSeesTheSame) {
  for (int dim : {2, 6, 12}) {  // No multiples of 8.
    View view(MixedPlan(dim, {4, 20}, Sharing::kScore, Codec::kBf16, Codec::kBf16), 16, 4, 77);
    Fill(view);
    const std::vector<int64_t> all = view.Standable();
    view.SetQueries({all.back()});
    view.Check();
    view.SetQueries(all);
    view.Check();
  }
}

TEST(AttentionView, NearAndFarGoByTheBlocksOwnEnds) {
  // A ragged block [5, 12) under a window of the last 10: near to queries up to 20, far from 21 on.
  View view(MixedPlan(32, {5, 10}, Sharing::kKey, Codec::kBf16, Codec::kBf16), 16, 2, 1);
  view.AddText({}, 5);
  view.Add({.position = 5, .base_position = 5, .tokens = 7});
  view.AddText({.position = 12, .base_position = 12}, 30);
  view.SetQueries({20, 21});
  view.Check();
  view.blocks[1].proximal = nullptr;
  std::vector<float> out(view.OutSize());
  const absl::Status status = Attend(view.Input(2), out.data());
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("block 1 at position 5 is near to the query at 20"));
  // A query before the block does not count, nor one at hidden tokens of it, for which an overlay stands.
  view.blocks[1].hidden[0] = 0b11;
  view.Add({.position = 5, .base_position = 5, .tokens = 2, .positions = {5, 6}});
  for (const std::vector<int64_t>& queries : {std::vector<int64_t>{21}, {3, 21}, {6, 21}}) {
    view.SetQueries(queries);
    out.resize(view.OutSize());
    EXPECT_TRUE(Attend(view.Input(2), out.data()).ok());
  }
}

TEST(AttentionView, EverythingHiddenButOneTokenIsThatToken) {
  View view(IdentityPlan({1, 1, 32}), 64, 4, 2);
  std::set<int> all_but_one, all;
  for (int t = 0; t < 64; ++t) {
    all.insert(t);
    if (t != 37) all_but_one.insert(t);
  }
  view.Add({.position = 3, .base_position = 900, .tokens = 64, .hidden = all});
  view.Add({.position = 0, .base_position = 0, .tokens = 64, .hidden = all_but_one});
  view.Add({.position = 40, .base_position = 40, .tokens = 64, .hidden = all});
  view.SetQueries({37});
  view.Check();
  for (auto path : kPaths) {
    const std::vector<float> out = view.Attended(0, {path, 3});
    for (size_t i = 0; i < out.size(); ++i) {
      EXPECT_NEAR(out[i], view.tokens[0].values[0][0][i % 32], 1e-6) << i;
    }
  }
}

TEST(AttentionView, BlocksOfOneTokenEachAreOneText) {
  View view(MixedPlan(32, {4, 30}, Sharing::kScore, Codec::kBf16, Codec::kFp16), 16, 4, 3);
  for (int t = 0; t < 80; ++t) view.Add({.position = t, .base_position = t % 7, .tokens = 1});
  view.SetQueries({79});
  view.Check();
  view.SetQueries(view.Standable());
  view.Check();
}

// A token that was computed again stands for the hidden one, as if it had always been in its place.
TEST(AttentionView, AnOverlayStandsForWhatIsHidden) {
  View view(IdentityPlan({1, 2, 64}), 16, 4, 4);
  BlockSpec overlay{.position = 3, .base_position = 3, .tokens = 4, .positions = {3, 9, 17, 40}};
  view.Add({.tokens = 16, .hidden = {3, 9}});
  view.Add({.position = 16, .base_position = 16, .tokens = 16, .hidden = {1}});
  view.Add({.position = 32, .base_position = 32, .tokens = 16, .hidden = {8}});
  view.Add(overlay);
  // The reference's own list says it: every position once.
  EXPECT_EQ(view.Standable().size(), 48);
  for (std::vector<int64_t> queries : {std::vector<int64_t>{47}, {3, 9, 17, 40}, {2, 3, 4, 16, 39, 40, 41}, {8}}) {
    view.SetQueries(queries);
    view.Check();
  }
}

TEST(AttentionView, FarOnlyBlocksAreFarToAllAndNearOnlySlotsDoNotSeeThem) {
  View view(MixedPlan(32, {16, 4096}, Sharing::kKey, Codec::kBf16, Codec::kFp16), 16, 4, 5);
  view.AddText({.base_position = 100, .far_only = true}, 40);
  view.AddText({.position = 40, .base_position = 40}, 20);
  for (const BlockRef& block : view.blocks) EXPECT_EQ(block.proximal == nullptr, block.far_only);
  view.SetQueries({59});
  view.Check();
  view.SetQueries({41, 50, 59});
  view.Check();
  // Where all slots see far blocks, a query may stand in one.
  view.SetQueries({30});
  std::vector<float> out(view.OutSize());
  EXPECT_TRUE(Attend(view.Input(0), out.data()).ok());
  const absl::Status status = Attend(view.Input(2), out.data());
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("position 30"));
}

TEST(AttentionView, TheOrderOfTheListDoesNotMatter) {
  View view(MixedPlan(32, {16, 40}, Sharing::kScore, Codec::kBf16, Codec::kBf16), 16, 4, 6);
  Fill(view);
  view.SetQueries({view.Standable().back()});
  for (int layer = 0; layer < 4; ++layer) {
    const std::vector<float> before = view.Attended(layer);
    std::shuffle(view.blocks.begin(), view.blocks.end(), view.random);
    ExpectNear(view.Attended(layer), before, 2e-6f);
  }
}

// Reading a context's keys at an offset is attention over keys that were rewritten for it (the reference rotates keys).
TEST(AttentionView, ReadingAtAnOffsetIsRewritingTheKeys) {
  for (int64_t offset : {0, 1, 7, 63, 64, 1000, 4095, 17001, 32000}) {
    for (int64_t base : {0, 12345}) {
      SCOPED_TRACE(absl::StrCat("from ", base, " by ", offset));
      View view(MixedPlan(64, {16, 128}, Sharing::kScore, Codec::kBf16, Codec::kBf16), 64, 4,
                static_cast<uint32_t>(offset), 500000);
      view.AddText({.position = base + offset, .base_position = base}, 150);
      const int64_t end = base + offset + 150;
      view.AddText({.position = end, .base_position = end}, 40);
      view.SetQueries({end + 39});
      view.Check();
      view.SetQueries({end + 1, end + 2, end + 30});
      view.Check();
      if (HasFatalFailure()) return;
    }
  }
}

TEST(AttentionView, NaNStaysWithTheQueriesThatSeeIt) {
  for (bool in_key : {true, false}) {
    SCOPED_TRACE(in_key ? "keys" : "values");
    View view(MixedPlan(32, {4, 40}, Sharing::kKey, Codec::kBf16, Codec::kFp16), 16, 4, 8);
    view.AddText({.base_position = 50}, 20);
    BlockSpec bad{.position = 20, .base_position = 70, .tokens = 11, .hidden = {0, 4, 9}};
    (in_key ? bad.nan_keys : bad.nan_values) = {7};
    view.Add(bad);
    view.AddText({.position = 31, .base_position = 31}, 40);
    BlockSpec overlay{.position = 5, .base_position = 5, .tokens = 3, .positions = {5, 20, 60}};
    (in_key ? overlay.nan_keys : overlay.nan_values) = {2};
    view.Add(overlay);
    view.SetQueries({3, 15, 20, 21, 26, 27, 28, 40, 59, 60, 70});  // 27 and 60 are bad.
    view.Check();
    for (int64_t p : {3, 26, 28}) {
      view.SetQueries({p});
      view.Check();
      const std::vector<float> out = view.Attended(0);
      bool is_nan = false;
      for (float x : out) is_nan |= std::isnan(x);
      EXPECT_EQ(is_nan, p >= 27);
    }
  }
}

TEST(AttentionView, HugeNumbersDoNotOverflow) {
  View view(IdentityPlan({1, 1, 64}), 16, 4, 9);
  for (int64_t p = 0; p < 60; p += 12) {
    view.Add({.position = p, .base_position = 3 * p, .tokens = 12, .hidden = {2, 5, 11}}, p % 24 == 0 ? 1e37f : 1.0f,
             1e37f);
  }
  view.AddText({.position = 60, .base_position = 60}, 10);
  for (const std::vector<int64_t>& queries : {std::vector<int64_t>{69}, {0, 15, 61, 69}}) {
    view.SetQueries(queries);
    const std::vector<float> expected = view.Expected(0);
    ForEachTarget([&] {
      for (auto path : kPaths) {
        for (int splits : {1, 4}) {
          const std::vector<float> out = view.Attended(0, {path, splits});
          for (size_t i = 0; i < out.size(); ++i) {
            ASSERT_TRUE(std::isfinite(out[i])) << i;
            ASSERT_NEAR(out[i] / 1e37f, expected[i] / 1e37f, 1e-5) << i;
          }
        }
      }
    });
  }
}

TEST(AttentionView, BlocksThatNobodySeesNeedNoPlanes) {
  View view(MixedPlan(32, {0, 20}, Sharing::kKey, Codec::kBf16, Codec::kBf16), 16, 4, 10);
  view.AddText({}, 30);
  view.SetQueries({29});
  const std::vector<float> expected = view.Expected(2);
  BlockRef later, hidden;
  later.position = later.base_position = 30;
  later.tokens = 16;
  hidden.tokens = 3;
  hidden.hidden[0] = 7;
  view.blocks.push_back(later);
  view.blocks.push_back(hidden);
  for (auto path : kPaths) ExpectNear(view.Attended(2, {path, 0}), expected, 3e-6f);
}

TEST(AttentionView, BadBlocksAreRefusedByTheirNumbers) {
  View view(IdentityPlan({1, 1, 32}), 16, 2, 11);
  view.AddText({}, 40);
  view.Add({.position = 4, .base_position = 4, .tokens = 3, .positions = {4, 8, 30}});
  view.SetQueries({5, 39});
  std::vector<float> out(view.OutSize(), 7.0f);
  const auto expect_refused = [&](const char* message) {
    const absl::Status status = Attend(view.Input(0), out.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(message));
    EXPECT_THAT(out, ::testing::Each(7.0f));
  };
  const std::vector<BlockRef> blocks = view.blocks;
  view.blocks[2].tokens = 17;
  expect_refused("block 2 holds 17 tokens");
  view.blocks[2].tokens = 0;
  expect_refused("block 2 holds 0 tokens");
  view.blocks = blocks;
  view.blocks[2].hidden[0] = uint64_t{1} << 8;
  expect_refused("block 2 hides token 8 and holds 8");
  view.blocks = blocks;
  view.blocks[0].hidden[1] = 1;
  expect_refused("block 0 hides token 64 and holds 16");
  view.blocks = blocks;
  view.overlays[0] = {4, 8, 8};
  expect_refused("block 3 has token 2 at position 8 after one at 8");
  view.overlays[0] = {3, 8, 30};
  expect_refused("block 3 has its tokens from position 3 on, is said to stand at 4");
  view.overlays[0] = {4, 8, 30};
  view.blocks[3].base_position = 5;
  expect_refused("to be rotated at 5");
  view.blocks = blocks;
  view.blocks[1].position = -3;
  expect_refused("block 1 stands at position -3");
  view.blocks = blocks;
  view.blocks[0].hidden[0] = 1 << 5;
  expect_refused("no visible token at position 5, where query 0 stands");
  view.blocks[3].position = view.blocks[3].base_position = view.overlays[0][0] = 5;
  EXPECT_TRUE(Attend(view.Input(0), out.data()).ok());  // The overlay holds it.
}

TEST(AttentionView, HidingLastTokensIsHavingFewer) {
  for (int block : {16, 128}) {
    View view(MixedPlan(32, {0, 300}, Sharing::kKey, Codec::kBf16, Codec::kBf16), block, 4, 12);
    view.AddText({}, 3 * block);
    view.SetQueries({10, 3 * block - 9});
    for (int layer = 0; layer < 4; ++layer) {
      view.blocks.back().tokens = block;
      view.blocks.back().hidden = {};
      const std::vector<float> all = view.Attended(layer);
      for (int t = block - 8; t < block; ++t) {
        view.blocks.back().hidden[static_cast<size_t>(t) / 64] |= uint64_t{1} << t % 64;
      }
      ForEachTarget([&] {
        for (auto path : kPaths) ExpectNear(view.Attended(layer, {path, 0}), all, 2e-6f);
      });
    }
  }
}

}  // namespace
}  // namespace perigee::kernels
