// The two inner loops of attention; see attention_internal.h for units, rows and scaling.
//
// Tile path (prefill): keys [token][dim] and values [dim][token] are both the left factor of a small matrix product as
// they are stored: S[token][row] = K . Q^T[dim][row] and O[dim][row] += V^T . P[token][row]. Vector lanes are rows, so
// softmax needs no reduction across lanes; a tile is widened to float once and then serves kTileRows rows. Dot path
// (decode): dot products along the stored rows, up to four query heads at a time per loaded vector.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "hwy/aligned_allocator.h"
#include "kernels/cpu/attention_internal.h"
#include "kernels/cpu/merge.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace perigee::kernels {
namespace HWY_NAMESPACE {

using internal::Call;
using internal::HeadPlan;
using internal::kTileRows;
using internal::PartialState;
using internal::Rotation;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();
constexpr float kProbabilityBias = -24.0f;  // See attention_internal.h.

// ---------------------------------------------------------------- tile path

using DF = hn::ScalableTag<float>;

// in: n elements of a codec -> floats. Returns whether all are finite. n is a multiple of 8.
HWY_INLINE bool Widen(pod::Codec codec, const uint16_t* HWY_RESTRICT in, size_t n, float* HWY_RESTRICT out) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  const hn::CappedTag<float, 4> d4;
  auto finite = hn::Zero(d);  // Stays 0: x * 0 is NaN for inf and NaN.
  auto finite4 = hn::Zero(d4);
  size_t i = 0;
  if (codec == pod::Codec::kBf16) {
    for (; i + lanes <= n; i += lanes) {
      const auto v = LoadBf16(d, in + i);
      finite = hn::MulAdd(v, hn::Zero(d), finite);
      hn::StoreU(v, d, out + i);
    }
    for (; i < n; i += hn::Lanes(d4)) {
      const auto v = LoadBf16(d4, in + i);
      finite4 = hn::MulAdd(v, hn::Zero(d4), finite4);
      hn::StoreU(v, d4, out + i);
    }
  } else {
    for (; i + lanes <= n; i += lanes) {
      const auto v = LoadF16(d, in + i);
      finite = hn::MulAdd(v, hn::Zero(d), finite);
      hn::StoreU(v, d, out + i);
    }
    for (; i < n; i += hn::Lanes(d4)) {
      const auto v = LoadF16(d4, in + i);
      finite4 = hn::MulAdd(v, hn::Zero(d4), finite4);
      hn::StoreU(v, d4, out + i);
    }
  }
  return hn::AllTrue(d, hn::Eq(finite, hn::Zero(d))) && hn::AllTrue(d4, hn::Eq(finite4, hn::Zero(d4)));
}

// c[i][lane] (+)= sum_j a[i][j] * b[j][lane] for M rows i and NV vectors of lanes; b and c have row stride kTileRows.
// scale: null, or c's old content times scale[lane] is added.
template <int M, int NV>
HWY_INLINE void MicroKernel(const float* HWY_RESTRICT a, size_t stride, size_t depth, const float* HWY_RESTRICT b,
                            const float* HWY_RESTRICT scale, float* HWY_RESTRICT c) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  hn::Vec<DF> sum[M][NV];
  for (int i = 0; i < M; ++i) {
    for (int v = 0; v < NV; ++v) {
      sum[i][v] = scale == nullptr
                      ? hn::Zero(d)
                      : hn::Mul(hn::Load(d, c + i * kTileRows + v * lanes), hn::Load(d, scale + v * lanes));
    }
  }
  for (size_t j = 0; j < depth; ++j) {
    hn::Vec<DF> right[NV];
    for (int v = 0; v < NV; ++v) right[v] = hn::Load(d, b + j * kTileRows + v * lanes);
    for (int i = 0; i < M; ++i) {
      const auto left = hn::Set(d, a[i * stride + j]);
      for (int v = 0; v < NV; ++v) sum[i][v] = hn::MulAdd(left, right[v], sum[i][v]);
    }
  }
  for (int i = 0; i < M; ++i) {
    for (int v = 0; v < NV; ++v) hn::Store(sum[i][v], d, c + i * kTileRows + v * lanes);
  }
}

