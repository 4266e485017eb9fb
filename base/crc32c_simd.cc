// CRC-32C of bytes on their way from source to destination: every register loaded is both stored and folded, so a copy
// costs what the loads and stores cost. The folding is that of V. Gopal et al., "Fast CRC Computation for Generic
// Polynomials Using PCLMULQDQ Instruction" (Intel, 2009), in the reflected bit order.
//
// Fold. A 128-bit lane in little-endian byte order holds a polynomial of degree < 128, bit i the coefficient of
// x^(127 - i): its low half (the first 8 bytes) is the upper one, lane = low x^64 + high. To fold it onto a lane that
// comes D bits later is to multiply it by x^D mod P, half by half: low x^(64 + D) + high x^D. The carry-less product of
// two reflected 64-bit halves, read as a reflected 128-bit lane, has one x too many (the degrees add up to 126 where
// the top is 127), so the multipliers are x^(D + 63) and x^(D - 1).
//
// What is left after folding, one lane, goes through the crc32 instruction, which also multiplies by the x^32 that a
// CRC's definition asks for. A seed is added to the first four bytes.
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

#include "base/crc32c_level.h"
#include "base/crc32c_polynomial.h"

#define PERIGEE_SSE42 __attribute__((target("sse4.2,pclmul")))
#define PERIGEE_AVX512 __attribute__((target("sse4.2,pclmul,avx512f,vpclmulqdq,prfchw")))

