// Who talks to a store: sessions, opened by Hello with a secret, named by a token on both planes from then on.
//
// A token is bound to one transport context (its 16-byte id) and to what its secret allows: a tenant, or all; and
// whether the peer is trusted with the whole slab. What a session that is not trusted has reserved or leased is granted
// to it byte range by byte range, and nothing else. Times are SteadyNow's (base/clock.h). Any thread.
#ifndef PERIGEE_KVSTORE_SESSIONS_H_
#define PERIGEE_KVSTORE_SESSIONS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "transport/access.h"

namespace perigee::kvstore {

struct Credential {
  std::string secret;
  std::string tenant;    // "": every tenant
  bool trusted = false;  // the operator's own nodes: shared memory and RDMA, unchecked
};

// Reads a TOML file: [[credential]] tables with secret, tenant, trusted. INVALID_ARGUMENT naming file and entry;
// PERMISSION_DENIED for a file that others may read.
absl::StatusOr<std::vector<Credential>> ReadCredentials(const std::string& path);
// A client's side: a file that holds one secret and nothing else. Errors alike.
absl::StatusOr<std::string> ReadSecret(const std::string& path);

struct StoreSession {
  uint64_t id = 0;
  std::string token;
  std::string tenant;
  bool trusted = false;
  std::string context_id;
};

class SessionTable {
 public:
  // No credentials: everybody gets a session, nobody is trusted.
  // dismiss: told of each AddHost when its session has ended.
  SessionTable(
      std::vector<Credential> credentials, transport::GrantTable* grants,
      std::function<void(const std::string& host)> dismiss = [](const std::string&) {})
      : credentials_(std::move(credentials)), grants_(grants), dismiss_(std::move(dismiss)) {}

  // UNAUTHENTICATED for an unknown secret, PERMISSION_DENIED for a tenant that is not the secret's.
  absl::StatusOr<StoreSession> Open(absl::string_view secret, absl::string_view tenant, absl::string_view context_id);
  void Close(absl::string_view token);
  // A host that was let in for this session.
  void AddHost(absl::string_view token, const std::string& host);
  // UNAUTHENTICATED for unknown and ended tokens. Keeps the session alive.
  absl::StatusOr<StoreSession> Find(absl::string_view token);
  // For the data plane: also refuses another context than the token's.
  absl::StatusOr<transport::PeerIdentity> Authenticate(absl::string_view token, absl::string_view context_id);

  struct Range {
    uint64_t address = 0, bytes = 0;
  };
  // What sessions may touch, by reservation and by lease. What one trusted session reserves, all may write; their
  // leases are not recorded.
  void GrantReservation(const StoreSession& session, uint64_t reservation, uint64_t address, uint64_t bytes,
                        absl::Time expiry);
  // Of a reservation; empty for what is unknown or has ended.
  Range Reserved(uint64_t reservation) const;
  void GrantLease(const StoreSession& session, uint64_t lease, const std::vector<Range>& ranges, absl::Time expiry);
  void ExtendLease(uint64_t lease, absl::Time expiry);
  // False when it is another session's. True for trusted sessions, and for what has ended (the store knows better).
  bool Owns(const StoreSession& session, uint64_t id) const;
  void Revoke(uint64_t id);

  // Ends sessions that have been silent for `limit`, and forgets grants that have run out.
  void Reap(absl::Duration limit);
  size_t size() const;

 private:
  struct Entry {
    StoreSession session;
    absl::Time last_used;
    std::vector<std::string> hosts;
  };
  // Returns its hosts, to be dismissed without the lock.
  std::vector<std::string> End(const Entry& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  struct Granted {
    uint64_t session = 0;
    absl::Time expiry;
    std::vector<uint64_t> grants;
    Range reserved = {};
  };

  const std::vector<Credential> credentials_;
  transport::GrantTable* const grants_;
  const std::function<void(const std::string& host)> dismiss_;
  mutable absl::Mutex mu_;
  uint64_t next_ ABSL_GUARDED_BY(mu_) = 1;
  std::unordered_map<std::string, Entry> by_token_ ABSL_GUARDED_BY(mu_);
  std::unordered_map<uint64_t, Granted> granted_ ABSL_GUARDED_BY(mu_);  // ids of reservations and leases never meet
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SESSIONS_H_
