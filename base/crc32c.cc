#include "base/crc32c.h"

#include <isa-l/crc.h>

#include <algorithm>

namespace perigee {

uint32_t Crc32c(std::span<const std::byte> bytes, uint32_t seed) {
  // ISA-L leaves both complements to the caller, takes a mutable pointer and an int length.
  constexpr size_t kMaxPiece = size_t{1} << 30;
  uint32_t crc = ~seed;
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), kMaxPiece);
    auto* data = reinterpret_cast<unsigned char*>(const_cast<std::byte*>(bytes.data()));
    crc = crc32_iscsi(data, static_cast<int>(n), crc);
    bytes = bytes.subspan(n);
  }
  return ~crc;
}

}  // namespace perigee
