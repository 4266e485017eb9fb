// The packed form of a remote key, as it travels through the control plane.
//
//   u32 magic "PGRK" | u16 version | 16 bytes context id | u64 region id | u64 base | u64 size |
//   u32 length, UCX's key | u32 CRC32C of all before
//
// Little-endian. UCX's own unpacking trusts its input, so nothing reaches it unless the checksum holds and the lengths
// agree.
#ifndef PERIGEE_TRANSPORT_REMOTE_KEY_H_
#define PERIGEE_TRANSPORT_REMOTE_KEY_H_

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::transport {

using ContextId = std::array<uint8_t, 16>;  // random, one per context; tells whose memory a key opens

struct PackedKey {
  ContextId context_id{};
  uint64_t region_id = 0;  // random; the owner serves only regions that it still has
  uint64_t base = 0;
  uint64_t size_bytes = 0;
  std::string ucx_key;
};

std::string EncodeRemoteKey(const PackedKey& key);
// INVALID_ARGUMENT for anything but the exact bytes of an encoded key.
absl::StatusOr<PackedKey> DecodeRemoteKey(absl::string_view bytes);

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_REMOTE_KEY_H_