template <int NV>
HWY_INLINE void MultiplyColumns(const float* a, size_t stride, size_t rows, size_t depth, const float* b,
                                const float* scale, float* c) {
  size_t i = 0;
  for (; i + 4 <= rows; i += 4) MicroKernel<4, NV>(a + i * stride, stride, depth, b, scale, c + i * kTileRows);
  for (; i < rows; ++i) MicroKernel<1, NV>(a + i * stride, stride, depth, b, scale, c + i * kTileRows);
}

// The product for `used` lanes (rounded up to vectors).
HWY_INLINE void Multiply(const float* a, size_t stride, size_t rows, size_t depth, const float* b, size_t used,
                         const float* scale, float* c) {
  const size_t lanes = hn::Lanes(DF());
  constexpr int kWide = HWY_TARGET <= HWY_AVX3 ? 4 : 2;
  size_t lane = 0;
  for (; lane + kWide * lanes <= used; lane += kWide * lanes) {
    MultiplyColumns<kWide>(a, stride, rows, depth, b + lane, scale == nullptr ? nullptr : scale + lane, c + lane);
  }
  for (; lane < used; lane += lanes)
    MultiplyColumns<1>(a, stride, rows, depth, b + lane, scale == nullptr ? nullptr : scale + lane, c + lane);
}

struct TileWork {
  size_t head_dim, block_tokens;
  size_t used;            // Lanes in use, rounded up to whole vectors.
  float* wide;            // [max(head_dim * block_tokens)] a tile as float.
  float* near_q;          // [head_dim][kTileRows]
  float* far_q;           // May be near_q.
  float* scores;          // [block_tokens][kTileRows]
  float* o;               // [head_dim][kTileRows]
  float* m;               // [kTileRows]
  float* l;               // [kTileRows]
  float* exponent_scale;  // [kTileRows]
  float* rescale;         // [kTileRows]
  float* limit;           // [kTileRows] tokens of this tile that the row sees; used where rows differ. Whole numbers.
};

