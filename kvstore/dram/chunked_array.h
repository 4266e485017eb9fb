// Internal to the tier: an array that grows by whole chunks and moves no element. Elements are trivial and begin as
// zero bytes. Not thread-safe.
#ifndef PERIGEE_KVSTORE_DRAM_CHUNKED_ARRAY_H_
#define PERIGEE_KVSTORE_DRAM_CHUNKED_ARRAY_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>
#include <vector>

#include "kvstore/dram/huge_pages.h"

namespace perigee::kvstore {

// Chunks of kHugePageBytes and more are made of huge pages where the kernel gives them.
template <typename T, uint32_t kChunk>
class ChunkedArray {
  static_assert((kChunk & (kChunk - 1)) == 0);
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);
  static constexpr size_t kBytes = size_t{kChunk} * sizeof(T);

 public:
  T& operator[](uint32_t i) { return chunks_[i / kChunk][i % kChunk]; }
  const T& operator[](uint32_t i) const { return chunks_[i / kChunk][i % kChunk]; }
  // Makes room for element i.
  void GrowTo(uint32_t i) {
    while (i / kChunk >= chunks_.size()) Grow(NewChunk());
  }
  // The same in two steps, the slow one without touching the array.
  static MappedMemory NewChunk() { return MappedMemory(kBytes, kBytes % kHugePageBytes == 0); }
  void Grow(MappedMemory chunk) {
    memory_.push_back(std::move(chunk));
    chunks_.push_back(reinterpret_cast<T*>(memory_.back().data()));
  }
  uint64_t elements() const { return chunks_.size() * uint64_t{kChunk}; }
  uint64_t memory_bytes() const {
    uint64_t bytes = chunks_.capacity() * sizeof(T*) + memory_.capacity() * sizeof(MappedMemory);
    for (const MappedMemory& m : memory_) bytes += m.bytes();
    return bytes;
  }

 private:
  std::vector<T*> chunks_;
  std::vector<MappedMemory> memory_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_CHUNKED_ARRAY_H_
