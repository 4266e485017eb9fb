// Calibration: the arithmetic of similarity, the walk over runs, the search under a budget, the samples.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "absl/strings/str_cat.h"
#include "model/calibration_samples.h"
#include "model/calibration_search.h"
#include "model/calibration_similarity.h"
#include "model/dense_cache.h"
#include "model/served_model.h"

namespace perigee::model {
namespace {

using pod::Role;
using pod::SlotId;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

const std::string kModel = std::string(PERIGEE_SOURCE_DIR) + "/models/podling";
constexpr pod::Window kWindow{16, 64};
constexpr int kBlockTokens = 16;

const ServedModel& Podling() {
  static const ServedModel* served =
      ServedModel::Load({.folder = kModel, .plan_file = "identity", .block_tokens = kBlockTokens})->release();
  return *served;
}

std::vector<int32_t> Text(uint64_t seed, size_t bytes) {
  return *Podling().tokenizer().Encode(FillerProse(seed, bytes), false);
}

CalibrationSampleOptions SmallSamples(uint64_t seed) {
  CalibrationSampleOptions options;
  options.prose = 2;
  options.recall = 4;
  options.sample_tokens = 288;
  options.window = kWindow;
  options.block_tokens = kBlockTokens;
  options.seed = seed;
  return options;
}

// A model of random weights: every slot matters a little.
std::unique_ptr<Transformer> RandomModel() {
  ModelConfig c;
  c.layers = 3;
  c.hidden = 32;
  c.ffn = 48;
  c.q_heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.vocab = 64;
  c.max_positions = 512;
  std::mt19937 generator(7);  // Its raw numbers are the same everywhere.
  const auto random = [&](size_t n, float scale) {
    std::vector<float> v(n);
    for (float& x : v) x = scale * (static_cast<float>(generator()) / 2147483648.0f - 1);
    return v;
  };
  LlamaWeights w;
  w.embed = random(64 * 32, 1);
  w.lm_head = random(64 * 32, 0.5f);
  w.final_norm.assign(32, 1);
  for (int l = 0; l < c.layers; ++l) {
    LayerWeights layer;
    layer.input_norm.assign(32, 1);
    layer.post_norm.assign(32, 1);
    layer.q = random(32 * 32, 0.5f);
    layer.k = random(16 * 32, 0.5f);
    layer.v = random(16 * 32, 0.5f);
    layer.o = random(32 * 32, 0.5f);
    layer.gate = random(48 * 32, 0.3f);
    layer.up = random(48 * 32, 0.3f);
    layer.down = random(32 * 48, 0.3f);
    w.layers.push_back(std::move(layer));
  }
  EXPECT_TRUE(Validate(c).ok()) << Validate(c);
  return std::make_unique<Transformer>(c, std::move(w));
}

// Random tokens in two kinds: the loss is all that these samples are for.
std::vector<CalibrationSample> RandomSamples() {
  std::mt19937 generator(11);
  std::vector<CalibrationSample> samples(4);
  for (size_t i = 0; i < samples.size(); ++i) {
    for (int t = 0; t < 200; ++t) samples[i].tokens.push_back(static_cast<int32_t>(generator() % 64));
    samples[i].recall = i >= 2;
    samples[i].scored_begin =
        samples[i].recall ? 195 : static_cast<size_t>(FirstDistantQuery(kWindow, kBlockTokens)) + 1;
  }
  return samples;
}

TEST(JsDivergenceTest, IsZeroForEqualRowsOneForDisjointOnesAndSymmetric) {
  const std::vector<float> a = {0.5f, 0.25f, 0.25f, 0}, b = {0.1f, 0.2f, 0.3f, 0.4f};
  const std::vector<float> left = {0.5f, 0.5f, 0, 0}, right = {0, 0, 0.75f, 0.25f};
  EXPECT_EQ(JsDivergence(a, a), 0);
  EXPECT_EQ(JsDivergence(b, b), 0);
  EXPECT_NEAR(JsDivergence(left, right), 1, 1e-6);
  EXPECT_EQ(JsDivergence(a, b), JsDivergence(b, a));
}

TEST(JsDivergenceTest, IsInBaseTwo) {
  // m = (3/4, 1/4): JS = H(m) - (H(1, 0) + H(1/2, 1/2)) / 2 = 0.811278 - 0.5 bits.
  EXPECT_NEAR(JsDivergence(std::vector<float>{1, 0}, std::vector<float>{0.5f, 0.5f}), 0.8112781 - 0.5, 1e-6);
}

// kv head 0: layers 0..3; similarity[layer][lead layer]. kv head 1: nothing is alike.
SimilarityTable HandMadeTable() {
  SimilarityTable table({4, 2, 8});
  const double similarity[4][4] = {{0, 0, 0, 0}, {0.6, 0, 0, 0}, {0.4, 0.7, 0, 0}, {0.9, 0.2, 0.5, 0}};
  for (int l = 1; l < 4; ++l) {
    for (int below = 0; below < l; ++below) {
      table.set({l, 0}, {below, 0}, similarity[l][below]);
      table.set({l, 1}, {below, 1}, 0.01 * l);
    }
  }
  return table;
}

std::vector<int> LeadLayers(const std::vector<pod::Slot>& slots, int kv_head) {
  std::vector<int> layers;
  for (size_t i = static_cast<size_t>(kv_head); i < slots.size(); i += 2) layers.push_back(slots[i].lead.layer);
  return layers;
}

TEST(GreedyRunsTest, ALayerJoinsWhileItIsAsSimilarToTheRunsLowestLayerAsTheThreshold) {
  const SimilarityTable table = HandMadeTable();
  const auto runs = [&](double threshold, int lead_layers = 0) {
    return LeadLayers(GreedyRuns(table, threshold, lead_layers, pod::Codec::kBf16), 0);
  };
  EXPECT_THAT(runs(0), ElementsAre(0, 0, 0, 0));
  EXPECT_THAT(runs(0.4), ElementsAre(0, 0, 0, 0));   // Equal is enough.
  EXPECT_THAT(runs(0.41), ElementsAre(0, 0, 2, 2));  // Against the lowest layer (0.4), not the previous one (0.7).
  EXPECT_THAT(runs(0.5), ElementsAre(0, 0, 2, 2));
  EXPECT_THAT(runs(0.51), ElementsAre(0, 0, 2, 3));  // A run that has ended is not joined again, though 3 is like 0.
  EXPECT_THAT(runs(0.61), ElementsAre(0, 1, 1, 3));
  EXPECT_THAT(runs(1.0), ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(runs(0.4, 2), ElementsAre(0, 1, 1, 3));  // Layer 1 must lead and then is the run's lowest.
  EXPECT_THAT(runs(0, 4), ElementsAre(0, 1, 2, 3));
  for (double threshold : {0.0, 0.3, 0.5, 0.7, 1.0}) {
    EXPECT_TRUE(pod::Plan::Create(table.shape(), kWindow, pod::Sharing::kKey, pod::Codec::kBf16,
                                  GreedyRuns(table, threshold, 0, pod::Codec::kBf16), Digest{})
                    .ok());
  }
}

TEST(GreedyRunsTest, TheThresholdForANumberOfFollowersGivesThatNumber) {
  const SimilarityTable table = HandMadeTable();
  for (int followers : {0, 1, 2, 3, 6}) {
    const auto threshold = ThresholdForFollowers(table, followers, 0);
    ASSERT_TRUE(threshold.ok()) << followers << threshold.status();
    const auto slots = GreedyRuns(table, *threshold, 0, pod::Codec::kBf16);
    EXPECT_EQ(std::count_if(slots.begin(), slots.end(), [](const pod::Slot& s) { return s.role == Role::kFollower; }),
              followers);
  }
  const auto none = ThresholdForFollowers(table, 8, 0);
  EXPECT_TRUE(absl::IsNotFound(none.status()));
  EXPECT_THAT(std::string(none.status().message()), HasSubstr("6 can be had"));
  EXPECT_TRUE(absl::IsNotFound(ThresholdForFollowers(table, 6, 2).status()));
}

TEST(WithSlotTest, GivesValidPlansOrNone) {
  const pod::KvShape shape{3, 2, 8};
  const auto valid = [&](const std::vector<pod::Slot>& slots) {
    return pod::Plan::Create(shape, kWindow, pod::Sharing::kKey, pod::Codec::kBf16, slots, Digest{}).ok();
  };
  std::vector<pod::Slot> slots(6);
  for (int i = 0; i < 6; ++i) slots[static_cast<size_t>(i)].lead = {i / 2, i % 2};
  EXPECT_FALSE(WithSlot(shape, slots, {1, 0}, Role::kFollower, {2, 0}));   // From above.
  EXPECT_FALSE(WithSlot(shape, slots, {1, 0}, Role::kFollower, {1, 0}));   // From itself.
  auto changed = WithSlot(shape, slots, {2, 1}, Role::kFollower, {2, 0});  // The other head of its layer.
  ASSERT_TRUE(changed);
  EXPECT_TRUE(valid(*changed));
  EXPECT_FALSE(WithSlot(shape, *changed, {2, 0}, Role::kNearOnly, {2, 0}));  // It has a follower.
  EXPECT_FALSE(WithSlot(shape, *changed, {2, 0}, Role::kFollower, {2, 1}));  // A follower leads nobody.
  changed = WithSlot(shape, *changed, {2, 0}, Role::kFollower, {0, 1});
  ASSERT_TRUE(changed);
  EXPECT_TRUE(valid(*changed));
  EXPECT_EQ((*changed)[5].lead, (SlotId{0, 1}));  // The follower went with its lead.
  changed = WithSlot(shape, *changed, {2, 1}, Role::kNearOnly, {});
  ASSERT_TRUE(changed);
  EXPECT_TRUE(valid(*changed));
}

// Any choice of slots, however it was come by, is a valid plan.
TEST(WithSlotTest, EveryRandomSequenceOfAcceptedChangesStaysValid) {
  const pod::KvShape shape{5, 3, 8};
  std::mt19937 generator(3);
  for (int round = 0; round < 20; ++round) {
    std::vector<pod::Slot> slots(15);
    for (int i = 0; i < 15; ++i) slots[static_cast<size_t>(i)].lead = {i / 3, i % 3};
    for (int step = 0; step < 60; ++step) {
      const auto slot = [&] { return SlotId{static_cast<int>(generator() % 5), static_cast<int>(generator() % 3)}; };
      const SlotId which = slot(), lead = slot();
      auto changed = WithSlot(shape, slots, which, generator() % 2 == 0 ? Role::kFollower : Role::kNearOnly, lead);
      if (!changed) continue;
      slots = *std::move(changed);
      const auto plan = pod::Plan::Create(shape, kWindow, pod::Sharing::kKey, pod::Codec::kBf16, slots, Digest{});
      ASSERT_TRUE(plan.ok()) << plan.status();
    }
  }
}

TEST(SimilarityTest, AgreesWithAttentionRowsComputedPlainly) {
  const auto model = RandomModel();
  const auto samples = RandomSamples();
  SimilarityOptions options;
  options.window = kWindow;
  options.block_tokens = kBlockTokens;
  options.rows = 20;
  options.sharing = pod::Sharing::kScore;
  const auto score = MeasureSimilarity(*model, samples, options);
  options.sharing = pod::Sharing::kKey;
  const auto key = MeasureSimilarity(*model, samples, options);
  const auto again = MeasureSimilarity(*model, samples, options);
  ASSERT_TRUE(score.ok() && key.ok() && again.ok()) << score.status();
  for (int l = 0; l < 3; ++l) {
    for (int h = 0; h < 2; ++h) {
      const SlotId slot{l, h};
      EXPECT_GT(key->distant_mass(slot), 0);
      EXPECT_LT(key->distant_mass(slot), 1);
      EXPECT_EQ(key->LeadsBySimilarity(slot).size(), static_cast<size_t>(2 * l + 1));
      for (const SlotId lead : key->LeadsBySimilarity(slot)) {
        EXPECT_GT(key->at(slot, lead), 0);
        EXPECT_LT(key->at(slot, lead), 1);
        EXPECT_EQ(key->at(slot, lead), again->at(slot, lead));
      }
    }
    // Comparing two slots' own rows is symmetric.
    EXPECT_NEAR(score->at({l, 0}, {l, 1}), score->at({l, 1}, {l, 0}), 1e-9);
  }
}

// One layer whose two kv heads have the same weights: the same rows, in both forms.
TEST(SimilarityTest, SlotsThatLookAlikeHaveSimilarityOne) {
  auto random = RandomModel();
  ModelConfig c = random->config();
  c.layers = 1;
  LlamaWeights w;
  std::mt19937 generator(5);
  const auto fill = [&](size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = static_cast<float>(generator()) / 2147483648.0f - 1;
    return v;
  };
  w.embed = fill(64 * 32);
  w.lm_head = fill(64 * 32);
  w.final_norm.assign(32, 1);
  LayerWeights layer;
  layer.input_norm.assign(32, 1);
  layer.post_norm.assign(32, 1);
  const auto twice = [](std::vector<float> v) {
    v.insert(v.end(), v.begin(), v.end());
    return v;
  };
  layer.q = twice(fill(16 * 32));
  layer.k = twice(fill(8 * 32));
  layer.v = fill(16 * 32);
  layer.o = fill(32 * 32);
  layer.gate = fill(48 * 32);
  layer.up = fill(48 * 32);
  layer.down = fill(32 * 48);
  w.layers.push_back(std::move(layer));
  const Transformer model(c, std::move(w));
  for (pod::Sharing sharing : {pod::Sharing::kKey, pod::Sharing::kScore}) {
    SimilarityOptions options;
    options.window = kWindow;
    options.block_tokens = kBlockTokens;
    options.sharing = sharing;
    const auto table = MeasureSimilarity(model, RandomSamples(), options);
    ASSERT_TRUE(table.ok()) << table.status();
    EXPECT_NEAR(table->at({0, 1}, {0, 0}), 1, 1e-5);
  }
}

TEST(MeasureLossTest, IsThatOfTheDoubleReferenceUnderTheSamePlan) {
  const auto model = RandomModel();
  const auto samples = RandomSamples();
  std::vector<pod::Slot> slots(6);
  for (int i = 0; i < 6; ++i) slots[static_cast<size_t>(i)].lead = {i / 2, i % 2};
  slots[2] = {Role::kFollower, {0, 1}, pod::Codec::kBf16};
  slots[5] = {Role::kNearOnly, {}, pod::Codec::kBf16};
  const pod::Plan plan =
      *pod::Plan::Create(model->kv_shape(), kWindow, pod::Sharing::kKey, pod::Codec::kBf16, slots, Digest{});
  const auto loss = MeasureLoss(*model, plan, kBlockTokens, samples);
  ASSERT_TRUE(loss.ok()) << loss.status();
  double nll[2] = {0, 0};
  int tokens[2] = {0, 0};
  for (const CalibrationSample& sample : samples) {
    DenseCache cache(plan, kBlockTokens, 4);
    std::vector<float> logits;
    ASSERT_TRUE(model->Forward(sample.tokens, cache, Logits::kAll, &logits).ok());
    for (size_t t = sample.scored_begin; t < sample.tokens.size(); ++t) {
      const float* row = &logits[(t - 1) * 64];
      double sum = 0;
      for (int v = 0; v < 64; ++v) sum += std::exp(static_cast<double>(row[v]));
      nll[sample.recall] += std::log(sum) - row[sample.tokens[t]];
      ++tokens[sample.recall];
    }
  }
  EXPECT_NEAR(loss->prose_nll, nll[0] / tokens[0], 1e-3);
  EXPECT_NEAR(loss->recall_nll, nll[1] / tokens[1], 1e-3);
  EXPECT_EQ(loss->recall_total, 2);
}

SearchOptions SmallSearch() {
  SearchOptions options;
  options.window = kWindow;
  options.block_tokens = kBlockTokens;
  options.saving_at_tokens = 4096;
  options.leads_tried = 2;
  return options;
}

TEST(SearchPlanTest, StaysWithinItsBudgetsOnARandomModelAndSpendsMoreWhenItMay) {
  const auto model = RandomModel();
  const auto samples = RandomSamples();
  SimilarityOptions similarity;
  similarity.window = kWindow;
  similarity.block_tokens = kBlockTokens;
  const auto table = MeasureSimilarity(*model, samples, similarity);
  ASSERT_TRUE(table.ok());
  const LossOf loss_of = [&](const pod::Plan& plan) { return MeasureLoss(*model, plan, kBlockTokens, samples); };
  double last_saving = -1;
  for (double budget : {0.0, 0.01, 1e9}) {
    SearchOptions options = SmallSearch();
    options.budget_nll = options.budget_recall_nll = budget;
    const auto result = SearchPlan(*table, options, loss_of);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_LE(result->loss.prose_nll, result->dense.prose_nll + budget);
    EXPECT_LE(result->loss.recall_nll, result->dense.recall_nll + budget);
    EXPECT_GE(result->loss.recall_right, result->dense.recall_right);
    const auto measured_again = loss_of(result->plan);
    EXPECT_EQ(measured_again->prose_nll, result->loss.prose_nll);
    EXPECT_EQ(measured_again->recall_nll, result->loss.recall_nll);
    double saving = 0;
    for (const SearchStep& step : result->steps) {
      if (!step.accepted) continue;
      EXPECT_GT(step.predicted_saving, saving);
      saving = step.predicted_saving;
    }
    EXPECT_EQ(pod::Layout::Create(result->plan, kBlockTokens)->PredictedSaving(4096), saving);
    EXPECT_GE(saving, last_saving);
    last_saving = saving;
  }
  EXPECT_GT(last_saving, 0.9);  // Nothing is forbidden: all slots are near-only.
}

// Losses by decree: what the search makes of them.
class DecreedLoss {
 public:
  std::vector<std::pair<SlotId, double>> prose_price;  // Of any change of the slot.
  std::vector<SlotId> carries_recall;                  // Recall is lost when such a slot is no lead.
  absl::StatusOr<CalibrationLoss> operator()(const pod::Plan& plan) const {
    CalibrationLoss loss{2.0, 0.01, 4, 4};
    for (const auto& [slot, price] : prose_price) loss.prose_nll += plan.slot(slot).role == Role::kLead ? 0 : price;
    for (const SlotId slot : carries_recall) {
      if (plan.slot(slot).role != Role::kLead) loss.recall_right = 0;
    }
    return loss;
  }
};

TEST(SearchPlanTest, NeverTakesASlotThatCarriesRecallHoweverSimilarAndCheap) {
  SimilarityTable table({2, 2, 8});
  for (int h = 0; h < 2; ++h) {
    for (int lead_head = 0; lead_head < 2; ++lead_head) table.set({1, h}, {0, lead_head}, 0.9);
  }
  DecreedLoss decreed;
  decreed.carries_recall = {{1, 0}};
  SearchOptions options = SmallSearch();
  options.budget_nll = 100;
  options.budget_recall_nll = 100;
  const auto result = SearchPlan(table, options, LossOf(decreed));
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->plan.slot(1, 0).role, Role::kLead);
  EXPECT_EQ(result->plan.CountRole(Role::kLead), 1);
  EXPECT_EQ(result->loss.recall_right, 4);
}

TEST(SearchPlanTest, TakesTheCheapSlotsFirstAndStopsAtTheBudget) {
  SimilarityTable table({2, 2, 8});
  DecreedLoss decreed;
  decreed.prose_price = {{{0, 0}, 0.03}, {{0, 1}, 0.06}, {{1, 0}, 0.02}, {{1, 1}, 0.04}};
  SearchOptions options = SmallSearch();
  options.budget_nll = 0.095;
  options.leads_tried = 0;
  const auto result = SearchPlan(table, options, LossOf(decreed));
  ASSERT_TRUE(result.ok());
  std::vector<SlotId> accepted;
  for (const SearchStep& step : result->steps) {
    if (step.accepted) accepted.push_back(step.slot);
  }
  EXPECT_THAT(accepted, ElementsAre(SlotId{1, 0}, SlotId{0, 0}, SlotId{1, 1}));
  EXPECT_NEAR(result->loss.prose_nll, 2.09, 1e-9);
}

TEST(SearchPlanTest, SharesOnlyWhereNearOnlyIsNotAllowedAndPassesErrorsOn) {
  SimilarityTable table({3, 2, 8});
  SearchOptions options = SmallSearch();
  options.allow_near_only = false;
  const auto result = SearchPlan(table, options, LossOf(DecreedLoss{}));
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->plan.CountRole(Role::kNearOnly), 0);
  EXPECT_GE(result->plan.CountRole(Role::kFollower), 4);
  const auto failed =
      SearchPlan(table, options, [](const pod::Plan&) { return absl::UnavailableError("no loss today"); });
  EXPECT_TRUE(absl::IsUnavailable(failed.status()));
  options.budget_nll = std::nan("");
  EXPECT_TRUE(absl::IsInvalidArgument(SearchPlan(table, options, LossOf(DecreedLoss{})).status()));
}

TEST(SamplesTest, RecallTargetsLieWhollyInThePartThatIsDistantToEveryAnsweringQuery) {
  const std::vector<int32_t> text = Text(1, 20000);
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    CalibrationSampleOptions options = SmallSamples(seed);
    options.recall = 10;
    options.sample_tokens = static_cast<int>(240 + 16 * seed);
    const auto samples = MakeCalibrationSamples(Podling().tokenizer(), text, options);
    ASSERT_TRUE(samples.ok()) << samples.status();
    ASSERT_EQ(samples->size(), 12u);
    for (const CalibrationSample& sample : *samples) {
      ASSERT_EQ(sample.tokens.size(), static_cast<size_t>(options.sample_tokens));
      if (!sample.recall) continue;
      for (size_t t = sample.scored_begin; t < sample.tokens.size(); ++t) {
        const int64_t query = static_cast<int64_t>(t) - 1;
        EXPECT_GE(static_cast<int64_t>(sample.target_begin), pod::SinkEnd(kWindow, kBlockTokens));
        EXPECT_LE(static_cast<int64_t>(sample.target_end), pod::RecentBegin(kWindow, kBlockTokens, query));
      }
      const std::span<const int32_t> ids(sample.tokens);
      const auto decode = [&](size_t begin, size_t end) {
        return *Podling().tokenizer().Decode(ids.subspan(begin, end - begin));
      };
      const std::string target = decode(sample.target_begin, sample.target_end);
      const std::string answer = decode(sample.scored_begin, ids.size());
      ASSERT_EQ(answer.size(), 5u);
      EXPECT_THAT(target, HasSubstr(absl::StrCat(" is ", answer, ".")));
      const std::string name = target.substr(18, target.find(" is ") - 18);  // After " The pass key for ".
      EXPECT_THAT(decode(sample.scored_begin - 40, sample.scored_begin), HasSubstr(name));
    }
  }
}