// Adds one tile. tokens: the largest limit. masked: rows see different numbers of tokens (limit[]).
HWY_INLINE void AddTile(const TileWork& w, const float* q, const uint16_t* keys, pod::Codec key_codec,
                        const uint16_t* values, pod::Codec value_codec, size_t tokens, bool masked) {
  const DF d;
  const size_t lanes = hn::Lanes(d);
  Widen(key_codec, keys, (tokens + 3) / 4 * 4 * w.head_dim, w.wide);
  Multiply(w.wide, w.head_dim, tokens, w.head_dim, q, w.used, nullptr, w.scores);
  for (size_t lane = 0; lane < w.used; lane += lanes) {
    const auto limit = hn::Load(d, w.limit + lane);
    const auto old_top = hn::Load(d, w.m + lane);
    auto top = old_top;
    float* s = w.scores + lane;
    if (masked) {
      for (size_t t = 0; t < tokens; ++t) {
        const auto seen = hn::Lt(hn::Set(d, static_cast<float>(t)), limit);
        const auto score = hn::IfThenElse(seen, hn::Load(d, s + t * kTileRows), hn::Set(d, kNegativeInfinity));
        hn::Store(score, d, s + t * kTileRows);
        top = hn::Max(top, score);
      }
    } else {
      for (size_t t = 0; t < tokens; ++t) top = hn::Max(top, hn::Load(d, s + t * kTileRows));
    }
    const auto scale = hn::Load(d, w.exponent_scale + lane);
    // Equal covers rows that have seen nothing: -inf - -inf would be NaN.
    const auto rescale =
        hn::IfThenElse(hn::Eq(old_top, top), hn::Set(d, 1.0f), Exp2(d, hn::Mul(hn::Sub(old_top, top), scale)));
    auto sum = hn::Zero(d);
    for (size_t t = 0; t < tokens; ++t) {
      const auto x = hn::MulAdd(hn::Sub(hn::Load(d, s + t * kTileRows), top), scale, hn::Set(d, kProbabilityBias));
      auto p = Exp2(d, x);
      if (masked) p = hn::IfThenElseZero(hn::Lt(hn::Set(d, static_cast<float>(t)), limit), p);
      hn::Store(p, d, s + t * kTileRows);
      sum = hn::Add(sum, p);
    }
    hn::Store(top, d, w.m + lane);
    hn::Store(hn::MulAdd(hn::Load(d, w.l + lane), rescale, sum), d, w.l + lane);
    hn::Store(rescale, d, w.rescale + lane);
  }
  const bool finite = Widen(value_codec, values, w.head_dim * w.block_tokens, w.wide);
  if (!masked || finite) {
    Multiply(w.wide, w.block_tokens, w.head_dim, tokens, w.scores, w.used, w.rescale, w.o);
    return;
  }
  // A NaN or infinity must not reach rows that do not see its token: 0 * NaN is NaN.
  for (size_t lane = 0; lane < w.used; lane += lanes) {
    const auto limit = hn::Load(d, w.limit + lane);
    for (size_t i = 0; i < w.head_dim; ++i) {
      auto sum = hn::Mul(hn::Load(d, w.o + i * kTileRows + lane), hn::Load(d, w.rescale + lane));
      for (size_t t = 0; t < tokens; ++t) {
        const auto seen = hn::Lt(hn::Set(d, static_cast<float>(t)), limit);
        const auto v = hn::IfThenElseZero(seen, hn::Set(d, w.wide[i * w.block_tokens + t]));
        sum = hn::MulAdd(v, hn::Load(d, w.scores + t * kTileRows + lane), sum);
      }
      hn::Store(sum, d, w.o + i * kTileRows + lane);
    }
  }
}

const uint16_t* Elements(const BlockRef& block, const pod::Tile& tile) {
  return reinterpret_cast<const uint16_t*>(internal::TileData(block, tile));
}

