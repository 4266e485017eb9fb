// The dot path of attention (decode); see attention_internal.h for units, rows and scaling.
//
// Dot products along the stored rows, up to four query heads at a time per loaded vector.
#include <algorithm>
#include <bit>
#include <limits>

#include "hwy/aligned_allocator.h"
#include "kernels/cpu/attention_internal.h"
#include "kernels/cpu/merge.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/attention_dot_simd.cc"
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
using internal::OrderedBlock;
using internal::PartialState;
using internal::Range;
using internal::Rotation;

constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

#if HWY_TARGET == HWY_SCALAR

// One lane has nothing to sum across.
void AttendDotTarget(const Call& call, int kv_head, int64_t first_row, int rows, const Range& range,
                     const PartialState& out) {
  internal::AttendTile(call, kv_head, first_row, rows, range, out);
}

#else

// 2N elements as two vectors. bf16: the even and the odd elements, one instruction each; fp16: the first N and the last
// N. The other factor of a dot product is arranged to match by ArrangePair. Where mask is 0 they are 0, else it is all
// ones.
template <bool kIsBf16, bool kMasked, class D, class V = hn::Vec<D> >
HWY_INLINE void LoadPair(D d, const uint16_t* HWY_RESTRICT in, const uint16_t* HWY_RESTRICT mask, V& a, V& b) {
  if constexpr (kIsBf16) {
    const hn::RebindToUnsigned<D> du;
    auto both = hn::LoadU(du, reinterpret_cast<const uint32_t*>(in));
    if constexpr (kMasked) both = hn::And(both, hn::LoadU(du, reinterpret_cast<const uint32_t*>(mask)));
    a = hn::BitCast(d, hn::ShiftLeft<16>(both));
    b = hn::BitCast(d, hn::And(both, hn::Set(du, 0xFFFF0000u)));
  } else {
    const size_t lanes = hn::Lanes(d);
    a = LoadF16(d, in);
    b = LoadF16(d, in + lanes);
    if constexpr (kMasked) {
      const hn::RebindToSigned<D> di;
      const hn::Rebind<int16_t, D> dh;
      const auto* wide = reinterpret_cast<const int16_t*>(mask);
      a = hn::And(a, hn::BitCast(d, hn::PromoteTo(di, hn::LoadU(dh, wide))));
      b = hn::And(b, hn::BitCast(d, hn::PromoteTo(di, hn::LoadU(dh, wide + lanes))));
    }
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
// Cache lines of `next` are asked for as rows are read. mask: [width], of each stored row.
template <int R, bool kIsBf16, bool kMasked, class D>
HWY_INLINE void DotRows(D d, const uint16_t* HWY_RESTRICT stored, const uint16_t* mask, size_t width, size_t rows,
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
      for (int i = 0; i < 4; ++i) {
        LoadPair<kIsBf16, kMasked>(d, stored + (row + static_cast<size_t>(i)) * width + j, mask + j, a[i], b[i]);
      }
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

struct DotArgs {
  int count;
  const uint16_t* stored;
  const uint16_t* mask;  // Or null: all is seen.
  size_t width, rows;
  const float* right;
  const float* scale;
  float* result;
  size_t result_stride;
  const uint16_t* next;
};

template <int R, bool kIsBf16, class D>
HWY_INLINE void DotRowsOf(D d, const DotArgs& a) {
  if (a.mask == nullptr) {
    // Any address: nothing is read there.
    DotRows<R, kIsBf16, false>(d, a.stored, a.stored, a.width, a.rows, a.right, a.scale, a.result, a.result_stride,
                               a.next);
  } else {
    DotRows<R, kIsBf16, true>(d, a.stored, a.mask, a.width, a.rows, a.right, a.scale, a.result, a.result_stride,
                              a.next);
  }
}

template <bool kIsBf16, class D>
HWY_INLINE void DotCount(D d, const DotArgs& a) {
  switch (a.count) {
    case 1:
      return DotRowsOf<1, kIsBf16>(d, a);
    case 2:
      return DotRowsOf<2, kIsBf16>(d, a);
    case 3:
      return DotRowsOf<3, kIsBf16>(d, a);
    default:
      return DotRowsOf<4, kIsBf16>(d, a);
  }
}

template <class D>
HWY_INLINE void DotCodec(D d, pod::Codec codec, const DotArgs& a) {
  if (codec == pod::Codec::kBf16) {
    DotCount<true>(d, a);
  } else {
    DotCount<false>(d, a);
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

// Calls f for each of the first `tokens` tokens that is hidden.
template <class F>
HWY_INLINE void ForEachHidden(const BlockRef& block, size_t tokens, F f) {
  for (size_t base = 0; base < tokens; base += 64) {
    uint64_t bits = block.hidden[base / 64];
    if (tokens - base < 64) bits &= (uint64_t{1} << (tokens - base)) - 1;
    for (; bits != 0; bits &= bits - 1) f(base + static_cast<size_t>(std::countr_zero(bits)));
  }
}

void AttendDotTarget(const Call& call, int kv_head, int64_t first_row, int rows, const Range& range,
                     const PartialState& out) {
  const HeadPlan head = internal::PlanHead(call, kv_head);
  const AttentionInput& in = *call.input;
  const float temperature = internal::TemperatureOf(call, range);
  const size_t dim = static_cast<size_t>(call.head_dim), block_tokens = static_cast<size_t>(call.block_tokens);
  const size_t urows = static_cast<size_t>(rows);
  const int64_t query = first_row / call.group;  // All rows are of one query.
  const int64_t position = in.positions[static_cast<size_t>(query)];
  const int64_t query_offset = (query * in.q_heads + first_row % call.group) * call.head_dim;

  auto memory = hwy::AllocateAligned<float>(2 * urows * dim + 4 * block_tokens + 2 * urows);
  float* near_q = memory.get();
  float* far_q = near_q + urows * dim;
  float* scores = far_q + urows * dim;  // [4][block_tokens]
  float* query_scale = scores + 4 * block_tokens;
  float* exponent_scale = query_scale + urows;
  for (size_t r = 0; r < urows; ++r) {
    const int64_t offset = query_offset + static_cast<int64_t>(r * dim);
    const internal::RowScale scale =
        internal::ScaleRow(head.near_queries + offset, head.far_queries + offset, call.head_dim, temperature);
    query_scale[r] = scale.query_scale;
    exponent_scale[r] = scale.exponent_scale;
    out.m[r] = kNegativeInfinity;
    out.l[r] = 0;
  }
  std::fill_n(out.o, urows * dim, 0.0f);

  const auto is_near = [&](const OrderedBlock& at) { return head.uniform || internal::IsNear(call, at, position); };
  // The next block from order[i] on that is read at all.
  const auto next_read = [&](size_t i) {
    while (i < range.end && (call.order[i].first > position || !(head.has_far || is_near(call.order[i])))) ++i;
    return i;
  };
  // All ones where the query sees a token, of a block that it does not wholly see.
  alignas(64) uint16_t seen[pod::kMaxBlockTokens];
  int32_t rotation = -1;
  for (size_t i = next_read(range.begin); i < range.end;) {
    const OrderedBlock& at = call.order[i];
    const BlockRef& block = in.blocks[static_cast<size_t>(at.index)];
    if (rotation != at.rotation) {
      rotation = at.rotation;
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
    const bool near = is_near(at);
    const pod::Tile& key_tile = near ? head.tiles.near_keys : head.tiles.far_keys;
    const pod::Tile& value_tile = near ? head.tiles.near_values : head.tiles.far_values;
    const size_t tokens = static_cast<size_t>(internal::SeenTokens(block, position));
    const uint16_t* values = Elements(block, value_tile);
    const uint16_t* after_keys = values;
    const uint16_t* after_values = nullptr;
    i = next_read(i + 1);
    if (i < range.end) {
      const OrderedBlock& next = call.order[i];
      after_values = Elements(in.blocks[static_cast<size_t>(next.index)],
                              is_near(next) ? head.tiles.near_keys : head.tiles.far_keys);
    }
    // What is not seen may be NaN, which even a probability of 0 would let through.
    const bool masked = tokens < block_tokens || at.has_hidden;
    if (masked) {
      std::fill(std::fill_n(seen, tokens, uint16_t{0xFFFF}), seen + block_tokens, uint16_t{0});
      ForEachHidden(block, tokens, [&](size_t t) { seen[t] = 0; });
    }
    for (size_t r = 0; r < urows; r += 4) {
      const int count = static_cast<int>(std::min<size_t>(4, urows - r));
      float rescale[4];
      Dot(key_tile.codec,
          {count, Elements(block, key_tile), nullptr, dim, (tokens + 3) / 4 * 4, (near ? near_q : far_q) + r * dim,
           nullptr, scores, block_tokens, r == 0 ? after_keys : nullptr});
      for (int k = 0; k < count; ++k) {
        const size_t row = r + static_cast<size_t>(k);
        float* s = scores + static_cast<size_t>(k) * block_tokens;
        if (at.has_hidden) ForEachHidden(block, tokens, [&](size_t t) { s[t] = kNegativeInfinity; });
        rescale[k] = SoftmaxRow(s, tokens, block_tokens, exponent_scale[row], &out.m[row], &out.l[row]);
        Arrange(value_tile.codec, block_tokens, block_tokens, s);
      }
      Dot(value_tile.codec, {count, values, masked ? seen : nullptr, block_tokens, dim, scores, rescale,
                             out.o + r * dim, dim, r == 0 ? after_values : nullptr});
    }
  }
}

#endif  // HWY_TARGET == HWY_SCALAR

}  // namespace HWY_NAMESPACE
}  // namespace perigee::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace perigee::kernels {

HWY_EXPORT(AttendDotTarget);

namespace internal {

void AttendDot(const Call& call, int kv_head, int64_t first_row, int rows, const Range& range,
               const PartialState& out) {
  HWY_DYNAMIC_DISPATCH(AttendDotTarget)(call, kv_head, first_row, rows, range, out);
}

}  // namespace internal
}  // namespace perigee::kernels
#endif  // HWY_ONCE
