// What the SSD tier reads from its disks: whatever the bytes, an accepted record head, index entry or segment file name
// is encoded to the same bytes (an entry of an older version to one of today's that means the same). The first byte
// chooses. Heads and entries are tried as they are and with right checksums, since no mutation gets past those; a
// head's input is padded to whole pages.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "kvstore/ssd/segment_record.h"

namespace {

using namespace perigee::kvstore;  // NOLINT: the format's names
using perigee::AsBytes;
using perigee::Crc32c;

constexpr size_t kFixedBytes = 88, kCrcOffset = 84;

void Expect(bool condition) {
  if (!condition) std::abort();
}

std::string U32(uint32_t v) {
  perigee::ByteWriter w;
  w.U32(v);
  return w.Take();
}

void TryHead(absl::string_view head, const PlaneId& id, uint64_t payload_bytes) {
  const absl::StatusOr<RecordHead> decoded = DecodeRecordHead(head, id, payload_bytes);
  if (!decoded.ok()) return;
  Expect(EncodeRecordHead(id, decoded->encoded_header, payload_bytes, decoded->created_unix_us, decoded->ttl_s) ==
         head);
  Expect(decoded->header.key == id.key && decoded->header.kind == id.kind);
  if (payload_bytes > uint64_t{1} << 20) return;
  // No payload fits by chance, and none of another length is looked at.
  const std::vector<std::byte> zeros(RoundUpToPage(payload_bytes) + 1);
  (void)VerifyRecord(head, std::span(zeros).first(zeros.size() - 1), id, payload_bytes);
  Expect(!VerifyRecord(head, zeros, id, payload_bytes).ok());
}

void TryHeads(absl::string_view input) {
  std::string head(input);
  head.resize(std::max<size_t>(RoundUpToPage(head.size()), kPageBytes), '\0');
  perigee::ByteReader r(absl::string_view(head).substr(16));
  const uint64_t payload_bytes = r.U64();
  PlaneId id;
  std::copy_n(head.begin() + 48, id.key.digest.size(), id.key.digest.begin());
  id.kind = static_cast<perigee::pod::PlaneKind>(head[80]);
  TryHead(input, id, payload_bytes);
  TryHead(head, id, payload_bytes);
  // The plane header's own checksum, then the head's.
  perigee::ByteReader lengths(absl::string_view(head).substr(kFixedBytes + 10));
  const size_t body_bytes = lengths.U32();
  constexpr size_t kBody = kFixedBytes + 18;
  if (body_bytes <= head.size() - kBody) {
    head.replace(kFixedBytes + 14, 4, U32(Crc32c(AsBytes(absl::string_view(head).substr(kBody, body_bytes)))));
  }
  const absl::string_view all(head);
  head.replace(kCrcOffset, 4,
               U32(Crc32c(AsBytes(all.substr(kFixedBytes)), Crc32c(AsBytes(all.substr(0, kCrcOffset))))));
  TryHead(head, id, payload_bytes);
}

void TryEntry(absl::string_view key, absl::string_view value) {
  const absl::StatusOr<IndexEntry> entry = DecodeIndexEntry(key, value);
  if (!entry.ok()) return;
  Expect(EncodeIndexKey(entry->id) == key);
  const std::string again = EncodeIndexValue(entry->id, entry->location, entry->meta);
  if (value[0] < 3) {  // Has less in it: written again it is of the version of today, and means the same.
    Expect(entry->meta.replicas == 1 && !entry->meta.group);
    Expect(value[0] == 2 || (entry->meta.ttl_s == 0 && !entry->meta.parent));
    const absl::StatusOr<IndexEntry> same = DecodeIndexEntry(key, again);
    Expect(same.ok() && EncodeIndexValue(same->id, same->location, same->meta) == again);
  } else {
    Expect(again == value);
  }
  // Where it points can be computed with.
  Expect(entry->location.offset + entry->location.record_bytes() > entry->location.offset);
}

void TryEntries(absl::string_view input) {
  constexpr size_t kKeyBytes = 33;
  const absl::string_view key = input.substr(0, kKeyBytes), value = input.substr(key.size());
  TryEntry(key, value);
  const absl::string_view body = value.substr(0, value.size() < 4 ? 0 : value.size() - 4);
  TryEntry(key, std::string(body) + U32(Crc32c(AsBytes(body), Crc32c(AsBytes(key)))));
}

void TryName(absl::string_view name) {
  const std::optional<uint64_t> segment = ParseSegmentFileName(name);
  if (segment) Expect(SegmentFileName(*segment) == name);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const absl::string_view input(reinterpret_cast<const char*>(data) + 1, size - 1);
  switch (data[0] % 3) {
    case 0:
      TryHeads(input);
      break;
    case 1:
      TryEntries(input);
      break;
    default:
      TryName(input);
  }
  return 0;
}
