// Little-endian encoding, SHA-256 digests and hex: what canonical encodings and on-disk headers are made of.
//
// ByteWriter appends to a string it owns. ByteReader walks over bytes it does not own and never reads past them: the
// first failed read makes every later one fail too, so that a parser may check once, at the end. Neither is
// thread-safe.
#ifndef PERIGEE_BASE_BYTES_H_
#define PERIGEE_BASE_BYTES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee {

class ByteWriter {
 public:
  void U8(uint8_t v) { Fixed(v, 1); }
  void U16(uint16_t v) { Fixed(v, 2); }
  void U32(uint32_t v) { Fixed(v, 4); }
  void U64(uint64_t v) { Fixed(v, 8); }
  void Raw(absl::string_view bytes) { bytes_.append(bytes.data(), bytes.size()); }
  // A u32 length, then the bytes.
  void Counted(absl::string_view bytes) {
    U32(static_cast<uint32_t>(bytes.size()));
    Raw(bytes);
  }
  const std::string& bytes() const { return bytes_; }
  std::string Take() { return std::move(bytes_); }

 private:
  void Fixed(uint64_t v, int n) {
    for (int i = 0; i < n; ++i) bytes_.push_back(static_cast<char>(v >> (8 * i)));
  }
  std::string bytes_;
};

class ByteReader {
 public:
  explicit ByteReader(absl::string_view bytes) : rest_(bytes) {}
  uint8_t U8() { return static_cast<uint8_t>(Fixed(1)); }
  uint16_t U16() { return static_cast<uint16_t>(Fixed(2)); }
  uint32_t U32() { return static_cast<uint32_t>(Fixed(4)); }
  uint64_t U64() { return Fixed(8); }
  // Empty when fewer than n bytes are left (and ok() becomes false).
  absl::string_view Raw(size_t n);
  absl::string_view Counted() { return Raw(U32()); }
  bool ok() const { return ok_; }
  size_t remaining() const { return rest_.size(); }

 private:
  uint64_t Fixed(int n);
  absl::string_view rest_;
  bool ok_ = true;
};

using Digest = std::array<uint8_t, 32>;

Digest Sha256(absl::string_view bytes);

// Incremental form of Sha256. Movable, not copyable.
class Sha256Hasher {
 public:
  Sha256Hasher();
  ~Sha256Hasher();
  Sha256Hasher(const Sha256Hasher&) = delete;
  Sha256Hasher& operator=(const Sha256Hasher&) = delete;
  void Update(absl::string_view bytes);
  Digest Finish();

 private:
  void* context_;
};

std::string ToHex(std::span<const uint8_t> bytes);
// Lower or upper case; fails on odd length and on anything that is not a hex digit.
absl::StatusOr<std::string> FromHex(absl::string_view hex);
absl::StatusOr<Digest> DigestFromHex(absl::string_view hex);

inline absl::string_view AsView(std::span<const std::byte> bytes) {
  return absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}
inline absl::string_view AsView(const Digest& digest) {
  return absl::string_view(reinterpret_cast<const char*>(digest.data()), digest.size());
}
inline std::span<const std::byte> AsBytes(absl::string_view text) {
  return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

}  // namespace perigee

#endif  // PERIGEE_BASE_BYTES_H_
