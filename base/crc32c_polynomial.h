// Arithmetic modulo the Castagnoli polynomial
//   P(x) = x^32 + x^28 + x^27 + x^26 + x^25 + x^23 + x^22 + x^20 + x^19 + x^18 + x^14 + x^13 + x^11 + x^10 + x^9 + x^8
//          + x^6 + 1
// over GF(2), from which every constant of the CRC's implementations is derived at compile time. A remainder is a
// uint32_t in the CRC's own (reflected) bit order: bit 31 - d is the coefficient of x^d, so 0x80000000 is the number 1.
// Internal to base/.
#ifndef PERIGEE_BASE_CRC32C_POLYNOMIAL_H_
#define PERIGEE_BASE_CRC32C_POLYNOMIAL_H_

#include <cstdint>

namespace perigee::internal {

inline constexpr uint32_t kCastagnoli = 0x82F63B78;  // P without x^32.
inline constexpr uint32_t kOne = 0x80000000;

// a x mod P.
constexpr uint32_t TimesX(uint32_t a) { return (a >> 1) ^ ((a & 1) != 0 ? kCastagnoli : 0); }

// a b mod P.
constexpr uint32_t Multiply(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t coefficient = kOne; coefficient != 0; coefficient >>= 1, b = TimesX(b)) {
    product ^= (a & coefficient) != 0 ? b : 0;
  }
  return product;
}

// x^n mod P.
constexpr uint32_t PowerOfX(uint64_t n) {
  uint32_t power = kOne;
  for (uint32_t square = TimesX(kOne); n != 0; n >>= 1, square = Multiply(square, square)) {
    if ((n & 1) != 0) power = Multiply(power, square);
  }
  return power;
}

static_assert(PowerOfX(32) == kCastagnoli && Multiply(PowerOfX(77), PowerOfX(100)) == PowerOfX(177));

}  // namespace perigee::internal

#endif  // PERIGEE_BASE_CRC32C_POLYNOMIAL_H_
