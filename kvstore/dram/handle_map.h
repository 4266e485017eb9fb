// Internal to the tier: from 64-bit hashes to 32-bit handles, for tens of millions of them. The handle's owner compares
// keys; the map keeps half of the hash, so that a wrong candidate costs a look in four billion.
//
// Why not one of Abseil's tables: a flat_hash_set of handles must hash every key again when it grows, and at ten
// million planes the call that happens to grow it holds the store's lock for a second. Here the hash is kept, and the
// table is kShards tables that grow apart, each by a quarter: the longest pause is a copy of a few hundred KB. And a
// look-up touches one cache line before the entry's own, where a flat_hash_set touches two.
//
// Linear probing from the place hash * capacity / 2^32 on, deletion by shifting back: no tombstones, between 0.7 and
// 7/8 full once grown. Hashes must be good in all bits. Not thread-safe.
#ifndef PERIGEE_KVSTORE_DRAM_HANDLE_MAP_H_
#define PERIGEE_KVSTORE_DRAM_HANDLE_MAP_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace perigee::kvstore {

class HandleMap {
 public:
  static constexpr uint32_t kNone = ~uint32_t{0};
  static constexpr uint32_t kShards = 1024;

  HandleMap() : shards_(kShards) {}

  // The handle that was inserted with this hash and for which same(handle); kNone.
  template <typename Same>
  uint32_t Find(uint64_t hash, Same same) const {
    const Shard& shard = ShardOf(hash);
    if (shard.size == 0) return kNone;
    const uint32_t tag = TagOf(hash);
    for (uint32_t i = Home(tag, shard.capacity);; i = Next(i, shard.capacity)) {
      const Slot slot = shard.slots[i];
      if (slot.handle == kNone) return kNone;
      if (slot.tag == tag && same(slot.handle)) return slot.handle;
    }
  }
  // The first handle that Find would compare: nearly always the only one.
  uint32_t FirstCandidate(uint64_t hash) const {
    return Find(hash, [](uint32_t) { return true; });
  }
  // Where Find will look first, for prefetching; null.
  const void* FirstLook(uint64_t hash) const {
    const Shard& shard = ShardOf(hash);
    return shard.size == 0 ? nullptr : &shard.slots[Home(TagOf(hash), shard.capacity)];
  }
  // handle: not kNone, not in the map.
  void Insert(uint64_t hash, uint32_t handle) {
    Shard& shard = ShardOf(hash);
    if (shard.size + 1 > shard.capacity / 8 * 7) Grow(shard);
    Put(shard.slots.get(), shard.capacity, {TagOf(hash), handle});
    ++shard.size;
    ++size_;
  }
  // handle: in the map with that hash.
  void Erase(uint64_t hash, uint32_t handle) {
    Shard& shard = ShardOf(hash);
    Slot* const slots = shard.slots.get();
    const uint32_t capacity = shard.capacity;
    uint32_t hole = Home(TagOf(hash), capacity);
    while (slots[hole].handle != handle) hole = Next(hole, capacity);
    // Whoever follows and may stand in the hole moves there.
    for (uint32_t i = Next(hole, capacity); slots[i].handle != kNone; i = Next(i, capacity)) {
      const uint32_t home = Home(slots[i].tag, capacity);
      const bool home_is_between = hole < i ? hole < home && home <= i : hole < home || home <= i;
      if (home_is_between) continue;
      slots[hole] = slots[i];
      hole = i;
    }
    slots[hole] = Slot{};
    --shard.size;
    --size_;
  }
  size_t size() const { return size_; }
  uint64_t MemoryBytes() const {
    uint64_t bytes = shards_.capacity() * sizeof(Shard);
    for (const Shard& shard : shards_) bytes += shard.capacity * sizeof(Slot);
    return bytes;
  }

 private:
  struct Slot {
    uint32_t tag = 0;
    uint32_t handle = kNone;
  };
  struct Shard {
    std::unique_ptr<Slot[]> slots;
    uint32_t capacity = 0, size = 0;
  };

  static uint32_t TagOf(uint64_t hash) { return static_cast<uint32_t>(hash); }
  static uint32_t Home(uint32_t tag, uint32_t capacity) {
    return static_cast<uint32_t>(uint64_t{tag} * capacity >> 32);
  }
  static uint32_t Next(uint32_t i, uint32_t capacity) { return i + 1 == capacity ? 0 : i + 1; }
  Shard& ShardOf(uint64_t hash) { return shards_[(hash >> 32) % kShards]; }
  const Shard& ShardOf(uint64_t hash) const { return shards_[(hash >> 32) % kShards]; }

  static void Put(Slot* slots, uint32_t capacity, Slot slot) {
    uint32_t i = Home(slot.tag, capacity);
    while (slots[i].handle != kNone) i = Next(i, capacity);
    slots[i] = slot;
  }
  static void Grow(Shard& shard) {
    const uint32_t capacity = shard.capacity + std::max<uint32_t>(8, shard.capacity / 32 * 8);  // In whole lines.
    auto slots = std::make_unique<Slot[]>(capacity);
    for (uint32_t i = 0; i < shard.capacity; ++i) {
      if (shard.slots[i].handle != kNone) Put(slots.get(), capacity, shard.slots[i]);
    }
    shard.slots = std::move(slots);
    shard.capacity = capacity;
  }

  std::vector<Shard> shards_;
  size_t size_ = 0;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_HANDLE_MAP_H_
