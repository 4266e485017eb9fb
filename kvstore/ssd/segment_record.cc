#include "kvstore/ssd/segment_record.h"

#include <algorithm>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace perigee::kvstore {
namespace {

constexpr absl::string_view kMagic("PGREC001", 8);
constexpr uint16_t kVersion = 1;
constexpr uint8_t kIndexVersion = 3;
constexpr size_t kCrcOffset = 84;
constexpr size_t kFixedBytes = 88;
// Keeps sums of offsets and lengths far from overflow.
constexpr uint64_t kMaxPayloadBytes = uint64_t{1} << 40;

uint32_t HeadCrc(absl::string_view head) {
  return Crc32c(AsBytes(head.substr(kFixedBytes)), Crc32c(AsBytes(head.substr(0, kCrcOffset))));
}

absl::Status Wrong(const PlaneId& id, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("record of ", id.ToString(), ": ", what));
}

}  // namespace

PlaneMeta MetaOf(const pod::PlaneHeader& header, int64_t created_unix_us, uint32_t ttl_s, uint8_t replicas) {
  return PlaneMeta{.payload_bytes = header.payload_bytes,
                   .created_unix_us = created_unix_us,
                   .ttl_s = ttl_s,
                   .base_position = header.base_position,
                   .tokens = header.tokens,
                   .tenant = header.tenant,
                   .parent = header.has_parent ? std::optional(header.parent) : std::nullopt,
                   .group = header.has_root() ? std::optional(GroupOf(header.root)) : std::nullopt,
                   .replicas = replicas};
}

std::string EncodeRecordHead(const PlaneId& id, absl::string_view encoded_header, uint64_t payload_bytes,
                             int64_t created_unix_us, uint32_t ttl_s) {
  const uint64_t payload_offset = RoundUpToPage(kFixedBytes + encoded_header.size());
  ByteWriter w;
  w.Raw(kMagic);
  w.U16(kVersion);
  w.U16(0);
  w.U32(static_cast<uint32_t>(encoded_header.size()));
  w.U64(payload_bytes);
  w.U64(payload_offset);
  w.U64(payload_offset + RoundUpToPage(payload_bytes));
  w.U64(static_cast<uint64_t>(created_unix_us));
  w.Raw(AsView(id.key.digest));
  w.U8(static_cast<uint8_t>(id.kind));
  w.U8(static_cast<uint8_t>(ttl_s));
  w.U16(static_cast<uint16_t>(ttl_s >> 8));
  w.U32(0);  // The checksum's place.
  w.Raw(encoded_header);
  std::string head = w.Take();
  head.resize(payload_offset, '\0');
  ByteWriter crc;
  crc.U32(HeadCrc(head));
  head.replace(kCrcOffset, 4, crc.bytes());
  return head;
}

absl::StatusOr<RecordHead> DecodeRecordHead(absl::string_view head, const PlaneId& id, uint64_t payload_bytes) {
  if (head.size() < kFixedBytes || head.size() % kPageBytes != 0) {
    return Wrong(id, absl::StrCat("a head of ", head.size(), " bytes is impossible"));
  }
  ByteReader r(head);
  if (r.Raw(kMagic.size()) != kMagic) return Wrong(id, "wrong magic");
  const uint16_t version = r.U16();
  const uint16_t reserved = r.U16();
  const uint32_t header_bytes = r.U32();
  const uint64_t payload = r.U64();
  const uint64_t payload_offset = r.U64();
  const uint64_t record_bytes = r.U64();
  const int64_t created = static_cast<int64_t>(r.U64());
  const absl::string_view key = r.Raw(id.key.digest.size());
  const uint8_t kind = r.U8();
  uint32_t ttl_s = r.U8();
  ttl_s |= uint32_t{r.U16()} << 8;
  const uint32_t crc = r.U32();
  if (crc != HeadCrc(head)) return Wrong(id, "the head's checksum does not match");
  if (version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("record of ", id.ToString(), ": version ", version,
                                                      " is not known; this build reads version ", kVersion));
  }
  if (reserved != 0) return Wrong(id, "its reserved bytes are not zero");
  if (key != AsView(id.key.digest) || kind != static_cast<uint8_t>(id.kind)) {
    return Wrong(id, "it holds another plane");
  }
  if (payload != payload_bytes || header_bytes > kMaxHeaderBytes || payload_offset != head.size() ||
      payload_offset != RoundUpToPage(kFixedBytes + uint64_t{header_bytes}) || payload_bytes > kMaxPayloadBytes ||
      record_bytes != payload_offset + RoundUpToPage(payload_bytes)) {
    return Wrong(id, "its lengths do not agree with the index");
  }
  RecordHead out;
  out.encoded_header = std::string(head.substr(kFixedBytes, header_bytes));
  out.created_unix_us = created;
  out.ttl_s = ttl_s;
  size_t used = 0;
  PERIGEE_ASSIGN_OR_RETURN(out.header, pod::DecodePlaneHeader(out.encoded_header, &used));
  if (used != header_bytes) return Wrong(id, "bytes follow the plane header");
  const absl::string_view padding = head.substr(kFixedBytes + header_bytes);
  if (std::any_of(padding.begin(), padding.end(), [](char c) { return c != 0; })) {
    return Wrong(id, "the head's padding is not zero");
  }
  if (out.header.key != id.key || out.header.kind != id.kind || out.header.payload_bytes != payload_bytes) {
    return Wrong(id, "its plane header is of another plane");
  }
  return out;
}

