#include "node/local_planes.h"

#include <utility>

namespace perigee::node {

absl::StatusOr<model::PlaneBuffer> LocalPlanes::Allocate(size_t bytes, kvstore::RegisteredPool::Contents contents) {
  for (;;) {
    absl::StatusOr<model::PlaneBuffer> buffer = pool_->Allocate(bytes, contents);
    if (!absl::IsResourceExhausted(buffer.status()) || !EvictOne()) return buffer;
  }
}

bool LocalPlanes::EvictOne() {
  model::PlaneBuffer victim;  // Freed without the lock.
  absl::MutexLock lock(&mu_);
  // Those in use are passed over and count as just used, so that the next call does not look at them again.
  for (size_t left = order_.size(); left > 0; --left) {
    const auto oldest = order_.begin();
    if (oldest->buffer.use_count() == 1) {
      victim = std::move(oldest->buffer);
      stats_.bytes -= oldest->bytes;
      ++stats_.evictions;
      entries_.erase(oldest->id);
      order_.erase(oldest);
      return true;
    }
    order_.splice(order_.end(), order_, oldest);
  }
  return false;
}

bool LocalPlanes::Has(const kvstore::PlaneId& id) const {
  absl::MutexLock lock(&mu_);
  return entries_.contains(id);
}

model::PlaneBuffer LocalPlanes::Find(const kvstore::PlaneId& id) {
  absl::MutexLock lock(&mu_);
  const auto found = entries_.find(id);
  if (found == entries_.end()) return nullptr;
  order_.splice(order_.end(), order_, found->second);
  ++stats_.hits;
  return found->second->buffer;
}

void LocalPlanes::Keep(const kvstore::PlaneId& id, model::PlaneBuffer buffer, size_t bytes) {
  if (!keep_) return;
  absl::MutexLock lock(&mu_);
  const auto found = entries_.find(id);
  if (found != entries_.end()) {
    order_.splice(order_.end(), order_, found->second);
    return;
  }
  bytes = kvstore::RegisteredPool::RoomFor(bytes);
  order_.push_back({id, std::move(buffer), bytes});
  entries_.emplace(id, std::prev(order_.end()));
  stats_.bytes += bytes;
}

uint64_t LocalPlanes::available_bytes() const {
  absl::MutexLock lock(&mu_);
  uint64_t idle = 0;
  for (const Entry& entry : order_) idle += entry.buffer.use_count() == 1 ? entry.bytes : 0;
  return pool_->capacity_bytes() - pool_->used_bytes() + idle;
}

LocalPlanesStats LocalPlanes::stats() const {
  absl::MutexLock lock(&mu_);
  LocalPlanesStats stats = stats_;
  stats.planes = order_.size();
  return stats;
}

}  // namespace perigee::node