namespace perigee::internal {
namespace {

enum class Store { kNone, kCached, kStreaming };

// How far ahead of the loop lines are asked for, into the first-level cache (nearer, or into the second only, is
// slower). The destination's matter most: a store that waits for its line to be owned stalls the stores behind it,
// which memcpy's "rep movsb" avoids. The source's help past the pages' ends, where the hardware's prefetcher stops, and
// cost a copy 2-3 % where everything is in the second-level cache.
constexpr size_t kPrefetchAhead = 2048;
constexpr size_t kPrefetchSourceFrom = size_t{256} << 10;
// Streaming stores need not read the destination first, but leave it in memory. They gain where whoever reads it would
// not have found it in a cache anyhow, and lose up to 5x where he would have.
constexpr size_t kStreamFrom = size_t{64} << 20;

// One stream through the crc32 instruction, 8 bytes every three cycles: for beginnings and ends.
template <Store kStore>
PERIGEE_SSE42 uint32_t RunSerial(std::byte* destination, const std::byte* source, size_t bytes, uint32_t crc) {
  size_t at = 0;
  for (; at + 8 <= bytes; at += 8) {
    uint64_t word;
    std::memcpy(&word, source + at, 8);
    if constexpr (kStore != Store::kNone) std::memcpy(destination + at, &word, 8);
    crc = static_cast<uint32_t>(_mm_crc32_u64(crc, word));
  }
  for (; at < bytes; ++at) {
    const std::byte byte = source[at];
    if constexpr (kStore != Store::kNone) destination[at] = byte;
    crc = _mm_crc32_u8(crc, static_cast<uint8_t>(byte));
  }
  return crc;
}

// crc x^kBits mod P. The product of two reflected remainders is a reflected 64-bit polynomial with one x too many, and
// the instruction multiplies by x^32.
template <uint64_t kBits>
PERIGEE_SSE42 inline uint32_t Shift(uint32_t crc) {
  constexpr uint32_t kMultiplier = PowerOfX(kBits - 33);
  const __m128i product = _mm_clmulepi64_si128(_mm_cvtsi32_si128(static_cast<int>(crc)),
                                               _mm_cvtsi32_si128(static_cast<int>(kMultiplier)), 0);
  return static_cast<uint32_t>(_mm_crc32_u64(0, static_cast<uint64_t>(_mm_cvtsi128_si64(product))));
}

// Blocks of three neighbouring streams of kStream bytes each, in turns: the instruction takes three cycles but starts
// every cycle. Stores are of 16 bytes: those of 8 would be the bottleneck. Advances the pointers and the count past
// whole blocks.
template <Store kStore, size_t kStream>
PERIGEE_SSE42 uint32_t RunThreeStreams(std::byte*& destination, const std::byte*& source, size_t& bytes, uint32_t crc) {
  constexpr size_t kBlock = 3 * kStream;
  for (; bytes >= kBlock; source += kBlock, bytes -= kBlock) {
    uint64_t sum[3] = {crc, 0, 0};
    // The next block's lines, as in RunVectors; not past the end.
    const size_t soon = bytes >= 2 * kBlock ? kBlock : 0;
    for (size_t line = 0; line < kStream; line += 64) {
      if constexpr (kStore != Store::kNone) {
        for (size_t i = 0; i < 3; ++i) __builtin_prefetch(destination + soon + i * kStream + line, 1, 3);
      }
      for (size_t at = line; at < line + 64; at += 16) {
#pragma GCC unroll 3
        for (size_t i = 0; i < 3; ++i) {  // Unrolled, or the sums go through memory.
          const __m128i pair = _mm_loadu_si128(reinterpret_cast<const __m128i*>(source + i * kStream + at));
          if constexpr (kStore != Store::kNone) {
            _mm_storeu_si128(reinterpret_cast<__m128i*>(destination + i * kStream + at), pair);
          }
          sum[i] = _mm_crc32_u64(sum[i], static_cast<uint64_t>(_mm_cvtsi128_si64(pair)));
          sum[i] = _mm_crc32_u64(sum[i], static_cast<uint64_t>(_mm_extract_epi64(pair, 1)));
        }
      }
    }
    crc = Shift<2 * kStream * 8>(static_cast<uint32_t>(sum[0])) ^ Shift<kStream * 8>(static_cast<uint32_t>(sum[1])) ^
          static_cast<uint32_t>(sum[2]);
    if constexpr (kStore != Store::kNone) destination += kBlock;
  }
  return crc;
}

template <Store kStore>
PERIGEE_SSE42 uint32_t RunSse42(std::byte* destination, const std::byte* source, size_t bytes, uint32_t crc) {
  crc = RunThreeStreams<kStore, 1024>(destination, source, bytes, crc);
  crc = RunThreeStreams<kStore, 128>(destination, source, bytes, crc);
  return RunSerial<kStore>(destination, source, bytes, crc);
}

constexpr int64_t Multiplier(uint64_t power) { return static_cast<int64_t>(uint64_t{PowerOfX(power)} << 32); }

// The multipliers that fold every lane by kBits.
template <uint64_t kBits>
PERIGEE_AVX512 inline __m512i FoldBy() {
  constexpr int64_t kLow = Multiplier(kBits + 63), kHigh = Multiplier(kBits - 1);
  return _mm512_set_epi64(kHigh, kLow, kHigh, kLow, kHigh, kLow, kHigh, kLow);
}

// lanes times multipliers, plus onto.
PERIGEE_AVX512 inline __m512i Fold(__m512i lanes, __m512i multipliers, __m512i onto) {
  constexpr int kXorOfThree = 0x96;
  return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(lanes, multipliers, 0x00),
                                   _mm512_clmulepi64_epi128(lanes, multipliers, 0x11), onto, kXorOfThree);
}

// The CRC register after the 64 bytes that `lanes` stands for.
PERIGEE_AVX512 inline uint32_t Reduce(__m512i lanes) {
  // Lanes 0, 1 and 2 onto lane 3, which is left as it is.
  constexpr int64_t kLow0 = Multiplier(384 + 63), kLow1 = Multiplier(256 + 63), kLow2 = Multiplier(128 + 63);
  constexpr int64_t kHigh0 = Multiplier(384 - 1), kHigh1 = Multiplier(256 - 1), kHigh2 = Multiplier(128 - 1);
  const __m512i multipliers = _mm512_set_epi64(0, 0, kHigh2, kLow2, kHigh1, kLow1, kHigh0, kLow0);
  alignas(64) uint64_t half[8];
  _mm512_store_si512(half, Fold(lanes, multipliers, _mm512_maskz_mov_epi64(0xC0, lanes)));
  const uint64_t low = half[0] ^ half[2] ^ half[4] ^ half[6], high = half[1] ^ half[3] ^ half[5] ^ half[7];
  return static_cast<uint32_t>(_mm_crc32_u64(_mm_crc32_u64(0, low), high));
}

constexpr size_t kVector = 64;
constexpr size_t kAccumulators = 8;
constexpr size_t kStep = kAccumulators * kVector;

// One vector at source + at; stored at destination + at, which is null where nothing is stored.
template <Store kStore>
PERIGEE_AVX512 inline __m512i Move(std::byte* destination, const std::byte* source, size_t at) {
  const __m512i lanes = _mm512_loadu_si512(source + at);
  if constexpr (kStore == Store::kCached) _mm512_storeu_si512(destination + at, lanes);
  if constexpr (kStore == Store::kStreaming) _mm512_stream_si512(reinterpret_cast<__m512i*>(destination + at), lanes);
  return lanes;
}

// At least one vector; the register goes in and comes out.
template <Store kStore, bool kPrefetchSource>
PERIGEE_AVX512 uint32_t RunVectors(std::byte* destination, const std::byte* source, size_t bytes, uint32_t crc) {
  const __m512i seed = _mm512_zextsi128_si512(_mm_cvtsi32_si128(static_cast<int>(crc)));
  __m512i sum;
  size_t at;
  if (bytes >= 2 * kStep) {
    __m512i accumulators[kAccumulators];
    for (size_t i = 0; i < kAccumulators; ++i) {
      accumulators[i] = Move<kStore>(destination, source, i * kVector);
    }
    accumulators[0] = _mm512_xor_si512(accumulators[0], seed);
    const __m512i by_step = FoldBy<kStep * 8>();
    for (at = kStep; at + kStep <= bytes; at += kStep) {
      // Past the end lies somebody else's memory: near it, ask for lines that are about to be used anyway.
      const size_t soon = at + kStep + kPrefetchAhead <= bytes ? at + kPrefetchAhead : at;
#pragma GCC unroll 8
      for (size_t i = 0; i < kAccumulators; ++i) {
        if constexpr (kPrefetchSource) __builtin_prefetch(source + soon + i * kVector, 0, 3);
        if constexpr (kStore == Store::kCached) __builtin_prefetch(destination + soon + i * kVector, 1, 3);
        const __m512i lanes = Move<kStore>(destination, source, at + i * kVector);
        accumulators[i] = Fold(accumulators[i], by_step, lanes);
      }
    }
    // Pairs, then pairs of pairs: the last accumulator holds the sum.
    const __m512i by_1 = FoldBy<kVector * 8>(), by_2 = FoldBy<2 * kVector * 8>(), by_4 = FoldBy<4 * kVector * 8>();
    for (const size_t i : {1, 3, 5, 7}) accumulators[i] = Fold(accumulators[i - 1], by_1, accumulators[i]);
    for (const size_t i : {3, 7}) accumulators[i] = Fold(accumulators[i - 2], by_2, accumulators[i]);
    sum = Fold(accumulators[3], by_4, accumulators[7]);
  } else {
    sum = _mm512_xor_si512(Move<kStore>(destination, source, 0), seed);
    at = kVector;
  }
  const __m512i by_vector = FoldBy<kVector * 8>();
  for (; at + kVector <= bytes; at += kVector) {
    sum = Fold(sum, by_vector, Move<kStore>(destination, source, at));
  }
  crc = Reduce(sum);
  if constexpr (kStore == Store::kStreaming) _mm_sfence();  // Stores after the copy must not overtake it.
  if constexpr (kStore == Store::kNone) return RunSerial<Store::kNone>(nullptr, source + at, bytes - at, crc);
  return RunSerial<Store::kCached>(destination + at, source + at, bytes - at, crc);
}

// Shorter than this, the crc32 instruction alone is no slower.
constexpr size_t kVectorsFrom = 128;

// Bytes before `address` is aligned to a vector; 0 where a vector across two cache lines costs less than these bytes.
size_t HeadBytes(const std::byte* address, size_t bytes) {
  constexpr size_t kAlignFrom = 4096;
  return bytes < kAlignFrom ? 0 : -reinterpret_cast<uintptr_t>(address) % kVector;
}

}  // namespace

