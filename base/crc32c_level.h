// The implementations behind base/crc32c.h, one by one, for its dispatch and its tests. Internal to base/.
#ifndef PERIGEE_BASE_CRC32C_LEVEL_H_
#define PERIGEE_BASE_CRC32C_LEVEL_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace perigee::internal {

enum class Crc32cLevel {
  kPortable,  // ISA-L; a copy is memcpy and a sum, piece by piece
  kSse42,     // the crc32 instruction, three streams in flight; PCLMULQDQ joins them
  kAvx512,    // AVX-512 and VPCLMULQDQ
};

// Whether this processor (and this build) has the instructions.
bool HasCrc32cLevel(Crc32cLevel level);

// As Crc32c and Crc32cCopy. Undefined for a level that HasCrc32cLevel denies.
uint32_t Crc32cAt(Crc32cLevel level, std::span<const std::byte> bytes, uint32_t seed);
uint32_t Crc32cCopyAt(Crc32cLevel level, std::byte* destination, std::span<const std::byte> source, uint32_t seed);

// The SIMD levels' bodies (crc32c_simd.cc, x86-64 only), on the register before its final complement: `crc` goes in and
// comes out as ISA-L's crc32_iscsi takes and gives it.
uint32_t SumSse42(const std::byte* source, size_t bytes, uint32_t crc);
uint32_t CopySse42(std::byte* destination, const std::byte* source, size_t bytes, uint32_t crc);
uint32_t SumAvx512(const std::byte* source, size_t bytes, uint32_t crc);
uint32_t CopyAvx512(std::byte* destination, const std::byte* source, size_t bytes, uint32_t crc);

}  // namespace perigee::internal

#endif  // PERIGEE_BASE_CRC32C_LEVEL_H_