void AttendTileTarget(const Call& call, int kv_head, int64_t first_row, int rows, size_t begin, size_t end,
                      const PartialState& out) {
  const HeadPlan head = internal::PlanHead(call, kv_head);
  const AttentionInput& in = *call.input;
  const pod::Window& window = in.layout->plan().window();
  const int dim = call.head_dim;
  const size_t udim = static_cast<size_t>(dim), tokens = static_cast<size_t>(call.block_tokens);
  const size_t lanes = hn::Lanes(DF());
  const size_t q_floats = udim * kTileRows;
  auto memory = hwy::AllocateAligned<float>(udim * tokens + 3 * q_floats + tokens * kTileRows + 5 * kTileRows);
  TileWork w;
  w.head_dim = udim;
  w.block_tokens = tokens;
  w.used = (static_cast<size_t>(rows) + lanes - 1) / lanes * lanes;
  w.near_q = memory.get();
  w.far_q = head.far_queries == head.near_queries ? w.near_q : w.near_q + q_floats;
  w.o = w.near_q + 2 * q_floats;
  w.scores = w.o + q_floats;
  w.m = w.scores + tokens * kTileRows;
  w.l = w.m + kTileRows;
  w.exponent_scale = w.l + kTileRows;
  w.rescale = w.exponent_scale + kTileRows;
  w.limit = w.rescale + kTileRows;
  w.wide = w.limit + kTileRows;
  std::fill(w.near_q, w.scores, 0.0f);
  std::fill_n(w.m, kTileRows, kNegativeInfinity);
  std::fill_n(w.l, kTileRows, 0.0f);
  std::fill_n(w.exponent_scale, kTileRows, 0.0f);
  std::fill_n(w.limit, kTileRows, 0.0f);

  float query_scale[kTileRows];
  int64_t query_offset[kTileRows], position[kTileRows];
  for (int r = 0; r < rows; ++r) {
    const int64_t row = first_row + r;
    query_offset[r] = (row / call.group * in.q_heads + row % call.group) * dim;
    position[r] = in.positions[static_cast<size_t>(row / call.group)];
    const internal::RowScale scale =
        internal::ScaleRow(head.near_queries + query_offset[r], head.far_queries + query_offset[r], dim);
    query_scale[r] = scale.query_scale;
    w.exponent_scale[r] = scale.exponent_scale;
  }
  auto packed = hwy::AllocateAligned<float>(udim);
  int32_t rotation = -1;
  for (size_t i = begin; i < end; ++i) {
    const BlockRef& block = in.blocks[static_cast<size_t>(call.order[i].index)];
    if (block.position > position[rows - 1]) continue;
    // Positions grow with the row: near rows are the first of those that see the block, far rows the rest.
    int first_seen = 0;
    while (position[first_seen] < block.position) ++first_seen;
    int first_far = rows;
    if (!head.uniform && !pod::IsNear(window, call.block_tokens, block.position, position[rows - 1])) {
      first_far = first_seen;
      while (pod::IsNear(window, call.block_tokens, block.position, position[first_far])) ++first_far;
    }
    if (first_seen == first_far && !head.has_far) continue;
    if (rotation != call.order[i].rotation) {
      rotation = call.order[i].rotation;
      for (int form = 0; form < (w.far_q == w.near_q ? 1 : 2); ++form) {
        float* q = form == 0 ? w.near_q : w.far_q;
        const float* source = form == 0 ? head.near_queries : head.far_queries;
        for (int r = 0; r < rows; ++r) {
          internal::PackRow(call.rotations[static_cast<size_t>(rotation)], source + query_offset[r], query_scale[r],
                            dim, packed.get());
          for (size_t k = 0; k < udim; ++k) q[k * kTileRows + static_cast<size_t>(r)] = packed[k];
        }
      }
    }
    for (int pass = 0; pass < 2; ++pass) {
      const bool far = pass == 1;
      const int pass_begin = far ? first_far : first_seen, pass_end = far ? rows : first_far;
      if (pass_begin == pass_end || (far && !head.has_far)) continue;
      const auto seen_tokens = [&](int r) {
        return static_cast<int>(std::min<int64_t>(block.tokens, position[r] - block.position + 1));
      };
      const bool masked = pass_begin != 0 || pass_end != rows || seen_tokens(0) != block.tokens;
      if (masked) {
        for (int r = 0; r < rows; ++r) {
          w.limit[r] = r < pass_begin || r >= pass_end ? 0.0f : static_cast<float>(seen_tokens(r));
        }
      }
      const pod::Tile& keys = far ? head.tiles.far_keys : head.tiles.near_keys;
      const pod::Tile& values = far ? head.tiles.far_values : head.tiles.near_values;
      AddTile(w, far ? w.far_q : w.near_q, Elements(block, keys), keys.codec, Elements(block, values), values.codec,
              static_cast<size_t>(seen_tokens(pass_end - 1)), masked);
    }
  }
  for (int r = 0; r < rows; ++r) {
    out.m[r] = w.m[r];
    out.l[r] = w.l[r];
    for (int k = 0; k < dim; ++k) out.o[r * dim + k] = w.o[k * kTileRows + r];
  }
}

// ---------------------------------------------------------------- dot path

#if HWY_TARGET == HWY_SCALAR

// One lane has nothing to sum across.
void AttendDotTarget(const Call& call, int kv_head, int64_t first_row, int rows, size_t begin, size_t end,
                     const PartialState& out) {
  AttendTileTarget(call, kv_head, first_row, rows, begin, end, out);
}

