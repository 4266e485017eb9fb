// RmsNorm, SwiGlu, AddInPlace and the matrix-vector product of decoding.
#include <algorithm>
#include <cmath>

#include "base/parallel.h"
#include "kernels/cpu/matvec.h"
#include "kernels/elementwise.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/elementwise_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace perigee::kernels {
namespace HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;

// result[r] = sum_i a[r * stride + i] * b[i] for R rows. A row's order of summation does not depend on R.
template <int R>
HWY_INLINE void DotProducts(const float* HWY_RESTRICT a, size_t stride, const float* HWY_RESTRICT b, size_t n,
                            float* HWY_RESTRICT result) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  constexpr int kSums = HWY_TARGET <= HWY_AVX3 ? 4 : 2;  // What fits in the registers beside R = 4.
  hn::Vec<DF> sum[R][kSums];
  for (int r = 0; r < R; ++r) {
    for (int s = 0; s < kSums; ++s) sum[r][s] = hn::Zero(d);
  }
  size_t i = 0;
  for (; i + kSums * lanes <= n; i += kSums * lanes) {
    for (int s = 0; s < kSums; ++s) {
      const size_t at = i + static_cast<size_t>(s) * lanes;
      const auto right = hn::LoadU(d, b + at);
      for (int r = 0; r < R; ++r) {
        sum[r][s] = hn::MulAdd(hn::LoadU(d, a + static_cast<size_t>(r) * stride + at), right, sum[r][s]);
      }
    }
  }
  for (; i + lanes <= n; i += lanes) {
    const auto right = hn::LoadU(d, b + i);
    for (int r = 0; r < R; ++r) {
      sum[r][0] = hn::MulAdd(hn::LoadU(d, a + static_cast<size_t>(r) * stride + i), right, sum[r][0]);
    }
  }
  for (int r = 0; r < R; ++r) {
    auto total = sum[r][0];
    for (int s = 1; s < kSums; ++s) total = hn::Add(total, sum[r][s]);
    result[r] = hn::GetLane(hn::SumOfLanes(d, total));
    for (size_t j = i; j < n; ++j) result[r] += a[static_cast<size_t>(r) * stride + j] * b[j];
  }
}

void RmsNormRow(const float* x, const float* weight, float epsilon, size_t columns, float* out) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  float squares;
  DotProducts<1>(x, columns, x, columns, &squares);
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(columns) + epsilon);
  size_t i = 0;
  for (; i + lanes <= columns; i += lanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, scale)), hn::LoadU(d, weight + i)), d, out + i);
  }
  for (; i < columns; ++i) out[i] = x[i] * scale * weight[i];
}

template <class D>
HWY_INLINE void SwiGluVector(D d, const float* gate, const float* up, float* out) {
  const auto z = hn::LoadU(d, gate);
  // exp(-z), held below overflow: beyond 2^126 silu(z) is below 10^-35 anyway.
  const auto e = Exp2(d, hn::Min(hn::Set(d, 126.0f), hn::Mul(z, hn::Set(d, -1.44269504f))));
  hn::StoreU(hn::Mul(hn::Div(z, hn::Add(hn::Set(d, 1.0f), e)), hn::LoadU(d, up)), d, out);
}

void SwiGluPart(const float* gate, const float* up, size_t n, float* out) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) SwiGluVector(d, gate + i, up + i, out + i);
  const hn::CappedTag<float, 1> d1;
  for (; i < n; ++i) SwiGluVector(d1, gate + i, up + i, out + i);
}

void AddPart(float* x, const float* y, size_t n) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  size_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Add(hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, x + i);
  for (; i < n; ++i) x[i] += y[i];
}

// R rows of x times W rows of the weight: each vector that is loaded is used R or W times, so that the products keep up
// with the memory that the weight comes from. result[r][w]
constexpr int kTileColumns = HWY_TARGET <= HWY_AVX3 ? 4 : 2;  // What fits in the registers beside R = 4.
template <int R>
HWY_INLINE void DotTile(const float* HWY_RESTRICT x, const float* HWY_RESTRICT weight, size_t k,
                        float (*HWY_RESTRICT result)[kTileColumns]) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  hn::Vec<DF> sum[R][kTileColumns];
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < kTileColumns; ++w) sum[r][w] = hn::Zero(d);
  }
  size_t i = 0;
  for (; i + lanes <= k; i += lanes) {
    hn::Vec<DF> right[kTileColumns];
    for (int w = 0; w < kTileColumns; ++w) right[w] = hn::LoadU(d, weight + static_cast<size_t>(w) * k + i);
    for (int r = 0; r < R; ++r) {
      const auto left = hn::LoadU(d, x + static_cast<size_t>(r) * k + i);
      for (int w = 0; w < kTileColumns; ++w) sum[r][w] = hn::MulAdd(left, right[w], sum[r][w]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int w = 0; w < kTileColumns; ++w) {
      result[r][w] = hn::GetLane(hn::SumOfLanes(d, sum[r][w]));
      for (size_t j = i; j < k; ++j) {
        result[r][w] += x[static_cast<size_t>(r) * k + j] * weight[static_cast<size_t>(w) * k + j];
      }
    }
  }
}

