// Whatever the bytes, an accepted description of a reservation is encoded to the same bytes. Each input is tried as it
// is, and as a body under a right prefix, since no mutation gets past the checksum.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "kvstore/shared_reservation.h"

namespace {

void Try(absl::string_view bytes) {
  const auto shared = perigee::kvstore::DecodeSharedReservation(bytes);
  if (shared.ok() && perigee::kvstore::EncodeSharedReservation(*shared) != bytes) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr size_t kPrefixBytes = 14;
  const absl::string_view input(reinterpret_cast<const char*>(data), size);
  Try(input);
  if (size < kPrefixBytes) return 0;
  const absl::string_view body = input.substr(kPrefixBytes);
  perigee::ByteWriter w;
  w.Raw("PGSHRSV1");
  w.U16(1);
  w.U32(perigee::Crc32c(perigee::AsBytes(body)));
  w.Raw(body);
  Try(w.bytes());
  return 0;
}
