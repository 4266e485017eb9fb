#include <algorithm>
#include <bit>
#include <cstring>

#include "kernels/codec.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/codec_simd.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "kernels/cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace perigee::kernels {
namespace HWY_NAMESPACE {

using DF = hn::ScalableTag<float>;

// Results in the low halves.
template <class DU, class VU = hn::Vec<DU>>
HWY_INLINE VU Bf16Bits(DU du, VU u) {
  const VU odd = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 1));
  const VU rounded = hn::ShiftRight<16>(hn::Add(hn::Add(u, hn::Set(du, 0x7FFF)), odd));
  const VU quiet = hn::Or(hn::ShiftRight<16>(u), hn::Set(du, 0x40));
  const auto is_nan = hn::Gt(hn::And(u, hn::Set(du, 0x7FFFFFFF)), hn::Set(du, 0x7F800000));
  return hn::IfThenElse(is_nan, quiet, rounded);
}

template <class DU, class VU = hn::Vec<DU>>
HWY_INLINE VU F16Bits(DU du, VU u) {
  const hn::RebindToFloat<DU> d;
  const VU sign = hn::And(hn::ShiftRight<16>(u), hn::Set(du, 0x8000));
  VU magnitude = hn::And(u, hn::Set(du, 0x7FFFFFFF));
  const auto is_nan = hn::Gt(magnitude, hn::Set(du, 0x7F800000));
  magnitude = hn::Min(magnitude, hn::Set(du, 0x477FE000));  // 65504; as integers, so that infinity is held too.
  // Below 2^-14, adding 0.5 leaves the result's bits at the bottom, rounded by the addition itself.
  const auto half = hn::Set(d, 0.5f);
  const VU subnormal = hn::Sub(hn::BitCast(du, hn::Add(hn::BitCast(d, magnitude), half)), hn::BitCast(du, half));
  const VU odd = hn::And(hn::ShiftRight<13>(magnitude), hn::Set(du, 1));
  const VU rebias = hn::Set(du, 0xC8000FFFu);  // (15 - 127) << 23, plus just under half of the last place kept.
  const VU normal = hn::ShiftRight<13>(hn::Add(hn::Add(magnitude, rebias), odd));
  VU bits = hn::IfThenElse(hn::Lt(magnitude, hn::Set(du, 0x38800000)), subnormal, normal);
  bits = hn::IfThenElse(is_nan, hn::Set(du, 0x7E00), bits);
  return hn::Or(bits, sign);
}

template <bool kIsBf16, class D>
HWY_INLINE void EncodeVector(D d, const float* in, uint16_t* out) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> dh;
  const auto u = hn::BitCast(du, hn::LoadU(d, in));
  const auto bits = kIsBf16 ? Bf16Bits(du, u) : F16Bits(du, u);
  hn::StoreU(hn::DemoteTo(dh, hn::BitCast(hn::RebindToSigned<D>(), bits)), dh, out);
}

template <bool kIsBf16, class D>
HWY_INLINE void DecodeVector(D d, const uint16_t* in, float* out) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<uint16_t, D> dh;
  const auto h = hn::PromoteTo(du, hn::LoadU(dh, in));
  hn::StoreU(kIsBf16 ? hn::BitCast(d, hn::ShiftLeft<16>(h)) : FloatFromF16Bits(du, h), d, out);
}

template <bool kIsBf16>
void EncodeAll(const float* in, size_t n, uint16_t* out) {
  const DF d;
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) EncodeVector<kIsBf16>(d, in + i, out + i);
  const hn::CappedTag<float, 1> d1;
  for (; i < n; ++i) EncodeVector<kIsBf16>(d1, in + i, out + i);
}

template <bool kIsBf16>
void DecodeAll(const uint16_t* in, size_t n, float* out) {
  const DF d;
  size_t i = 0;
  for (; i + hn::Lanes(d) <= n; i += hn::Lanes(d)) DecodeVector<kIsBf16>(d, in + i, out + i);
  const hn::CappedTag<float, 1> d1;
  for (; i < n; ++i) DecodeVector<kIsBf16>(d1, in + i, out + i);
}

void EncodeTarget(pod::Codec codec, const float* in, size_t n, uint16_t* out) {
  codec == pod::Codec::kBf16 ? EncodeAll<true>(in, n, out) : EncodeAll<false>(in, n, out);
}

void DecodeTarget(pod::Codec codec, const uint16_t* in, size_t n, float* out) {
  codec == pod::Codec::kBf16 ? DecodeAll<true>(in, n, out) : DecodeAll<false>(in, n, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace perigee::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace perigee::kernels {

HWY_EXPORT(EncodeTarget);
HWY_EXPORT(DecodeTarget);

void Encode(pod::Codec codec, const float* in, size_t n, uint16_t* out) {
  HWY_DYNAMIC_DISPATCH(EncodeTarget)(codec, in, n, out);
}

void Decode(pod::Codec codec, const uint16_t* in, size_t n, float* out) {
  HWY_DYNAMIC_DISPATCH(DecodeTarget)(codec, in, n, out);
}

void RoundTrip(pod::Codec codec, float* x, size_t n) {
  uint16_t buffer[256];
  for (size_t i = 0; i < n; i += 256) {
    const size_t count = std::min<size_t>(256, n - i);
    Encode(codec, x + i, count, buffer);
    Decode(codec, buffer, count, x + i);
  }
}

uint16_t Bf16Down(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>(u >> 16 | 0x40);
  const bool cut = (u & 0xFFFF) != 0;
  return static_cast<uint16_t>((u >> 16) + (cut && (u >> 31) != 0 ? 1 : 0));  // Negative: away from zero.
}

uint16_t Bf16Up(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if (x != x) return static_cast<uint16_t>(u >> 16 | 0x40);
  const bool cut = (u & 0xFFFF) != 0;
  return static_cast<uint16_t>((u >> 16) + (cut && (u >> 31) == 0 ? 1 : 0));
}

}  // namespace perigee::kernels
#endif  // HWY_ONCE
