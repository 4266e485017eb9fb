// What all backends of the remote tier do alike: an object's name, and the checks between a record and a plane.
// Pure functions; any thread may call.
#ifndef PERIGEE_KVSTORE_REMOTE_REMOTE_OBJECT_H_
#define PERIGEE_KVSTORE_REMOTE_REMOTE_OBJECT_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/remote/remote_tier.h"

namespace perigee::kvstore {

// "PREFIX.KEY.KIND": the block key in 64 hex digits, the plane kind's name. And back; nullopt for every other name.
std::string RemoteObjectName(absl::string_view prefix, const PlaneId& id);
std::optional<PlaneId> ParseRemoteObjectName(absl::string_view prefix, absl::string_view name);

// 1 to 64 of A-Z a-z 0-9 _ -, which is a file name and a RADOS name everywhere.
absl::Status CheckRemotePrefix(absl::string_view prefix);

// The part of a record's head that tells how long the head is.
inline constexpr size_t kRecordFixedBytes = 88;
// No head is longer.
inline constexpr uint64_t kMaxHeadBytes = RoundUpToPage(kRecordFixedBytes + kMaxHeaderBytes);
// What most heads have: a plane header of up to 480 sections or so.
inline constexpr uint64_t kUsualHeadBytes = kPageBytes;

// The head's length, believed before it is checked: at most kMaxHeadBytes. DATA_LOSS when these bytes begin no record.
absl::StatusOr<uint64_t> PeekHeadBytes(absl::string_view record, const PlaneId& id);

// Checks the head of `id`'s record, whatever its payload's length. head: at least the head; what follows is ignored.
absl::StatusOr<RecordHead> CheckHead(absl::string_view head, const PlaneId& id);

// DATA_LOSS unless an object of object_bytes is as long as its head says.
absl::Status CheckRecordBytes(const PlaneId& id, const RecordHead& head, uint64_t head_bytes, uint64_t object_bytes);

// A put whose header is the plane's and fits the payload's length (INVALID_ARGUMENT otherwise), with its record's head.
struct CheckedPut {
  pod::PlaneHeader header;
  std::string head;
  uint64_t record_bytes = 0;
};
absl::StatusOr<CheckedPut> CheckPut(const RemotePut& put);
// Writes the record into checked.record_bytes bytes: one pass over the payload copies it and compares it with the
// header (INVALID_ARGUMENT where it differs).
absl::Status WriteRecord(const RemotePut& put, const CheckedPut& checked, std::span<std::byte> record);

// Checks that the head is of what `get` asks for: length, and a range of whole sections.
absl::Status CheckGet(const RecordHead& head, const RemoteGet& get);

// Copies the payload's range that `get` asks for from `bytes`, which are exactly those, to the destination, and
// compares every section. After CheckGet.
absl::Status DeliverRange(const RecordHead& head, const RemoteGet& get, std::span<const std::byte> bytes);

// A whole record: head, payload (to the destination), padding and nothing behind it.
absl::StatusOr<RecordHead> DeliverRecord(const RemoteGet& get, absl::string_view record);

inline bool IsWhole(const RemoteGet& get) {
  return get.offset_bytes == 0 && get.destination.size() == get.payload_bytes;
}
// INVALID_ARGUMENT for an empty destination or one that passes the payload's end.
absl::Status CheckGetArguments(const RemoteGet& get);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REMOTE_REMOTE_OBJECT_H_
