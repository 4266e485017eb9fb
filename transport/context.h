// The data plane of one process: UCX, one progress thread per rail, registered memory, listeners.
//
// A rail is one UCX context and worker on one network device. Whoever needs a rail drives it: a caller that waits for
// its own transfer or call polls UCX itself, and the rail's thread sleeps meanwhile (no hand-over, no context switch);
// when nobody waits, the thread does it, asleep on UCX's event descriptor while nothing moves. A process usually has
// one Context; several are independent.
#ifndef PERIGEE_TRANSPORT_CONTEXT_H_
#define PERIGEE_TRANSPORT_CONTEXT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "transport/access.h"
#include "transport/device_memory.h"
#include "transport/endpoint.h"
#include "transport/memory.h"

namespace perigee::transport {

struct Options {
  // UCX_TLS: "tcp", "shm,tcp" (shared memory with peers on this machine, tcp with others), "rc,tcp"; "" leaves the
  // choice to UCX and its environment. Shared memory needs regions that the owner's context allocated (AllocateMemory);
  // others go by messages.
  std::string transports = "";
  // Network devices, one rail each ("eth0", "eth1"); transfers by messages are spread over the rails that both sides
  // have. Empty: one rail, on the devices that UCX chooses (for RDMA that is right: UCX stripes by itself there).
  std::vector<std::string> devices = {};
  // Put and Get straight into a trusted peer's memory over RDMA. Off, RDMA is still used, by messages whose payload UCX
  // moves by RDMA. On, UCX also answers one-sided requests that arrive over tcp, from any authenticated peer, without
  // any bounds (its emulation): only for networks where every peer is trusted.
  bool one_sided = false;
  // How long a driver polls after the last movement before it sleeps, at least: where silences have mostly been shorter
  // than half a millisecond, as long as that. More: lower latency; less: less processor time.
  int spin_us = 20;
  // Idle connections are asked for signs of life this often; three missed answers close them.
  absl::Duration keepalive = absl::Seconds(5);
  // Let only this machine's loopback, the hosts of Connect and those that Admit names reach UCX's ports: UCX 1.13
  // aborts on junk, see port_guard.h. For every process that a stranger may reach.
  bool guarded = false;
  // Where device memory lies; null: none is registered. See device_memory.h.
  std::shared_ptr<DeviceMemory> device = nullptr;
};

// What this process's UCX and hardware can do. Asked, not assumed.
struct Capabilities {
  std::vector<MemoryKind> memory;       // that RegisterMemory takes
  bool device_direct = false;           // UCX reaches device memory by itself (GPUDirect)
  bool one_sided = false;               // RDMA put and get, see Options::one_sided
  bool shared_memory = false;           // with peers on this machine
  uint64_t max_registration_bytes = 0;  // by RLIMIT_MEMLOCK, where registering pins memory; else UINT64_MAX
  std::vector<std::string> transports;  // UCX's names of what it may use, as "tcp/eth0"
  int protocol_min = 0, protocol_max = 0;
};

// Since the context's start. Bytes count at the initiator, when their batch has ended well.
struct ContextStats {
  uint64_t put_bytes = 0;
  uint64_t get_bytes = 0;
  uint64_t put_transfers = 0;
  uint64_t get_transfers = 0;
  uint64_t served_bytes = 0;    // moved for peers, by messages
  uint64_t refused_serves = 0;  // peers' transfers outside of what they may do
  uint64_t refused_peers = 0;   // connections whose hello was not accepted
  uint64_t messages_sent = 0;
  uint64_t messages_received = 0;
  uint64_t failed_batches = 0;  // transfers and messages that ended with an error
  uint64_t connections_opened = 0;
  uint64_t connections_accepted = 0;
  uint64_t connections_failed = 0;  // closed by an error, a missed deadline or silence
};

// Answers one message. Runs on whatever thread drives the rail: must be quick, must not throw, must not call blocking
// functions of this room. The result goes back to Call (at most kMaxMessageBytes) and is dropped for Send. The views
// die with the call.
using MessageHandler = std::function<absl::StatusOr<std::string>(absl::string_view header, absl::string_view payload)>;

namespace internal {
class Shared;
struct ListenerState;
}  // namespace internal

// Accepts connections until destroyed; accepted ones live on until the peer closes them or the context ends. Move-only.
class Listener {
 public:
  Listener() = default;
  Listener(Listener&&) noexcept = default;
  Listener& operator=(Listener&& other) noexcept;
  ~Listener();
  uint16_t port() const;  // of the first rail; peers learn the others' from it

