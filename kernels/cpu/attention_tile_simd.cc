// The tile path of attention (prefill); see attention_internal.h for units, rows and scaling.
//
// Keys [token][dim] and values [dim][token] are both the left factor of a small matrix product as they are stored:
// S[token][row] = K . Q^T[dim][row] and O[dim][row] += V^T . P[token][row]. Vector lanes are rows, so softmax needs no
// reduction across lanes; a tile is widened to float once and then serves kTileRows rows.
#include <algorithm>
#include <limits>
#include <numeric>

#include "hwy/aligned_allocator.h"
#include "kernels/cpu/attention_internal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_tile_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace perigee::kernels {
namespace HWY_NAMESPACE {

using internal::Call;
using internal::Elements;
using internal::HeadPlan;
using internal::kProbabilityBias;
using internal::kTileRows;
using internal::OrderedBlock;
using internal::PartialState;
using internal::Range;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

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
  const float* number;    // [block_tokens] a token's number in the tile, infinity where it is hidden.
};

// Adds one tile. tokens: the largest limit. masked: rows differ in the tokens they see, or tokens are hidden: a row
// sees a token if number < limit.
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
        const auto seen = hn::Lt(hn::Set(d, w.number[t]), limit);
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
      if (masked) p = hn::IfThenElseZero(hn::Lt(hn::Set(d, w.number[t]), limit), p);
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
        const auto seen = hn::Lt(hn::Set(d, w.number[t]), limit);
        const auto v = hn::IfThenElseZero(seen, hn::Set(d, w.wide[i * w.block_tokens + t]));
        sum = hn::MulAdd(v, hn::Load(d, w.scores + t * kTileRows + lane), sum);
      }
      hn::Store(sum, d, w.o + i * kTileRows + lane);
    }
  }
}

void AttendTileTarget(const Call& call, int kv_head, int64_t first_row, int rows, const Range& range,
                      const PartialState& out) {
  const HeadPlan head = internal::PlanHead(call, kv_head);
  const AttentionInput& in = *call.input;
  const float temperature = internal::TemperatureOf(call, range);
  const int dim = call.head_dim;
  const size_t udim = static_cast<size_t>(dim), tokens = static_cast<size_t>(call.block_tokens);
  const size_t lanes = hn::Lanes(DF());
  const size_t q_floats = udim * kTileRows;
  auto memory =
      hwy::AllocateAligned<float>(udim * tokens + 3 * q_floats + tokens * kTileRows + 5 * kTileRows + 2 * tokens);
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
  float* plain_number = w.limit + kTileRows;
  float* hidden_number = plain_number + tokens;
  w.wide = hidden_number + tokens;
  std::iota(plain_number, hidden_number, 0.0f);
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
        internal::ScaleRow(head.near_queries + query_offset[r], head.far_queries + query_offset[r], dim, temperature);
    query_scale[r] = scale.query_scale;
    w.exponent_scale[r] = scale.exponent_scale;
  }
  auto packed = hwy::AllocateAligned<float>(udim);
  int32_t rotation = -1;
  for (size_t i = range.begin; i < range.end; ++i) {
    const OrderedBlock& at = call.order[i];
    const BlockRef& block = in.blocks[static_cast<size_t>(at.index)];
    if (at.first > position[rows - 1]) continue;
    // Positions grow with the row: near rows are the first of those that see the block, far rows the rest.
    int first_seen = 0;
    while (position[first_seen] < at.first) ++first_seen;
    int first_far = rows;
    if (!head.uniform && !internal::IsNear(call, at, position[rows - 1])) {
      first_far = first_seen;
      while (internal::IsNear(call, at, position[first_far])) ++first_far;
    }
    if (first_seen == first_far && !head.has_far) continue;
    if (rotation != at.rotation) {
      rotation = at.rotation;
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
    w.number = plain_number;
    if (at.has_hidden) {
      for (int t = 0; t < block.tokens; ++t) {
        hidden_number[t] = internal::IsHidden(block, t) ? std::numeric_limits<float>::infinity() : plain_number[t];
      }
      w.number = hidden_number;
    }
    for (int pass = 0; pass < 2; ++pass) {
      const bool far = pass == 1;
      const int pass_begin = far ? first_far : first_seen, pass_end = far ? rows : first_far;
      if (pass_begin == pass_end || (far && !head.has_far)) continue;
      const auto seen_tokens = [&](int r) { return internal::SeenTokens(block, position[r]); };
      const bool masked = at.has_hidden || pass_begin != 0 || pass_end != rows || seen_tokens(0) != block.tokens;
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

}  // namespace HWY_NAMESPACE
}  // namespace perigee::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace perigee::kernels {

HWY_EXPORT(AttendTileTarget);

namespace internal {

void AttendTile(const Call& call, int kv_head, int64_t first_row, int rows, const Range& range,
                const PartialState& out) {
  HWY_DYNAMIC_DISPATCH(AttendTileTarget)(call, kv_head, first_row, rows, range, out);
}

}  // namespace internal
}  // namespace perigee::kernels
#endif  // HWY_ONCE
