// Who may use the data plane, and which bytes.
//
// A peer's first message on every connection carries a token that the control plane gave it; the listener's
// Authenticator turns it into an identity or refuses. Until then nothing else that it sends is heard, and after ten
// seconds its connection is closed.
//
// Trusted peers (the operator's own nodes) may be given remote keys by which they reach a whole region, over shared
// memory or RDMA, without asking. Others get keys without UCX's part: all their transfers are messages that the owner
// serves, and in leased regions (Sharing::kLeased) the owner serves only what a grant of their session covers. tcp and
// shared memory cannot enforce such bounds by themselves; this is where they are enforced.
//
// Below this, UCX's tcp transport has a put of its own (uct_ep_put_zcopy; rendezvous uses it), which UCX 1.13 carries
// out at any address, for whoever opens a TCP connection to one of its ports, before any hello, whatever
// UCX_TCP_PUT_ENABLE and the context's features say. Nothing here can refuse it: the data plane's ports
// (UCX_TCP_PORT_RANGE, and the listener's) must be closed, by a firewall or an encrypted overlay, to hosts whose UCX is
// not the operator's.
#ifndef PERIGEE_TRANSPORT_ACCESS_H_
#define PERIGEE_TRANSPORT_ACCESS_H_

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace perigee::transport {

struct PeerIdentity {
  std::string name;      // for logs and errors
  uint64_t session = 0;  // grants are made to sessions
  // Reads without grants, over one-sided RDMA and shared memory writes without them. What it puts by messages must be
  // granted to kTrustedSession, so that a put that comes late does not write into memory that has become another's.
  bool trusted = false;
};

// All trusted peers together. No other session has this number.
inline constexpr uint64_t kTrustedSession = 0;

// token: what the peer gave to Connect. context_id: the 16 bytes of the peer's Context::id(), so that a token can be
// bound to one peer. Runs inside the transport: must be quick and must not call this room.
using Authenticator =
    std::function<absl::StatusOr<PeerIdentity>(absl::string_view token, absl::string_view context_id)>;

// For machines where everybody who reaches the port may do everything: tests, benchmarks.
absl::StatusOr<PeerIdentity> TrustEveryone(absl::string_view token, absl::string_view context_id);

enum class Access : uint8_t { kRead = 1, kWrite = 2 };

// Which sessions may read or write which bytes of this process's leased regions, until when (SteadyNow of base/clock.h:
// the memory of what has ended may be another's). Shared by the control plane, which grants and revokes, and the
// transport, which asks. Any thread.
class GrantTable {
 public:
  // Grants may overlap. A transfer is allowed when grants of its session together cover every byte of it.
  uint64_t Grant(uint64_t session, uint64_t address, uint64_t size_bytes, Access access, absl::Time expiry);
  void Extend(uint64_t grant, absl::Time expiry);
  // A transfer that was allowed before may still be under way.
  void Revoke(uint64_t grant);
  void RevokeSession(uint64_t session);

  bool Allows(uint64_t session, uint64_t address, uint64_t size_bytes, Access access, absl::Time now) const;
  size_t size() const;

 private:
  struct Entry {
    uint64_t session = 0;
    uint64_t address = 0;
    uint64_t size_bytes = 0;
    Access access{};
    absl::Time expiry;
  };
  struct Session {
    std::multimap<uint64_t, uint64_t> by_address;  // -> grant
    uint64_t longest = 0;                          // no grant has been longer: a search need not go further back
  };
  // The end of a grant that covers `address`; `address` where none does.
  uint64_t Reach(const Session& session, uint64_t address, Access access, absl::Time now) const;

  mutable std::mutex mutex_;
  uint64_t next_ = 1;
  std::unordered_map<uint64_t, Entry> grants_;
  std::unordered_map<uint64_t, Session> sessions_;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_ACCESS_H_
