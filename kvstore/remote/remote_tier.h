// The remote tier: planes kept by an engine outside the store's nodes, so that they outlive them.
//
// A backend holds immutable objects named by a PlaneId under a prefix of the store's. An object is one record, the same
// bytes as in a segment file (kvstore/ssd/segment_record.h; docs/formats.md, section 6.4), so every backend checks the
// same way: what Get delivers has matched the record's head and the plane header's CRC32C, and anything else is
// DATA_LOSS.
//
// Operations. A call that returns an id has begun; `done` is then called exactly once, on one of the tier's threads,
// never inside the call. A call that returns an error has begun nothing; `done` is destroyed uncalled. `done` must not
// block; it may begin and cancel operations, but not destroy the tier.
//
// Buffers. A put's payload is read, and a get's destination written, only until `done` is called: after a deadline, a
// cancellation or any other end nothing touches them, whatever the backend still does. After an error a destination's
// contents mean nothing.
//
// Deadlines. Every operation ends by its deadline (DEADLINE_EXCEEDED), also when the backend hangs. A Put that did not
// end with OK may have stored its object, or store it a little later; putting it again is always right.
//
// Back-pressure. Operations under way are bounded in number and bytes (RemoteLimits). Over a bound a call is refused
// with ABORTED; try again when one of yours has ended. One that ended early counts on until the backend has let go of
// it, so memory stays bounded while a backend hangs.
//
// Errors, of one object each:
//   NOT_FOUND            the backend answered: there is no such object
//   DATA_LOSS            there is one and its bytes are wrong; Delete it and put it again
//   RESOURCE_EXHAUSTED   the backend is full
//   UNAVAILABLE          the backend does not answer or is not connected; the tier goes on trying by itself
//   DEADLINE_EXCEEDED, CANCELLED, ABORTED (above); INVALID_ARGUMENT, FAILED_PRECONDITION, PERMISSION_DENIED: as worded
//
// Any thread may call. The destructor cancels what is under way and waits until every `done` has returned.
#ifndef PERIGEE_KVSTORE_REMOTE_REMOTE_TIER_H_
#define PERIGEE_KVSTORE_REMOTE_REMOTE_TIER_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/plane_id.h"
#include "kvstore/ssd/segment_record.h"

namespace perigee::kvstore {

struct RemoteLimits {
  size_t max_operations = 1024;  // Objects of all operations under way.
  uint64_t max_bytes = uint64_t{256} << 20;
};

struct RemotePut {
  PlaneId id;
  std::string encoded_header;          // pod::EncodePlaneHeader's, of this plane.
  std::span<const std::byte> payload;  // header.payload_bytes; checked against the header before it is sent
  int64_t created_unix_us = 0;
  uint32_t ttl_s = 0;
};
enum class PutOutcome : uint8_t {
  kStored = 1,
  kAlreadyStored = 2,  // Equal names mean equal planes: the first put wins, this one sent nothing that stays.
};

// The bytes [offset_bytes, offset_bytes + destination.size()) of the payload. A range begins and ends where sections of
// the plane do, because a section is the least that has a checksum (INVALID_ARGUMENT otherwise).
struct RemoteGet {
  PlaneId id;
  uint64_t payload_bytes = 0;  // Of the whole plane. FAILED_PRECONDITION when the object has another length.
  uint64_t offset_bytes = 0;
  std::span<std::byte> destination;
};

struct RemoteListPage {
  std::vector<PlaneId> planes;  // In no order that means something. Objects not named by this tier are left out.
  std::string next_page_token;  // Empty on the last page. Opaque, and valid after a restart too.
};

struct RemoteHealth {
  bool reachable = false;
  bool full = false;    // The last write was refused for want of space, or (folder) so would be the next.
  bool slow = false;    // An operation is older than the tier's slow_after, or one missed its deadline just now.
  std::string message;  // What is wrong and what to do; empty when nothing is.
  size_t operations = 0;
  uint64_t bytes = 0;
};

struct RemoteCapabilities {
  std::string backend;
  uint64_t max_payload_bytes = 0;  // Larger planes are refused with INVALID_ARGUMENT.
  bool ranged_get = false;         // false: a range costs as much as the whole.
  bool atomic_put = false;         // false: two racing puts may leave either's record (whole, always).
};

class RemoteTier {
 public:
  using OperationId = uint64_t;
  using PutDone = absl::AnyInvocable<void(absl::StatusOr<PutOutcome>)>;
  using GetDone = absl::AnyInvocable<void(absl::StatusOr<RecordHead>)>;
  using DeleteDone = absl::AnyInvocable<void(std::vector<absl::Status>)>;
  using StatDone = absl::AnyInvocable<void(std::vector<absl::StatusOr<RecordHead>>)>;
  using ListDone = absl::AnyInvocable<void(absl::StatusOr<RemoteListPage>)>;

  virtual ~RemoteTier() = default;

  // All or nothing. OK once the backend holds the object in as many places as it is set up to (RADOS: on all replicas
  // of the acting set; a folder: after fsync).
  virtual absl::StatusOr<OperationId> Put(RemotePut put, absl::Time deadline, PutDone done) = 0;

  virtual absl::StatusOr<OperationId> Get(RemoteGet get, absl::Time deadline, GetDone done) = 0;

  // One status per id, in order; at most RemoteLimits::max_operations of them. NOT_FOUND where there was nothing. Reads
  // under way deliver the whole plane or NOT_FOUND.
  virtual absl::StatusOr<OperationId> Delete(std::vector<PlaneId> ids, absl::Time deadline, DeleteDone done) = 0;

  // One answer per id, in order. Reads and checks the record's head, not the payload.
  virtual absl::StatusOr<OperationId> Stat(std::vector<PlaneId> ids, absl::Time deadline, StatDone done) = 0;

  // page_token: empty, or from the page before. Planes that come or go meanwhile may be listed or not; all others are,
  // once. A page may hold fewer than max_planes (1..), even none, and not be the last.
  virtual absl::StatusOr<OperationId> List(std::string page_token, size_t max_planes, absl::Time deadline,
                                           ListDone done) = 0;

  // Ends it with CANCELLED, unless it has ended or its `done` is about to be called: a request, not a wait.
  virtual void Cancel(OperationId operation) = 0;

  // Snapshots; neither waits for the backend.
  virtual RemoteHealth health() const = 0;
  virtual RemoteCapabilities capabilities() const = 0;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REMOTE_REMOTE_TIER_H_
