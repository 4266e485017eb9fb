// What peers send: whatever the bytes, an accepted hello, its answer and a table of pieces are within their bounds, and
// mean the same when written again. The first byte chooses the parser.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0:
      TryHello(bytes);
      break;
    case 1:
      TryHelloAnswer(bytes);
      break;
    default:
      TryPieces(bytes);
  }
  return 0;
}
