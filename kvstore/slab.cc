#include "kvstore/slab.h"

#include <iterator>

#include "kvstore/plane_id.h"

namespace perigee::kvstore {

Slab::Slab(uint64_t capacity_bytes) : capacity_bytes_(capacity_bytes / kPageBytes * kPageBytes) {
  if (capacity_bytes_ > 0) InsertFree(0, capacity_bytes_);
}

void Slab::InsertFree(uint64_t offset, uint64_t bytes) {
  by_offset_.emplace(offset, bytes);
  by_size_.emplace(bytes, offset);
  free_bytes_ += bytes;
}

void Slab::EraseFree(uint64_t offset, uint64_t bytes) {
  by_offset_.erase(offset);
  by_size_.erase({bytes, offset});
  free_bytes_ -= bytes;
}

std::optional<uint64_t> Slab::Allocate(uint64_t bytes) {
  if (bytes == 0 || bytes > capacity_bytes_) return std::nullopt;
  const uint64_t need = RoundUpToPage(bytes);
  const auto it = by_size_.lower_bound({need, 0});
  if (it == by_size_.end()) return std::nullopt;
  const auto [found_bytes, offset] = *it;
  EraseFree(offset, found_bytes);
  if (found_bytes > need) InsertFree(offset + need, found_bytes - need);
  allocated_.emplace(offset, need);
  return offset;
}

bool Slab::Free(uint64_t offset) {
  const auto it = allocated_.find(offset);
  if (it == allocated_.end()) return false;
  uint64_t begin = offset;
  uint64_t bytes = it->second;
  allocated_.erase(it);
  auto next = by_offset_.lower_bound(offset);
  if (next != by_offset_.begin()) {
    const auto [before_offset, before_bytes] = *std::prev(next);
    if (before_offset + before_bytes == offset) {
      EraseFree(before_offset, before_bytes);
      begin = before_offset;
      bytes += before_bytes;
    }
  }
  next = by_offset_.lower_bound(offset);  // The erasure above may have moved it.
  if (next != by_offset_.end() && next->first == begin + bytes) {
    const auto [after_offset, after_bytes] = *next;
    EraseFree(after_offset, after_bytes);
    bytes += after_bytes;
  }
  InsertFree(begin, bytes);
  return true;
}

double Slab::fragmentation() const {
  return free_bytes_ == 0 ? 0.0 : 1.0 - static_cast<double>(largest_free_bytes()) / static_cast<double>(free_bytes_);
}

}  // namespace perigee::kvstore
