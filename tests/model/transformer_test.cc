// The forward pass against independent implementations, on the project's own model.
#include "model/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
#include "model/dense_cache.h"
#include "model/plane_cache.h"
#include "model/served_model.h"

namespace perigee::model {
namespace {

using Json = nlohmann::json;

const std::string kModel = std::string(PERIGEE_SOURCE_DIR) + "/models/podling";
const std::string kData = std::string(PERIGEE_SOURCE_DIR) + "/tests/model/testdata/";

Json ReadJson(const std::string& name) { return Json::parse(*ReadFile(kData + name)); }

class TransformerTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    auto served = ServedModel::Load({.folder = kModel, .plan_file = "", .block_tokens = 16});
    ASSERT_TRUE(served.ok()) << served.status();
    served_ = served->release();
    prompt_ = ReadJson("podling_needle.json")["prompt_ids"].get<std::vector<int32_t>>();
    answer_ = ReadJson("podling_needle.json")["answer_ids"].get<std::vector<int32_t>>();
  }

  static const Transformer& transformer() { return served_->transformer(); }
  static int q_heads() { return transformer().config().q_heads; }

  static pod::Plan PlanWith(pod::Sharing sharing) {
    const pod::Plan& plan = served_->plan();
    std::vector<pod::Slot> slots;
    for (int l = 0; l < plan.shape().layers; ++l) {
      for (int h = 0; h < plan.shape().kv_heads; ++h) slots.push_back(plan.slot(l, h));
    }
    return *pod::Plan::Create(plan.shape(), plan.window(), sharing, plan.near_codec(), slots, plan.model_fingerprint());
  }
  static pod::Plan IdentityPlan() {
    return *pod::Plan::Identity(served_->plan().shape(), {16, 128}, served_->fingerprint());
  }

  // Runs prompt and answer in chunks; the logits of the last prompt token and the teacher-forced greedy tokens.
  struct Outcome {
    std::vector<float> last_prompt_logits;
    std::vector<int> predicted;
  };
  static Outcome Run(KvCache& cache, size_t chunk) {
    std::vector<int32_t> ids = prompt_;
    ids.insert(ids.end(), answer_.begin(), answer_.end());
    Outcome out;
    std::vector<float> logits;
    const size_t vocab = static_cast<size_t>(transformer().config().vocab);
    for (size_t begin = 0; begin < ids.size(); begin += chunk) {
      const size_t n = std::min(chunk, ids.size() - begin);
      const absl::Status status = transformer().Forward(std::span(ids).subspan(begin, n), cache, Logits::kAll, &logits);
      EXPECT_TRUE(status.ok()) << status;
      for (size_t t = begin; t < begin + n; ++t) {
        const float* row = &logits[(t - begin) * vocab];
        if (t + 1 == prompt_.size()) out.last_prompt_logits.assign(row, row + vocab);
        if (t + 1 >= prompt_.size() && t + 1 < ids.size()) {
          out.predicted.push_back(static_cast<int>(std::max_element(row, row + vocab) - row));
        }
      }
    }
    return out;
  }

  static float MaxDifference(const std::vector<float>& a, const std::vector<float>& b) {
    EXPECT_EQ(a.size(), b.size());
    float worst = 0;
    for (size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]));
    return worst;
  }

  static ServedModel* served_;
  static std::vector<int32_t> prompt_, answer_;
};
ServedModel* TransformerTest::served_ = nullptr;
std::vector<int32_t> TransformerTest::prompt_, TransformerTest::answer_;

// PyTorch in float64 with unrounded keys and values, on the same bf16 weights: what is left is the cache's bf16
// rounding.
constexpr float kBf16CacheTolerance = 0.08f;

// The checkpoint's makers published values of the float32 weights; ours are bf16.
constexpr float kBf16WeightsTolerance = 0.5f;

TEST_F(TransformerTest, AgreesWithPyTorchAndWithThePublishedFloat32ValuesUnderFullAttentionKeyAndScoreSharing) {
  const std::pair<Json, float> references[] = {{ReadJson("podling_expected.json"), kBf16CacheTolerance},
                                               {ReadJson("reference_sharing.json"), kBf16WeightsTolerance}};
  const std::pair<const char*, pod::Plan> cases[] = {{"full", IdentityPlan()},
                                                     {"key_sharing", PlanWith(pod::Sharing::kKey)},
                                                     {"score_sharing", PlanWith(pod::Sharing::kScore)}};
  for (const auto& [name, plan] : cases) {
    SCOPED_TRACE(name);
    DenseCache cache(plan, /*round_tokens=*/1, q_heads());
    const Outcome outcome = Run(cache, 4096);
    for (const auto& [reference, tolerance] : references) {
      SCOPED_TRACE(reference["made_by"].get<std::string>());
      const Json& expected = reference[name];
      EXPECT_EQ(outcome.predicted, expected["predicted"].get<std::vector<int>>());
      EXPECT_LT(MaxDifference(outcome.last_prompt_logits, expected["last_prompt_logits"].get<std::vector<float>>()),
                tolerance);
    }
  }
}

