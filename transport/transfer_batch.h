// Many scattered extents moved as one batch, in one direction, between this process and one peer.
//
// How they travel is the transport's choice (docs/design.md, "Transfers"): neighbours are joined, small extents share
// messages, large ones are cut, and all of it is spread over the rails. Extents may move in any order,
// so a caller that needs an order starts one batch after the other: batches are served first come, first served.
#ifndef PERIGEE_TRANSPORT_TRANSFER_BATCH_H_
#define PERIGEE_TRANSPORT_TRANSFER_BATCH_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "transport/memory.h"

namespace perigee::transport {

namespace internal {
struct Transfer;
}  // namespace internal

// One extent. The caller owns `local` and keeps it alive and (for a Put) unchanged until the batch has ended; `region`
// is read only while the batch is started. Empty extents are allowed.
struct PutTransfer {
  std::span<const std::byte> local;
  uint64_t remote_address = 0;
  const RemoteRegion* region = nullptr;
};
struct GetTransfer {
  std::span<std::byte> local;
  uint64_t remote_address = 0;
  const RemoteRegion* region = nullptr;
};

struct TransferOptions {
  absl::Time deadline = absl::InfiniteFuture();
  // Take every extent's CRC32C while it moves: of the bytes that arrived (Get) or left (Put). They are what
  // extent_crc32c returns; comparing them is the caller's, who knows what they should be.
  bool checksums = true;
};

// A batch under way. Move-only; any thread may call any method. Once the handle is gone or Wait has returned the
// batch's status, nothing touches the buffers again. Destruction therefore waits: for the end of the batch, at the
// latest until its deadline, when the connection is force-closed. Call Cancel before it to wait less.
class TransferBatch {
 public:
  TransferBatch() = default;
  TransferBatch(TransferBatch&&) noexcept = default;
  TransferBatch& operator=(TransferBatch&& other) noexcept;
  ~TransferBatch();

  // The batch's status once it has ended. DEADLINE_EXCEEDED when `until` comes first: the batch goes on (done() tells
  // the two apart).
  absl::Status Wait(absl::Time until = absl::InfiniteFuture());
  bool done() const;

  // Nothing more is started; what is on the wire lands. The batch ends with CANCELLED, or OK if all had moved.
  void Cancel();

  size_t size() const;
  // True once this extent's bytes are where they belong; never for the rest of a batch that failed.
  bool extent_done(size_t extent) const;
  // Waits for one extent. OK, or as Wait.
  absl::Status WaitExtent(size_t extent, absl::Time until = absl::InfiniteFuture());
  // Of an extent that is done, with TransferOptions::checksums. 0 for empty extents.
  uint32_t extent_crc32c(size_t extent) const;

 private:
  friend class Endpoint;
  explicit TransferBatch(std::shared_ptr<internal::Transfer> transfer);
  void Finish();
  std::shared_ptr<internal::Transfer> transfer_;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_TRANSFER_BATCH_H_
