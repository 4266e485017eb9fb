// CRC-32C (Castagnoli, RFC 3720), by the processor's instruction where there is one (ISA-L chooses at run time).
#ifndef PERIGEE_BASE_CRC32C_H_
#define PERIGEE_BASE_CRC32C_H_

#include <cstddef>
#include <cstdint>
#include <span>

namespace perigee {

// Crc32c(b, Crc32c(a)) == Crc32c(a followed by b); an empty span leaves `seed` unchanged. Any thread.
uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t seed = 0);

}  // namespace perigee

#endif  // PERIGEE_BASE_CRC32C_H_