TEST(SamplesTest, TheSameSeedGivesTheSameSamplesAndAnotherOthers) {
  const std::vector<int32_t> text = Text(1, 20000);
  const auto a = MakeCalibrationSamples(Podling().tokenizer(), text, SmallSamples(1));
  const auto b = MakeCalibrationSamples(Podling().tokenizer(), text, SmallSamples(1));
  const auto c = MakeCalibrationSamples(Podling().tokenizer(), text, SmallSamples(2));
  ASSERT_TRUE(a.ok() && b.ok() && c.ok());
  for (size_t i = 0; i < a->size(); ++i) {
    EXPECT_EQ((*a)[i].tokens, (*b)[i].tokens);
    if ((*a)[i].recall) {
      EXPECT_NE((*a)[i].tokens, (*c)[i].tokens);
    }
  }
}

TEST(SamplesTest, RefusesWhatLeavesNothingDistantAndSaysWhatIsNeeded) {
  const std::vector<int32_t> text = Text(1, 20000);
  CalibrationSampleOptions options = SmallSamples(1);
  options.sample_tokens = 80;
  const auto near = MakeCalibrationSamples(Podling().tokenizer(), text, options);
  EXPECT_TRUE(absl::IsInvalidArgument(near.status()));
  EXPECT_THAT(std::string(near.status().message()), HasSubstr("nothing distant"));
  options.sample_tokens = 120;
  const auto tight = MakeCalibrationSamples(Podling().tokenizer(), text, options);
  EXPECT_TRUE(absl::IsInvalidArgument(tight.status()));
  EXPECT_THAT(std::string(tight.status().message()), HasSubstr("no room"));
  options.sample_tokens = 100000;
  const auto short_text = MakeCalibrationSamples(Podling().tokenizer(), text, options);
  EXPECT_TRUE(absl::IsInvalidArgument(short_text.status()));
  EXPECT_THAT(std::string(short_text.status().message()), HasSubstr("longer text"));
}

