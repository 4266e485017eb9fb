#include "kvstore/dram/plane_table.h"

#include <bit>
#include <cstring>

#include "absl/random/random.h"

namespace perigee::kvstore {
namespace {

constexpr int32_t kMostTokens = (1 << 11) - 1;  // That PlaneDetails holds.

uint64_t MultiplyFold(uint64_t a, uint64_t b) {
  const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

}  // namespace

PlaneTable::PlaneTable(uint32_t max_planes) : max_planes_(std::min(max_planes, kNoEntry)) {
  absl::BitGen random;
  for (uint64_t& s : secret_) s = random();
}

uint64_t PlaneTable::HashOf(const PlaneId& name) const {
  // Names are digests: all bits are good already, unless somebody picks them.
  std::array<uint64_t, 4> words;
  static_assert(sizeof(words) == sizeof(name.key.digest));
  std::memcpy(words.data(), name.key.digest.data(), sizeof(words));
  const uint64_t low = MultiplyFold(words[0] ^ secret_[0], words[1] ^ secret_[1]);
  const uint64_t high = MultiplyFold(words[2] ^ secret_[2], words[3] ^ secret_[3]);
  return MultiplyFold(low ^ secret_[3], high ^ secret_[0] ^ static_cast<uint64_t>(name.kind));
}

PlaneTable::Inserted PlaneTable::Insert(const PlaneId& name, const PlaneMeta& meta) {
  const uint64_t hash = HashOf(name);
  const EntryId there = index_.Find(hash, [&](EntryId id) { return entries_[id].id == name; });
  if (there != kNoEntry) return {there, false};
  EntryId id = free_;
  if (id != kNoEntry) {
    free_ = details_[id].next;
  } else {
    if (id_end_ == max_planes_) return {};
    id = id_end_++;
    entries_.GrowTo(id);
    details_.GrowTo(id);
    listed_.GrowTo(id / 64);
  }
  PlaneEntry& entry = entries_[id] = PlaneEntry{};
  entry.id = name;
  entry.payload_bytes = meta.payload_bytes;
  entry.tenant = tenants_.Use(meta.tenant);
  entry.SetLastUsed(meta.created_unix_us);
  PlaneDetails& details = details_[id] = PlaneDetails{};
  details.created_unix_us = meta.created_unix_us;
  details.base_position = meta.base_position;
  details.tokens = static_cast<uint16_t>(std::clamp(meta.tokens, 0, kMostTokens)) & kMostTokens;
  details.has_group = meta.group.has_value();
  details.group = meta.group.value_or(0);
  details.replicas = meta.replicas & 15;
  listed_[id / 64] |= uint64_t{1} << id % 64;
  index_.Insert(hash, id);
  return {id, true};
}

bool PlaneTable::WantsRoom() const {
  return free_ == kNoEntry && entries_.elements() < max_planes_ && id_end_ + kChunk / 2 >= entries_.elements();
}

PlaneTable::Room PlaneTable::MakeRoom() {
  Room room{ChunkedArray<PlaneEntry, kChunk>::NewChunk(), ChunkedArray<PlaneDetails, kChunk>::NewChunk()};
  room.entries.Populate();
  room.details.Populate();
  return room;
}

void PlaneTable::AddRoom(Room room) {
  entries_.Grow(std::move(room.entries));
  details_.Grow(std::move(room.details));
}

EntryId PlaneTable::Find(const PlaneId& name) const {
  return index_.Find(HashOf(name), [&](EntryId id) { return entries_[id].id == name; });
}

void PlaneTable::FindAll(std::span<const PlaneId> names, std::span<EntryId> out) const {
  assert(names.size() == out.size());
  constexpr size_t kTogether = 16;
  std::array<uint64_t, kTogether> hashes;
  for (size_t begin = 0; begin < names.size(); begin += kTogether) {
    const size_t n = std::min(kTogether, names.size() - begin);
    for (size_t i = 0; i < n; ++i) {
      hashes[i] = HashOf(names[begin + i]);
      if (const void* look = index_.FirstLook(hashes[i])) __builtin_prefetch(look);
    }
    for (size_t i = 0; i < n; ++i) {
      out[begin + i] = index_.FirstCandidate(hashes[i]);
      if (out[begin + i] != kNoEntry) __builtin_prefetch(&entries_[out[begin + i]], 1);
    }
    for (size_t i = 0; i < n; ++i) {
      EntryId& found = out[begin + i];
      const PlaneId& name = names[begin + i];
      if (found == kNoEntry || entries_[found].id == name) continue;
      found = index_.Find(hashes[i], [&](EntryId id) { return entries_[id].id == name; });
    }
  }
}

void PlaneTable::Unlink(EntryId id) {
  PlaneEntry& entry = entries_[id];
  if (entry.Is(kDead)) return;
  index_.Erase(HashOf(entry.id), id);
  entry.Set(kDead);
  listed_[id / 64] &= ~(uint64_t{1} << id % 64);
}

void PlaneTable::Free(EntryId id) {
  assert(entries_[id].pins == 0);
  Unlink(id);
  tenants_.Drop(entries_[id].tenant);
  entries_[id].tenant = 0;
  details_[id].next = free_;
  free_ = id;
}

EntryId PlaneTable::NextFrom(EntryId from) const {
  if (from >= id_end_) return kNoEntry;
  uint64_t word = listed_[from / 64] & ~uint64_t{0} << from % 64;
  for (EntryId i = from / 64;;) {
    if (word != 0) return i * 64 + static_cast<EntryId>(std::countr_zero(word));
    if (++i * uint64_t{64} >= id_end_) return kNoEntry;
    word = listed_[i];
  }
}

void PlaneTable::SetExtent(EntryId id, Extent extent) {
  entries_[id].Set(kInDram, static_cast<bool>(extent));
  entries_[id].extent_page = extent.page;
  details_[id].extent_node = extent.node;
}

void PlaneTable::SetSsdRecord(EntryId id, std::optional<SsdRecord> record) {
  assert(!record || (record->number != 0 && record->payload_bytes == entries_[id].payload_bytes));
  details_[id].ssd_number = record ? record->number : 0;
}

PlaneMeta PlaneTable::MetaOf(EntryId id) const {
  const PlaneEntry& entry = entries_[id];
  const PlaneDetails& details = details_[id];
  return {.payload_bytes = entry.payload_bytes,
          .created_unix_us = details.created_unix_us,
          .ttl_s = 0,
          .base_position = details.base_position,
          .tokens = details.tokens,
          .tenant = std::string(tenants_.Name(entry.tenant)),
          .parent = std::nullopt,
          .group = details.has_group ? std::optional(details.group) : std::nullopt,
          .replicas = static_cast<uint8_t>(details.replicas)};
}

PlaneTable::Memory PlaneTable::MemoryByPart() const {
  return {.entries = entries_.memory_bytes(),
          .details = details_.memory_bytes(),
          .index = index_.MemoryBytes(),
          .other = sizeof(*this) + listed_.memory_bytes() + tenants_.MemoryBytes()};
}

uint64_t PlaneTable::MemoryBytes() const {
  const Memory m = MemoryByPart();
  return m.entries + m.details + m.index + m.other;
}

}  // namespace perigee::kvstore
