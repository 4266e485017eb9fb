// The record: one plane in a segment file, and the index entry that points to it.
//
// A segment file (segments/NNNNNNNN.seg, the number in 8 or more decimal digits) is a run of records without a file
// header; records start on multiples of 4096 and are written once. All numbers are little-endian.
//
//   offset  bytes  record
//        0      8  magic "PGREC001"
//        8      2  version, 1
//       10      2  zero
//       12      4  H: bytes of the encoded plane header (1 .. 1 MiB)
//       16      8  P: bytes of payload (> 0)
//       24      8  offset of the payload from the record's start: 88 + H rounded up to 4096
//       32      8  bytes of the whole record: payload offset + (P rounded up to 4096)
//       40      8  created, Unix microseconds
//       48     32  block key
//       80      1  plane kind
//       81      3  time to live: seconds from its creation, 0: for ever
//       84      4  CRC32C over bytes [0, 84) followed by bytes [88, payload offset)
//       88      H  the plane header, as pod::EncodePlaneHeader writes it (it has its own checksum, and the payload's)
//   88 + H      .  zeros up to the payload's offset
//        .      P  payload
//        .      .  zeros up to the record's end
//
// Every byte is covered: the head by its CRC32C, the payload by the plane header's section checksums, the padding by
// having to be zero.
//
// The index is a RocksDB database. Key: the 32 bytes of the block key, then the plane kind's byte. Value:
//
//   u8 version, 3 | u64 segment | u64 offset | u32 head bytes (= payload offset) | u64 P | i64 created, Unix us | u32
//   time to live, s | i64 base position | u32 tokens | u8 replicas | u8 1: the placement group is known | u16 placement
//   group, else 0 | u32 length, tenant | u32 length (0 or 32), key of the block before | u32 CRC32C over the database
//   key followed by the value before this field
//
// Version 2, without replicas and group, is read too, and version 1, without time to live and block before besides.
#ifndef PERIGEE_KVSTORE_SSD_SEGMENT_RECORD_H_
#define PERIGEE_KVSTORE_SSD_SEGMENT_RECORD_H_

#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/placement.h"
#include "kvstore/plane_id.h"
#include "pod/plane_header.h"

namespace perigee::kvstore {

// Where a record lies.
struct SsdLocation {
  uint64_t segment = 0;
  uint64_t offset = 0;
  uint32_t head_bytes = 0;  // a multiple of kPageBytes
  uint64_t payload_bytes = 0;

  uint64_t record_bytes() const { return head_bytes + RoundUpToPage(payload_bytes); }
  friend bool operator==(const SsdLocation&, const SsdLocation&) = default;
};

// What the store remembers of a plane without looking at its bytes.
struct PlaneMeta {
  uint64_t payload_bytes = 0;
  int64_t created_unix_us = 0;
  uint32_t ttl_s = 0;  // From its creation; 0: for ever.
  int64_t base_position = 0;
  int32_t tokens = 0;
  std::string tenant;
  std::optional<pod::BlockKey> parent;  // The block before.
  // Where among stores it belongs; nullopt: its header does not say, and it stays where it is.
  std::optional<PlacementGroup> group{};
  uint8_t replicas = 1;  // How many stores are to have it, 1 to kMaxReplicas.
  friend bool operator==(const PlaneMeta&, const PlaneMeta&) = default;
};
inline constexpr uint32_t kMaxTtlSeconds = (1 << 24) - 1;  // 194 days
PlaneMeta MetaOf(const pod::PlaneHeader& header, int64_t created_unix_us, uint32_t ttl_s = 0, uint8_t replicas = 1);

// The head: everything in front of the payload, padding included. encoded_header: at most kMaxHeaderBytes; ttl_s: at
// most kMaxTtlSeconds.
std::string EncodeRecordHead(const PlaneId& id, absl::string_view encoded_header, uint64_t payload_bytes,
                             int64_t created_unix_us, uint32_t ttl_s = 0);

struct RecordHead {
  std::string encoded_header;
  pod::PlaneHeader header;
  int64_t created_unix_us = 0;
  uint32_t ttl_s = 0;
};
// head: exactly the bytes in front of the payload. DATA_LOSS or FAILED_PRECONDITION unless it is, without a wrong bit,
// the head of `id` with that payload length.
absl::StatusOr<RecordHead> DecodeRecordHead(absl::string_view head, const PlaneId& id, uint64_t payload_bytes);

// Head, payload checksums and trailing padding. padded_payload: the payload and the zeros that follow it in the record.
absl::StatusOr<RecordHead> VerifyRecord(absl::string_view head, std::span<const std::byte> padded_payload,
                                        const PlaneId& id, uint64_t payload_bytes);

// "00000007.seg" and back; nullopt for any other name.
std::string SegmentFileName(uint64_t segment);
std::optional<uint64_t> ParseSegmentFileName(absl::string_view name);

std::string EncodeIndexKey(const PlaneId& id);
std::string EncodeIndexValue(const PlaneId& id, const SsdLocation& location, const PlaneMeta& meta);
struct IndexEntry {
  PlaneId id;
  SsdLocation location;
  PlaneMeta meta;
};
// DATA_LOSS for anything that the two functions above did not write.
absl::StatusOr<IndexEntry> DecodeIndexEntry(absl::string_view key, absl::string_view value);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_SEGMENT_RECORD_H_
