#include "model/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace perigee::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<int32_t> Draw(const SamplingParams& params, const std::vector<float>& logits, int n, uint64_t first = 0) {
  Sampler sampler = Sampler::Create(params, first).value();
  std::vector<int32_t> out;
  for (int i = 0; i < n; ++i) out.push_back(sampler.Sample(logits).value());
  return out;
}

std::vector<double> Frequencies(const SamplingParams& params, const std::vector<float>& logits, int n) {
  std::vector<double> out(logits.size());
  for (const int32_t id : Draw(params, logits, n)) out[static_cast<size_t>(id)] += 1.0 / n;
  return out;
}

std::vector<float> LogOf(const std::vector<double>& probabilities) {
  std::vector<float> out;
  for (const double p : probabilities) out.push_back(static_cast<float>(std::log(p)) + 3.0F);
  return out;
}

TEST(Sampler, GreedyTakesTheLargestAndTheLowestIdAmongEquals) {
  EXPECT_THAT(Draw({}, {1, 3, 3, -2}, 3), ElementsAre(1, 1, 1));
  EXPECT_THAT(Draw({}, {-kInf, -5, -kInf}, 1), ElementsAre(1));
}

TEST(Sampler, FrequenciesFollowTheSoftmax) {
  const std::vector<double> p = {0.5, 0.25, 0.15, 0.1};
  const auto f = Frequencies({.temperature = 1.0, .seed = 7}, LogOf(p), 40000);
  for (size_t i = 0; i < p.size(); ++i) EXPECT_NEAR(f[i], p[i], 4 * std::sqrt(p[i] * (1 - p[i]) / 40000));
}

TEST(Sampler, TemperatureSharpensAndFlattens) {
  const std::vector<double> p = {0.8, 0.2};
  // p^(1/T), normalised: T = 0.5 gives 0.64 : 0.04, T = 2 gives sqrt(0.8) : sqrt(0.2) = 2 : 1.
  EXPECT_NEAR(Frequencies({.temperature = 0.5, .seed = 1}, LogOf(p), 40000)[0], 0.64 / 0.68, 0.006);
  EXPECT_NEAR(Frequencies({.temperature = 2.0, .seed = 1}, LogOf(p), 40000)[0], 2.0 / 3, 0.01);
  EXPECT_NEAR(Frequencies({.temperature = 1e-300, .seed = 1}, LogOf(p), 100)[0], 1.0, 1e-9);
}

TEST(Sampler, TopKAndTopPKeepTheSmallestLikelySet) {
  const std::vector<double> p = {0.1, 0.5, 0.15, 0.25};
  auto f = Frequencies({.temperature = 1.0, .top_k = 2, .seed = 3}, LogOf(p), 40000);
  EXPECT_EQ(f[0] + f[2], 0.0);
  EXPECT_NEAR(f[1], 2.0 / 3, 0.01);
  f = Frequencies({.temperature = 1.0, .top_p = 0.7, .seed = 3}, LogOf(p), 40000);
  EXPECT_EQ(f[0] + f[2], 0.0);
  EXPECT_NEAR(f[3], 1.0 / 3, 0.01);
  f = Frequencies({.temperature = 1.0, .top_p = 1e-9, .seed = 3}, LogOf(p), 1000);
  EXPECT_NEAR(f[1], 1.0, 1e-9);
  // top_p acts on what top_k left: 0.5 of 0.75 reaches 0.6.
  f = Frequencies({.temperature = 1.0, .top_k = 2, .top_p = 0.6, .seed = 3}, LogOf(p), 1000);
  EXPECT_NEAR(f[1], 1.0, 1e-9);
}

TEST(Sampler, ForbiddenTokensNeverAppear) {
  for (const double top_p : {1.0, 0.999}) {
    const auto f = Frequencies({.temperature = 5.0, .top_p = top_p, .seed = 9}, {0, -kInf, 0, -kInf}, 5000);
    EXPECT_EQ(f[1] + f[3], 0.0);
  }
}

// A fixed sequence: the same on every platform, or cached generations and tests elsewhere stop reproducing.
TEST(Sampler, TheSequenceOfASeedIsFixed) {
  std::vector<float> logits;
  for (int i = 0; i < 1000; ++i) logits.push_back(static_cast<float>((i * 7919) % 1000) / 250.0F);
  EXPECT_THAT(Draw({.temperature = 0.9, .top_k = 400, .top_p = 0.95, .seed = 42}, logits, 8),
              ElementsAre(965, 889, 878, 621, 507, 621, 188, 13));
}

TEST(Sampler, SeedsDifferAndAStreamCanBeContinued) {
  const std::vector<float> logits(64, 0.0F);
  const SamplingParams params{.temperature = 1.0, .seed = 5};
  const auto whole = Draw(params, logits, 40);
  EXPECT_EQ(whole, Draw(params, logits, 40));
  EXPECT_NE(whole, Draw({.temperature = 1.0, .seed = 6}, logits, 40));
  const auto tail = Draw(params, logits, 15, 25);
  EXPECT_TRUE(std::equal(tail.begin(), tail.end(), whole.begin() + 25));
}

TEST(Sampler, BrokenLogitsAreAnErrorNotAToken) {
  for (const double temperature : {0.0, 1.0}) {
    Sampler sampler = Sampler::Create({.temperature = temperature}).value();
    for (const auto& logits : {std::vector<float>{1, NAN, 2}, std::vector<float>{NAN}, std::vector<float>{kInf, 0},
                               std::vector<float>{-kInf, -kInf}}) {
      EXPECT_EQ(sampler.Sample(logits).status().code(), absl::StatusCode::kInternal);
    }
    EXPECT_TRUE(absl::IsInvalidArgument(sampler.Sample({}).status()));
    EXPECT_EQ(sampler.draws(), 0U);
  }
}

TEST(Sampler, BadParametersAreRefusedByName) {
  const auto refused = [](const SamplingParams& params, const std::string& name) {
    const auto status = Sampler::Create(params).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status));
    EXPECT_THAT(std::string(status.message()), HasSubstr(name));
  };
  refused({.temperature = -0.1}, "temperature");
  refused({.temperature = NAN}, "temperature");
  refused({.temperature = 1e9}, "temperature");
  refused({.top_k = -1}, "top_k");
  refused({.top_p = 0}, "top_p");
  refused({.top_p = 1.01}, "top_p");
  refused({.top_p = NAN}, "top_p");
}

}  // namespace
}  // namespace perigee::model
