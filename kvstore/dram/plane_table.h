// The store's planes, of both tiers: found by name, named by a number. Made for tens of millions of them.
//
// A plane's number (EntryId, the one that eviction policies use) is dense, is its place in chunked arrays, and is used
// again after Free. Entries never move: a reference stays good as long as its plane. Nothing is allocated per plane;
// memory comes in chunks of 32,768 planes, and stays: the Insert that needs a new one waits for the kernel to clear 3
// MiB (milliseconds), unless somebody made room in time (WantsRoom). An entry is two structs in two arrays: what
// Acquire needs is one cache line, the rest (PlaneDetails) is looked at when planes come, go and are listed.
//
// A plane's life: Insert -> found by Find -> Unlink (flag kDead: out of the index, but whoever pinned it still has its
// number and entry) -> Free. A name that is unlinked may be inserted again at once, as another plane.
//
// Listing goes by number: for (id = t.NextFrom(0); id != kNoEntry; id = t.NextFrom(id + 1)). A page token is just the
// next number, good forever. Planes that stay the whole time are listed exactly once; planes that come or go meanwhile
// may be listed or not.
//
// Not thread-safe. Wrong numbers are bugs of the caller and end the process in debug builds.
#ifndef PERIGEE_KVSTORE_DRAM_PLANE_TABLE_H_
#define PERIGEE_KVSTORE_DRAM_PLANE_TABLE_H_

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdint>
#include <optional>
#include <span>

#include "kvstore/dram/chunked_array.h"
#include "kvstore/dram/extent_slab.h"
#include "kvstore/dram/handle_map.h"
#include "kvstore/dram/header_arena.h"
#include "kvstore/dram/tenant_names.h"
#include "kvstore/plane_id.h"
#include "kvstore/policy/eviction_policy.h"
#include "kvstore/ssd/ssd_types.h"

namespace perigee::kvstore {

enum PlaneFlag : uint8_t {
  kOnRemote = 1 << 0,    // The remote tier has a copy.
  kLoading = 1 << 1,     // On its way from a slower tier; others wait.
  kDead = 1 << 2,        // Unlink was called. Only the table sets it.
  kInDram = 1 << 3,      // Has an extent: its bytes are in DRAM, or (kLoading) on their way there.
  kSoftPinned = 1 << 4,  // By its owner's wish: goes after all others,
  kHardPinned = 1 << 5,  // or does not go.
  kPassing = 1 << 6,     // In DRAM for those who have it pinned, and not to stay.
};

// 64 bytes, a cache line of its own.
struct PlaneEntry {
  PlaneId id;                      // Not to be changed.
  uint8_t flags = 0;               // PlaneFlag
  uint16_t last_used_high_ms = 0;  // 48 bits of Unix milliseconds: SetLastUsed.
  uint32_t last_used_low_ms = 0;
  uint32_t pins = 0;  // Leases, and calls that look at its bytes. Pinned bytes do not move.
  uint32_t extent_page = 0;
  HeaderArena::Handle header = HeaderArena::kNone;  // Encoded plane header; while in DRAM.
  TenantId tenant = 0;                              // A use of that name, dropped by Free.
  uint64_t payload_bytes = 0;

  bool Is(PlaneFlag flag) const { return (flags & flag) != 0; }
  void Set(PlaneFlag flag, bool on = true) { flags = static_cast<uint8_t>(on ? flags | flag : flags & ~flag); }
  uint64_t extent_offset() const { return extent_page * kPageBytes; }
  // In whole milliseconds, rounded down.
  void SetLastUsed(int64_t unix_us) {
    const uint64_t ms = static_cast<uint64_t>(std::max<int64_t>(unix_us, 0) / 1000);
    last_used_low_ms = static_cast<uint32_t>(ms);
    last_used_high_ms = static_cast<uint16_t>(ms >> 32);
  }
  int64_t last_used_unix_us() const {
    return static_cast<int64_t>((uint64_t{last_used_high_ms} << 32 | last_used_low_ms) * 1000);
  }
};
static_assert(sizeof(PlaneEntry) == 64);

struct PlaneDetails {  // 40 bytes
  int64_t created_unix_us = 0;
  int64_t base_position = 0;
  uint64_t ssd_number = 0;     // SsdRecord's; its bytes are the entry's. 0: not on the SSD.
  uint16_t tokens : 11 = 0;    // At most 1024: a plane header allows no more.
  uint16_t has_group : 1 = 0;  // Else it belongs to no store in particular, and `group` is 0.
  uint16_t replicas : 4 = 1;   // How many stores are to have it.
  PlacementGroup group = 0;
  uint32_t extent_node = Extent::kNone;
  // Of a distant plane: that of the block before it, and of one that follows, as last heard. They may have gone, and
  // their numbers be others': hints, to be checked.
  EntryId previous = kNoEntry;
  EntryId next = kNoEntry;
};
static_assert(sizeof(PlaneDetails) == 40);

class PlaneTable {
 public:
  // max_planes: numbers are below this.
  explicit PlaneTable(uint32_t max_planes);
  PlaneTable(const PlaneTable&) = delete;
  PlaneTable& operator=(const PlaneTable&) = delete;

