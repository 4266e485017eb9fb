#include "kvstore/sessions.h"

#include <openssl/crypto.h>
#include <sys/random.h>
#include <sys/stat.h>

#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "toml++/toml.h"

namespace perigee::kvstore {
namespace {

constexpr size_t kTokenBytes = 32;
constexpr size_t kMinSecretBytes = 16;
constexpr size_t kMaxSessions = 100000;

// In time that depends on the lengths only.
bool SameSecret(absl::string_view a, absl::string_view b) {
  return a.size() == b.size() && CRYPTO_memcmp(a.data(), b.data(), a.size()) == 0;
}

absl::StatusOr<std::string> ReadPrivateFile(const std::string& path) {
  struct stat info {};
  if (stat(path.c_str(), &info) != 0) return ErrnoStatus("stat", path, errno);
  if ((info.st_mode & (S_IRWXG | S_IRWXO)) != 0) {
    return absl::PermissionDeniedError(absl::StrCat(path, " holds secrets and others may read it; chmod 600 it"));
  }
  return ReadFile(path, 1 << 20);
}

}  // namespace

absl::StatusOr<std::string> ReadSecret(const std::string& path) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string text, ReadPrivateFile(path));
  const absl::string_view secret = absl::StripAsciiWhitespace(text);
  if (secret.size() < kMinSecretBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " has a secret of ", secret.size(), " characters; it needs at least ", kMinSecretBytes));
  }
  return std::string(secret);
}

absl::StatusOr<std::vector<Credential>> ReadCredentials(const std::string& path) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string text, ReadPrivateFile(path));
  toml::table table;
  try {
    table = toml::parse(text);
  } catch (const toml::parse_error& error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ":", error.source().begin.line, ": ", std::string(error.description())));
  }
  std::vector<Credential> credentials;
  for (const auto& [key, node] : table) {
    const toml::array* entries = node.as_array();
    if (key.str() != "credential" || entries == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": '", std::string(key.str()), "' is not known; the file is a list of [[credential]]"));
    }
    for (const toml::node& element : *entries) {
      Credential credential;
      const std::string where = absl::StrCat(path, ": credential ", credentials.size() + 1);
      if (!element.is_table()) return absl::InvalidArgumentError(absl::StrCat(where, " is not a table"));
      for (const auto& [name, value] : *element.as_table()) {
        if (name.str() == "secret" && value.is_string()) {
          credential.secret = **value.as_string();
        } else if (name.str() == "tenant" && value.is_string()) {
          credential.tenant = **value.as_string();
        } else if (name.str() == "trusted" && value.is_boolean()) {
          credential.trusted = **value.as_boolean();
        } else {
          return absl::InvalidArgumentError(absl::StrCat(
              where, ": '", std::string(name.str()), "' is not one of secret = \"\", tenant = \"\", trusted = true"));
        }
      }
      if (credential.secret.size() < kMinSecretBytes) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ": the secret needs at least ", kMinSecretBytes, " characters"));
      }
      if (credential.trusted && !credential.tenant.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat(where, ": a trusted peer reaches every tenant's bytes; leave tenant out"));
      }
      for (const Credential& other : credentials) {
        if (other.secret == credential.secret) {
          return absl::InvalidArgumentError(absl::StrCat(where, ": the secret is another credential's too"));
        }
      }
      credentials.push_back(std::move(credential));
    }
  }
  if (credentials.empty()) return absl::InvalidArgumentError(absl::StrCat(path, " has no [[credential]]"));
  return credentials;
}

absl::StatusOr<StoreSession> SessionTable::Open(absl::string_view secret, absl::string_view tenant,
                                                absl::string_view context_id) {
  StoreSession session;
  session.tenant = std::string(tenant);
  session.context_id = std::string(context_id);
  if (!credentials_.empty()) {
    const Credential* found = nullptr;
    for (const Credential& credential : credentials_) {
      if (SameSecret(credential.secret, secret)) found = &credential;
    }
    if (found == nullptr) {
      return absl::UnauthenticatedError(secret.empty()
                                            ? "this store asks for a secret; give --store-secret-file"
                                            : "this store does not know the secret; see its --credentials file");
    }
    if (!found->tenant.empty() && !tenant.empty() && tenant != found->tenant) {
      return absl::PermissionDeniedError(
          absl::StrCat("the secret is tenant '", found->tenant, "'s, not '", tenant, "'s"));
    }
    if (!found->tenant.empty()) session.tenant = found->tenant;
    // Bytes in the slab have no tenant: who may see one tenant only is served.
    session.trusted = found->trusted && session.tenant.empty();
  }
  session.token.resize(kTokenBytes);
  if (getrandom(session.token.data(), kTokenBytes, 0) != static_cast<ssize_t>(kTokenBytes)) {
    return ErrnoStatus("getrandom", "session token", errno);
  }
  absl::MutexLock lock(&mu_);
  if (by_token_.size() >= kMaxSessions) {
    return absl::ResourceExhaustedError(absl::StrCat("the store has ", by_token_.size(), " sessions; try again later"));
  }
  session.id = next_++;
  by_token_[session.token] = {session, SteadyNow(), {}};
  return session;
}

