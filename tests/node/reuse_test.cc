#include "node/reuse.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace perigee::node {
namespace {

constexpr int kBlockTokens = 16;

pod::Layout MakeLayout(int sink_tokens, int recent_tokens) {
  const auto plan = pod::Plan::Identity({.layers = 1, .kv_heads = 1, .head_dim = 2},
                                        {.sink_tokens = sink_tokens, .recent_tokens = recent_tokens}, {});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *pod::Layout::Create(*plan, kBlockTokens);
}

// 'B' both planes, 'd' only the distant one, 'p' only the proximal one, '.' none.
std::vector<StoredBlock> Blocks(const std::string& pattern) {
  std::vector<StoredBlock> blocks;
  for (size_t b = 0; b < pattern.size(); ++b) {
    const char c = pattern[b];
    blocks.push_back(
        {.distant = c == 'B' || c == 'd', .proximal = c == 'B' || c == 'p', .missing = absl::StrCat("reason ", b)});
  }
  return blocks;
}

Reuse Longest(const std::string& pattern, int64_t tokens, int sink_tokens = 16, int recent_tokens = 32) {
  return LongestUsablePrefix(MakeLayout(sink_tokens, recent_tokens), tokens, Blocks(pattern));
}

TEST(LongestUsablePrefixTest, NothingStoredGivesNothingAndSaysWhy) {
  const Reuse reuse = Longest("....", 64);
  EXPECT_EQ(reuse.blocks, 0u);
  EXPECT_EQ(reuse.ended_because, "block 0: reason 0");
  EXPECT_EQ(Longest("", 0).blocks, 0u);
}

TEST(LongestUsablePrefixTest, EverythingStoredGivesEverything) {
  const Reuse reuse = Longest("BBBB", 64);
  EXPECT_EQ(reuse.blocks, 4u);
  EXPECT_EQ(reuse.ended_because, "");
}

TEST(LongestUsablePrefixTest, APartialLastBlockCountsOnlyAsTheEnd) {
  EXPECT_EQ(Longest("BBBB", 50).blocks, 4u);
  const Reuse reuse = Longest("BBB.", 50);
  EXPECT_EQ(reuse.blocks, 3u);
  EXPECT_EQ(reuse.ended_because, "block 3: reason 3");
}

TEST(LongestUsablePrefixTest, StopsAtTheFirstMissingDistantPlane) {
  const Reuse reuse = Longest("BBpBB", 80);
  EXPECT_EQ(reuse.blocks, 2u);
  EXPECT_EQ(reuse.ended_because, "block 2: reason 2");
}

TEST(LongestUsablePrefixTest, FarBlocksNeedNoProximalPlane) {
  // A query at 96 with a window of 32 sees [65, 96] near: blocks 4 and 5, and the sink.
  EXPECT_EQ(Longest("BdddBB", 96).blocks, 6u);
}

TEST(LongestUsablePrefixTest, AMissingSinkOrWindowPlaneShortensThePrefix) {
  EXPECT_EQ(Longest("ddddBB", 96).blocks, 0u);
  // At 96 block 4 is missing; at 80 blocks 3 and 4, ...; at 48 blocks 1 and 2 would be needed, at 16 only the sink is.
  const Reuse reuse = Longest("BddddB", 96);
  EXPECT_EQ(reuse.blocks, 1u);
  EXPECT_EQ(reuse.ended_because, "block 1: reason 1");
}

TEST(LongestUsablePrefixTest, ABranchPointInTheMiddleIsUsable) {
  // Kept for a continuation at 64: the sink and blocks 2 and 3; the rest of an older, other prompt has no proximal
  // planes.
  EXPECT_EQ(Longest("BdBBddd", 112).blocks, 4u);
}

TEST(LongestUsablePrefixTest, NoSinkMeansNoSinkPlane) { EXPECT_EQ(Longest("ddddBB", 96, 0).blocks, 6u); }

// What a continuation at `position` (or decoding at it) must read near.
bool NaivelyNear(int sink_tokens, int recent_tokens, int64_t block_begin, int64_t position) {
  for (int64_t t = block_begin; t < block_begin + kBlockTokens; ++t) {
    if (t < sink_tokens || (t <= position && position - t < recent_tokens)) return true;
  }
  return false;
}

TEST(LongestUsablePrefixTest, EqualsTheNaiveDefinitionOnRandomStores) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    const int sink = static_cast<int>(random() % 40);
    const int recent = 1 + static_cast<int>(random() % 70);
    const int64_t tokens = static_cast<int64_t>(random() % 200);
    const size_t count = static_cast<size_t>((tokens + kBlockTokens - 1) / kBlockTokens);
    std::vector<StoredBlock> blocks(count);
    for (StoredBlock& b : blocks) {
      b.distant = random() % 12 != 0;
      b.proximal = random() % 4 != 0;
    }
    size_t expected = 0;
    for (size_t n = 1; n <= count; ++n) {
      const int64_t end = std::min<int64_t>(static_cast<int64_t>(n) * kBlockTokens, tokens);
      bool usable = true;
      for (size_t b = 0; b < n; ++b) {
        usable = usable && blocks[b].distant &&
                 (blocks[b].proximal || !NaivelyNear(sink, recent, static_cast<int64_t>(b) * kBlockTokens, end));
      }
      if (usable) expected = n;
    }
    ASSERT_EQ(LongestUsablePrefix(MakeLayout(sink, recent), tokens, blocks).blocks, expected)
        << "sink " << sink << " recent " << recent << " tokens " << tokens;
  }
}

