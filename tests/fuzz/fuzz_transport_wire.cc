// What peers send, and the keys by which they reach memory: whatever the bytes, an accepted hello, its answer, a table
// of pieces (of a put, a get, or what a peer says that it has copied), a remote key and a device memory handle are
// within their bounds, and mean the same when written again. The first byte chooses the parser. What has a checksum is
// tried as it is and with the right one.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "transport/cuda/plane_handle.h"
#include "transport/remote_key.h"
#include "transport/wire.h"

namespace {

using namespace perigee::transport::internal;  // NOLINT: the wire's names

void Expect(bool condition) {
  if (!condition) std::abort();
}

void TryHello(absl::string_view bytes) {
  const absl::StatusOr<Hello> hello = DecodeHello(bytes);
  if (!hello.ok()) return;
  // Later versions may append; the first one had no ports, which are written as none.
  const std::string again = EncodeHello(*hello);
  Expect(absl::StartsWith(bytes, again) || absl::StrCat(bytes, absl::string_view("\0\0", 2)) == again);
  Expect(hello->channel != 0);
  const absl::StatusOr<uint16_t> version = AgreeOnVersion(kProtocolMin, kProtocolMax, *hello);
  if (version.ok()) {
    Expect(*version >= kProtocolMin && *version <= kProtocolMax);
    Expect(*version >= hello->version_min && *version <= hello->version_max);
  }
}

void TryHelloAnswer(absl::string_view bytes) {
  const absl::StatusOr<HelloAnswer> answer = DecodeHelloAnswer(bytes);
  if (!answer.ok()) return;
  Expect(answer->rail_ports.size() == answer->rail_hosts.size());
  const std::string again = EncodeHelloAnswer(*answer);
  Expect(absl::StartsWith(bytes, again) || absl::StrCat(bytes, absl::string_view("\0\0", 2)) == again);
}

void TryPieces(absl::string_view bytes) {
  OpHeader header;
  if (!ReadHeader(bytes.data(), std::min(bytes.size(), sizeof(header)), &header)) return;
  const absl::string_view payload = bytes.substr(sizeof(header));
  std::vector<WirePiece> pieces;
  if (!ReadPieces(header, payload.data(), payload.size(), &pieces)) return;
  Expect(pieces.size() == header.pieces && !pieces.empty() && pieces.size() <= kMaxPieces);
  Expect(pieces.size() == 1 || payload.size() >= pieces.size() * sizeof(WirePiece));
  unsigned __int128 total = 0;
  for (const WirePiece& piece : pieces) {
    Expect(piece.size > 0);
    total += piece.size;
  }
  Expect(total == header.size && header.size <= kOpBytes);
}

std::string WithRightSum(absl::string_view bytes) {
  perigee::ByteWriter w;
  w.Raw(bytes.substr(0, bytes.size() < 4 ? 0 : bytes.size() - 4));
  w.U32(perigee::Crc32c(perigee::AsBytes(w.bytes())));
  return w.Take();
}

void TryRemoteKey(absl::string_view bytes) {
  const auto key = perigee::transport::DecodeRemoteKey(bytes);
  if (!key.ok()) return Expect(!key.status().message().empty());
  Expect(perigee::transport::EncodeRemoteKey(*key) == bytes);
  Expect(key->size_bytes > 0 && key->base + key->size_bytes > key->base);
}

void TryPlaneHandle(absl::string_view bytes) {
  const auto handle = perigee::transport::DecodePlaneHandle(bytes);
  if (!handle.ok()) return Expect(!handle.status().message().empty());
  Expect(perigee::transport::EncodePlaneHandle(*handle) == bytes);
  Expect(handle->base > 0 && handle->size_bytes > 0 && handle->base + handle->size_bytes > handle->base);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 5) {
    case 0:
      TryHello(bytes);
      break;
    case 1:
      TryHelloAnswer(bytes);
      break;
    case 2:
      TryPieces(bytes);
      break;
    case 3:
      TryRemoteKey(bytes);
      TryRemoteKey(WithRightSum(bytes));
      break;
    default:
      TryPlaneHandle(bytes);
      TryPlaneHandle(WithRightSum(bytes));
  }
  return 0;
}
