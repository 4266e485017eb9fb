#include "node/compute_rate.h"

#include <gtest/gtest.h>

namespace perigee::node {
namespace {

double Seconds(const std::optional<absl::Duration>& duration) { return absl::ToDoubleSeconds(duration.value()); }

// A machine that needs a seconds a token and b seconds a token and position before it.
void Pass(ComputeRate& rate, int64_t begin, int64_t end, double a, double b) {
  const double tokens = static_cast<double>(end - begin), positions = SumOfPositions(begin, end);
  rate.Record(tokens, positions, absl::Seconds(a * tokens + b * positions));
}

TEST(ComputeRateTest, KnowsNothingBeforeTheFirstPass) {
  ComputeRate rate;
  EXPECT_FALSE(rate.Fit().has_value());
  EXPECT_FALSE(rate.Estimate(0, 100).has_value());
  rate.Record(0, 0, absl::Seconds(1));
  rate.Record(100, 50, absl::ZeroDuration());
  EXPECT_FALSE(rate.Fit().has_value());
}

TEST(ComputeRateTest, OnePassScalesByTokens) {
  ComputeRate rate;
  Pass(rate, 0, 64, 1e-3, 0);
  EXPECT_NEAR(Seconds(rate.Estimate(0, 128)), 0.128, 1e-9);
  EXPECT_EQ(rate.Estimate(10, 10), absl::ZeroDuration());
  EXPECT_EQ(rate.Estimate(10, 5), absl::ZeroDuration());
}

TEST(ComputeRateTest, SeparatesWhatTokensAndWhatPositionsCost) {
  ComputeRate rate;
  const double a = 2e-4, b = 3e-8;
  for (int64_t begin = 0; begin < 4096; begin += 512) Pass(rate, begin, begin + 512, a, b);
  EXPECT_NEAR(rate.Fit()->token_s, a, a * 1e-6);
  EXPECT_NEAR(rate.Fit()->position_s, b, b * 1e-6);
  EXPECT_NEAR(Seconds(rate.Estimate(8192, 8704)), a * 512 + b * SumOfPositions(8192, 8704), 1e-6);
}

TEST(ComputeRateTest, LearnsWhatAPassCostsHoweverShort) {
  ComputeRate rate;
  const double c = 5e-3, a = 6e-5;
  for (int i = 0; i < 12; ++i) {
    const int64_t begin = 64 * (i % 5), tokens = i % 3 == 0 ? 40 : 512;
    rate.Record(static_cast<double>(tokens), SumOfPositions(begin, begin + tokens),
                absl::Seconds(c + a * static_cast<double>(tokens)));
  }
  EXPECT_NEAR(rate.Fit()->pass_s, c, c * 1e-3);
  EXPECT_NEAR(rate.Fit()->token_s, a, a * 1e-3);
  EXPECT_NEAR(Seconds(rate.Estimate(0, 32)), c + 32 * a, 1e-5);
  EXPECT_NEAR(Seconds(rate.Estimate(0, 1024)), 2 * c + 1024 * a, 1e-4) << "two passes";
}

TEST(ComputeRateTest, ForgetsAMachineThatWasBusy) {
  ComputeRate rate;
  for (int i = 0; i < 20; ++i) Pass(rate, 0, 256, 1e-2, 0);
  for (int i = 0; i < 60; ++i) Pass(rate, 0, 256, 1e-3, 0);
  EXPECT_NEAR(Seconds(rate.Estimate(0, 256)), 0.256, 0.01);
}

TEST(ComputeRateTest, NoiseNeverMakesAnEstimateNegative) {
  ComputeRate rate;
  for (int i = 0; i < 50; ++i) {
    // Later positions happen to be faster.
    Pass(rate, 0, 256, 2e-3 + 1e-4 * (i % 3), 0);
    Pass(rate, 2048, 2304, 1e-3, 0);
    const ComputeCost cost = *rate.Fit();
    EXPECT_GT(cost.token_s, 0);
    EXPECT_GE(cost.position_s, 0);
  }
}

}  // namespace
}  // namespace perigee::node