#else

// 2N elements as two vectors. bf16: the even and the odd elements, one instruction each; fp16: the first N and the last
// N. The other factor of a dot product is arranged to match by ArrangePair.
template <bool kIsBf16, class D, class V = hn::Vec<D> >
HWY_INLINE void LoadPair(D d, const uint16_t* HWY_RESTRICT in, V& a, V& b) {
  if constexpr (kIsBf16) {
    const hn::RebindToUnsigned<D> du;
    const auto both = hn::LoadU(du, reinterpret_cast<const uint32_t*>(in));
    a = hn::BitCast(d, hn::ShiftLeft<16>(both));
    b = hn::BitCast(d, hn::And(both, hn::Set(du, 0xFFFF0000u)));
  } else {
    a = LoadF16(d, in);
    b = LoadF16(d, in + hn::Lanes(d));
  }
}

template <bool kIsBf16, class D>
HWY_INLINE void ArrangePair(D d, float* HWY_RESTRICT x) {
  if constexpr (kIsBf16) {
    const size_t lanes = hn::Lanes(d);
    const auto lower = hn::LoadU(d, x), upper = hn::LoadU(d, x + lanes);
    hn::StoreU(hn::ConcatEven(d, upper, lower), d, x);
    hn::StoreU(hn::ConcatOdd(d, upper, lower), d, x + lanes);
  }
}

// The sums of four vectors' lanes, as the four lanes of one.
template <class D, class V = hn::Vec<D> >
HWY_INLINE hn::Vec<hn::CappedTag<float, 4> > SumEach(D d, V a, V b, V c, V e) {
  const hn::Repartition<uint64_t, D> dw;
  const V ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const V ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const V lower = hn::BitCast(d, hn::InterleaveLower(dw, hn::BitCast(dw, ab), hn::BitCast(dw, ce)));
  const V upper = hn::BitCast(d, hn::InterleaveUpper(dw, hn::BitCast(dw, ab), hn::BitCast(dw, ce)));
  const V sum = hn::Add(lower, upper);  // Per 128-bit block: partial sums of a, b, c, e.
  if constexpr (hn::MaxLanes(D()) == 4) {
    return sum;
  } else {
    const hn::Half<D> half;
    const auto folded = hn::Add(hn::LowerHalf(half, sum), hn::UpperHalf(half, sum));
    if constexpr (hn::MaxLanes(half) == 4) {
      return folded;
    } else {
      const hn::Half<decltype(half)> quarter;
      return hn::Add(hn::LowerHalf(quarter, folded), hn::UpperHalf(quarter, folded));
    }
  }
}

// Result of R right factors against `rows` stored rows of `width` elements: result[r * result_stride + row] =
// result * scale[r] + sum (scale null: sum). right: [R][width], arranged. rows is a multiple of 4, width of 2N.
// Cache lines of `next` are asked for as rows are read.
template <int R, bool kIsBf16, class D>
HWY_INLINE void DotRows(D d, const uint16_t* HWY_RESTRICT stored, size_t width, size_t rows,
                        const float* HWY_RESTRICT right, const float* scale, float* HWY_RESTRICT result,
                        size_t result_stride, const uint16_t* next) {
  const hn::CappedTag<float, 4> d4;
  const size_t lanes = hn::Lanes(d);
  for (size_t row = 0; row < rows; row += 4) {
    if (next != nullptr) {
      for (size_t e = 0; e < 4 * width; e += 32) __builtin_prefetch(next + row * width + e, 0, 2);
    }
    hn::Vec<D> sum[4][R];
    for (int i = 0; i < 4; ++i) {
      for (int r = 0; r < R; ++r) sum[i][r] = hn::Zero(d);
    }
    for (size_t j = 0; j < width; j += 2 * lanes) {
      hn::Vec<D> a[4], b[4];
      for (int i = 0; i < 4; ++i) LoadPair<kIsBf16>(d, stored + (row + static_cast<size_t>(i)) * width + j, a[i], b[i]);
      for (int r = 0; r < R; ++r) {
        const auto q0 = hn::LoadU(d, right + static_cast<size_t>(r) * width + j);
        const auto q1 = hn::LoadU(d, right + static_cast<size_t>(r) * width + j + lanes);
        for (int i = 0; i < 4; ++i) sum[i][r] = hn::MulAdd(b[i], q1, hn::MulAdd(a[i], q0, sum[i][r]));
      }
    }
    for (int r = 0; r < R; ++r) {
      const auto four = SumEach(d, sum[0][r], sum[1][r], sum[2][r], sum[3][r]);
      float* at = result + static_cast<size_t>(r) * result_stride + row;
      if (scale == nullptr) {
        hn::StoreU(four, d4, at);
      } else {
        hn::StoreU(hn::MulAdd(hn::LoadU(d4, at), hn::Set(d4, scale[r]), four), d4, at);
      }
    }
  }
}