// out[row * out_stride + j] for weight rows j in [begin, end). A weight row comes from memory once: for later rows of x
// it is in the cache.
template <int R>
void MatVecRows(const float* x, size_t k, const float* weight, size_t begin, size_t end, const float* bias, float* out,
                size_t out_stride) {
  const auto put = [&](int r, size_t j, float value) {
    out[static_cast<size_t>(r) * out_stride + j] = value + (bias == nullptr ? 0.0f : bias[j]);
  };
  size_t j = begin;
  // One row alone too: a row's sums must not depend on how many others there are.
  for (; j + kTileColumns <= end; j += kTileColumns) {
    float result[R][kTileColumns];
    DotTile<R>(x, weight + j * k, k, result);
    for (int r = 0; r < R; ++r) {
      for (int w = 0; w < kTileColumns; ++w) put(r, j + static_cast<size_t>(w), result[r][w]);
    }
  }
  for (; j < end; ++j) {
    float result[R];
    DotProducts<R>(x, k, weight + j * k, k, result);
    for (int r = 0; r < R; ++r) put(r, j, result[r]);
  }
}

void MatVecPart(const float* x, size_t rows, size_t k, const float* weight, size_t begin, size_t end, const float* bias,
                float* out, size_t out_stride) {
  // So few weight rows at a time that they stay in the first cache while all rows of x use them.
  for (size_t j = begin; j < end; j += kTileColumns) {
    const size_t until = std::min(end, j + kTileColumns);
    for (size_t r = 0; r < rows; r += 4) {
      const float* from = x + r * k;
      float* to = out + r * out_stride;
      switch (std::min<size_t>(4, rows - r)) {
        case 1:
          MatVecRows<1>(from, k, weight, j, until, bias, to, out_stride);
          break;
        case 2:
          MatVecRows<2>(from, k, weight, j, until, bias, to, out_stride);
          break;
        case 3:
          MatVecRows<3>(from, k, weight, j, until, bias, to, out_stride);
          break;
        default:
          MatVecRows<4>(from, k, weight, j, until, bias, to, out_stride);
          break;
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace perigee::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace perigee::kernels {

HWY_EXPORT(RmsNormRow);
HWY_EXPORT(SwiGluPart);
HWY_EXPORT(AddPart);
HWY_EXPORT(MatVecPart);

namespace {

// Elements of one parallel task: below this, waking a thread costs more than the work.
constexpr size_t kTaskElements = 32768;

}  // namespace

void RmsNorm(const float* x, const float* weight, float epsilon, size_t rows, size_t columns, float* out) {
  const auto norm = HWY_DYNAMIC_DISPATCH(RmsNormRow);
  const size_t rows_per_task = kTaskElements / std::max<size_t>(1, columns) + 1;
  ParallelFor((rows + rows_per_task - 1) / rows_per_task, [&](size_t task) {
    for (size_t r = task * rows_per_task; r < std::min(rows, (task + 1) * rows_per_task); ++r) {
      norm(x + r * columns, weight, epsilon, columns, out + r * columns);
    }
  });
}

void SwiGlu(const float* gate, const float* up, size_t n, float* out) {
  const auto part = HWY_DYNAMIC_DISPATCH(SwiGluPart);
  ParallelFor((n + kTaskElements - 1) / kTaskElements, [&](size_t task) {
    const size_t begin = task * kTaskElements, end = std::min(n, begin + kTaskElements);
    part(gate + begin, up + begin, end - begin, out + begin);
  });
}

void AddInPlace(float* x, const float* y, size_t n) {
  const auto part = HWY_DYNAMIC_DISPATCH(AddPart);
  ParallelFor((n + kTaskElements - 1) / kTaskElements, [&](size_t task) {
    const size_t begin = task * kTaskElements, end = std::min(n, begin + kTaskElements);
    part(x + begin, y + begin, end - begin);
  });
}

namespace internal {

void MatVec(const float* x, size_t rows, size_t k, const float* weight, size_t n, const float* bias, float* out) {
  const auto part = HWY_DYNAMIC_DISPATCH(MatVecPart);
  const size_t per_task = kTaskElements / std::max<size_t>(1, k) + 1;
  ParallelFor((n + per_task - 1) / per_task, [&](size_t task) {
    part(x, rows, k, weight, task * per_task, std::min(n, (task + 1) * per_task), bias, out, n);
  });
}

}  // namespace internal
}  // namespace perigee::kernels
#endif  // HWY_ONCE
