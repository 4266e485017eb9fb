// The data plane's engine: a UCX context and worker, and the one thread that touches them.
//
// Other threads hand operations to that thread and wait; it sleeps on UCX's event descriptor when nothing moves. A
// process usually has one engine; several are independent.
#ifndef PERIGEE_TRANSPORT_CONTEXT_H_
#define PERIGEE_TRANSPORT_CONTEXT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "transport/endpoint.h"
#include "transport/memory.h"

namespace perigee::transport {

struct Options {
  // UCX_TLS: "tcp", "shm,tcp" (shared memory with peers on this machine, tcp with others), "rc,tcp"; "" leaves the
  // choice to UCX and its environment. Shared memory needs regions that the owner's engine allocated (AllocateMemory);
  // others go by messages.
  std::string transports;
  // How long the progress thread polls after the last movement before it sleeps. More: lower latency; less: less
  // processor time.
  int spin_us = 20;
};

// Since the engine's start. Bytes count at the initiator, when their batch has ended well.
struct ContextStats {
  uint64_t put_bytes = 0;
  uint64_t get_bytes = 0;
  uint64_t put_transfers = 0;
  uint64_t get_transfers = 0;
  uint64_t messages_sent = 0;
  uint64_t messages_received = 0;
  uint64_t failed_batches = 0;  // transfers and messages that ended with an error
  uint64_t connections_opened = 0;
  uint64_t connections_accepted = 0;
  uint64_t connections_failed = 0;  // closed by an error or a missed deadline
};

// Answers one message. Runs on the progress thread: must be quick, must not throw, must not call blocking functions of
// this room. The result goes back to Call (at most kMaxMessageBytes) and is dropped for Send. The views die with the
// call.
using MessageHandler = std::function<absl::StatusOr<std::string>(absl::string_view header, absl::string_view payload)>;

namespace internal {
class Core;
struct ListenerState;
}  // namespace internal

// Accepts connections until destroyed; accepted ones live on until the peer closes them or the engine ends. Move-only.
class Listener {
 public:
  Listener() = default;
  Listener(Listener&&) noexcept = default;
  Listener& operator=(Listener&& other) noexcept;
  ~Listener();
  uint16_t port() const;

 private:
  friend class Context;
  explicit Listener(std::shared_ptr<internal::ListenerState> state) : state_(std::move(state)) {}
  std::shared_ptr<internal::ListenerState> state_;
};

// Any thread may call. Destruction fails what is under way (CANCELLED), closes every connection and listener and stops
// the thread. Connections, handles and regions may outlive the engine; their operations then fail with
// FAILED_PRECONDITION.
class Context {
 public:
  // UNAVAILABLE or INVALID_ARGUMENT when UCX has no such transports here.
  static absl::StatusOr<std::unique_ptr<Context>> Create(const Options& options);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  // `memory` stays the caller's.
  absl::StatusOr<MemoryRegion> RegisterMemory(std::span<std::byte> memory);
  // RESOURCE_EXHAUSTED when there is not that much.
  absl::StatusOr<MemoryRegion> AllocateMemory(size_t size_bytes);

  // `host` is a name or an address of this machine ("0.0.0.0", "::" for all); port 0 takes a free one. ALREADY_EXISTS
  // when taken.
  absl::StatusOr<Listener> Listen(const std::string& host, uint16_t port);
  // UNAVAILABLE when nobody listens there, DEADLINE_EXCEEDED when nobody answers. Resolving a name may block longer
  // than `deadline`.
  absl::StatusOr<Endpoint> Connect(const std::string& host, uint16_t port, absl::Time deadline);

  // Replaces the handler for `id`; an empty one removes it. After it returns the former handler does not run any more.
  // Ids from 0xff00 are the engine's own (INVALID_ARGUMENT).
  absl::Status SetHandler(uint16_t id, MessageHandler handler);

  ContextStats Stats() const;

 private:
  explicit Context(std::shared_ptr<internal::Core> core) : core_(std::move(core)) {}
  std::shared_ptr<internal::Core> core_;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_CONTEXT_H_