void SessionTable::Close(absl::string_view token) {
  std::vector<std::string> hosts;
  {
    absl::MutexLock lock(&mu_);
    const auto found = by_token_.find(std::string(token));
    if (found == by_token_.end()) return;
    hosts = End(found->second);
    by_token_.erase(found);
  }
  for (const std::string& host : hosts) dismiss_(host);
}

void SessionTable::AddHost(absl::string_view token, const std::string& host) {
  {
    absl::MutexLock lock(&mu_);
    const auto found = by_token_.find(std::string(token));
    if (found != by_token_.end()) {
      found->second.hosts.push_back(host);
      return;
    }
  }
  dismiss_(host);  // the session has ended meanwhile
}

std::vector<std::string> SessionTable::End(const Entry& entry) {
  grants_->RevokeSession(entry.session.id);
  return entry.hosts;
}

absl::StatusOr<StoreSession> SessionTable::Find(absl::string_view token) {
  absl::MutexLock lock(&mu_);
  const auto found = by_token_.find(std::string(token));
  if (found == by_token_.end()) {
    return absl::UnauthenticatedError("no such session at this store: say Hello first, or again");
  }
  found->second.last_used = SteadyNow();
  return found->second.session;
}

absl::StatusOr<transport::PeerIdentity> SessionTable::Authenticate(absl::string_view token,
                                                                   absl::string_view context_id) {
  absl::StatusOr<StoreSession> session = Find(token);
  if (!session.ok() || session->context_id != context_id) {
    return absl::PermissionDeniedError("the token is not this peer's: say Hello to the store's control plane first");
  }
  return transport::PeerIdentity{
      absl::StrCat("session ", session->id, session->tenant.empty() ? "" : " of tenant ", session->tenant), session->id,
      session->trusted};
}

void SessionTable::GrantReservation(const StoreSession& session, uint64_t reservation, uint64_t address, uint64_t bytes,
                                    absl::Time expiry) {
  const uint64_t writer = session.trusted ? transport::kTrustedSession : session.id;
  absl::MutexLock lock(&mu_);
  granted_[reservation] = {
      writer, expiry, {grants_->Grant(writer, address, bytes, transport::Access::kWrite, expiry)}, {address, bytes}};
}

SessionTable::Range SessionTable::Reserved(uint64_t reservation) const {
  absl::MutexLock lock(&mu_);
  const auto found = granted_.find(reservation);
  return found == granted_.end() ? Range{} : found->second.reserved;
}

void SessionTable::GrantLease(const StoreSession& session, uint64_t lease, const std::vector<Range>& ranges,
                              absl::Time expiry) {
  if (session.trusted) return;
  absl::MutexLock lock(&mu_);
  Granted& granted = granted_[lease];
  granted.session = session.id;
  granted.expiry = expiry;
  for (const Range& range : ranges) {
    granted.grants.push_back(grants_->Grant(session.id, range.address, range.bytes, transport::Access::kRead, expiry));
  }
}

void SessionTable::ExtendLease(uint64_t lease, absl::Time expiry) {
  absl::MutexLock lock(&mu_);
  const auto found = granted_.find(lease);
  if (found == granted_.end()) return;
  found->second.expiry = expiry;
  for (const uint64_t grant : found->second.grants) grants_->Extend(grant, expiry);
}

bool SessionTable::Owns(const StoreSession& session, uint64_t id) const {
  if (session.trusted) return true;
  absl::MutexLock lock(&mu_);
  const auto found = granted_.find(id);
  return found != granted_.end() && found->second.session == session.id;
}

void SessionTable::Revoke(uint64_t id) {
  absl::MutexLock lock(&mu_);
  const auto found = granted_.find(id);
  if (found == granted_.end()) return;
  for (const uint64_t grant : found->second.grants) grants_->Revoke(grant);
  found->second.grants.clear();  // the entry stays: the id is still this session's until it runs out
}

void SessionTable::Reap(absl::Duration limit) {
  const absl::Time now = SteadyNow();
  std::vector<std::string> hosts;
  absl::ReleasableMutexLock lock(&mu_);
  for (auto it = granted_.begin(); it != granted_.end();) {
    if (now < it->second.expiry) {
      ++it;
      continue;
    }
    for (const uint64_t grant : it->second.grants) grants_->Revoke(grant);
    it = granted_.erase(it);
  }
  for (auto it = by_token_.begin(); it != by_token_.end();) {
    if (now - it->second.last_used < limit) {
      ++it;
      continue;
    }
    for (std::string& host : End(it->second)) hosts.push_back(std::move(host));
    it = by_token_.erase(it);
  }
  lock.Release();
  for (const std::string& host : hosts) dismiss_(host);
}

size_t SessionTable::size() const {
  absl::MutexLock lock(&mu_);
  return by_token_.size();
}

}  // namespace perigee::kvstore
