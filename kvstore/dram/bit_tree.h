// Internal to the tier: a set of small numbers that finds its least member from a number on in three steps, whatever
// its size. Not thread-safe.
#ifndef PERIGEE_KVSTORE_DRAM_BIT_TREE_H_
#define PERIGEE_KVSTORE_DRAM_BIT_TREE_H_

#include <algorithm>
#include <array>
#include <bit>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace perigee::kvstore {

class BitTree {
 public:
  static constexpr uint32_t kMaxSize = 64 * 64 * 64;

  // Of numbers below size <= kMaxSize.
  explicit BitTree(uint32_t size) {
    assert(size <= kMaxSize);
    for (auto& words : levels_) {
      size = std::max((size + 63) / 64, 1u);
      words.resize(size);
    }
  }
  void Insert(uint32_t n) {
    for (auto& words : levels_) {
      words[n / 64] |= uint64_t{1} << n % 64;
      n /= 64;
    }
  }
  void Erase(uint32_t n) {
    for (auto& words : levels_) {
      words[n / 64] &= ~(uint64_t{1} << n % 64);
      if (words[n / 64] != 0) return;
      n /= 64;
    }
  }
  bool Contains(uint32_t n) const { return (levels_[0][n / 64] >> n % 64 & 1) != 0; }
  // The least member that is not below n.
  std::optional<uint32_t> From(uint32_t n) const {
    for (size_t level = 0; level < levels_.size(); ++level) {
      if (n / 64 >= levels_[level].size()) return std::nullopt;
      const uint64_t word = levels_[level][n / 64] & ~uint64_t{0} << n % 64;
      if (word != 0) {
        uint32_t found = n / 64 * 64 + static_cast<uint32_t>(std::countr_zero(word));
        while (level-- > 0) found = found * 64 + static_cast<uint32_t>(std::countr_zero(levels_[level][found]));
        return found;
      }
      n = n / 64 + 1;
    }
    return std::nullopt;
  }
  std::optional<uint32_t> Last() const {
    uint32_t found = 0;
    if (levels_.back()[0] == 0) return std::nullopt;  // kMaxSize: the top is one word.
    for (size_t level = levels_.size(); level-- > 0;) {
      found = found * 64 + 63 - static_cast<uint32_t>(std::countl_zero(levels_[level][found]));
    }
    return found;
  }
  uint64_t MemoryBytes() const {
    uint64_t bytes = 0;
    for (const auto& words : levels_) bytes += words.capacity() * sizeof(uint64_t);
    return bytes;
  }

 private:
  std::array<std::vector<uint64_t>, 3> levels_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_BIT_TREE_H_