TEST(KeepsProximalTest, SinkAndWindowOfEachBranchPointAreKept) {
  const pod::Layout layout = MakeLayout(16, 32);
  const auto kept = [&](std::vector<int64_t> points) {
    std::string out;
    for (int64_t b = 0; b < 10; ++b) out += KeepsProximal(layout, b * kBlockTokens, points) ? 'k' : '.';
    return out;
  };
  EXPECT_EQ(kept({160}), "k.......kk");
  // A continuation from 155 starts computing at 144; decoding at 155 needs the block that holds it.
  EXPECT_EQ(kept({155}), "k......kkk");
  EXPECT_EQ(kept({64, 160}), "k.kk....kk");
  EXPECT_EQ(kept({1}), "k.........");
}

TEST(KeepsProximalTest, BlocksBehindABranchPointAreNotKeptForItsSake) {
  const pod::Layout layout = MakeLayout(16, 32);
  for (int64_t b = 2; b < 100; ++b) EXPECT_FALSE(KeepsProximal(layout, b * kBlockTokens, {32})) << b;
}

TEST(KeepsProximalTest, EqualsTheNaiveDefinitionOnRandomPrompts) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 20000; ++trial) {
    const int sink = static_cast<int>(random() % 40);
    const int recent = 1 + static_cast<int>(random() % 70);
    std::vector<int64_t> points;
    for (uint32_t n = 1 + random() % 3; n > 0; --n) points.push_back(1 + static_cast<int64_t>(random() % 200));
    const int64_t begin = static_cast<int64_t>(random() % 13) * kBlockTokens;
    bool expected = false;
    for (int64_t point : points) {
      // Behind the point only sinks are read; the block that it lies in is, when decoding starts there.
      const int64_t border = point / kBlockTokens * kBlockTokens;
      expected = expected || begin < sink || (begin < point && NaivelyNear(sink, recent, begin, border));
    }
    ASSERT_EQ(KeepsProximal(MakeLayout(sink, recent), begin, points), expected)
        << "sink " << sink << " recent " << recent << " block at " << begin << " first point " << points[0];
  }
}

TEST(ReuseTest, WhatAPromptKeepsIsEnoughToContinueFromItsBranchPointsAndToDecode) {
  std::mt19937 random(3);
  for (int trial = 0; trial < 5000; ++trial) {
    const pod::Layout layout = MakeLayout(static_cast<int>(random() % 40), 1 + static_cast<int>(random() % 70));
    const int64_t end = 1 + static_cast<int64_t>(random() % 300);
    const int64_t branch = 1 + static_cast<int64_t>(random() % static_cast<uint32_t>(end));
    std::vector<StoredBlock> blocks(static_cast<size_t>((end + kBlockTokens - 1) / kBlockTokens));
    for (size_t b = 0; b < blocks.size(); ++b) {
      blocks[b] = {true, KeepsProximal(layout, static_cast<int64_t>(b) * kBlockTokens, {branch, end}), ""};
    }
    // The same prompt again: all of it.
    EXPECT_EQ(LongestUsablePrefix(layout, end, blocks).blocks, blocks.size());
    // Another prompt that shares the tokens before `branch`: all of its whole blocks.
    std::vector<StoredBlock> shared = blocks;
    shared.resize(static_cast<size_t>(branch / kBlockTokens));
    shared.resize(shared.size() + 5);
    EXPECT_EQ(LongestUsablePrefix(layout, static_cast<int64_t>(shared.size()) * kBlockTokens, shared).blocks,
              static_cast<size_t>(branch / kBlockTokens));
  }
}

}  // namespace
}  // namespace perigee::node
