#include "kvstore/dram/header_arena.h"

#include <cassert>
#include <cstring>

#include "kvstore/plane_id.h"

namespace perigee::kvstore {
namespace {

using Length = uint32_t;

void Write(std::byte* place, absl::string_view header) {
  const Length length = static_cast<Length>(header.size());
  std::memcpy(place, &length, sizeof(length));
  std::memcpy(place + sizeof(length), header.data(), header.size());
}

uint32_t ReadNumber(const std::byte* place) {
  uint32_t number;
  std::memcpy(&number, place, sizeof(number));
  return number;
}

}  // namespace

HeaderArena::HeaderArena() { open_.fill(kNone); }

void HeaderArena::LinkOpen(uint32_t chunk) {
  Chunk& c = chunks_[chunk];
  c.newer = kNone;
  c.older = open_[c.units];
  if (c.older != kNone) chunks_[c.older].newer = chunk;
  open_[c.units] = chunk;
}

void HeaderArena::UnlinkOpen(uint32_t chunk) {
  const Chunk& c = chunks_[chunk];
  (c.newer == kNone ? open_[c.units] : chunks_[c.newer].older) = c.older;
  if (c.older != kNone) chunks_[c.older].newer = c.newer;
}

uint32_t HeaderArena::NewChunk() {
  if (unused_ == kNone) {
    constexpr size_t kPerRegion = kHugePageBytes / kChunkBytes;
    if (chunks_.size() + kPerRegion > kMaxChunks) return kNone;
    regions_.emplace_back(kHugePageBytes, /*huge=*/true);
    for (size_t i = kPerRegion; i-- > 0;) {  // So that they are used from the front.
      chunks_.emplace_back();
      chunks_.back().memory = regions_.back().data() + i * kChunkBytes;
      chunks_.back().older = unused_;
      unused_ = static_cast<uint32_t>(chunks_.size() - 1);
    }
  }
  const uint32_t chunk = unused_;
  unused_ = chunks_[chunk].older;
  return chunk;
}

HeaderArena::Handle HeaderArena::AddLarge(absl::string_view header) {
  uint32_t chunk = unused_large_;
  if (chunk != kNone) {
    unused_large_ = chunks_[chunk].older;
  } else {
    if (chunks_.size() == kMaxChunks) return kNone;
    chunk = static_cast<uint32_t>(chunks_.size());
    chunks_.emplace_back();
  }
  Chunk& c = chunks_[chunk];
  c.own = std::make_unique<std::byte[]>(sizeof(Length) + header.size());
  c.memory = c.own.get();
  c.units = kLarge;
  Write(c.memory, header);
  large_bytes_ += sizeof(Length) + header.size();
  return chunk * kUnits;
}

HeaderArena::Handle HeaderArena::Add(absl::string_view header) {
  if (header.empty() || header.size() > kMaxHeaderBytes) return kNone;
  Handle handle = kNone;
  if (header.size() > kLargeBytes) {
    handle = AddLarge(header);
    if (handle == kNone) return kNone;
  } else {
    const uint32_t units = static_cast<uint32_t>((sizeof(Length) + header.size() + kUnitBytes - 1) / kUnitBytes);
    uint32_t chunk = open_[units];
    if (chunk == kNone) {
      chunk = NewChunk();
      if (chunk == kNone) return kNone;
      chunks_[chunk].units = units;
      chunks_[chunk].cut = 0;
      chunks_[chunk].free_unit = kNone;
      LinkOpen(chunk);
    }
    Chunk& c = chunks_[chunk];
    uint32_t unit = c.free_unit;
    if (unit != kNone) {
      c.free_unit = ReadNumber(c.memory + unit * kUnitBytes);
    } else {
      unit = c.cut;
      c.cut += units;
    }
    ++c.live;
    if (!HasRoom(c)) UnlinkOpen(chunk);
    Write(c.memory + unit * kUnitBytes, header);
    handle = chunk * kUnits + unit;
  }
  ++headers_;
  header_bytes_ += header.size();
  return handle;
}

absl::string_view HeaderArena::Get(Handle handle) const {
  assert(handle / kUnits < chunks_.size());
  const std::byte* const place = chunks_[handle / kUnits].memory + handle % kUnits * kUnitBytes;
  return {reinterpret_cast<const char*>(place + sizeof(Length)), ReadNumber(place)};
}

void HeaderArena::Drop(Handle handle) {
  const uint64_t bytes = Get(handle).size();
  const uint32_t chunk = handle / kUnits, unit = handle % kUnits;
  Chunk& c = chunks_[chunk];
  --headers_;
  header_bytes_ -= bytes;
  if (c.units == kLarge) {
    large_bytes_ -= sizeof(Length) + bytes;
    c.own.reset();
    c.memory = nullptr;
    c.older = unused_large_;
    unused_large_ = chunk;
    return;
  }
  assert(c.live > 0);
  if (!HasRoom(c)) LinkOpen(chunk);
  std::memcpy(c.memory + unit * kUnitBytes, &c.free_unit, sizeof(c.free_unit));
  c.free_unit = unit;
  if (--c.live > 0) return;
  UnlinkOpen(chunk);
  c.older = unused_;
  unused_ = chunk;
}

uint64_t HeaderArena::MemoryBytes() const {
  return sizeof(*this) + regions_.size() * kHugePageBytes + regions_.capacity() * sizeof(MappedMemory) + large_bytes_ +
         chunks_.capacity() * sizeof(Chunk);
}

}  // namespace perigee::kvstore
