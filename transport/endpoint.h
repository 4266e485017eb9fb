// A connection to another engine: one-sided reads and writes, and small messages.
//
// Every operation has a deadline and ends by it (plus the few milliseconds that closing takes): OK, or
//   OUT_OF_RANGE        a transfer leaves its remote region; nothing was started
//   INVALID_ARGUMENT    a null or foreign region, an oversized message
//   DEADLINE_EXCEEDED   not finished in time (a stalled peer). For transfers the connection is then closed: UCX cannot
//   take back one
//                       transfer, and a buffer must not be written after its owner was told that it is free
//   UNAVAILABLE         the peer died or the connection is closed; Connect again
//   CANCELLED           this side destroyed the Endpoint or the Context
#ifndef PERIGEE_TRANSPORT_ENDPOINT_H_
#define PERIGEE_TRANSPORT_ENDPOINT_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "transport/memory.h"

namespace perigee::transport {

namespace internal {
struct Batch;
struct Peer;
}  // namespace internal

// One piece of a batch. The caller owns `local` and keeps it alive and unchanged until the batch has ended; `region` is
// read only while the batch is started. Empty pieces are allowed.
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

// A batch under way. Move-only. Once the handle is gone or Wait has returned the batch's status, UCX never touches the
// buffers again. Destruction therefore waits: for the end of the batch, at the latest until its deadline, when the
// connection is force-closed.
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

 private:
  friend class Endpoint;
  explicit TransferBatch(std::shared_ptr<internal::Batch> batch) : batch_(std::move(batch)) {}
  void Finish();
  std::shared_ptr<internal::Batch> batch_;
};

// Made by Context::Connect. Move-only; any thread may call any method, several at once. Calls block the caller except
// Start*; none may be made from a message handler (FAILED_PRECONDITION). Destruction closes it: batches under way end
// with CANCELLED.
class Endpoint {
 public:
  Endpoint() = default;
  Endpoint(Endpoint&&) noexcept = default;
  Endpoint& operator=(Endpoint&& other) noexcept;
  ~Endpoint();

  // False once the peer's death was noticed or a transfer missed its deadline; it never becomes true again.
  bool connected() const;
  // The UCX transports in use, one lane a line, as UCX prints them.
  absl::StatusOr<std::string> Describe() const;

  // Turns a peer's MemoryRegion::remote_key() into a region. INVALID_ARGUMENT for damaged bytes and for another
  // engine's key.
  absl::StatusOr<RemoteRegion> UnpackRemoteKey(absl::string_view bytes) const;

  // A Put has ended well when all bytes are visible in the peer's memory, a Get when they are in `local`. Pieces may
  // run in any order.
  absl::Status Put(std::span<const PutTransfer> transfers, absl::Time deadline) const;
  absl::Status Get(std::span<const GetTransfer> transfers, absl::Time deadline) const;
  absl::StatusOr<TransferBatch> StartPut(std::span<const PutTransfer> transfers, absl::Time deadline) const;
  absl::StatusOr<TransferBatch> StartGet(std::span<const GetTransfer> transfers, absl::Time deadline) const;

  // Runs the peer's handler `id` on a copy of the bytes. Send returns when the peer's transport has the message, Call
  // with the handler's answer or error (NOT_FOUND: no such handler). Header and payload together: at most
  // kMaxMessageBytes.
  absl::Status Send(uint16_t id, absl::string_view header, absl::string_view payload, absl::Time deadline) const;
  absl::StatusOr<std::string> Call(uint16_t id, absl::string_view header, absl::string_view payload,
                                   absl::Time deadline) const;

 private:
  friend class Context;
  explicit Endpoint(std::shared_ptr<internal::Peer> endpoint) : endpoint_(std::move(endpoint)) {}
  void Close();
  std::shared_ptr<internal::Peer> endpoint_;
};

inline constexpr size_t kMaxMessageBytes = size_t{1} << 20;

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_ENDPOINT_H_
