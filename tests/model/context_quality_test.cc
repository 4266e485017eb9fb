// Questions over documents, what is measured by them, and the file that says what was found.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "model/calibration_samples.h"
#include "model/context_measure.h"
#include "model/context_samples.h"
#include "model/measured_repair.h"
#include "model/served_model.h"

namespace perigee::model {
namespace {

using ::testing::HasSubstr;

const ServedModel& Podling() {
  static const ServedModel* served =
      ServedModel::Load({.folder = PERIGEE_SOURCE_DIR "/models/podling", .plan_file = "identity"})->release();
  return *served;
}

ContextSampleOptions Small() {
  ContextSampleOptions options;
  options.questions = 12;
  options.max_documents = 4;
  options.min_tokens = 40;
  options.max_tokens = 80;
  return options;
}

std::vector<ContextSample> Samples(const ContextSampleOptions& options) {
  const auto samples = MakeContextSamples(Podling().tokenizer(), FillerProse(3, 20000), options);
  EXPECT_TRUE(samples.ok()) << samples.status();
  return *samples;
}

std::string TextOf(const ContextSample& sample, ContextRange range) {
  return *Podling().tokenizer().Decode(
      std::span(sample.prompt).subspan(static_cast<size_t>(range.begin), static_cast<size_t>(range.tokens)));
}

TEST(ContextSamplesTest, TheStatementThatAnswersStandsInTheTargetDocumentAndNowhereElse) {
  std::set<size_t> counts, targets;
  for (const ContextSample& sample : Samples(Small())) {
    counts.insert(sample.documents.size());
    targets.insert(sample.target);
    const std::string answer = *Podling().tokenizer().Decode(sample.answer);
    EXPECT_EQ(sample.answer.size(), 5u) << answer;
    for (size_t d = 0; d < sample.documents.size(); ++d) {
      const std::string text = TextOf(sample, sample.documents[d]);
      EXPECT_NE(text.find(" The pass key for "), std::string::npos) << text;
      EXPECT_EQ(text.find(answer) != std::string::npos, d == sample.target) << text;
    }
    const int64_t end = sample.documents.back().begin + sample.documents.back().tokens;
    EXPECT_THAT(TextOf(sample, {end, static_cast<int64_t>(sample.prompt.size()) - end}), HasSubstr("pass key for"));
    EXPECT_EQ(sample.documents[0].begin, 0);  // podling's tokenizer adds no begin-of-sequence token by itself.
  }
  EXPECT_EQ(*counts.begin(), 2u);
  EXPECT_EQ(*counts.rbegin(), 4u);
  EXPECT_GT(targets.size(), 2u);
}

TEST(ContextSamplesTest, DocumentsHaveTheTokensTheyHaveAlone) {
  for (const ContextSample& sample : Samples(Small())) {
    for (const ContextRange& document : sample.documents) {
      const auto ids =
          std::span(sample.prompt).subspan(static_cast<size_t>(document.begin), static_cast<size_t>(document.tokens));
      EXPECT_EQ(*Podling().tokenizer().Encode(TextOf(sample, document), false),
                std::vector<int32_t>(ids.begin(), ids.end()));
      EXPECT_GE(document.tokens, 40);
      EXPECT_LE(document.tokens, 80 + 2 * 30 + 10);
    }
  }
}

TEST(ContextSamplesTest, AreAFunctionOfTheSeed) {
  ContextSampleOptions options = Small();
  const std::vector<ContextSample> a = Samples(options), b = Samples(options);
  options.seed = 2;
  const std::vector<ContextSample> c = Samples(options);
  for (size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].prompt, b[i].prompt);
    EXPECT_NE(a[i].prompt, c[i].prompt);
  }
}

TEST(ContextSamplesTest, TitlesStandBetweenContexts) {
  ContextSampleOptions options = Small();
  options.titles = true;
  const ContextSample sample = Samples(options)[0];
  EXPECT_EQ(TextOf(sample, {0, sample.documents[0].begin}), "\n\nDocument 1:\n");
  EXPECT_EQ(TextOf(sample, sample.documents[0]).find("Document"), std::string::npos);
}

