// Internal to kernels/: vector helpers shared by the SIMD files. Included once per target, inside foreach_target.
#if defined(PERIGEE_KERNELS_CPU_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PERIGEE_KERNELS_CPU_MATH_INL_H_
#undef PERIGEE_KERNELS_CPU_MATH_INL_H_
#else
#define PERIGEE_KERNELS_CPU_MATH_INL_H_
#endif

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace perigee::kernels {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// 2^x within 2e-7 for x < 128; 0 for x < -126; NaN stays NaN (Highway's own Exp turns it into 0). Coefficients: Cephes'
// exp2f.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Exp2(D d, V x) {
  const hn::RebindToSigned<D> di;
  const V whole = hn::Round(x);
  const V f = hn::Sub(x, whole);
  V p = hn::Set(d, 1.535336188319500e-4f);
  p = hn::MulAdd(p, f, hn::Set(d, 1.339887440266574e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 9.618437357674640e-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 5.550332471162809e-2f));
  p = hn::MulAdd(p, f, hn::Set(d, 2.402264791363012e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 6.931472028550421e-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  const auto exponent = hn::ShiftLeft<23>(hn::Add(hn::ConvertTo(di, whole), hn::Set(di, 127)));
  return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Mul(p, hn::BitCast(d, exponent)));
}

// fp16 bits in the low halves -> float, by integer arithmetic: the same on every target, subnormals and NaN included.
template <class DU, class VU = hn::Vec<DU>>
HWY_INLINE hn::Vec<hn::RebindToFloat<DU>> FloatFromF16Bits(DU du, VU h) {
  const hn::RebindToFloat<DU> d;
  const VU magnitude = hn::ShiftLeft<13>(hn::And(h, hn::Set(du, 0x7FFFu)));
  const VU exponent = hn::And(magnitude, hn::Set(du, 0x7C00u << 13));
  const VU rebased = hn::Add(magnitude, hn::Set(du, (127u - 15u) << 23));
  const VU special = hn::Add(rebased, hn::Set(du, (128u - 16u) << 23));  // Inf, NaN.
  const auto subnormal =
      hn::Sub(hn::BitCast(d, hn::Add(rebased, hn::Set(du, 1u << 23))), hn::BitCast(d, hn::Set(du, 113u << 23)));
  VU bits = hn::IfThenElse(hn::Eq(exponent, hn::Set(du, 0x7C00u << 13)), special, rebased);
  bits = hn::IfThenElse(hn::Eq(exponent, hn::Zero(du)), hn::BitCast(du, subnormal), bits);
  return hn::BitCast(d, hn::Or(bits, hn::ShiftLeft<16>(hn::And(h, hn::Set(du, 0x8000u)))));
}

// N fp16 elements -> N floats.
template <class D>
HWY_INLINE hn::Vec<D> LoadF16(D d, const uint16_t* HWY_RESTRICT in) {
#if HWY_TARGET <= HWY_AVX2 && !defined(HWY_DISABLE_F16C)
  const hn::Rebind<hwy::float16_t, D> dh;
  return hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(in)));
#else
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> dh;
  return FloatFromF16Bits(du, hn::PromoteTo(du, hn::LoadU(dh, in)));
#endif
}

// N bf16 elements -> N floats.
template <class D>
HWY_INLINE hn::Vec<D> LoadBf16(D d, const uint16_t* HWY_RESTRICT in) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> dh;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(du, hn::LoadU(dh, in))));
}

}  // namespace HWY_NAMESPACE
}  // namespace perigee::kernels
HWY_AFTER_NAMESPACE();

#endif  // per-target include guard
