// The slab's peer: best fit over ordered trees with immediate coalescing, O(log extents) per call, as stores used it
// before. Placement is the tightest gap, the lowest among equals.
#ifndef PERIGEE_BENCH_INDEX_BEST_FIT_H_
#define PERIGEE_BENCH_INDEX_BEST_FIT_H_

#include <cstdint>
#include <iterator>
#include <optional>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "kvstore/plane_id.h"

namespace perigee::bench {

class BestFit {
 public:
  explicit BestFit(uint64_t bytes) { Insert(0, bytes); }

  std::optional<uint64_t> Allocate(uint64_t bytes) {
    const uint64_t need = kvstore::RoundUpToPage(bytes);
    const auto it = by_size_.lower_bound({need, 0});
    if (it == by_size_.end()) return std::nullopt;
    const auto [found, offset] = *it;
    Erase(offset, found);
    if (found > need) Insert(offset + need, found - need);
    allocated_.emplace(offset, need);
    return offset;
  }
  void Free(uint64_t offset) {
    const auto it = allocated_.find(offset);
    uint64_t begin = offset, bytes = it->second;
    allocated_.erase(it);
    auto next = by_offset_.lower_bound(offset);
    if (next != by_offset_.begin()) {
      const auto [before, before_bytes] = *std::prev(next);
      if (before + before_bytes == offset) {
        Erase(before, before_bytes);
        begin = before;
        bytes += before_bytes;
      }
    }
    next = by_offset_.lower_bound(offset);
    if (next != by_offset_.end() && next->first == begin + bytes) {
      const auto [after, after_bytes] = *next;
      Erase(after, after_bytes);
      bytes += after_bytes;
    }
    Insert(begin, bytes);
  }
  uint64_t free_bytes() const { return free_bytes_; }

 private:
  void Insert(uint64_t offset, uint64_t bytes) {
    by_offset_.emplace(offset, bytes);
    by_size_.emplace(bytes, offset);
    free_bytes_ += bytes;
  }
  void Erase(uint64_t offset, uint64_t bytes) {
    by_offset_.erase(offset);
    by_size_.erase({bytes, offset});
    free_bytes_ -= bytes;
  }
  uint64_t free_bytes_ = 0;
  absl::btree_map<uint64_t, uint64_t> by_offset_;
  absl::btree_set<std::pair<uint64_t, uint64_t>> by_size_;
  absl::flat_hash_map<uint64_t, uint64_t> allocated_;
};

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_INDEX_BEST_FIT_H_
