#include "base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/crc32c_level.h"
#include "base/crc32c_polynomial.h"

namespace perigee {
namespace internal {
namespace {

uint32_t SumPortable(const std::byte* source, size_t bytes, uint32_t crc) {
  // ISA-L takes a mutable pointer and an int length.
  constexpr size_t kMaxPiece = size_t{1} << 30;
  auto* data = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(source));
  while (bytes > 0) {
    const size_t n = std::min(bytes, kMaxPiece);
    crc = crc32_iscsi(data, static_cast<int>(n), crc);
    data += n;
    bytes -= n;
  }
  return crc;
}

uint32_t CopyPortable(std::byte* destination, const std::byte* source, size_t bytes, uint32_t crc) {
  constexpr size_t kPiece = size_t{16} << 10;  // Still in the first-level cache when it is read again.
  while (bytes > 0) {
    const size_t n = std::min(bytes, kPiece);
    std::memcpy(destination, source, n);
    crc = SumPortable(destination, n, crc);  // Of what was stored.
    destination += n;
    source += n;
    bytes -= n;
  }
  return crc;
}

struct Functions {
  uint32_t (*sum)(const std::byte*, size_t, uint32_t);
  uint32_t (*copy)(std::byte*, const std::byte*, size_t, uint32_t);
};

Functions FunctionsOf(Crc32cLevel level) {
#if defined(__x86_64__)
  if (level == Crc32cLevel::kAvx512) return {SumAvx512, CopyAvx512};
  if (level == Crc32cLevel::kSse42) return {SumSse42, CopySse42};
#endif
  return {SumPortable, CopyPortable};
}

const Functions& Best() {
  static const Functions best = [] {
    for (const Crc32cLevel level : {Crc32cLevel::kAvx512, Crc32cLevel::kSse42}) {
      if (HasCrc32cLevel(level)) return FunctionsOf(level);
    }
    return FunctionsOf(Crc32cLevel::kPortable);
  }();
  return best;
}

}  // namespace

bool HasCrc32cLevel(Crc32cLevel level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool sse42 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
  if (level == Crc32cLevel::kSse42) return sse42;
  if (level == Crc32cLevel::kAvx512) {
    return sse42 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq") &&
           __builtin_cpu_supports("prfchw");
  }
#endif
  return level == Crc32cLevel::kPortable;
}

uint32_t Crc32cAt(Crc32cLevel level, std::span<const std::byte> bytes, uint32_t seed) {
  return ~FunctionsOf(level).sum(bytes.data(), bytes.size(), ~seed);
}

uint32_t Crc32cCopyAt(Crc32cLevel level, std::byte* destination, std::span<const std::byte> source, uint32_t seed) {
  return ~FunctionsOf(level).copy(destination, source.data(), source.size(), ~seed);
}

}  // namespace internal

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t seed) {
  return ~internal::Best().sum(bytes.data(), bytes.size(), ~seed);
}

uint32_t Crc32cCopy(std::byte* destination, std::span<const std::byte> source, uint32_t seed) {
  return ~internal::Best().copy(destination, source.data(), source.size(), ~seed);
}

uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b) {
  // The CRC is linear but for its complements, which cancel: crc(a b) = crc(a) x^(8 |b|) + crc(b) mod P.
  static constexpr auto kShiftBy = [] {  // [k]: x^(8 2^k)
    std::array<uint32_t, 64> power{};
    power[0] = internal::PowerOfX(8);
    for (size_t k = 1; k < power.size(); ++k) power[k] = internal::Multiply(power[k - 1], power[k - 1]);
    return power;
  }();
  for (size_t k = 0; length_b != 0; ++k, length_b >>= 1) {
    if ((length_b & 1) != 0) crc_a = internal::Multiply(crc_a, kShiftBy[k]);
  }
  return crc_a ^ crc_b;
}

}  // namespace perigee
