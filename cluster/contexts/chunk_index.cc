#include "cluster/contexts/chunk_index.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace perigee::cluster {
namespace {

Digest DigestOf(absl::string_view tenant, absl::string_view salt, std::span<const int32_t> ids) {
  std::string bytes;
  bytes.reserve(tenant.size() + salt.size() + ids.size() * sizeof(int32_t) + 32);
  // With their lengths, so that no tenant's bytes are another one's salt.
  absl::StrAppend(&bytes, tenant.size(), ":", tenant, salt.size(), ":", salt);
  for (const int32_t id : ids) {
    for (int shift = 0; shift < 32; shift += 8) bytes.push_back(static_cast<char>(static_cast<uint32_t>(id) >> shift));
  }
  return Sha256(bytes);
}

}  // namespace

std::vector<bool> ChunkIndex::See(const std::string& tenant, absl::string_view salt,
                                  std::span<const std::span<const int32_t>> chunks) {
  std::vector<Digest> digests;
  for (const auto& ids : chunks) digests.push_back(DigestOf(tenant, salt, ids));
  std::map<Digest, bool> here;  // One that stands twice in a request was seen once.
  std::vector<bool> contexts;
  const absl::MutexLock lock(&mu_);
  for (size_t i = 0; i < chunks.size(); ++i) {
    const auto [at, first] = here.try_emplace(digests[i], false);
    if (first) at->second = SeeOne(tenant, digests[i], chunks[i].size());
    ++stats_.seen;
    stats_.reused += at->second;
    contexts.push_back(at->second);
  }
  return contexts;
}

bool ChunkIndex::SeeOne(const std::string& tenant, const Digest& chunk, uint64_t tokens) {
  if (options_.entries == 0 || tokens > options_.tokens_per_tenant) return false;
  if (const auto found = by_chunk_.find(chunk); found != by_chunk_.end()) {
    const Entries::iterator entry = found->second;
    if (entry->admitted) {
      contexts_.splice(contexts_.begin(), contexts_, entry);
      auto& of_tenant = entry->tenant->second.contexts;
      of_tenant.splice(of_tenant.begin(), of_tenant, entry->of_tenant);
    } else {
      Admit(tenant, entry);
    }
    return true;
  }
  if (by_chunk_.size() >= options_.entries) {
    const bool novel = once_.size() * 2 > by_chunk_.size() || contexts_.empty();
    Forget(std::prev((novel ? once_ : contexts_).end()));
  }
  once_.push_front({.chunk = chunk, .tokens = tokens, .tenant = {}, .of_tenant = {}, .admitted = false});
  by_chunk_.emplace(chunk, once_.begin());
  return false;
}

void ChunkIndex::Admit(const std::string& tenant, Entries::iterator entry) {
  const Tenants::iterator owner = tenants_.try_emplace(tenant).first;
  auto& [of_tenant_tokens, of_tenant] = owner->second;
  of_tenant_tokens += entry->tokens;
  of_tenant.push_front(entry);
  entry->tenant = owner;
  entry->of_tenant = of_tenant.begin();
  entry->admitted = true;
  contexts_.splice(contexts_.begin(), once_, entry);
  ++stats_.admitted;
  // It would come back at once if its second sight was still remembered: a tenant that goes round through more than its
  // quota would have every chunk computed alone, and none reused. This one fits by itself, so it stays.
  while (of_tenant_tokens > options_.tokens_per_tenant) Forget(of_tenant.back());
}

void ChunkIndex::Forget(Entries::iterator entry) {
  by_chunk_.erase(entry->chunk);
  if (!entry->admitted) {
    once_.erase(entry);
    return;
  }
  const Tenants::iterator owner = entry->tenant;
  owner->second.tokens -= entry->tokens;
  owner->second.contexts.erase(entry->of_tenant);
  if (owner->second.contexts.empty()) tenants_.erase(owner);
  contexts_.erase(entry);
}

ChunkIndexStats ChunkIndex::stats() const {
  const absl::MutexLock lock(&mu_);
  ChunkIndexStats stats = stats_;
  stats.entries = by_chunk_.size();
  stats.admitted_now = contexts_.size();
  return stats;
}

}  // namespace perigee::cluster
