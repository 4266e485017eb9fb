// CRC-32C (Castagnoli, RFC 3720) at memory speed: AVX-512 carry-less multiplication, the processor's crc32 instruction,
// or ISA-L, the best that the processor has, chosen at the first call. All functions may be called from any thread.
#ifndef PERIGEE_BASE_CRC32C_H_
#define PERIGEE_BASE_CRC32C_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace perigee {

// Crc32c(b, Crc32c(a)) == Crc32c(a followed by b); an empty span leaves `seed` unchanged.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);

// Copies `source` to `destination` (any alignment, any length; the two must not overlap) and returns
// Crc32c(source, seed), in one pass: with AVX-512 at memcpy's speed from 64 KiB on, at half of it for 4 KiB. The sum is
// that of the bytes stored, even where somebody changes the source meanwhile.
uint32_t Crc32cCopy(std::byte* destination, std::span<const std::byte> source, uint32_t seed = 0);

// Crc32c(a followed by b), from crc_a = Crc32c(a), crc_b = Crc32c(b) and b's length in bytes, in time of its logarithm.
uint32_t Crc32cCombine(uint32_t crc_a, uint32_t crc_b, uint64_t length_b);

}  // namespace perigee

#endif  // PERIGEE_BASE_CRC32C_H_
