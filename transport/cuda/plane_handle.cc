#include "transport/cuda/plane_handle.h"

#include <algorithm>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"

namespace perigee::transport {
namespace {

constexpr uint32_t kMagic = 0x48444750;  // "PGDH"
constexpr uint16_t kVersion = 1;
constexpr size_t kBytes = 4 + 2 + 16 + 8 + 8 + 8 + 64 + 4;
constexpr uint64_t kMaxSizeBytes = uint64_t{1} << 48;  // no device addresses more

absl::string_view Text(const auto& array) { return {reinterpret_cast<const char*>(array.data()), array.size()}; }

}  // namespace

std::string EncodePlaneHandle(const PlaneHandle& handle) {
  ByteWriter writer;
  writer.U32(kMagic);
  writer.U16(kVersion);
  writer.Raw(Text(handle.device_uuid));
  writer.U64(handle.process);
  writer.U64(handle.base);
  writer.U64(handle.size_bytes);
  writer.Raw(Text(handle.ipc));
  writer.U32(Crc32c(AsBytes(writer.bytes())));
  return writer.Take();
}

absl::StatusOr<PlaneHandle> DecodePlaneHandle(absl::string_view bytes) {
  if (bytes.size() != kBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("device memory handle of ", bytes.size(), " bytes; it has ", kBytes, "; fetch it again"));
  }
  ByteReader reader(bytes);
  if (reader.U32() != kMagic) {
    return absl::InvalidArgumentError("not a device memory handle: it does not start with PGDH");
  }
  const uint16_t version = reader.U16();
  PlaneHandle handle;
  const absl::string_view uuid = reader.Raw(handle.device_uuid.size());
  handle.process = reader.U64();
  handle.base = reader.U64();
  handle.size_bytes = reader.U64();
  const absl::string_view ipc = reader.Raw(handle.ipc.size());
  if (reader.U32() != Crc32c(AsBytes(bytes.substr(0, kBytes - 4)))) {
    return absl::InvalidArgumentError("device memory handle has a wrong checksum; fetch it again");
  }
  if (version != kVersion) {
    return absl::InvalidArgumentError(absl::StrCat("device memory handle has version ", version,
                                                   ", this program reads ", kVersion, "; run the same release"));
  }
  if (handle.base == 0 || handle.size_bytes == 0 || handle.size_bytes > kMaxSizeBytes ||
      handle.size_bytes > std::numeric_limits<uint64_t>::max() - handle.base) {
    return absl::InvalidArgumentError(absl::StrCat("device memory handle describes impossible memory: base ",
                                                   handle.base, ", ", handle.size_bytes, " bytes"));
  }
  std::copy(uuid.begin(), uuid.end(), handle.device_uuid.begin());
  std::copy(ipc.begin(), ipc.end(), handle.ipc.begin());
  return handle;
}

}  // namespace perigee::transport
