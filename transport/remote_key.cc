#include "transport/remote_key.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"

namespace perigee::transport {
namespace {

constexpr uint32_t kMagic = 0x4b524750;  // "PGRK"
constexpr uint16_t kVersion = 1;
constexpr size_t kMaxKeyBytes = 64 << 10;

}  // namespace

std::string EncodeRemoteKey(const PackedKey& key) {
  ByteWriter writer;
  writer.U32(kMagic);
  writer.U16(kVersion);
  writer.Raw({reinterpret_cast<const char*>(key.context_id.data()), key.context_id.size()});
  writer.U64(key.region_id);
  writer.U64(key.base);
  writer.U64(key.size_bytes);
  writer.Counted(key.ucx_key);
  writer.U32(Crc32c(AsBytes(writer.bytes())));
  return writer.Take();
}

absl::StatusOr<PackedKey> DecodeRemoteKey(absl::string_view bytes) {
  if (bytes.size() > kMaxKeyBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("remote key of ", bytes.size(), " bytes; at most ", kMaxKeyBytes, " are possible"));
  }
  ByteReader reader(bytes);
  const uint32_t magic = reader.U32();
  const uint16_t version = reader.U16();
  PackedKey key;
  const absl::string_view context_id = reader.Raw(key.context_id.size());
  key.region_id = reader.U64();
  key.base = reader.U64();
  key.size_bytes = reader.U64();
  key.ucx_key = std::string(reader.Counted());
  const uint32_t checksum = reader.U32();
  if (!reader.ok() || reader.remaining() != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("remote key of ", bytes.size(), " bytes is cut off or has bytes left over; fetch it again"));
  }
  if (magic != kMagic) return absl::InvalidArgumentError("not a remote key: it does not start with PGRK");
  if (checksum != Crc32c(AsBytes(bytes.substr(0, bytes.size() - 4)))) {
    return absl::InvalidArgumentError("remote key has a wrong checksum; fetch it again");
  }
  if (version != kVersion) {
    return absl::InvalidArgumentError(
        absl::StrCat("remote key has version ", version, ", this program reads ", kVersion, "; run the same release"));
  }
  if (key.size_bytes == 0 || key.size_bytes > std::numeric_limits<uint64_t>::max() - key.base) {
    return absl::InvalidArgumentError(
        absl::StrCat("remote key describes an impossible region: base ", key.base, ", ", key.size_bytes, " bytes"));
  }
  std::copy(context_id.begin(), context_id.end(), key.context_id.begin());
  return key;
}

}  // namespace perigee::transport