template <bool kIsBf16, class D>
HWY_INLINE void DotRowsOf(int count, D d, const uint16_t* stored, size_t width, size_t rows, const float* right,
                          const float* scale, float* result, size_t result_stride, const uint16_t* next) {
  switch (count) {
    case 1:
      return DotRows<1, kIsBf16>(d, stored, width, rows, right, scale, result, result_stride, next);
    case 2:
      return DotRows<2, kIsBf16>(d, stored, width, rows, right, scale, result, result_stride, next);
    case 3:
      return DotRows<3, kIsBf16>(d, stored, width, rows, right, scale, result, result_stride, next);
    default:
      return DotRows<4, kIsBf16>(d, stored, width, rows, right, scale, result, result_stride, next);
  }
}

struct DotArgs {
  int count;
  const uint16_t* stored;
  size_t width, rows;
  const float* right;
  const float* scale;
  float* result;
  size_t result_stride;
  const uint16_t* next;
};

template <class D>
HWY_INLINE void DotCodec(D d, pod::Codec codec, const DotArgs& a) {
  if (codec == pod::Codec::kBf16) {
    DotRowsOf<true>(a.count, d, a.stored, a.width, a.rows, a.right, a.scale, a.result, a.result_stride, a.next);
  } else {
    DotRowsOf<false>(a.count, d, a.stored, a.width, a.rows, a.right, a.scale, a.result, a.result_stride, a.next);
  }
}

template <class D>
HWY_INLINE void ArrangeCodec(D d, pod::Codec codec, size_t n, float* x) {
  if (codec != pod::Codec::kBf16) return;
  for (size_t i = 0; i < n; i += 2 * hn::Lanes(d)) ArrangePair<true>(d, x + i);
}

// Rows of 2N elements need vectors of N lanes that divide the row: the widest of these that does.
using D16 = hn::CappedTag<float, 16>;
using D8 = hn::CappedTag<float, 8>;
using D4 = hn::CappedTag<float, 4>;

void Dot(pod::Codec codec, const DotArgs& a) {
  if (a.width % (2 * hn::Lanes(D16())) == 0) return DotCodec(D16(), codec, a);
  if (a.width % (2 * hn::Lanes(D8())) == 0) return DotCodec(D8(), codec, a);
  return DotCodec(D4(), codec, a);
}

void Arrange(pod::Codec codec, size_t width, size_t n, float* x) {
  if (width % (2 * hn::Lanes(D16())) == 0) return ArrangeCodec(D16(), codec, n, x);
  if (width % (2 * hn::Lanes(D8())) == 0) return ArrangeCodec(D8(), codec, n, x);
  return ArrangeCodec(D4(), codec, n, x);
}

