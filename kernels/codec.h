// Conversions between float and the codecs' 16-bit elements, round to nearest even; fp16 saturates to +-65504 instead
// of overflowing. NaN stays NaN.
#ifndef PERIGEE_KERNELS_CODEC_H_
#define PERIGEE_KERNELS_CODEC_H_

#include <cstddef>
#include <cstdint>

#include "pod/codec.h"

namespace perigee::kernels {

void Encode(pod::Codec codec, const float* in, size_t n, uint16_t* out);
void Decode(pod::Codec codec, const uint16_t* in, size_t n, float* out);

// Rounds every element to what the codec can hold. x may be changed in place.
void RoundTrip(pod::Codec codec, float* x, size_t n);

// bf16 rounded toward minus or plus infinity: bounds that hold.
uint16_t Bf16Down(float x);
uint16_t Bf16Up(float x);

}  // namespace perigee::kernels

#endif  // PERIGEE_KERNELS_CODEC_H_