TEST(ContextSamplesTest, StatementsAreCutBetweenNameAndDigits) {
  ContextSampleOptions options = Small();
  options.cut_share = 0.5;
  size_t cut = 0;
  for (const ContextSample& sample : Samples(options)) {
    cut += sample.cut;
    if (!sample.cut) continue;
    ASSERT_GE(sample.target, 1u);
    const std::string answer = *Podling().tokenizer().Decode(sample.answer);
    const std::string before = TextOf(sample, sample.documents[sample.target - 1]);
    EXPECT_EQ(TextOf(sample, sample.documents[sample.target]).rfind(absl::StrCat(" ", answer, ". "), 0), 0u);
    EXPECT_EQ(before.rfind(" is"), before.size() - 3);
    EXPECT_EQ(before.find(answer), std::string::npos);
  }
  EXPECT_EQ(cut, 6u);
}

TEST(ContextSamplesTest, RefusesWhatCannotBe) {
  const auto refused = [](auto change) {
    ContextSampleOptions options = Small();
    change(options);
    return MakeContextSamples(Podling().tokenizer(), FillerProse(3, 2000), options).status();
  };
  EXPECT_THAT(std::string(refused([](auto& o) { o.max_tokens = 5000; }).message()), HasSubstr("longer text"));
  EXPECT_EQ(refused([](auto& o) { o.questions = 0; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.min_documents = 5; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.min_tokens = 1; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.cut_share = 1.5; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.cut_share = o.titles = true; }).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused([](auto& o) { o.max_documents = 1000; }).code(), absl::StatusCode::kInvalidArgument);
}

TEST(ContextMeasureTest, EverythingComputedAgainAgreesAndNothingComputedAgainDiverges) {
  RepairFigures full;
  std::vector<RepairFigures> rows = {{.repair = *Repair::Parse("prefix:4096")}, {.repair = {}}};
  ContextSampleOptions options = Small();
  options.questions = 4;
  for (const ContextSample& sample : Samples(options)) {
    const absl::Status status = MeasureQuestion(Podling(), sample, full, rows);
    ASSERT_TRUE(status.ok()) << status;
  }
  EXPECT_EQ(full.questions, 4);
  EXPECT_EQ(full.computed_share(), 1);
  EXPECT_EQ(full.kl(), 0);
  EXPECT_EQ(rows[0].agreed, 4);
  EXPECT_EQ(rows[0].right, full.right);
  EXPECT_LT(rows[0].kl(), 1e-4);
  EXPECT_LT(rows[0].max_logit, 0.05);
  EXPECT_GT(rows[0].computed_share(), 0.5);  // All but the context that begins the prompt.
  EXPECT_LT(rows[1].computed_share(), 0.3);
  EXPECT_GT(rows[1].kl(), 10 * rows[0].kl());
}

TEST(ContextMeasureTest, APromptThatDoesNotFitIsRefused) {
  ContextSample sample = Samples(Small())[0];
  sample.prompt.resize(4096, 5);
  RepairFigures full;
  EXPECT_EQ(MeasureQuestion(Podling(), sample, full, {}).code(), absl::StatusCode::kInvalidArgument);
}

TEST(ContextMeasureTest, WilsonIntervals) {
  const Interval most = WilsonInterval(200, 200), half = WilsonInterval(10, 20);
  EXPECT_NEAR(most.low, 0.9812, 1e-3);
  EXPECT_EQ(most.high, 1);
  EXPECT_NEAR(half.low, 0.2993, 1e-3);
  EXPECT_NEAR(half.high, 0.7007, 1e-3);
  EXPECT_EQ(WilsonInterval(0, 0).low, 0);
}

RepairFigures Figures(absl::string_view repair, int64_t right, int64_t computed) {
  RepairFigures figures;
  figures.repair = *Repair::Parse(repair);
  figures.questions = 100;
  figures.right = figures.agreed = right;
  figures.prompt_tokens = 1000;
  figures.computed_tokens = computed;
  return figures;
}