// podling's retrieval circuit was seeded: this proves the search, not a property of language models.
TEST(CalibrationOnPodling, ThePlanFoundByMeasurementLosesNoHeldOutPassKeyThatTheDenseModelRecalls) {
  const Transformer& model = Podling().transformer();
  const auto samples = MakeCalibrationSamples(Podling().tokenizer(), Text(1, 20000), SmallSamples(1));
  CalibrationSampleOptions held_options = SmallSamples(2);
  held_options.recall = 16;
  const auto held = MakeCalibrationSamples(Podling().tokenizer(), Text(2, 20000), held_options);
  ASSERT_TRUE(samples.ok() && held.ok());
  SimilarityOptions similarity;
  similarity.window = kWindow;
  similarity.block_tokens = kBlockTokens;
  similarity.rows = 16;
  const auto table = MeasureSimilarity(model, *samples, similarity);
  ASSERT_TRUE(table.ok());
  SearchOptions options = SmallSearch();
  options.leads_tried = 1;
  const auto result = SearchPlan(
      *table, options, [&](const pod::Plan& plan) { return MeasureLoss(model, plan, kBlockTokens, *samples); });
  ASSERT_TRUE(result.ok()) << result.status();
  const pod::Plan identity = *pod::Plan::Identity(model.kv_shape(), kWindow, Digest{});
  const auto dense = MeasureLoss(model, identity, kBlockTokens, *held);
  const auto plan = MeasureLoss(model, result->plan, kBlockTokens, *held);
  ASSERT_TRUE(dense.ok() && plan.ok());
  EXPECT_GE(dense->recall_right, 12);  // The model answers at all.
  EXPECT_GE(plan->recall_right, dense->recall_right);
  EXPECT_GT(pod::Layout::Create(result->plan, kBlockTokens)->PredictedSaving(4096), 0.1);
}

}  // namespace
}  // namespace perigee::model
