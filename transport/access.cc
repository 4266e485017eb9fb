#include "transport/access.h"

#include <algorithm>

namespace perigee::transport {

absl::StatusOr<PeerIdentity> TrustEveryone(absl::string_view, absl::string_view) {
  return PeerIdentity{"anyone", 0, /*trusted=*/true};
}

uint64_t GrantTable::Grant(uint64_t session, uint64_t address, uint64_t size_bytes, Access access, absl::Time expiry) {
  std::lock_guard<std::mutex> lock(mutex_);
  const uint64_t id = next_++;
  grants_[id] = {session, address, size_bytes, access, expiry};
  Session& its = sessions_[session];
  its.by_address.emplace(address, id);
  its.longest = std::max(its.longest, size_bytes);
  return id;
}

void GrantTable::Extend(uint64_t grant, absl::Time expiry) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = grants_.find(grant);
  if (found != grants_.end()) found->second.expiry = expiry;
}

void GrantTable::Revoke(uint64_t grant) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = grants_.find(grant);
  if (found == grants_.end()) return;
  const auto session = sessions_.find(found->second.session);
  auto& by_address = session->second.by_address;
  const auto [first, last] = by_address.equal_range(found->second.address);
  by_address.erase(std::find_if(first, last, [&](const auto& entry) { return entry.second == grant; }));
  if (by_address.empty()) sessions_.erase(session);
  grants_.erase(found);
}

void GrantTable::RevokeSession(uint64_t session) {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return;
  for (const auto& [address, grant] : found->second.by_address) grants_.erase(grant);
  sessions_.erase(found);
}

uint64_t GrantTable::Reach(const Session& session, uint64_t address, Access access, absl::Time now) const {
  for (auto it = session.by_address.upper_bound(address); it != session.by_address.begin();) {
    --it;
    if (address - it->first > session.longest) break;
    const Entry& grant = grants_.at(it->second);
    if (grant.access == access && now < grant.expiry && address - grant.address < grant.size_bytes) {
      return grant.address + grant.size_bytes;
    }
  }
  return address;
}

bool GrantTable::Allows(uint64_t session, uint64_t address, uint64_t size_bytes, Access access, absl::Time now) const {
  std::lock_guard<std::mutex> lock(mutex_);
  const auto found = sessions_.find(session);
  if (found == sessions_.end()) return false;
  for (uint64_t rest = size_bytes; rest > 0;) {
    const uint64_t covered = Reach(found->second, address, access, now) - address;
    if (covered == 0) return false;
    address += covered;
    rest -= std::min(rest, covered);
  }
  return true;
}

size_t GrantTable::size() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return grants_.size();
}

}  // namespace perigee::transport