// scores[0, n) -> probabilities in place, the rest up to block_tokens -> 0; updates m and l, returns the factor for
// older sums.
HWY_INLINE float SoftmaxRow(float* HWY_RESTRICT scores, size_t n, size_t block_tokens, float exponent_scale, float* m,
                            float* l) {
  const hn::CappedTag<float, 16> d;  // block_tokens is a multiple of 16.
  const size_t lanes = hn::Lanes(d);
  std::fill(scores + n, scores + block_tokens, kNegativeInfinity);
  auto tops = hn::Set(d, *m);
  for (size_t t = 0; t < n; t += lanes) tops = hn::Max(tops, hn::LoadU(d, scores + t));
  const float top = hn::GetLane(hn::MaxOfLanes(d, tops));
  const auto shift = hn::Set(d, top), scale = hn::Set(d, exponent_scale);
  auto sum = hn::Zero(d);
  for (size_t t = 0; t < block_tokens; t += lanes) {
    const auto s = hn::LoadU(d, scores + t);
    auto p = Exp2(d, hn::MulAdd(hn::Sub(s, shift), scale, hn::Set(d, kProbabilityBias)));
    // Only where every seen score is -inf is -inf - -inf reached beyond n; those lanes must stay 0.
    p = hn::IfThenElseZero(hn::Lt(hn::Iota(d, static_cast<float>(t)), hn::Set(d, static_cast<float>(n))), p);
    hn::StoreU(p, d, scores + t);
    sum = hn::Add(sum, p);
  }
  const float rescale = internal::Rescale(*m, top, exponent_scale);
  *l = *l * rescale + hn::GetLane(hn::SumOfLanes(d, sum));
  *m = top;
  return rescale;
}

