#include "kernels/elementwise.h"

#include "kernels/cpu/matvec.h"
#include "kernels/gemm.h"
#include "kernels_testing.h"

namespace perigee::kernels {
namespace {

using testing::ForEachTarget;
using testing::RandomFloats;

TEST(RmsNorm, MatchesTheReferenceForOddSizesAndInPlace) {
  for (auto [rows, columns] : {std::pair<size_t, size_t>{1, 1}, {3, 7}, {2, 128}, {5, 1000}, {300, 257}, {1, 40000}}) {
    const std::vector<float> x = RandomFloats(rows * columns, 1, 3.0f), weight = RandomFloats(columns, 2);
    std::vector<double> expected(x.size());
    reference::RmsNorm(x.data(), weight.data(), double{1e-5f}, rows, columns, expected.data());
    ForEachTarget([&, rows = rows, columns = columns] {
      std::vector<float> out = x;
      RmsNorm(out.data(), weight.data(), 1e-5f, rows, columns, out.data());
      for (size_t i = 0; i < out.size(); ++i)
        ASSERT_NEAR(out[i], expected[i], 2e-6 * std::max(1.0, std::fabs(expected[i])));
    });
  }
}

TEST(RmsNorm, ZeroRowsStayZero) {
  std::vector<float> x(64), weight(64, 1.0f), out(64, 5.0f);
  RmsNorm(x.data(), weight.data(), 1e-6f, 1, 64, out.data());
  for (float v : out) EXPECT_EQ(v, 0);
}

TEST(SwiGlu, MatchesTheReferenceAlsoFarFromZero) {
  std::vector<float> gate = RandomFloats(100003, 3, 5.0f);
  const std::vector<float> up = RandomFloats(gate.size(), 4);
  const float edges[] = {0, -0.0f, 87, -87, 88.5f, -88.5f, 1000, -1000, 1e30f, -1e30f, 1e-30f};
  std::copy(std::begin(edges), std::end(edges), gate.begin());
  std::vector<double> expected(gate.size());
  reference::SwiGlu(gate.data(), up.data(), gate.size(), expected.data());
  ForEachTarget([&] {
    std::vector<float> out = gate;
    SwiGlu(out.data(), up.data(), out.size(), out.data());
    for (size_t i = 0; i < out.size(); ++i) {
      ASSERT_NEAR(out[i], expected[i], 1e-6 * std::max(1.0, std::fabs(expected[i]))) << gate[i];
    }
  });
  const float nan_gate = NAN, one = 1;
  float out = 0;
  SwiGlu(&nan_gate, &one, 1, &out);
  EXPECT_TRUE(std::isnan(out));
}

TEST(AddInPlace, Adds) {
  for (size_t n : {0, 1, 15, 16, 33, 100001}) {
    const std::vector<float> x = RandomFloats(n, 5), y = RandomFloats(n, 6);
    ForEachTarget([&] {
      std::vector<float> sum = x;
      AddInPlace(sum.data(), y.data(), n);
      for (size_t i = 0; i < n; ++i) ASSERT_EQ(sum[i], x[i] + y[i]);
    });
  }
}

void CheckGemm(void (*gemm)(const float*, size_t, size_t, const float*, size_t, const float*, float*), size_t rows,
               size_t k, size_t n, bool with_bias) {
  SCOPED_TRACE(::testing::Message() << rows << " x " << k << " x " << n << (with_bias ? " with bias" : ""));
  const std::vector<float> x = RandomFloats(rows * k, 7), weight = RandomFloats(n * k, 8), bias = RandomFloats(n, 9);
  std::vector<double> expected(rows * n);
  std::vector<float> out(rows * n, NAN);
  reference::Gemm(x.data(), rows, k, weight.data(), n, with_bias ? bias.data() : nullptr, expected.data());
  gemm(x.data(), rows, k, weight.data(), n, with_bias ? bias.data() : nullptr, out.data());
  // A sum of k products of size 1: its rounding errors grow like k at worst, in units of the largest partial sum.
  const double tolerance = 2e-6 * std::sqrt(static_cast<double>(k));
  for (size_t i = 0; i < out.size(); ++i) {
    ASSERT_NEAR(out[i], expected[i], tolerance * std::max(1.0, std::fabs(expected[i]))) << i;
  }
}

TEST(Gemm, MatchesTheReferenceForEveryShapeOfWork) {
  for (size_t rows : {1, 2, 4, 5, 17, 130}) {
    for (auto [k, n] : {std::pair<size_t, size_t>{1, 1}, {7, 3}, {64, 48}, {100, 333}, {513, 1030}}) {
      for (bool bias : {false, true}) {
        CheckGemm(Gemm, rows, k, n, bias);
        CheckGemm(internal::OneDnnGemm, rows, k, n, bias);
        ForEachTarget([&, k = k, n = n] {
          if (rows < 100) CheckGemm(internal::MatVec, rows, k, n, bias);
        });
        if (HasFatalFailure()) return;
      }
    }
  }
}

TEST(Gemm, ARowDoesNotDependOnItsNeighbours) {
  const size_t k = 512, n = 300;
  const std::vector<float> x = RandomFloats(200 * k, 10), weight = RandomFloats(n * k, 11);
  std::vector<float> whole(200 * n);
  Gemm(x.data(), 200, k, weight.data(), n, nullptr, whole.data());
  for (size_t rows : {1, 3, 5, 64, 199}) {
    std::vector<float> part(rows * n);
    Gemm(x.data(), rows, k, weight.data(), n, nullptr, part.data());
    for (size_t i = 0; i < part.size(); ++i) {
      ASSERT_NEAR(part[i], whole[i], 3e-6 * std::max(std::sqrt(512.0f), std::fabs(whole[i]))) << rows;
    }
  }
}

}  // namespace
}  // namespace perigee::kernels
