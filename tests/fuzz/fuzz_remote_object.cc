// What the remote tier reads from other machines: whatever the object's bytes and name, nothing is delivered but what
// matches every checksum, and an accepted object is written to the same bytes again. The first byte chooses. Objects
// are tried as they are and with right checksums, since no mutation gets past those.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "kvstore/remote/remote_object.h"

namespace {

using namespace perigee::kvstore;  // NOLINT: the format's names
using perigee::AsBytes;
using perigee::Crc32c;

void Expect(bool condition) {
  if (!condition) std::abort();
}

void SetU32(std::string& bytes, size_t at, uint32_t v) {
  perigee::ByteWriter w;
  w.U32(v);
  bytes.replace(at, 4, w.bytes());
}

void TryObject(absl::string_view object, const PlaneId& id) {
  (void)PeekHeadBytes(object, id);
  const absl::StatusOr<RecordHead> head = CheckHead(object, id);
  if (!head.ok()) return;
  const uint64_t payload_bytes = head->header.payload_bytes;
  if (payload_bytes > uint64_t{1} << 20) return;
  std::vector<std::byte> memory(payload_bytes);
  RemoteGet get;
  get.id = id;
  get.payload_bytes = payload_bytes;
  get.destination = memory;
  Expect(CheckGetArguments(get).ok() && IsWhole(get));
  const absl::StatusOr<RecordHead> whole = DeliverRecord(get, object);
  if (whole.ok()) {
    RemotePut put;
    put.id = id;
    put.encoded_header = whole->encoded_header;
    put.payload = memory;
    put.created_unix_us = whole->created_unix_us;
    put.ttl_s = whole->ttl_s;
    const absl::StatusOr<CheckedPut> checked = CheckPut(put);
    Expect(checked.ok() && checked->record_bytes == object.size());
    std::string again(checked->record_bytes, '\x55');
    Expect(WriteRecord(put, *checked, std::as_writable_bytes(std::span(again))).ok());
    Expect(again == object);
  }
  // The first section alone, from whatever bytes are there.
  const std::vector<perigee::pod::SectionSum>& sections = head->header.sections;
  if (sections.empty() || sections[0].bytes == 0 || sections[0].bytes > memory.size()) return;
  get.destination = std::span(memory).first(sections[0].bytes);
  if (!CheckGet(*head, get).ok()) return;
  const absl::string_view payload = object.substr(std::min(object.size(), size_t{kPageBytes}));
  const absl::string_view range = payload.substr(0, sections[0].bytes);
  if (DeliverRange(*head, get, AsBytes(range)).ok()) {
    Expect(Crc32c(get.destination) == sections[0].crc32c && Crc32c(AsBytes(range)) == sections[0].crc32c);
  }
}

void TryObjects(absl::string_view input) {
  constexpr size_t kPlaneHeader = kRecordFixedBytes, kBody = kPlaneHeader + 18;
  PlaneId id;
  if (input.size() < kBody) return TryObject(input, id);
  std::copy_n(input.begin() + 48, id.key.digest.size(), id.key.digest.begin());
  id.kind = static_cast<perigee::pod::PlaneKind>(input[80]);
  TryObject(input, id);
  // The plane header's own checksum, then the head's.
  std::string object(input);
  perigee::ByteReader length(input.substr(kPlaneHeader + 10));
  const size_t body_bytes = length.U32();
  if (body_bytes <= object.size() - kBody) {
    SetU32(object, kPlaneHeader + 14, Crc32c(AsBytes(absl::string_view(object).substr(kBody, body_bytes))));
  }
  const absl::StatusOr<uint64_t> head_bytes = PeekHeadBytes(object, id);
  if (!head_bytes.ok() || *head_bytes > object.size()) return;
  const absl::string_view head = absl::string_view(object).substr(0, *head_bytes);
  SetU32(object, 84, Crc32c(AsBytes(head.substr(kRecordFixedBytes)), Crc32c(AsBytes(head.substr(0, 84)))));
  TryObject(object, id);
}

void TryName(absl::string_view name) {
  for (const absl::string_view prefix : {absl::string_view("perigee"), name.substr(0, name.find('.'))}) {
    const std::optional<PlaneId> id = ParseRemoteObjectName(prefix, name);
    if (id) Expect(RemoteObjectName(prefix, *id) == name);
    (void)CheckRemotePrefix(prefix);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] % 8 == 0) {
    TryName(input);
  } else {
    TryObjects(input);
  }
  return 0;
}