TEST(ContextMeasureTest, TheDefaultIsTheCheapestThatKeepsTheThreshold) {
  const RepairFigures full = Figures("full", 80, 1000);
  const std::vector<RepairFigures> rows = {Figures("none", 75, 50), Figures("prefix:8", 76, 90),
                                           Figures("prefix:16", 80, 130), Figures("deviation:0.1", 79, 110)};
  EXPECT_EQ(ChooseRepair(full, rows, 0.95).ToString(), "prefix:8");
  EXPECT_EQ(ChooseRepair(full, rows, 0.99).ToString(), "prefix:16");
  EXPECT_EQ(ChooseRepair(full, std::span(rows).first(1), 0.95).ToString(), "full");
  EXPECT_EQ(ChooseRepair(Figures("full", 40, 1000), rows, 0.95).ToString(), "full") << "the model is too weak to tell";
  EXPECT_EQ(ChooseRepair(RepairFigures(), {}, 0.95).ToString(), "full");
}

MeasuredRepair Measured() {
  MeasuredRepair out;
  out.model_fingerprint[0] = 1;
  out.plan_id[0] = 2;
  out.repair = *Repair::Parse("prefix:8");
  out.threshold = 0.95;
  out.questions = 100;
  out.seed = 7;
  out.measured = {Figures("none", 20, 50), Figures("prefix:8", 76, 90), Figures("full", 80, 1000)};
  return out;
}

TEST(MeasuredRepairTest, ReadsWhatItWrites) {
  const MeasuredRepair measured = Measured();
  const auto again = MeasuredRepair::Parse(measured.ToJson());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->ToJson(), measured.ToJson());
  EXPECT_EQ(again->repair, measured.repair);
  EXPECT_TRUE(again->IsOf(measured.model_fingerprint, measured.plan_id));
  EXPECT_FALSE(again->IsOf(measured.model_fingerprint, measured.model_fingerprint));
  EXPECT_FALSE(again->IsOf(measured.plan_id, measured.plan_id));
}

TEST(MeasuredRepairTest, RefusesWhatAMeasurementCannotHaveWritten) {
  const std::string good = Measured().ToJson();
  const std::pair<const char*, const char*> changes[] = {
      {"\"version\": 1", "\"version\": 2"},
      {"\"plan_id\": \"02", "\"plan_id\": \"zz"},
      {"\"model_fingerprint\": \"01", "\"model_fingerprint\": \""},
      {"\"repair\": \"prefix:8\"", "\"repair\": \"perfect\""},
      {"\"threshold\": 0.95", "\"threshold\": 1.5"},
      {"\"questions\": 100", "\"questions\": -1"},
      {"\"questions\": 100", "\"questions\": 79"},
      {"\"seed\": 7", "\"seed\": \"7\""},
      {"\"measured\": [", "\"measured\": [3, "},
      {"\"measured\": [", "\"rows\": ["},
      {"\"computed_tokens\": 90", "\"computed_tokens\": 1001"},
      {"\"repair\": \"none\"", "\"repair\": \"full\""},
      {"\"repair\": \"full\"", "\"repair\": \"prefix:9\""},
      {"\"right\": 76,", "\"right\": 75,"},  // Below the threshold that it claims.
  };
  for (const auto& [from, to] : changes) {
    const std::string bad = absl::StrReplaceAll(good, {{from, to}});
    ASSERT_NE(bad, good) << from;
    EXPECT_EQ(MeasuredRepair::Parse(bad).status().code(), absl::StatusCode::kInvalidArgument) << to;
  }
  EXPECT_FALSE(MeasuredRepair::Parse("").ok());
  EXPECT_FALSE(MeasuredRepair::Parse("[]").ok());
}

TEST(MeasuredRepairTest, AFolderMayHaveNone) {
  const auto none = MeasuredRepair::Load(PERIGEE_SOURCE_DIR "/models");
  ASSERT_TRUE(none.ok()) << none.status();
  EXPECT_FALSE(none->has_value());
}

}  // namespace
}  // namespace perigee::model
