#include "kvstore/remote/remote_object.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace perigee::kvstore {
namespace {

constexpr size_t kKeyDigits = 64;

absl::Status Wrong(const PlaneId& id, absl::string_view what) {
  return absl::DataLossError(absl::StrCat("remote object of ", id.ToString(), ": ", what));
}

absl::Status CompareSum(const PlaneId& id, size_t section, uint32_t got, uint32_t wanted) {
  if (got == wanted) return absl::OkStatus();
  return Wrong(id, absl::StrCat("section ", section, " has CRC32C ", absl::Hex(got, absl::kZeroPad8),
                                ", the header says ", absl::Hex(wanted, absl::kZeroPad8)));
}

bool AllZero(absl::string_view bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](char c) { return c == 0; });
}

}  // namespace

std::string RemoteObjectName(absl::string_view prefix, const PlaneId& id) {
  return absl::StrCat(prefix, ".", ToHex(id.key.digest), ".", pod::PlaneKindName(id.kind));
}

std::optional<PlaneId> ParseRemoteObjectName(absl::string_view prefix, absl::string_view name) {
  if (!absl::StartsWith(name, prefix)) return std::nullopt;
  name.remove_prefix(prefix.size());
  if (name.size() < kKeyDigits + 3 || name[0] != '.' || name[1 + kKeyDigits] != '.') return std::nullopt;
  const absl::string_view digits = name.substr(1, kKeyDigits);
  // One name per plane: upper case digits would be a second one.
  if (std::any_of(digits.begin(), digits.end(), [](char c) { return absl::ascii_isupper(c); })) return std::nullopt;
  const auto digest = DigestFromHex(digits);
  if (!digest.ok()) return std::nullopt;
  for (const pod::PlaneKind kind : pod::kPlaneKinds) {
    if (name.substr(2 + kKeyDigits) == pod::PlaneKindName(kind)) return PlaneId{pod::BlockKey{*digest}, kind};
  }
  return std::nullopt;
}

absl::Status CheckRemotePrefix(absl::string_view prefix) {
  const bool good = !prefix.empty() && prefix.size() <= 64 && std::all_of(prefix.begin(), prefix.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '_' || c == '-';
  });
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("the remote tier's prefix is '", prefix, "'; give 1 to 64 of A-Z a-z 0-9 _ -"));
}

absl::StatusOr<uint64_t> PeekHeadBytes(absl::string_view record, const PlaneId& id) {
  if (record.size() < kRecordFixedBytes) {
    return Wrong(id, absl::StrCat("it has only ", record.size(), " bytes"));
  }
  ByteReader reader(record.substr(12, 4));
  const uint32_t header_bytes = reader.U32();
  if (header_bytes == 0 || header_bytes > kMaxHeaderBytes) {
    return Wrong(id, absl::StrCat("a plane header of ", header_bytes, " bytes is impossible"));
  }
  return RoundUpToPage(kRecordFixedBytes + uint64_t{header_bytes});
}

absl::StatusOr<RecordHead> CheckHead(absl::string_view head, const PlaneId& id) {
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t head_bytes, PeekHeadBytes(head, id));
  if (head.size() < head_bytes) {
    return Wrong(id, absl::StrCat("it ends after ", head.size(), " bytes of a head of ", head_bytes));
  }
  ByteReader reader(head.substr(16, 8));
  return DecodeRecordHead(head.substr(0, head_bytes), id, reader.U64());
}

absl::Status CheckRecordBytes(const PlaneId& id, const RecordHead& head, uint64_t head_bytes, uint64_t object_bytes) {
  const uint64_t expected = head_bytes + RoundUpToPage(head.header.payload_bytes);
  if (object_bytes == expected) return absl::OkStatus();
  return Wrong(id, absl::StrCat("it has ", object_bytes, " bytes, its head says ", expected));
}

absl::StatusOr<CheckedPut> CheckPut(const RemotePut& put) {
  const auto refuse = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat("put of ", put.id.ToString(), ": ", what));
  };
  if (put.payload.empty()) return refuse("the payload is empty; a plane has at least one byte");
  if (put.encoded_header.size() > kMaxHeaderBytes) {
    return refuse(absl::StrCat("a plane header of ", put.encoded_header.size(), " bytes, at most ", kMaxHeaderBytes));
  }
  size_t used = 0;
  auto header = pod::DecodePlaneHeader(put.encoded_header, &used);
  if (!header.ok()) return refuse(header.status().message());
  if (used != put.encoded_header.size()) return refuse("bytes follow the plane header");
  if (header->key != put.id.key || header->kind != put.id.kind) return refuse("the plane header is of another plane");
  if (header->payload_bytes != put.payload.size()) {
    return refuse(
        absl::StrCat("the header says ", header->payload_bytes, " bytes of payload, there are ", put.payload.size()));
  }
  std::string head = EncodeRecordHead(put.id, put.encoded_header, put.payload.size(), put.created_unix_us, put.ttl_s);
  const uint64_t record_bytes = head.size() + RoundUpToPage(put.payload.size());
  return CheckedPut{.header = *std::move(header), .head = std::move(head), .record_bytes = record_bytes};
}

