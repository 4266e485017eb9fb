// Internal: evicted entries, remembered for a while by the hash of their names. A fixed table; where a set is full, the
// longest gone makes room. Two names with equal tags are taken for one: one look-up in a million.
#ifndef PERIGEE_KVSTORE_POLICY_GHOST_HISTORY_H_
#define PERIGEE_KVSTORE_POLICY_GHOST_HISTORY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/functional/function_ref.h"

namespace perigee::kvstore {

class GhostHistory {
 public:
  static constexpr uint32_t kGroups = 16;
  static constexpr uint8_t kMaxUses = 15;
  struct Ghost {  // 12 bytes
    uint32_t touched_tick = 0;
    uint32_t evicted_tick = 0;
    uint8_t group : 4 = 0;
    uint8_t uses : 4 = 0;
    uint32_t present : 1 = 0;
    uint32_t tag : 23 = 0;
  };
  static_assert(sizeof(Ghost) == 12);

  // Grows to `capacity` as it is used.
  explicit GhostHistory(size_t capacity) : sets_(std::max<size_t>(capacity / kWays, 1)) {}

  // What it pushes out, if anything.
  std::optional<Ghost> Add(uint64_t hash, Ghost ghost, uint32_t now) {
    if (ghosts_.empty()) ghosts_.resize(sets_ * kWays);
    ghost.tag = Tag(hash);
    ghost.present = 1;
    Ghost* const set = SetOf(hash);
    Ghost* place = set;
    for (Ghost* g = set; g != set + kWays; ++g) {
      if (!g->present || g->tag == ghost.tag) {
        place = g;
        break;
      }
      if (now - g->evicted_tick > now - place->evicted_tick) place = g;
    }
    std::optional<Ghost> gone;
    if (place->present && place->tag != ghost.tag) gone = *place;
    *place = ghost;
    return gone;
  }
  // Forgets it, too.
  std::optional<Ghost> Take(uint64_t hash) {
    Ghost* const found = Find(hash);
    if (found == nullptr) return std::nullopt;
    found->present = 0;
    return *found;
  }
  bool Contains(uint64_t hash) { return Find(hash) != nullptr; }
  size_t MemoryBytes() const { return ghosts_.capacity() * sizeof(Ghost); }

 private:
  static constexpr size_t kWays = 8;
  static uint32_t Tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 41); }
  Ghost* SetOf(uint64_t hash) {
    // Mixed, so that callers' hashes need not be good in their low bits.
    return &ghosts_[(hash * 0x9e3779b97f4a7c15u >> 20) % sets_ * kWays];
  }
  Ghost* Find(uint64_t hash) {
    if (ghosts_.empty()) return nullptr;
    Ghost* const set = SetOf(hash);
    for (Ghost* g = set; g != set + kWays; ++g) {
      if (g->present && g->tag == Tag(hash)) return g;
    }
    return nullptr;
  }

  const size_t sets_;
  std::vector<Ghost> ghosts_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_POLICY_GHOST_HISTORY_H_
