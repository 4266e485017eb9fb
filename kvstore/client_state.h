// Internal to the room: what the client's batches, leases and fetches keep, and the steps that a lease and a fetch
// share.
#ifndef PERIGEE_KVSTORE_CLIENT_STATE_H_
#define PERIGEE_KVSTORE_CLIENT_STATE_H_

#include <algorithm>
#include <atomic>
#include <memory>
#include <span>
#include <vector>

#include "kvstore/client.h"
#include "kvstore/session.h"

namespace perigee::kvstore::internal {

using Stub = v1::KvStore::Stub;

inline absl::Duration CutTtl(absl::Duration ttl, const Session& s) { return std::min(ttl, s.max_ttl); }
inline uint64_t TtlToWire(absl::Duration ttl) {
  return static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Milliseconds(ttl)));
}

absl::StatusOr<CorruptReport> Report(ClientCore& core, Session& session, const PlaneId& id);

// Puts on their way into reserved planes. Any thread.
struct Puts {
  std::shared_ptr<ClientCore> core;
  std::shared_ptr<Session> session;
  absl::Time expiry;  // the reservation's

  // One batch; never past the reservation's end.
  absl::Status Start(std::span<const transport::PutTransfer> pieces, uint64_t bytes);
  // Until all that were started have ended: the first error of any, with a lost connection noted.
  absl::Status Wait();
  // Then: until the store has noticed all of them, which a call over gRPC might overtake.
  absl::Status AwaitNotice();

 private:
  struct UnderWay {
    transport::TransferBatch handle;
    uint64_t bytes;
  };
  void Settle(UnderWay& put) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void DropFinished() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  absl::Mutex mu;
  std::vector<UnderWay> under_way ABSL_GUARDED_BY(mu);
  absl::Status status ABSL_GUARDED_BY(mu);  // The first error.
};

struct WriteState : Puts {
  std::vector<PlaneRequest> planes;
  std::vector<Reservation> reservations;
  bool described = false;  // Others may put too, and this client cannot see when they have ended.

  // One call for these planes of the batch.
  absl::Status Commit(std::span<const size_t> some, std::span<const pod::PlaneHeader> headers, Durability durability,
                      uint32_t ttl_s, uint32_t replicas, bool quick, std::vector<absl::Status>* statuses);
};

// INVALID_ARGUMENT, NOT_FOUND as in ReadLease::Fetch.
absl::Status CheckHeld(std::span<const HeldPlane> planes, size_t plane);

// Shared by the ReadLease and the LayeredFetches made from it; the last one to go releases the lease.
struct LeaseState {
  std::shared_ptr<ClientCore> core;
  std::shared_ptr<Session> session;
  uint64_t id = 0;
  std::vector<HeldPlane> planes;
  std::vector<uint64_t> addresses;
  std::vector<std::vector<uint64_t>> section_begins;  // Of each plane's payload: [sections + 1].
  std::atomic<int64_t> expiry_unix_us{0};
  std::atomic<uint64_t> fetched_bytes{0}, fetch_us{0};

  ~LeaseState();

  absl::Time expiry() const { return absl::FromUnixMicros(expiry_unix_us); }
  // Appends a transfer per section of the request, so that each is summed while it moves. NOT_FOUND, INVALID_ARGUMENT
  // as in ReadLease::Fetch.
  absl::Status Locate(const FetchRequest& request, std::vector<transport::GetTransfer>* pieces) const;
  // One batch; never past the lease's end.
  absl::StatusOr<transport::TransferBatch> StartGet(std::vector<transport::GetTransfer> pieces, absl::Time deadline);
  // An error of the wire, with the store named; notes a lost connection.
  absl::Status WireError(const absl::Status& status);
  // For the store's estimates.
  void CountFetched(uint64_t bytes, absl::Duration took);
  // The one place where fetched bytes are checked: DATA_LOSS, naming the section, or OK. The request's sections are the
  // batch's extents from *extent on, which moves past them.
  absl::Status Verify(const FetchRequest& request, const transport::TransferBatch& batch, size_t* extent) const;
  // Tells the store that a plane's bytes are wrong. The reader's answer is DATA_LOSS, whatever the store says.
  void ReportWrong(size_t plane);
};

}  // namespace perigee::kvstore::internal

#endif  // PERIGEE_KVSTORE_CLIENT_STATE_H_
