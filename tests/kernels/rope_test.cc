#include "kernels/rope.h"

#include <numbers>

#include "kernels_testing.h"

namespace perigee::kernels {
namespace {

TEST(Rope, RotatesPairsByPositionTimesFrequency) {
  const Rope rope = MakeRope(64, 500000);
  for (int64_t position : {0, 1, 17, -17, 131071, 1000000}) {
    std::vector<float> x = testing::RandomFloats(3 * 64, 1);
    const std::vector<float> before = x;
    ApplyRope(rope, position, 3, x.data());
    for (size_t h = 0; h < 3; ++h) {
      for (size_t j = 0; j < 32; ++j) {
        const double angle = static_cast<double>(position) * std::pow(500000.0, -2.0 * static_cast<double>(j) / 64);
        const double a = before[h * 64 + j], b = before[h * 64 + j + 32];
        ASSERT_NEAR(x[h * 64 + j], a * std::cos(angle) - b * std::sin(angle), 1e-6);
        ASSERT_NEAR(x[h * 64 + j + 32], b * std::cos(angle) + a * std::sin(angle), 1e-6);
      }
    }
  }
}

TEST(Rope, MatchesTheReferenceAndOppositePositionsCancel) {
  const Rope rope = MakeRope(128, 10000);
  std::vector<float> x = testing::RandomFloats(4 * 128, 2);
  const std::vector<float> before = x;
  std::vector<double> exact(x.begin(), x.end());
  ApplyRope(rope, 4321, 4, x.data());
  reference::ApplyRope(rope, 4321, 4, exact.data());
  for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(x[i], exact[i], 1e-6);
  ApplyRope(rope, -4321, 4, x.data());
  testing::ExpectNear(x, before, 1e-6f);
}

TEST(Rope, RowsStandAtConsecutivePositions) {
  const Rope rope = MakeRope(32, 10000);
  std::vector<float> x = testing::RandomFloats(50 * 2 * 32, 3);
  std::vector<float> one_by_one = x;
  ApplyRopeToRows(rope, 7, 50, 2, x.data());
  for (int r = 0; r < 50; ++r) ApplyRope(rope, 7 + r, 2, one_by_one.data() + r * 64);
  EXPECT_EQ(x, one_by_one);
}

TEST(Rope, Llama3ScalingKeepsFastSlowsSlowAndBlendsBetween) {
  // Llama 3.1's configuration.
  const double theta = 500000, factor = 8, low = 1, high = 4, original = 8192;
  const Rope plain = MakeRope(128, theta);
  const Rope scaled = MakeLlama3Rope(128, theta, factor, low, high, original);
  int kept = 0, slowed = 0, blended = 0;
  for (size_t j = 0; j < 64; ++j) {
    const double f = plain.inverse_frequency[j];
    const double wavelength = 2 * std::numbers::pi / f;
    double expected;
    if (wavelength < original / high) {
      expected = f;
      ++kept;
    } else if (wavelength > original / low) {
      expected = f / factor;
      ++slowed;
    } else {
      const double smooth = (original / wavelength - low) / (high - low);
      expected = (1 - smooth) * f / factor + smooth * f;
      ++blended;
      EXPECT_LT(expected, f);
      EXPECT_GT(expected, f / factor);
    }
    EXPECT_NEAR(scaled.inverse_frequency[j] / expected, 1, 1e-12) << j;
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(slowed, 0);
  EXPECT_GT(blended, 0);
}

TEST(Rope, LinearScalingDividesEveryFrequency) {
  const Rope plain = MakeRope(64, 10000), scaled = MakeLinearRope(64, 10000, 4);
  ASSERT_EQ(scaled.head_dim(), 64);
  for (size_t j = 0; j < 32; ++j) EXPECT_DOUBLE_EQ(scaled.inverse_frequency[j], plain.inverse_frequency[j] / 4);
}

}  // namespace
}  // namespace perigee::kernels