 private:
  friend class Context;
  explicit Listener(std::shared_ptr<internal::ListenerState> state) : state_(std::move(state)) {}
  std::shared_ptr<internal::ListenerState> state_;
};

// The addresses of this machine's network devices, without loopback: from where its peers may see it come.
std::vector<std::string> LocalAddresses();

// Any thread may call. Destruction fails what is under way (CANCELLED), closes every connection and listener and stops
// the threads. Endpoints, batches and regions may outlive the context; their operations then fail with
// FAILED_PRECONDITION.
class Context {
 public:
  // UNAVAILABLE or INVALID_ARGUMENT when UCX has no such transports or devices here. Sets and restores environment
  // variables for UCX to read: make contexts before threads that use the environment.
  static absl::StatusOr<std::unique_ptr<Context>> Create(const Options& options);
  ~Context();
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  Capabilities GetCapabilities() const;
  // 16 random bytes by which peers know this context.
  absl::string_view id() const;

  // `memory` stays the caller's. RESOURCE_EXHAUSTED when it cannot be registered; INVALID_ARGUMENT for a kind that
  // GetCapabilities does not name.
  absl::StatusOr<MemoryRegion> RegisterMemory(std::span<std::byte> memory, MemoryKind kind = MemoryKind::kHost,
                                              Sharing sharing = Sharing::kOpen);
  // Host memory. RESOURCE_EXHAUSTED when there is not that much.
  absl::StatusOr<MemoryRegion> AllocateMemory(size_t size_bytes, Sharing sharing = Sharing::kOpen);
  // With Options::guarded: opens UCX's ports to a host, by its numeric address. INVALID_ARGUMENT for anything else,
  // RESOURCE_EXHAUSTED when there are too many (about 2,000 of IPv4, 450 of IPv6).
  absl::Status Admit(const std::string& address) const;
  // Takes one Admit back. Connections that exist stay.
  void Dismiss(const std::string& address) const;

  // For leased regions.
  GrantTable& grants() const;
  // Returns when no transfer is being copied into or out of host memory at this moment: after GrantTable::Revoke and
  // this, no byte moves under the revoked grant. (A trusted peer's may.)
  void Quiesce() const;

  // For memory that is about to be given to others: closes the connections of those trusted peers whose puts are on
  // their way straight into one of the ranges. Once it returns OK, and with the grants revoked before, no put by
  // messages changes them; through shared memory and RDMA the peer writes by itself. UNAVAILABLE when UCX does not let
  // go of one within seconds: try again.
  absl::Status CutOffPuts(std::span<const std::span<const std::byte>> ranges) const;

  // `host` is a name or an address of this machine ("0.0.0.0", "::" for all) on the first rail's device; port 0 takes a
  // free one. ALREADY_EXISTS when taken. A context has one Authenticator: that of its newest listener.
  absl::StatusOr<Listener> Listen(const std::string& host, uint16_t port, Authenticator authenticator);
  // UNAVAILABLE when nobody listens there, DEADLINE_EXCEEDED when nobody answers, PERMISSION_DENIED when the token is
  // refused, FAILED_PRECONDITION when the peer's release speaks no common protocol version. Resolving a name may block
  // longer than `deadline`.
  absl::StatusOr<Endpoint> Connect(const std::string& host, uint16_t port, absl::Time deadline,
                                   absl::string_view token = "");

  // Drives, for those who wait for a handler to have run: until done(), `until`, or nothing moves for a while, or
  // somebody else drives. Returns done(). Not from a handler.
  bool Drive(absl::FunctionRef<bool()> done, absl::Time until) const;

  // Replaces the handler for `id`; an empty one removes it. After it returns the former handler does not run any more.
  void SetHandler(uint16_t id, MessageHandler handler);

  ContextStats Stats() const;

 private:
  explicit Context(std::shared_ptr<internal::Shared> shared) : shared_(std::move(shared)) {}
  std::shared_ptr<internal::Shared> shared_;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_CONTEXT_H_
