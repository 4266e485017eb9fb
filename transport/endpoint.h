// A connection to another context: batches of reads and writes in its memory, and small messages.
//
// Every operation has a deadline and ends by it (plus the few milliseconds that closing takes): OK, or
//   OUT_OF_RANGE        a transfer leaves its remote region; nothing was started
//   INVALID_ARGUMENT    a null or foreign region, an oversized message
//   PERMISSION_DENIED   the owner does not let this session read or write there (no grant, or one that has ended)
//   DEADLINE_EXCEEDED   not finished in time (a stalled peer). For transfers the connection is then closed: UCX cannot
//   take back
//                       one transfer, and a buffer must not be written after its owner was told that it is free
//   UNAVAILABLE         the peer died or the connection is closed; Connect again
//   CANCELLED           this side destroyed the Endpoint or the Context, or cancelled the batch
//
// An idle connection is asked for signs of life (Options::keepalive): a peer that vanished without a word is noticed,
// and the connection closed, after three unanswered intervals.
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
#include "transport/transfer_batch.h"

namespace perigee::transport {

namespace internal {
enum class Direction;
struct Link;
}  // namespace internal

// Made by Context::Connect. Move-only; any thread may call any method, several at once. Calls block the caller except
// Start*; none may be made from a message handler (FAILED_PRECONDITION). A waiting caller moves the data itself, so
// handlers may run on its thread: do not wait here while holding a lock that a handler takes. Destruction closes it:
// batches under way end with CANCELLED.
class Endpoint {
 public:
  Endpoint() = default;
  Endpoint(Endpoint&&) noexcept = default;
  Endpoint& operator=(Endpoint&& other) noexcept;
  ~Endpoint();

  // False once the peer's death was noticed or a transfer missed its deadline; it never becomes true again.
  bool connected() const;
  // How many rails are up. A lost rail is tried again in the background as long as another one lives.
  int rails() const;
  // Of the messages, agreed on when connecting.
  int protocol_version() const;
  // Closes the connection now, for a peer that is known to hang: transfers and messages under way end with UNAVAILABLE
  // and these words, instead of waiting for their deadlines. Any thread.
  void GiveUp(absl::string_view why) const;
  // The UCX transports in use, one lane a line, as UCX prints them.
  absl::StatusOr<std::string> Describe() const;

  // Turns a peer's MemoryRegion::remote_key() into a region. INVALID_ARGUMENT for damaged bytes and for another
  // context's key.
  absl::StatusOr<RemoteRegion> UnpackRemoteKey(absl::string_view bytes) const;

  // A Put has ended well when all bytes are visible in the peer's memory, a Get when they are in `local`.
  absl::StatusOr<TransferBatch> StartPut(std::span<const PutTransfer> transfers, const TransferOptions& options) const;
  absl::StatusOr<TransferBatch> StartGet(std::span<const GetTransfer> transfers, const TransferOptions& options) const;
  // Without checksums.
  absl::Status Put(std::span<const PutTransfer> transfers, absl::Time deadline) const;
  absl::Status Get(std::span<const GetTransfer> transfers, absl::Time deadline) const;

  // Runs the peer's handler `id` on a copy of the bytes. Send returns when it has run, whatever it said, Call
  // with the handler's answer or error (NOT_FOUND: no such handler). Header and payload together: at most
  // kMaxMessageBytes. While a stalled peer has more than kMaxQueuedBytes of messages to take, further ones wait here.
  absl::Status Send(uint16_t id, absl::string_view header, absl::string_view payload, absl::Time deadline) const;
  absl::StatusOr<std::string> Call(uint16_t id, absl::string_view header, absl::string_view payload,
                                   absl::Time deadline) const;

 private:
  friend class Context;
  explicit Endpoint(std::shared_ptr<internal::Link> link) : link_(std::move(link)) {}
  void Close();
  void CloseWith(const absl::Status& status) const;
  // waits: the caller will do so at once.
  template <typename Extents>
  absl::StatusOr<TransferBatch> Start(internal::Direction direction, const Extents& transfers,
                                      const TransferOptions& options, bool waits) const;
  std::shared_ptr<internal::Link> link_;
};

inline constexpr size_t kMaxMessageBytes = size_t{1} << 20;
inline constexpr size_t kMaxQueuedBytes = size_t{32} << 20;

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_ENDPOINT_H_
