#include "kvstore/dram/handle_map.h"

#include <gtest/gtest.h>

#include <random>
#include <unordered_map>
#include <vector>

namespace perigee::kvstore {
namespace {

// Hashes of which many are equal in the half that is kept, or stand at the table's end and wrap around.
uint64_t Hash(uint64_t shape, std::mt19937_64& random) {
  const uint64_t shard = random() % 2 << 32;
  switch (shape) {
    case 0:
      return random();
    case 1:
      return shard | random() % 5;  // Equal tags.
    case 2:
      return shard | (0xffffffff - random() % 200);  // The last place, around the end.
    default:
      return shard | (random() % 8 << 29) | random() % 3;
  }
}

TEST(HandleMap, IsAMapWhateverTheHashes) {
  for (uint64_t shape = 0; shape < 4; ++shape) {
    std::mt19937_64 random(shape);
    HandleMap map;
    std::unordered_map<uint32_t, uint64_t> oracle;  // handle -> hash
    std::vector<uint32_t> handles;
    uint32_t next = 0;
    const auto find = [&](uint64_t hash, uint32_t handle) {
      return map.Find(hash, [&](uint32_t h) {
        EXPECT_TRUE(oracle.contains(h)) << "a handle that is not there was offered";
        return h == handle;
      });
    };
    for (int step = 0; step < 20000; ++step) {
      // Growing, shrinking, growing again.
      const bool grow = random() % 100 < (step / 4000 % 2 == 0 ? 70 : 30);
      if (grow || handles.empty()) {
        const uint64_t hash = Hash(shape, random);
        ASSERT_EQ(find(hash, next), HandleMap::kNone);
        map.Insert(hash, next);
        oracle[next] = hash;
        handles.push_back(next++);
      } else {
        const size_t i = random() % handles.size();
        const uint32_t handle = handles[i];
        const uint64_t hash = oracle.at(handle);
        map.Erase(hash, handle);
        oracle.erase(handle);
        handles[i] = handles.back();
        handles.pop_back();
        ASSERT_EQ(find(hash, handle), HandleMap::kNone);
      }
      ASSERT_EQ(map.size(), oracle.size());
      if (step % 500 == 0) {
        for (const auto& [handle, hash] : oracle) ASSERT_EQ(find(hash, handle), handle);
      }
    }
    for (const auto& [handle, hash] : oracle) ASSERT_EQ(find(hash, handle), handle);
  }
}

TEST(HandleMap, BytesPerHandleStayBelowTwelveOnceItIsLarge) {
  HandleMap map;
  std::mt19937_64 random(1);
  for (uint32_t i = 0; i < 1'000'000; ++i) {
    map.Insert(random(), i);
    if (i >= 300'000 && i % 10'000 == 0) {
      ASSERT_LE(static_cast<double>(map.MemoryBytes()) / i, 12.0) << i;
    }
  }
}

}  // namespace
}  // namespace perigee::kvstore
