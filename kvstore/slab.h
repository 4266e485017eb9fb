// Hands out page-aligned extents of one range of memory. Knows offsets only, never touches the bytes.
//
// Best fit (the smallest free extent that holds the request, the lowest among equals) with immediate coalescing; O(log
// extents) per call. Best fit suits planes: a store holds few distinct plane sizes, so freed extents fit their
// successors exactly.
//
// Not thread-safe.
#ifndef PERIGEE_KVSTORE_SLAB_H_
#define PERIGEE_KVSTORE_SLAB_H_

#include <cstdint>
#include <optional>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"

namespace perigee::kvstore {

class Slab {
 public:
  // capacity_bytes is rounded down to whole pages.
  explicit Slab(uint64_t capacity_bytes);

  // The offset of an extent of bytes, rounded up to whole pages; nullopt when none is large enough or bytes is 0.
  std::optional<uint64_t> Allocate(uint64_t bytes);
  // offset: from Allocate, not freed since. False (and nothing happens) for anything else.
  bool Free(uint64_t offset);

  uint64_t capacity_bytes() const { return capacity_bytes_; }
  uint64_t used_bytes() const { return capacity_bytes_ - free_bytes_; }
  uint64_t free_bytes() const { return free_bytes_; }
  uint64_t largest_free_bytes() const { return by_size_.empty() ? 0 : by_size_.rbegin()->first; }
  uint64_t free_extents() const { return by_size_.size(); }
  // 1 - largest free extent / free bytes: 0 when all free memory is in one piece.
  double fragmentation() const;

 private:
  void InsertFree(uint64_t offset, uint64_t bytes);
  void EraseFree(uint64_t offset, uint64_t bytes);

  uint64_t capacity_bytes_;
  uint64_t free_bytes_ = 0;
  absl::btree_map<uint64_t, uint64_t> by_offset_;           // free: offset -> bytes
  absl::btree_set<std::pair<uint64_t, uint64_t>> by_size_;  // free: (bytes, offset)
  absl::flat_hash_map<uint64_t, uint64_t> allocated_;       // offset -> bytes
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SLAB_H_
