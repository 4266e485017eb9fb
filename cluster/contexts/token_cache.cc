#include "cluster/contexts/token_cache.h"

namespace perigee::cluster {

SharedTokens TokenCache::Find(const Digest& content) {
  const absl::MutexLock lock(&mu_);
  const auto at = by_content_.find(content);
  if (at == by_content_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, at->second);
  return at->second->second;
}

void TokenCache::Add(const Digest& content, SharedTokens tokens) {
  const absl::MutexLock lock(&mu_);
  if (by_content_.contains(content)) return;
  bytes_ += BytesOf(tokens);
  entries_.emplace_front(content, std::move(tokens));
  by_content_[content] = entries_.begin();
  while (bytes_ > max_bytes_) {
    bytes_ -= BytesOf(entries_.back().second);
    by_content_.erase(entries_.back().first);
    entries_.pop_back();
  }
}

}  // namespace perigee::cluster