absl::StatusOr<RecordHead> VerifyRecord(absl::string_view head, std::span<const std::byte> padded_payload,
                                        const PlaneId& id, uint64_t payload_bytes) {
  PERIGEE_ASSIGN_OR_RETURN(RecordHead record, DecodeRecordHead(head, id, payload_bytes));
  if (padded_payload.size() != RoundUpToPage(payload_bytes)) {
    return Wrong(id,
                 absl::StrCat(padded_payload.size(), " bytes of payload and padding for a payload of ", payload_bytes));
  }
  PERIGEE_RETURN_IF_ERROR(pod::VerifyPayload(record.header, padded_payload.first(payload_bytes)));
  const auto padding = padded_payload.subspan(payload_bytes);
  if (std::any_of(padding.begin(), padding.end(), [](std::byte b) { return b != std::byte{0}; })) {
    return Wrong(id, "the padding after the payload is not zero");
  }
  return record;
}

std::string SegmentFileName(uint64_t segment) { return absl::StrFormat("%08d.seg", segment); }

std::optional<uint64_t> ParseSegmentFileName(absl::string_view name) {
  uint64_t segment = 0;
  if (name.size() < 12 || name.substr(name.size() - 4) != ".seg") return std::nullopt;
  if (!absl::SimpleAtoi(name.substr(0, name.size() - 4), &segment) || SegmentFileName(segment) != name) {
    return std::nullopt;
  }
  return segment;
}

std::string EncodeIndexKey(const PlaneId& id) {
  std::string key(AsView(id.key.digest));
  key.push_back(static_cast<char>(id.kind));
  return key;
}

std::string EncodeIndexValue(const PlaneId& id, const SsdLocation& location, const PlaneMeta& meta) {
  ByteWriter w;
  w.U8(kIndexVersion);
  w.U64(location.segment);
  w.U64(location.offset);
  w.U32(location.head_bytes);
  w.U64(location.payload_bytes);
  w.U64(static_cast<uint64_t>(meta.created_unix_us));
  w.U32(meta.ttl_s);
  w.U64(static_cast<uint64_t>(meta.base_position));
  w.U32(static_cast<uint32_t>(meta.tokens));
  w.U8(meta.replicas);
  w.U8(meta.group ? 1 : 0);
  w.U16(meta.group.value_or(0));
  w.Counted(meta.tenant);
  w.Counted(meta.parent ? AsView(meta.parent->digest) : absl::string_view());
  w.U32(Crc32c(AsBytes(w.bytes()), Crc32c(AsBytes(EncodeIndexKey(id)))));
  return w.Take();
}

absl::StatusOr<IndexEntry> DecodeIndexEntry(absl::string_view key, absl::string_view value) {
  const auto wrong = [&](absl::string_view what) {
    return absl::DataLossError(absl::StrCat("index entry of ", key.size(), "+", value.size(), " bytes: ", what));
  };
  IndexEntry e;
  if (key.size() != e.id.key.digest.size() + 1 || value.size() < 4) return wrong("impossible length");
  std::copy_n(key.begin(), e.id.key.digest.size(), e.id.key.digest.begin());
  const uint8_t kind = static_cast<uint8_t>(key.back());
  if (kind < 1 || kind > 3) return wrong("impossible plane kind");
  e.id.kind = static_cast<pod::PlaneKind>(kind);
  const absl::string_view body = value.substr(0, value.size() - 4);
  ByteReader tail(value.substr(value.size() - 4));
  if (tail.U32() != Crc32c(AsBytes(body), Crc32c(AsBytes(key)))) return wrong("checksum does not match");
  ByteReader r(body);
  const uint8_t version = r.U8();
  if (version == 0 || version > kIndexVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the store's index has entries of version ", static_cast<int>(version), ", this program reads up to version ",
        static_cast<int>(kIndexVersion), ": start the program that wrote them"));
  }
  e.location.segment = r.U64();
  e.location.offset = r.U64();
  e.location.head_bytes = r.U32();
  e.location.payload_bytes = r.U64();
  e.meta.payload_bytes = e.location.payload_bytes;
  e.meta.created_unix_us = static_cast<int64_t>(r.U64());
  if (version > 1) e.meta.ttl_s = r.U32();
  e.meta.base_position = static_cast<int64_t>(r.U64());
  e.meta.tokens = static_cast<int32_t>(r.U32());
  if (version > 2) {
    e.meta.replicas = r.U8();
    const uint8_t known = r.U8();
    const PlacementGroup group = r.U16();
    if (e.meta.replicas < 1 || e.meta.replicas > kMaxReplicas) return wrong("impossible number of replicas");
    if (known > 1 || (known == 0 && group != 0)) return wrong("impossible placement group");
    if (known == 1) e.meta.group = group;
  }
  e.meta.tenant = std::string(r.Counted());
  if (const absl::string_view parent = version > 1 ? r.Counted() : absl::string_view(); r.ok() && !parent.empty()) {
    if (parent.size() != e.id.key.digest.size()) return wrong("impossible key of the block before");
    std::copy(parent.begin(), parent.end(), e.meta.parent.emplace().digest.begin());
  }
  if (!r.ok() || r.remaining() != 0) return wrong("its fields do not fill it");
  const SsdLocation& l = e.location;
  if (l.offset % kPageBytes != 0 || l.head_bytes % kPageBytes != 0 || l.head_bytes == 0 ||
      l.head_bytes > RoundUpToPage(kFixedBytes + kMaxHeaderBytes) || l.payload_bytes == 0 ||
      l.payload_bytes > kMaxPayloadBytes || l.offset > kMaxPayloadBytes) {
    return wrong("impossible location");
  }
  return e;
}

}  // namespace perigee::kvstore