void AttendDotTarget(const Call& call, int kv_head, int64_t first_row, int rows, size_t begin, size_t end,
                     const PartialState& out) {
  const HeadPlan head = internal::PlanHead(call, kv_head);
  const AttentionInput& in = *call.input;
  const pod::Window& window = in.layout->plan().window();
  const size_t dim = static_cast<size_t>(call.head_dim), block_tokens = static_cast<size_t>(call.block_tokens);
  const size_t urows = static_cast<size_t>(rows);
  const int64_t query = first_row / call.group;  // All rows are of one query.
  const int64_t position = in.positions[static_cast<size_t>(query)];
  const int64_t query_offset = (query * in.q_heads + first_row % call.group) * call.head_dim;

  auto memory = hwy::AllocateAligned<float>(2 * urows * dim + 4 * block_tokens + dim * block_tokens / 2 + 2 * urows);
  float* near_q = memory.get();
  float* far_q = near_q + urows * dim;
  float* scores = far_q + urows * dim;  // [4][block_tokens]
  uint16_t* tail =
      reinterpret_cast<uint16_t*>(scores + 4 * block_tokens);  // Values of a block that is not wholly seen.
  float* query_scale = scores + 4 * block_tokens + dim * block_tokens / 2;
  float* exponent_scale = query_scale + urows;
  for (size_t r = 0; r < urows; ++r) {
    const int64_t offset = query_offset + static_cast<int64_t>(r * dim);
    const internal::RowScale scale =
        internal::ScaleRow(head.near_queries + offset, head.far_queries + offset, call.head_dim);
    query_scale[r] = scale.query_scale;
    exponent_scale[r] = scale.exponent_scale;
    out.m[r] = kNegativeInfinity;
    out.l[r] = 0;
  }
  std::fill_n(out.o, urows * dim, 0.0f);

  const auto is_near = [&](const BlockRef& block) {
    return head.uniform || pod::IsNear(window, call.block_tokens, block.position, position);
  };
  // The next block from order[i] on that is read at all.
  const auto next_read = [&](size_t i) {
    while (i < end) {
      const BlockRef& block = in.blocks[static_cast<size_t>(call.order[i].index)];
      if (block.position <= position && (head.has_far || is_near(block))) break;
      ++i;
    }
    return i;
  };
  int32_t rotation = -1;
  for (size_t i = next_read(begin); i < end;) {
    const BlockRef& block = in.blocks[static_cast<size_t>(call.order[i].index)];
    if (rotation != call.order[i].rotation) {
      rotation = call.order[i].rotation;
      const Rotation& turn = call.rotations[static_cast<size_t>(rotation)];
      for (size_t r = 0; r < urows; ++r) {
        const int64_t offset = query_offset + static_cast<int64_t>(r * dim);
        internal::PackRow(turn, head.near_queries + offset, query_scale[r], call.head_dim, near_q + r * dim);
        Arrange(head.tiles.near_keys.codec, dim, dim, near_q + r * dim);
        if (!head.has_far) continue;
        internal::PackRow(turn, head.far_queries + offset, query_scale[r], call.head_dim, far_q + r * dim);
        Arrange(head.tiles.far_keys.codec, dim, dim, far_q + r * dim);
      }
    }
    const bool near = is_near(block);
    const pod::Tile& key_tile = near ? head.tiles.near_keys : head.tiles.far_keys;
    const pod::Tile& value_tile = near ? head.tiles.near_values : head.tiles.far_values;
    const size_t tokens = static_cast<size_t>(std::min<int64_t>(block.tokens, position - block.position + 1));
    const uint16_t* values = Elements(block, value_tile);
    const uint16_t* after_keys = values;
    const uint16_t* after_values = nullptr;
    i = next_read(i + 1);
    if (i < end) {
      const BlockRef& next = in.blocks[static_cast<size_t>(call.order[i].index)];
      after_values = Elements(next, is_near(next) ? head.tiles.near_keys : head.tiles.far_keys);
    }
    if (tokens < block_tokens) {
      // What lies past the tokens seen may be NaN, which even a probability of 0 would let through.
      for (size_t k = 0; k < dim; ++k) {
        std::memcpy(tail + k * block_tokens, values + k * block_tokens, tokens * sizeof(uint16_t));
        std::memset(tail + k * block_tokens + tokens, 0, (block_tokens - tokens) * sizeof(uint16_t));
      }
      values = tail;
    }
    for (size_t r = 0; r < urows; r += 4) {
      const int count = static_cast<int>(std::min<size_t>(4, urows - r));
      float rescale[4];
      Dot(key_tile.codec,
          {count, Elements(block, key_tile), dim, (tokens + 3) / 4 * 4, (near ? near_q : far_q) + r * dim, nullptr,
           scores, block_tokens, r == 0 ? after_keys : nullptr});
      for (int k = 0; k < count; ++k) {
        const size_t row = r + static_cast<size_t>(k);
        float* s = scores + static_cast<size_t>(k) * block_tokens;
        rescale[k] = SoftmaxRow(s, tokens, block_tokens, exponent_scale[row], &out.m[row], &out.l[row]);
        Arrange(value_tile.codec, block_tokens, block_tokens, s);
      }
      Dot(value_tile.codec,
          {count, values, block_tokens, dim, scores, rescale, out.o + r * dim, dim, r == 0 ? after_values : nullptr});
    }
  }
}

#endif  // HWY_TARGET == HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace perigee::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace perigee::kernels {

HWY_EXPORT(AttendTileTarget);
HWY_EXPORT(AttendDotTarget);

namespace internal {

void AttendTile(const Call& call, int kv_head, int64_t first_row, int rows, size_t begin, size_t end,
                const PartialState& out) {
  HWY_DYNAMIC_DISPATCH(AttendTileTarget)(call, kv_head, first_row, rows, begin, end, out);
}

void AttendDot(const Call& call, int kv_head, int64_t first_row, int rows, size_t begin, size_t end,
               const PartialState& out) {
  HWY_DYNAMIC_DISPATCH(AttendDotTarget)(call, kv_head, first_row, rows, begin, end, out);
}

}  // namespace internal
}  // namespace perigee::kernels
#endif  // HWY_ONCE
