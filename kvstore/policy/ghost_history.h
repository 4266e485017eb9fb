// Internal: evicted entries, remembered for a while by the hash of their names. A fixed table; where a set is full, the
// longest gone makes room. Two names with equal tags are taken for one: one look-up in a million.
#ifndef PERIGEE_KVSTORE_POLICY_GHOST_HISTORY_H_
#define PERIGEE_KVSTORE_POLICY_GHOST_HISTORY_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>

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

  // The memory is the system's zero pages until it is used: nobody waits for its filling.
  explicit GhostHistory(size_t capacity)
      : sets_(std::max<size_t>(capacity / kWays, 1)),
        ghosts_(static_cast<Ghost*>(std::calloc(sets_ * kWays, sizeof(Ghost))), &std::free) {
    if (ghosts_ == nullptr) throw std::bad_alloc();
  }

  // What it pushes out, if anything.
  std::optional<Ghost> Add(uint64_t hash, Ghost ghost, uint32_t now) {
    ghost.tag = Tag(hash);
    ghost.present = 1;
    Ghost* const set = SetOf(hash);
    Ghost* place = Find(hash);
    if (place == nullptr) {
      place = set;
      for (Ghost* g = set; g != set + kWays && place->present; ++g) {
        if (!g->present || now - g->evicted_tick > now - place->evicted_tick) place = g;
      }
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
  size_t MemoryBytes() const { return sets_ * kWays * sizeof(Ghost); }

 private:
  static constexpr size_t kWays = 8;
  static uint32_t Tag(uint64_t hash) { return static_cast<uint32_t>(hash >> 41); }
  Ghost* SetOf(uint64_t hash) {
    // Mixed, so that callers' hashes need not be good in their low bits.
    return &ghosts_[(hash * 0x9e3779b97f4a7c15u >> 20) % sets_ * kWays];
  }
  Ghost* Find(uint64_t hash) {
    Ghost* const set = SetOf(hash);
    for (Ghost* g = set; g != set + kWays; ++g) {
      if (g->present && g->tag == Tag(hash)) return g;
    }
    return nullptr;
  }

  const size_t sets_;
  const std::unique_ptr<Ghost[], decltype(&std::free)> ghosts_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_POLICY_GHOST_HISTORY_H_