// Full attention knows no window, so the served kernels can be held to PyTorch without the double reference between.
TEST_F(TransformerTest, PlanesUnderTheIdentityPlanAgreeWithPyTorchDirectly) {
  const Json expected = ReadJson("podling_expected.json")["full"];
  const pod::Layout layout = *pod::Layout::Create(IdentityPlan(), 64);
  PlaneCache cache(&layout, &transformer().rope(), q_heads(), HeapPlanes());
  const Outcome outcome = Run(cache, 256);
  EXPECT_EQ(outcome.predicted, expected["predicted"].get<std::vector<int>>());
  EXPECT_LT(MaxDifference(outcome.last_prompt_logits, expected["last_prompt_logits"].get<std::vector<float>>()),
            kBf16CacheTolerance);
}

TEST_F(TransformerTest, PlanesGiveWhatTheDoubleReferenceGivesWhateverTheChunking) {
  for (const pod::Plan& plan : {IdentityPlan(), PlanWith(pod::Sharing::kKey), PlanWith(pod::Sharing::kScore)}) {
    DenseCache reference(plan, 16, q_heads());
    const Outcome expected = Run(reference, 4096);
    const pod::Layout layout = *pod::Layout::Create(plan, 16);
    for (size_t chunk : {size_t{4096}, size_t{64}, size_t{7}}) {
      PlaneCache cache(&layout, &transformer().rope(), q_heads(), HeapPlanes());
      const Outcome outcome = Run(cache, chunk);
      EXPECT_EQ(outcome.predicted, expected.predicted);
      EXPECT_LT(MaxDifference(outcome.last_prompt_logits, expected.last_prompt_logits), 0.01f) << "chunk " << chunk;
    }
  }
}

TEST_F(TransformerTest, RetiringProximalPlanesChangesNothing) {
  const pod::Layout layout = *pod::Layout::Create(PlanWith(pod::Sharing::kKey), 16);
  PlaneCache kept(&layout, &transformer().rope(), q_heads(), HeapPlanes());
  PlaneCache retired(&layout, &transformer().rope(), q_heads(), HeapPlanes());
  std::vector<float> a, b;
  for (size_t i = 0; i < 400; ++i) {
    ASSERT_TRUE(transformer().Forward(std::span(prompt_).subspan(i, 1), kept, Logits::kLast, &a).ok());
    ASSERT_TRUE(transformer().Forward(std::span(prompt_).subspan(i, 1), retired, Logits::kLast, &b).ok());
    retired.RetireProximal(retired.tokens());
    ASSERT_EQ(a, b) << i;
  }
  int freed = 0;
  for (const CachedBlock& block : retired.blocks()) freed += block.proximal == nullptr;
  EXPECT_GT(freed, 10);
}

