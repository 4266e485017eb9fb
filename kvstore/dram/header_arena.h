// Encoded plane headers, a few hundred bytes each, by 32-bit handles: cut from chunks of one size each, so neither
// storing nor dropping one allocates, and an empty chunk serves any size again. Constant time, but for headers above
// kLargeBytes: these are rare and get memory of their own.
//
// Not thread-safe. Wrong handles are bugs of the caller and end the process in debug builds.
#ifndef PERIGEE_KVSTORE_DRAM_HEADER_ARENA_H_
#define PERIGEE_KVSTORE_DRAM_HEADER_ARENA_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/strings/string_view.h"
#include "kvstore/dram/huge_pages.h"

namespace perigee::kvstore {

class HeaderArena {
 public:
  using Handle = uint32_t;
  static constexpr Handle kNone = ~uint32_t{0};
  static constexpr size_t kChunkBytes = size_t{64} << 10;
  static constexpr size_t kUnitBytes = 32;  // Sizes and places are multiples of this.
  static constexpr size_t kLargeBytes = 8192 - sizeof(uint32_t);

  HeaderArena();
  HeaderArena(const HeaderArena&) = delete;
  HeaderArena& operator=(const HeaderArena&) = delete;

  // A copy of `header`, of at most kMaxHeaderBytes. kNone: longer, empty, or 128 GiB of headers are there.
  Handle Add(absl::string_view header);
  // Good until Drop(handle), whatever else is added.
  absl::string_view Get(Handle handle) const;
  void Drop(Handle handle);
  // Its beginning, into the cache.
  void Prefetch(Handle handle) const {
    if (handle == kNone) return;
    const std::byte* const place = chunks_[handle / kUnits].memory + size_t{handle % kUnits} * kUnitBytes;
    for (size_t line = 0; line < 4; ++line) __builtin_prefetch(place + line * 64);
  }

  uint64_t headers() const { return headers_; }
  uint64_t header_bytes() const { return header_bytes_; }  // As they were added.
  uint64_t MemoryBytes() const;

 private:
  static constexpr uint32_t kUnits = kChunkBytes / kUnitBytes;
  static constexpr uint32_t kMaxChunks = kNone / kUnits;
  static constexpr uint32_t kClasses = (kLargeBytes + sizeof(uint32_t)) / kUnitBytes + 1;
  static constexpr uint32_t kLarge = 0;  // The class of a header alone in memory of its own.

  // A place holds a length and then the header; a free one the number of the next free one.
  struct Chunk {
    std::byte* memory = nullptr;
    std::unique_ptr<std::byte[]> own;       // kLarge: its memory.
    uint32_t units = 0;                     // Of a place: its class.
    uint32_t live = 0;                      // Places in use.
    uint32_t cut = 0;                       // Units ever handed out since it got its class.
    uint32_t free_unit = kNone;             // Its free places, a list.
    uint32_t newer = kNone, older = kNone;  // Among the chunks of its class with room; of unused chunks.
  };

  uint32_t NewChunk();
  Handle AddLarge(absl::string_view header);
  void LinkOpen(uint32_t chunk);
  void UnlinkOpen(uint32_t chunk);
  static bool HasRoom(const Chunk& c) { return c.free_unit != kNone || c.cut + c.units <= kUnits; }

  std::vector<Chunk> chunks_;
  std::vector<MappedMemory> regions_;  // Of chunks, a huge page each.
  std::array<uint32_t, kClasses> open_;
  uint32_t unused_ = kNone;        // Chunks with memory and without a class,
  uint32_t unused_large_ = kNone;  // and numbers of large ones that have gone.
  uint64_t headers_ = 0, header_bytes_ = 0, large_bytes_ = 0;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_HEADER_ARENA_H_
