// A reservation that several processes write into: one client reserves and commits, the others only put.
//
//   leader:  batch = store.Reserve(planes);  text = batch.Describe();      // text to the others, by any way
//   other:   joined = store.Join(text, before);  joined->Put(ranges) ...;  joined->Finish();
//   leader:  once every other has said that its Finish was OK:             batch.Commit(headers);
//
// A description ends with its store's start (epoch) and with the reservation's time to live. A joined process has no
// claim of its own: the leader's batch must stay until all others have finished. Because the leader cannot see whether
// their puts still move, memory of a described batch that is not committed rests at the store until its time to live is
// over.
#ifndef PERIGEE_KVSTORE_SHARED_RESERVATION_H_
#define PERIGEE_KVSTORE_SHARED_RESERVATION_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvstore/client.h"

namespace perigee::kvstore {

// What a description says (docs/formats.md, section 7.3).
struct SharedReservation {
  struct Plane {
    bool already_committed = false;
    uint64_t address = 0;  // In the store's process; 0 where already committed.
    uint64_t payload_bytes = 0;
  };
  uint64_t epoch = 0;
  absl::Duration remaining;  // Time to live when it was described.
  std::vector<Plane> planes;
};

std::string EncodeSharedReservation(const SharedReservation& shared);

// Refuses other magic or version (FAILED_PRECONDITION), truncation, impossible values and a wrong checksum (DATA_LOSS).
absl::StatusOr<SharedReservation> DecodeSharedReservation(absl::string_view bytes);

namespace internal {
struct JoinedState;
}  // namespace internal

// Another client's reservation, to put into. Made by StoreClient::Join. Any thread may Put; Finish once, after the
// last. Destruction waits for the puts under way, at the latest until their deadline.
class JoinedBatch {
 public:
  JoinedBatch();
  JoinedBatch(JoinedBatch&&) noexcept;
  JoinedBatch& operator=(JoinedBatch&&) noexcept;
  ~JoinedBatch();

  size_t size() const;
  bool already_committed(size_t plane) const;

  // Starts writing all ranges as one batch. The caller keeps the bytes alive and unchanged until Finish has returned or
  // this object is gone. Ranges of planes that are committed already are left out. OUT_OF_RANGE past a plane's end:
  // nothing of the call is written.
  absl::Status Put(std::span<const PutRange> ranges);

  // Until everything put so far is in the store's memory; the first error of any put.
  absl::Status Finish();

 private:
  friend class StoreClient;
  explicit JoinedBatch(std::unique_ptr<internal::JoinedState> state);
  std::unique_ptr<internal::JoinedState> state_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SHARED_RESERVATION_H_