TEST_F(TransformerTest, RefusesForeignTokensAndPositionsPastTheContext) {
  PlaneCache cache(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
  const int32_t foreign[] = {5, 1024};
  const int32_t negative[] = {-1};
  EXPECT_EQ(transformer().Forward(foreign, cache, Logits::kNone, nullptr).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(transformer().Forward(negative, cache, Logits::kNone, nullptr).code(), absl::StatusCode::kInvalidArgument);
  const std::vector<int32_t> endless(static_cast<size_t>(transformer().config().max_positions) + 1, 5);
  EXPECT_EQ(transformer().Forward(endless, cache, Logits::kNone, nullptr).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(transformer().Forward({}, cache, Logits::kNone, nullptr).code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(TransformerTest, SequencesOfABatchAreComputedAsAlone) {
  // Prompts and single tokens at different positions, in the same passes.
  const std::vector<std::vector<size_t>> chunks = {{200, 1, 1, 57}, {1, 64, 300, 1}, {63, 1, 1, 1}};
  std::vector<PlaneCache> together, alone;
  for (size_t i = 0; i < chunks.size(); ++i) {
    together.emplace_back(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
    alone.emplace_back(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
  }
  for (size_t step = 0; step < 4; ++step) {
    std::vector<std::vector<float>> logits(chunks.size());
    std::vector<BatchItem> items;
    for (size_t i = 0; i < chunks.size(); ++i) {
      const size_t begin = static_cast<size_t>(together[i].tokens()) + 10 * i;  // Other tokens for each.
      items.push_back({.tokens = std::span(prompt_).subspan(begin, chunks[i][step]),
                       .cache = &together[i],
                       .which = i == 1 ? Logits::kAll : Logits::kLast,
                       .logits = &logits[i]});
    }
    ASSERT_TRUE(transformer().ForwardBatch(items).ok());
    for (size_t i = 0; i < chunks.size(); ++i) {
      ASSERT_TRUE(items[i].status.ok()) << items[i].status;
      std::vector<float> want;
      ASSERT_TRUE(transformer().Forward(items[i].tokens, alone[i], items[i].which, &want).ok());
      ASSERT_EQ(logits[i].size(), want.size());
      EXPECT_EQ(together[i].tokens(), alone[i].tokens());
      EXPECT_LT(MaxDifference(logits[i], want), 0.02f) << "sequence " << i << ", step " << step;
    }
  }
}

TEST_F(TransformerTest, AnItemThatFailsDoesNotDisturbTheOthersOfItsBatch) {
  PlaneCache good(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
  PlaneCache foreign(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
  PlaneCache full(&served_->layout(), &transformer().rope(), q_heads(),
                  [](size_t) { return absl::ResourceExhaustedError("full"); });
  PlaneCache stopped(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
  PlaneCache alone(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
  const std::span<const int32_t> tokens = std::span(prompt_).first(20);
  const int32_t bad[] = {5, 100000};
  std::vector<float> logits, want;
  BatchItem items[] = {{.tokens = bad, .cache = &foreign},
                       {.tokens = tokens, .cache = &full},
                       {.tokens = tokens, .cache = &good, .which = Logits::kLast, .logits = &logits},
                       {.tokens = tokens, .cache = &stopped, .after_layer = [](int layer) {
                          return layer == 2 ? absl::AbortedError("enough") : absl::OkStatus();
                        }}};
  ASSERT_TRUE(transformer().ForwardBatch(items).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(items[0].status)) << items[0].status;
  EXPECT_TRUE(absl::IsResourceExhausted(items[1].status)) << items[1].status;
  ASSERT_TRUE(items[2].status.ok()) << items[2].status;
  EXPECT_TRUE(absl::IsAborted(items[3].status)) << items[3].status;
  EXPECT_EQ(stopped.tokens(), 0);
  ASSERT_TRUE(transformer().Forward(tokens, alone, Logits::kLast, &want).ok());
  EXPECT_LT(MaxDifference(logits, want), 0.02f);
}

TEST_F(TransformerTest, AForkGoesItsOwnWayFromACommonPrompt) {
  const std::span<const int32_t> start = std::span(prompt_).first(150);  // Ends within a block.
  PlaneCache cache(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
  ASSERT_TRUE(transformer().Forward(start, cache, Logits::kNone, nullptr).ok());
  absl::StatusOr<PlaneCache> fork = cache.Fork();
  ASSERT_TRUE(fork.ok()) << fork.status();
  EXPECT_EQ(fork->blocks()[0].distant, cache.blocks()[0].distant);
  EXPECT_NE(fork->blocks().back().distant, cache.blocks().back().distant);
  // Both write into the block that is not full, different tokens.
  std::vector<float> one, other, want;
  ASSERT_TRUE(transformer().Forward(std::span(prompt_).subspan(150, 60), cache, Logits::kLast, &one).ok());
  ASSERT_TRUE(transformer().Forward(std::span(prompt_).subspan(400, 60), *fork, Logits::kLast, &other).ok());
  ASSERT_TRUE(transformer().Forward(std::span(prompt_).subspan(210, 1), cache, Logits::kLast, &one).ok());
  PlaneCache alone(&served_->layout(), &transformer().rope(), q_heads(), HeapPlanes());
  ASSERT_TRUE(transformer().Forward(std::span(prompt_).first(210), alone, Logits::kNone, nullptr).ok());
  ASSERT_TRUE(transformer().Forward(std::span(prompt_).subspan(210, 1), alone, Logits::kLast, &want).ok());
  EXPECT_LT(MaxDifference(one, want), 0.02f);
  EXPECT_GT(MaxDifference(other, want), 0.02f);
}

// What podling does not have: scaled RoPE, biases, QK-norm, tied embeddings, 16- and 32-bit float weights.
class FamilyTest : public ::testing::TestWithParam<std::string> {};

TEST_P(FamilyTest, AgreesWithPyTorch) {
  const std::string folder = kData + "families/" + GetParam();
  const auto transformer = Transformer::Load(folder);
  ASSERT_TRUE(transformer.ok()) << transformer.status();
  const Json expected = Json::parse(*ReadFile(folder + "/expected.json"));
  const auto ids = expected["ids"].get<std::vector<int32_t>>();
  const pod::Plan plan = *pod::Plan::Identity((*transformer)->kv_shape(), {16, 32}, Digest{}, pod::Codec::kFp16);
  const pod::Layout layout = *pod::Layout::Create(plan, 16);
  PlaneCache cache(&layout, &(*transformer)->rope(), (*transformer)->config().q_heads, HeapPlanes());
  std::vector<float> logits;
  for (size_t begin = 0; begin < ids.size(); begin += 50) {
    ASSERT_TRUE((*transformer)->Forward(std::span(ids).subspan(begin, 50), cache, Logits::kLast, &logits).ok());
  }
  const auto want = expected["last_logits"].get<std::vector<float>>();
  ASSERT_EQ(logits.size(), want.size());
  // What is left is the cache's fp16 rounding.
  for (size_t v = 0; v < want.size(); ++v) EXPECT_NEAR(logits[v], want[v], 0.01f) << v;
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTest,
                         ::testing::Values("llama3_rope_f32", "mistral_f32", "qwen2_bias_f16", "qwen3_norm_tied_f32"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace perigee::model
