// Contexts that were encoded in parallel: temperature and scale.
#include <gmock/gmock.h>

#include <cmath>
#include <limits>
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

// A prefix, then contexts that all stand after it, then what follows the longest.
void Fill(View& view, int contexts) {
  view.AddText({}, 10);
  for (int i = 0; i < contexts; ++i) {
    BlockSpec spec{.position = 10, .base_position = view.Below(2) * 500, .context = true};
    if (i % 2 == 1) spec.hidden = {0, 2};
    view.AddText(spec, 20 + 15 * i);
  }
  const int64_t end = 10 + 20 + 15 * contexts;
  view.AddText({.position = end, .base_position = end}, 50);
  std::shuffle(view.blocks.begin(), view.blocks.end(), view.random);
}

TEST(AttentionContext, TemperatureAndScaleMatchTheReference) {
  for (auto [temperature, scale] : {std::pair{0.9f, 0.8f}, {0.2f, 0.5f}, {1.0f, 0.9f}, {0.5f, 1.0f}, {3.0f, 2.0f}}) {
    for (Sharing sharing : {Sharing::kKey, Sharing::kScore}) {
      for (pod::Window window : {pod::Window{16, 4096}, {4, 40}}) {
        SCOPED_TRACE(absl::StrCat("temperature ", temperature, ", scale ", scale, ", recent ", window.recent_tokens));
        View view(MixedPlan(32, window, sharing, Codec::kBf16, Codec::kFp16), 16, 6, 20);
        Fill(view, 3);
        view.temperature = temperature;
        view.scale = scale;
        const int64_t last = view.Standable().back();
        for (std::vector<int64_t> queries : {std::vector<int64_t>{last}, {last - 1, last}, {0, 9, 12, 25, 40, last}}) {
          view.SetQueries(queries);
          view.Check(3e-6f / std::min(1.0f, temperature));  // Logits, and so their errors, are that much larger.
        }
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(AttentionContext, OneAndOneIsAttentionWithoutContextsToTheBit) {
  View view(MixedPlan(32, {16, 40}, Sharing::kScore, Codec::kBf16, Codec::kFp16), 16, 6, 21);
  Fill(view, 3);
  View plain(MixedPlan(32, {16, 40}, Sharing::kScore, Codec::kBf16, Codec::kFp16), 16, 6, 21);
  Fill(plain, 3);
  for (BlockRef& block : plain.blocks) block.context = false;
  const int64_t last = view.Standable().back();
  for (std::vector<int64_t> queries : {std::vector<int64_t>{last}, {5, 12, 40, last}}) {
    view.SetQueries(queries);
    plain.SetQueries(queries);
    for (int layer = 0; layer < 4; ++layer) {
      for (auto path : {internal::Tuning::Path::kTile, internal::Tuning::Path::kDot}) {
        for (int splits : {1, 3})
          EXPECT_EQ(view.Attended(layer, {path, splits}), plain.Attended(layer, {path, splits}));
      }
    }
  }
}

TEST(AttentionContext, TheScaleDoesNotMatterToWhoSeesContextsOnly) {
  View view(IdentityPlan({1, 2, 32}), 16, 4, 22);
  view.AddText({.base_position = 300, .context = true}, 40);
  view.AddText({.position = 40, .base_position = 40}, 10);
  view.SetQueries({5, 39});
  view.temperature = 0.7f;
  const std::vector<float> before = view.Attended(0);
  view.scale = 0.3f;
  view.Check();
  ForEachTarget([&] { ExpectNear(view.Attended(0), before, 1e-6f); });
  view.SetQueries({5, 39, 41});  // One of them sees both.
  view.Check();
  view.blocks.erase(view.blocks.begin() + 3, view.blocks.end());  // No other blocks at all.
  view.tokens.resize(40);
  view.SetQueries({5, 39});
  view.Check();
}

TEST(AttentionContext, WhoSeesNoContextsIsNotTouched) {
  View view(IdentityPlan({1, 2, 32}), 16, 4, 23);
  view.AddText({}, 40);
  view.AddText({.position = 40, .base_position = 0, .context = true}, 40);
  view.SetQueries({20, 39});
  const std::vector<float> plain = view.Attended(0);
  view.temperature = 0.2f;
  view.scale = 0.4f;
  EXPECT_EQ(view.Attended(0), plain);
  view.SetQueries({20, 39, 45});
  view.Check();
}

TEST(AttentionContext, LargeLogitsAreWeighedAsWell) {
  for (float size : {10.0f, 30.0f}) {
    View view(IdentityPlan({1, 1, 64}), 16, 4, 24);
    view.Add({.tokens = 16, .context = true}, size);
    view.Add({.position = 0, .base_position = 77, .tokens = 9, .context = true}, size);
    view.Add({.position = 16, .base_position = 16, .tokens = 8}, size);
    view.temperature = 0.8f;
    view.scale = 0.9f;
    for (std::vector<int64_t> queries : {std::vector<int64_t>{23}, {3, 17, 23}}) {
      view.SetQueries(queries, 3.0f);
      view.Check(2e-3f);  // Logits of 1000 carry an error of 1e-4 in float.
    }
  }
}

TEST(AttentionContext, AbsurdTemperaturesAndScalesGiveNumbers) {
  for (float temperature : {std::numeric_limits<float>::denorm_min(), 1e-30f, 1e30f, 3e38f}) {
    for (float scale : {std::numeric_limits<float>::denorm_min(), 1e-30f, 1.0f, 1e30f, 3e38f}) {
      View view(IdentityPlan({1, 1, 32}), 16, 4, 25);
      Fill(view, 2);
      view.temperature = temperature;
      view.scale = scale;
      view.SetQueries({9, 20, view.Standable().back()});
      ForEachTarget([&] {
        for (auto path : {internal::Tuning::Path::kTile, internal::Tuning::Path::kDot}) {
          for (int splits : {1, 4}) {
            for (float x : view.Attended(0, {path, splits}))
              ASSERT_TRUE(std::isfinite(x)) << temperature << " " << scale;
          }
        }
      });
    }
  }
}

TEST(AttentionContext, NaNInAContextStaysWithWhoSeesIt) {
  View view(IdentityPlan({1, 1, 32}), 16, 4, 26);
  view.AddText({}, 10);
  view.Add({.position = 10, .base_position = 0, .tokens = 16, .hidden = {1}, .context = true, .nan_keys = {12}});
  view.AddText({.position = 26, .base_position = 26}, 10);
  view.temperature = 0.5f;
  view.scale = 0.5f;
  view.SetQueries({9, 15, 21, 22, 30});
  view.Check();
}

TEST(AttentionContext, OtherTemperaturesAndScalesAreRefused) {
  View view(IdentityPlan({1, 1, 32}), 16, 2, 27);
  view.AddText({}, 10);
  view.SetQueries({9});
  std::vector<float> out(view.OutSize());
  for (float bad : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::nanf("")}) {
    view.temperature = bad;
    view.scale = 1;
    const absl::Status status = Attend(view.Input(0), out.data());
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("temperature ", bad)));
    view.temperature = 1;
    view.scale = bad;
    EXPECT_EQ(Attend(view.Input(0), out.data()).code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace perigee::kernels
