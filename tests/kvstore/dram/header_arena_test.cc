#include "kvstore/dram/header_arena.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <unordered_map>
#include <vector>

#include "kvstore/plane_id.h"

namespace perigee::kvstore {
namespace {

std::string Header(size_t bytes, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string header(bytes, '\0');
  for (char& c : header) c = static_cast<char>(random());
  return header;
}

TEST(HeaderArena, GivesBackWhatItWasGivenWhateverElseComesAndGoes) {
  for (uint64_t seed = 0; seed < 4; ++seed) {
    std::mt19937_64 random(seed);
    HeaderArena arena;
    std::unordered_map<HeaderArena::Handle, std::string> oracle;
    std::vector<HeaderArena::Handle> handles;
    uint64_t bytes = 0;
    for (int step = 0; step < 20000; ++step) {
      const bool grow = random() % 100 < (step / 4000 % 2 == 0 ? 70 : 30);
      if (grow || handles.empty()) {
        const size_t size = random() % 50 == 0 ? 1 + random() % 30'000 : 1 + random() % (seed % 2 == 0 ? 600 : 8200);
        std::string header = Header(size, random());
        const HeaderArena::Handle h = arena.Add(header);
        ASSERT_NE(h, HeaderArena::kNone);
        ASSERT_FALSE(oracle.contains(h)) << "a handle in use";
        bytes += size;
        oracle[h] = std::move(header);
        handles.push_back(h);
      } else {
        const size_t i = random() % handles.size();
        ASSERT_EQ(arena.Get(handles[i]), oracle.at(handles[i]));
        bytes -= oracle.at(handles[i]).size();
        arena.Drop(handles[i]);
        oracle.erase(handles[i]);
        handles[i] = handles.back();
        handles.pop_back();
      }
      ASSERT_EQ(arena.headers(), oracle.size());
      ASSERT_EQ(arena.header_bytes(), bytes);
      ASSERT_GE(arena.MemoryBytes(), bytes);
    }
    for (const auto& [h, header] : oracle) ASSERT_EQ(arena.Get(h), header);
  }
}

TEST(HeaderArena, SizesAtEveryBorder) {
  HeaderArena arena;
  std::vector<std::pair<HeaderArena::Handle, std::string>> all;
  for (const size_t size : {size_t{1}, size_t{27}, size_t{28}, size_t{29}, HeaderArena::kLargeBytes - 1,
                            HeaderArena::kLargeBytes, HeaderArena::kLargeBytes + 1, kMaxHeaderBytes}) {
    for (uint64_t i = 0; i < 30; ++i) {
      all.emplace_back(0, Header(size, i));
      all.back().first = arena.Add(all.back().second);
      ASSERT_NE(all.back().first, HeaderArena::kNone);
    }
  }
  for (const auto& [h, header] : all) EXPECT_EQ(arena.Get(h), header);
  EXPECT_EQ(arena.Add(""), HeaderArena::kNone);
  EXPECT_EQ(arena.Add(std::string(kMaxHeaderBytes + 1, 'x')), HeaderArena::kNone);
  for (const auto& [h, header] : all) arena.Drop(h);
  EXPECT_EQ(arena.headers(), 0u);
  EXPECT_EQ(arena.header_bytes(), 0u);
}

TEST(HeaderArena, OneSizesMemoryServesAnotherSizeAfterwards) {
  HeaderArena arena;
  std::vector<HeaderArena::Handle> handles;
  uint64_t after_first = 0;
  for (const size_t size : {400, 1300, 100, 5000}) {
    for (size_t i = 0; i < (8u << 20) / size; ++i) handles.push_back(arena.Add(std::string(size, 'x')));
    for (HeaderArena::Handle h : handles) arena.Drop(h);
    handles.clear();
    if (after_first == 0) after_first = arena.MemoryBytes();
    // Rounding differs by size, whole regions do not.
    EXPECT_LE(arena.MemoryBytes(), after_first + 3 * kHugePageBytes) << size;
  }
}

TEST(HeaderArena, HeadersOfAFewHundredBytesCostLittleMore) {
  HeaderArena arena;
  std::mt19937_64 random(1);
  for (int i = 0; i < 300'000; ++i) ASSERT_NE(arena.Add(std::string(300 + random() % 200, 'x')), HeaderArena::kNone);
  EXPECT_LE(static_cast<double>(arena.MemoryBytes()), 1.1 * static_cast<double>(arena.header_bytes()));
}

}  // namespace
}  // namespace perigee::kvstore