  struct Inserted {
    EntryId id = kNoEntry;  // kNoEntry: max_planes are there.
    bool is_new = false;    // Else a plane of that name is there: this one.
  };
  // A new plane with these facts, in no tier, last used when created.
  Inserted Insert(const PlaneId& name, const PlaneMeta& meta);
  // Room for the next chunk of planes, made without the table's lock: where WantsRoom, MakeRoom on any thread, then
  // give it to AddRoom. Without it Insert makes its own.
  struct Room {
    MappedMemory entries, details;
  };
  bool WantsRoom() const;
  static Room MakeRoom();
  void AddRoom(Room room);

  EntryId Find(const PlaneId& name) const;
  // out[i] = Find(names[i]), for less than half: their cache misses are under way together. Entries are on their way
  // into the cache when it returns.
  void FindAll(std::span<const PlaneId> names, std::span<EntryId> out) const;
  // Out of the index, not yet gone. Does nothing for a dead one.
  void Unlink(EntryId id);
  // Its number is free again. Not pinned; extent and header are the caller's to free before.
  void Free(EntryId id);

  PlaneEntry& operator[](EntryId id) { return entries_[id]; }
  const PlaneEntry& operator[](EntryId id) const { return entries_[id]; }
  PlaneDetails& details(EntryId id) { return details_[id]; }
  const PlaneDetails& details(EntryId id) const { return details_[id]; }
  // The least number of a plane in the index that is not below `from`; kNoEntry.
  EntryId NextFrom(EntryId from) const;

  // Where its bytes lie. An empty Extent: nowhere in DRAM.
  Extent ExtentOf(EntryId id) const {
    return entries_[id].Is(kInDram) ? Extent{details_[id].extent_node, entries_[id].extent_page} : Extent{};
  }
  void SetExtent(EntryId id, Extent extent);
  std::optional<SsdRecord> SsdRecordOf(EntryId id) const {
    if (details_[id].ssd_number == 0) return std::nullopt;
    return SsdRecord{details_[id].ssd_number, entries_[id].payload_bytes};
  }
  // record: of as many bytes as the plane.
  void SetSsdRecord(EntryId id, std::optional<SsdRecord> record);
  PlaneMeta MetaOf(EntryId id) const;  // Without time to live and the block before.

  const TenantNames& tenants() const { return tenants_; }
  uint32_t size() const { return static_cast<uint32_t>(index_.size()); }  // In the index.
  uint32_t id_end() const { return id_end_; }                             // Above all numbers ever given out.
  uint64_t MemoryBytes() const;
  // Entries, details, index, the rest.
  struct Memory {
    uint64_t entries = 0, details = 0, index = 0, other = 0;
  };
  Memory MemoryByPart() const;

 private:
  // Of the name, under a secret of this process: names come from outside.
  uint64_t HashOf(const PlaneId& name) const;

  const uint32_t max_planes_;
  std::array<uint64_t, 4> secret_;
  static constexpr uint32_t kChunk = 1 << 15;
  ChunkedArray<PlaneEntry, kChunk> entries_;    // A chunk is one huge page.
  ChunkedArray<PlaneDetails, kChunk> details_;  // `next` of a free one: the next free one.
  HandleMap index_;
  ChunkedArray<uint64_t, 1 << 12> listed_;  // A bit per number: it is in the index.
  uint32_t id_end_ = 0;
  EntryId free_ = kNoEntry;
  TenantNames tenants_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_PLANE_TABLE_H_
