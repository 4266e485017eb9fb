// Whatever the bytes, an accepted header is encoded to the same bytes. Each input is tried as it is, and as a body
// under a right prefix, since no mutation gets past the checksum.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/crc32c.h"
#include "pod/plane_header.h"

namespace {

void Try(absl::string_view bytes) {
  size_t encoded_bytes = 0;
  const auto header = perigee::pod::DecodePlaneHeader(bytes, &encoded_bytes);
  if (!header.ok()) return;
  if (perigee::pod::EncodePlaneHeader(*header) != bytes.substr(0, encoded_bytes)) std::abort();
  (void)perigee::pod::VerifyPayload(*header, perigee::AsBytes(bytes));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kPrefixBytes = 18;
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  Try(input);
  if (size < kPrefixBytes) return 0;
  const absl::string_view body = input.substr(kPrefixBytes);
  for (const uint16_t version : {1, 2}) {
    perigee::ByteWriter w;
    w.Raw("PGPLANE1");
    w.U16(version);
    w.U32(static_cast<uint32_t>(body.size()));
    w.U32(perigee::Crc32c(perigee::AsBytes(body)));
    w.Raw(body);
    Try(w.bytes());
  }
  return 0;
}