absl::Status WriteRecord(const RemotePut& put, const CheckedPut& checked, std::span<std::byte> record) {
  std::memcpy(record.data(), checked.head.data(), checked.head.size());
  std::byte* to = record.data() + checked.head.size();
  std::span<const std::byte> rest = put.payload;
  for (size_t i = 0; i < checked.header.sections.size(); ++i) {
    const pod::SectionSum& section = checked.header.sections[i];
    const uint32_t crc = Crc32cCopy(to, rest.first(section.bytes));
    const absl::Status same = CompareSum(put.id, i, crc, section.crc32c);
    if (!same.ok()) return absl::InvalidArgumentError(absl::StrCat("put refused: ", same.message()));
    to += section.bytes;
    rest = rest.subspan(section.bytes);
  }
  std::memset(to, 0, static_cast<size_t>(record.data() + record.size() - to));
  return absl::OkStatus();
}

absl::Status CheckGetArguments(const RemoteGet& get) {
  if (get.destination.empty() || get.destination.size() > get.payload_bytes ||
      get.offset_bytes > get.payload_bytes - get.destination.size()) {
    return absl::InvalidArgumentError(absl::StrCat("get of ", get.id.ToString(), ": bytes ", get.offset_bytes, " + ",
                                                   get.destination.size(), " of a payload of ", get.payload_bytes));
  }
  return absl::OkStatus();
}

absl::Status CheckGet(const RecordHead& head, const RemoteGet& get) {
  if (head.header.payload_bytes != get.payload_bytes) {
    return absl::FailedPreconditionError(absl::StrCat("get of ", get.id.ToString(), ": the object holds ",
                                                      head.header.payload_bytes, " bytes of payload, not ",
                                                      get.payload_bytes));
  }
  const uint64_t end = get.offset_bytes + get.destination.size();
  bool begins = false, ends = false;
  uint64_t at = 0;
  for (const pod::SectionSum& section : head.header.sections) {
    begins |= at == get.offset_bytes;
    at += section.bytes;
    ends |= at == end;
  }
  if (begins && ends) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("get of ", get.id.ToString(), ": the range ", get.offset_bytes, " + ",
                                                 get.destination.size(),
                                                 " does not begin and end where sections of the plane do"));
}

absl::Status DeliverRange(const RecordHead& head, const RemoteGet& get, std::span<const std::byte> bytes) {
  if (bytes.size() != get.destination.size()) {
    return Wrong(get.id,
                 absl::StrCat("it ends after ", bytes.size(), " of the range's ", get.destination.size(), " bytes"));
  }
  const uint64_t end = get.offset_bytes + get.destination.size();
  uint64_t at = 0;
  for (size_t i = 0; i < head.header.sections.size() && at < end; ++i) {
    const pod::SectionSum& section = head.header.sections[i];
    if (at >= get.offset_bytes) {
      const size_t from = at - get.offset_bytes;
      const uint32_t crc = Crc32cCopy(get.destination.data() + from, bytes.subspan(from, section.bytes));
      PERIGEE_RETURN_IF_ERROR(CompareSum(get.id, i, crc, section.crc32c));
    }
    at += section.bytes;
  }
  return absl::OkStatus();
}

absl::StatusOr<RecordHead> DeliverRecord(const RemoteGet& get, absl::string_view record) {
  PERIGEE_ASSIGN_OR_RETURN(RecordHead head, CheckHead(record, get.id));
  PERIGEE_RETURN_IF_ERROR(CheckGet(head, get));
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t head_bytes, PeekHeadBytes(record, get.id));
  PERIGEE_RETURN_IF_ERROR(CheckRecordBytes(get.id, head, head_bytes, record.size()));
  PERIGEE_RETURN_IF_ERROR(DeliverRange(head, get, AsBytes(record.substr(head_bytes, get.payload_bytes))));
  if (!AllZero(record.substr(head_bytes + get.payload_bytes))) {
    return Wrong(get.id, "the padding after the payload is not zero");
  }
  return head;
}

}  // namespace perigee::kvstore