PERIGEE_SSE42 uint32_t SumSse42(const std::byte* source, size_t bytes, uint32_t crc) {
  return RunSse42<Store::kNone>(nullptr, source, bytes, crc);
}

PERIGEE_SSE42 uint32_t CopySse42(std::byte* destination, const std::byte* source, size_t bytes, uint32_t crc) {
  return RunSse42<Store::kCached>(destination, source, bytes, crc);
}

PERIGEE_AVX512 uint32_t SumAvx512(const std::byte* source, size_t bytes, uint32_t crc) {
  if (bytes < kVectorsFrom) return RunSerial<Store::kNone>(nullptr, source, bytes, crc);
  const size_t head = HeadBytes(source, bytes);
  crc = RunSerial<Store::kNone>(nullptr, source, head, crc);
  return RunVectors<Store::kNone, true>(nullptr, source + head, bytes - head, crc);
}

PERIGEE_AVX512 uint32_t CopyAvx512(std::byte* destination, const std::byte* source, size_t bytes, uint32_t crc) {
  if (bytes < kVectorsFrom) return RunSerial<Store::kCached>(destination, source, bytes, crc);
  const size_t head = HeadBytes(destination, bytes);
  crc = RunSerial<Store::kCached>(destination, source, head, crc);
  const auto run = bytes >= kStreamFrom           ? RunVectors<Store::kStreaming, true>
                   : bytes >= kPrefetchSourceFrom ? RunVectors<Store::kCached, true>
                                                  : RunVectors<Store::kCached, false>;
  return run(destination + head, source + head, bytes - head, crc);
}

}  // namespace perigee::internal

#endif  // defined(__x86_64__)
