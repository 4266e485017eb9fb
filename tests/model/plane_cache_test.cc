// A cache whose fetched planes are still arriving: when it asks for them, and that it reads and writes nothing earlier.
#include "model/plane_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "model/served_model.h"

namespace perigee::model {
namespace {

using ::testing::ElementsAre;

constexpr int kBlockTokens = 16;
constexpr int64_t kTokens = 40;  // Two whole blocks, and one that is filled up.

class ArrivalTest : public ::testing::TestWithParam<pod::Sharing> {
 protected:
  static void SetUpTestSuite() {
    auto served = ServedModel::Load({.folder = PERIGEE_SOURCE_DIR "/models/podling", .plan_file = "identity"});
    ASSERT_TRUE(served.ok()) << served.status();
    served_ = served->release();
  }
  static const Transformer& transformer() { return served_->transformer(); }

  // Every second layer follows the one below; the last slot is near-only.
  static pod::Layout MakeLayout(pod::Sharing sharing) {
    const pod::KvShape shape = transformer().kv_shape();
    std::vector<pod::Slot> slots;
    for (int l = 0; l < shape.layers; ++l) {
      for (int h = 0; h < shape.kv_heads; ++h) {
        pod::Slot slot{.role = l % 2 == 0 ? pod::Role::kLead : pod::Role::kFollower, .lead = {l - l % 2, h}};
        if (l + 1 == shape.layers && h + 1 == shape.kv_heads) slot = {.role = pod::Role::kNearOnly, .lead = {l, h}};
        slots.push_back(slot);
      }
    }
    const auto plan = pod::Plan::Create(shape, {.sink_tokens = 16, .recent_tokens = 16}, sharing, pod::Codec::kBf16,
                                        slots, served_->fingerprint());
    EXPECT_TRUE(plan.ok()) << plan.status();
    return *pod::Layout::Create(*plan, kBlockTokens);
  }
  PlaneCache NewCache() const {
    return PlaneCache(&layout_, &transformer().rope(), transformer().config().q_heads, HeapPlanes());
  }
  // A cache of kTokens tokens, computed here.
  PlaneCache Computed() const {
    PlaneCache cache = NewCache();
    std::vector<int32_t> ids;
    for (int32_t i = 0; i < kTokens; ++i) ids.push_back(2 + i * 7);
    EXPECT_TRUE(transformer().Forward(ids, cache, Logits::kNone, nullptr).ok());
    return cache;
  }
  static std::vector<float> RunTwo(PlaneCache& cache) {
    std::vector<float> all, logits;
    for (const int32_t token : {500, 501}) {
      const absl::Status status = transformer().Forward(std::span(&token, 1), cache, Logits::kLast, &logits);
      EXPECT_TRUE(status.ok()) << status;
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  }

  static ServedModel* served_;
  const pod::Layout layout_ = MakeLayout(GetParam());
};
ServedModel* ArrivalTest::served_ = nullptr;

INSTANTIATE_TEST_SUITE_P(Sharing, ArrivalTest, ::testing::Values(pod::Sharing::kKey, pod::Sharing::kScore),
                         [](const auto& info) { return info.param == pod::Sharing::kKey ? "Key" : "Score"; });

TEST_P(ArrivalTest, ALayerTouchesNothingBeforeItsTilesAreHereAndTheAnswerIsTheSame) {
  PlaneCache computed = Computed();
  PlaneCache arriving = NewCache();
  std::vector<CachedBlock> sources, targets;
  for (const CachedBlock& source : computed.blocks()) {
    CachedBlock target = source;
    const auto blank = [&](PlaneBuffer& plane, pod::PlaneKind kind) {
      plane = *HeapPlanes()(layout_.plane_bytes(kind));
      std::memset(plane.get(), 0xFF, layout_.plane_bytes(kind));  // NaNs.
    };
    blank(target.distant, pod::PlaneKind::kDistant);
    blank(target.proximal, pod::PlaneKind::kProximal);
    target.summary = nullptr;
    sources.push_back({.distant = *HeapPlanes()(layout_.plane_bytes(pod::PlaneKind::kDistant)),
                       .proximal = *HeapPlanes()(layout_.plane_bytes(pod::PlaneKind::kProximal)),
                       .summary = nullptr});
    std::memcpy(sources.back().distant.get(), source.distant.get(), layout_.plane_bytes(pod::PlaneKind::kDistant));
    std::memcpy(sources.back().proximal.get(), source.proximal.get(), layout_.plane_bytes(pod::PlaneKind::kProximal));
    targets.push_back(target);
    ASSERT_TRUE(arriving.AddBlock(std::move(target)).ok());
  }
  const std::vector<float> expected = RunTwo(computed);

  // A layer's bytes come when the cache asks for them, at the last moment: a write before would be overwritten, a read
  // before would find NaNs.
  std::vector<int> asked;
  arriving.AwaitArrival([&](int layer) {
    asked.push_back(layer);
    for (size_t b = 0; b < targets.size(); ++b) {
      const auto bring = [&](const PlaneBuffer& from, const PlaneBuffer& to, pod::PlaneKind kind) {
        for (const pod::Section& range : layout_.layer_ranges(kind, layer)) {
          std::memcpy(to.get() + range.offset_bytes, from.get() + range.offset_bytes, range.bytes);
        }
      };
      bring(sources[b].distant, targets[b].distant, pod::PlaneKind::kDistant);
      bring(sources[b].proximal, targets[b].proximal, pod::PlaneKind::kProximal);
    }
    return absl::OkStatus();
  });
  EXPECT_EQ(RunTwo(arriving), expected);
  std::vector<int> layers;
  for (int l = 0; l < layout_.plan().shape().layers; ++l) layers.push_back(l);
  EXPECT_EQ(asked, layers) << "each layer once, in order, and not again for the second token";
}

TEST_P(ArrivalTest, WhatDoesNotArriveEndsThePass) {
  PlaneCache cache = Computed();
  std::vector<int> asked;
  cache.AwaitArrival([&](int layer) {
    asked.push_back(layer);
    return layer == 2 ? absl::NotFoundError("block 1 is gone") : absl::OkStatus();
  });
  const int32_t token = 500;
  std::vector<float> logits;
  const absl::Status status = transformer().Forward(std::span(&token, 1), cache, Logits::kLast, &logits);
  EXPECT_TRUE(absl::IsNotFound(status)) << status;
  EXPECT_EQ(status.message(), "block 1 is gone");
  EXPECT_THAT(asked, ElementsAre(0, 1, 2));
  EXPECT_TRUE(logits.empty());
}

}  // namespace
}  // namespace perigee::model
