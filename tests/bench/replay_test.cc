#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>

#include "absl/strings/str_cat.h"
#include "replay/generator.h"
#include "replay/simulate.h"
#include "replay/store_run.h"
#include "replay/trace.h"

namespace perigee::bench {
namespace {

// Requests over a tree of `nodes` blocks: each goes from a root some way down.
Trace TreeTrace(std::mt19937& random, int nodes, int requests) {
  std::vector<int> parents(static_cast<size_t>(nodes), -1);
  for (int i = 2; i < nodes; ++i) parents[i] = static_cast<int>(random() % static_cast<unsigned>(i + 1)) - 1;
  TraceBuilder builder;
  for (int r = 0; r < requests; ++r) {
    std::vector<uint64_t> ids;
    for (int node = static_cast<int>(random() % static_cast<unsigned>(nodes)); node >= 0; node = parents[node]) {
      ids.insert(ids.begin(), static_cast<uint64_t>(node));
    }
    EXPECT_TRUE(builder.Add(r, ids.size() * 512, 0, ids).ok());
  }
  return std::move(builder).Build();
}

// The most hits under the prefix rule, by trying every set of blocks that may be kept after every request. Between
// requests any subset of what was there and what the request brought.
uint64_t MostHits(const Trace& trace, int capacity) {
  std::map<uint32_t, uint64_t> best = {{0u, 0u}};  // set of blocks -> hits so far
  for (const TraceRequest& r : trace.requests) {
    uint32_t asked = 0;
    for (uint32_t b : r.blocks) asked |= 1u << b;
    std::map<uint32_t, uint64_t> next;
    for (const auto& [set, hits] : best) {
      uint64_t prefix = 0;
      while (prefix < r.blocks.size() && (set >> r.blocks[prefix] & 1)) ++prefix;
      const uint32_t all = set | asked;
      for (uint32_t kept = all;; kept = (kept - 1) & all) {
        if (std::popcount(kept) <= capacity) {
          auto& known = next[kept];
          known = std::max(known, hits + prefix);
        }
        if (kept == 0) break;
      }
    }
    best = std::move(next);
  }
  uint64_t most = 0;
  for (const auto& [set, hits] : best) most = std::max(most, hits);
  return most;
}

TEST(BeladyTest, IsTheBestPossibleUnderThePrefixRule) {
  for (int seed = 0; seed < 60; ++seed) {
    std::mt19937 random(seed);
    const Trace trace = TreeTrace(random, 8, 14);
    const int capacity = 1 + seed % 6;
    const ReplayResult bound = Belady(trace, static_cast<uint64_t>(capacity));
    EXPECT_EQ(bound.hit_blocks, MostHits(trace, capacity)) << "seed " << seed;
    EXPECT_LE(bound.dram_peak_blocks, static_cast<uint64_t>(capacity));
  }
}

TEST(BeladyTest, NoPolicyAtAnySizeFindsMore) {
  for (const absl::string_view shape : Shapes()) {
    const Trace trace = GenerateTrace(*MixOf(shape), 5, 400);
    for (const double fraction : {0.02, 0.1, 0.3, 1.0}) {
      const auto blocks = static_cast<uint64_t>(fraction * static_cast<double>(trace.parents.size()));
      const ReplayResult bound = Belady(trace, blocks);
      for (const char* policy : {"default", "lru", "s3fifo"}) {
        const auto result = Replay(trace, policy, {.dram_blocks = blocks});
        ASSERT_TRUE(result.ok());
        EXPECT_LE(result->hit_blocks, bound.hit_blocks) << shape << " " << policy << " " << fraction;
        EXPECT_LE(result->dram_peak_blocks, blocks);
        if (fraction == 1.0) {
          EXPECT_EQ(result->hit_blocks, bound.hit_blocks) << shape << " " << policy;
        }
      }
    }
  }
}

TEST(ReplayTest, AHitNeedsAllBlocksBeforeIt) {
  // 9 blocks do not fit into 4: of a request larger than the store the start is kept, and found.
  const auto trace =
      ParseTrace(R"({"timestamp": 0, "input_length": 4400, "output_length": 1, "hash_ids": [0,1,2,3,4,5,6,7,8]}
{"timestamp": 1, "input_length": 4400, "output_length": 1, "hash_ids": [0,1,2,3,4,5,6,7,8]}
)");
  ASSERT_TRUE(trace.ok()) << trace.status();
  for (const char* policy : {"default", "lru", "s3fifo"}) {
    const auto result = Replay(*trace, policy, {.dram_blocks = 4});
    ASSERT_TRUE(result.ok());
    EXPECT_EQ(result->hit_blocks, 4u) << policy;
    EXPECT_EQ(result->dram_hit_tokens, 4u * 512) << policy;
    EXPECT_EQ(result->tokens, 8800u);
  }
  EXPECT_EQ(Belady(*trace, 4).hit_blocks, 4u);
}

TEST(ReplayTest, ASecondTierKeepsWhatTheFirstHadToGive) {
  const Trace trace = GenerateTrace(*MixOf("mixed"), 2, 1500);
  const uint64_t dram = trace.parents.size() / 20;
  const auto one = Replay(trace, "default", {.dram_blocks = dram});
  const auto two = Replay(trace, "default", {.dram_blocks = dram, .ssd_blocks = 4 * dram});
  ASSERT_TRUE(one.ok() && two.ok());
  EXPECT_GT(two->ssd_hit_tokens, 0u);
  EXPECT_GT(two->token_hit_ratio(), one->token_hit_ratio());
  EXPECT_LE(two->ssd_peak_blocks, 4 * dram);
  EXPECT_LE(two->token_hit_ratio(), Belady(trace, 5 * dram).token_hit_ratio());
  // Where writes cost something, fewer are made.
  const auto busy = Replay(trace, "default", {.dram_blocks = dram, .ssd_blocks = 4 * dram, .ssd_busy = 0.1});
  ASSERT_TRUE(busy.ok());
  EXPECT_GT(busy->ssd_written_blocks, 0u);
  EXPECT_LT(busy->ssd_written_blocks, two->ssd_written_blocks);
}

// What the default policy is for. Seeds that it was not made with.
TEST(ReplayTest, TheDefaultPolicyIsNotBelowLruOnGeneratedTraces) {
  for (const char* shape : {"mixed", "conversations", "documents", "agents", "scans"}) {
    for (const uint64_t seed : {101, 102}) {
      const Trace trace = GenerateTrace(*MixOf(shape), seed, 4000);
      for (const double fraction : {0.05, 0.1, 0.2, 0.5}) {
        const auto blocks = static_cast<uint64_t>(fraction * static_cast<double>(trace.parents.size()));
        const auto ours = Replay(trace, "default", {.dram_blocks = blocks});
        const auto lru = Replay(trace, "lru", {.dram_blocks = blocks});
        ASSERT_TRUE(ours.ok() && lru.ok());
        EXPECT_GE(ours->token_hit_ratio(), lru->token_hit_ratio() - 1e-4) << shape << " " << seed << " " << fraction;
      }
    }
  }
}

TEST(StoreRunTest, ARealStoreAnswersLikeTheSimulationAndWithTheRightBytes) {
  const Trace trace = GenerateTrace(*MixOf("mixed"), 3, 400);
  for (const double fraction : {0.1, 0.5}) {
    const auto blocks = static_cast<uint64_t>(fraction * static_cast<double>(trace.parents.size()));
    for (const char* policy : {"default", "lru", "s3fifo"}) {
      const auto simulated = Replay(trace, policy, {.dram_blocks = blocks});
      const auto real = ReplayThroughStore(trace, policy, {.dram_blocks = blocks, .block_bytes = 4096});
      ASSERT_TRUE(simulated.ok() && real.ok()) << real.status();
      EXPECT_EQ(real->wrong_planes, 0u);
      EXPECT_NEAR(real->result.token_hit_ratio(), simulated->token_hit_ratio(), 0.02) << policy << " " << fraction;
      if (std::string(policy) == "lru") {
        EXPECT_EQ(real->result.hit_blocks, simulated->hit_blocks);
        EXPECT_EQ(real->result.dram_evictions, simulated->dram_evictions);
      }
      EXPECT_LE(real->result.dram_peak_blocks, blocks);
      EXPECT_EQ(real->result.tokens, trace.total_tokens());
      EXPECT_GE(real->bytes_moved, real->result.hit_blocks * 4096);
    }
  }
}

TEST(StoreRunTest, KeepsTheStartOfARequestLargerThanTheStore) {
  const auto trace =
      ParseTrace(R"({"timestamp": 0, "input_length": 4400, "output_length": 1, "hash_ids": [0,1,2,3,4,5,6,7,8]}
{"timestamp": 1, "input_length": 4400, "output_length": 1, "hash_ids": [0,1,2,3,4,5,6,7,8]}
)");
  ASSERT_TRUE(trace.ok()) << trace.status();
  const auto real = ReplayThroughStore(*trace, "lru", {.dram_blocks = 4});
  ASSERT_TRUE(real.ok()) << real.status();
  EXPECT_GE(real->result.hit_blocks, 1u);
  EXPECT_GE(real->refused_blocks, 5u);
  EXPECT_EQ(real->wrong_planes, 0u);
}

TEST(StoreRunTest, FindsOnTheSsdWhatMemoryHadToGive) {
  const Trace trace = GenerateTrace(*MixOf("conversations"), 4, 60);
  const uint64_t dram = trace.parents.size() / 10;
  const auto one = ReplayThroughStore(trace, "default", {.dram_blocks = dram});
  const auto two = ReplayThroughStore(
      trace, "default", {.dram_blocks = dram, .ssd_blocks = trace.parents.size(), .ssd_path = testing::TempDir()});
  ASSERT_TRUE(one.ok() && two.ok()) << one.status() << two.status();
  EXPECT_GT(two->result.ssd_hit_tokens, 0u);
  EXPECT_GT(two->result.token_hit_ratio(), one->result.token_hit_ratio());
  EXPECT_GT(two->ssd_written_bytes, 0u);
  EXPECT_EQ(two->wrong_planes, 0u);
}

nlohmann::json Rows(const std::string& arguments) {
  std::FILE* pipe = popen(absl::StrCat(STORE_REPLAY " ", arguments, " --json - 2>&1").c_str(), "r");
  std::string text;
  std::array<char, 4096> buffer;
  for (size_t n; (n = std::fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) text.append(buffer.data(), n);
  EXPECT_EQ(pclose(pipe), 0) << text;
  return nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
}

TEST(StoreReplayTest, PrintsARowPerPolicyAndFractionAsJson) {
  const nlohmann::json rows = Rows("--simulate --requests 300");
  std::map<std::string, int> policies;
  for (const auto& row : rows) {
    ++policies[row.at("policy").get<std::string>()];
    const double ratio = row.at("token_hit_ratio");
    EXPECT_TRUE(ratio >= 0 && ratio <= 1);
    EXPECT_GT(row.at("capacity_fraction").get<double>(), 0);
    EXPECT_EQ(row.at("mode"), "simulated");
  }
  EXPECT_EQ(policies, (std::map<std::string, int>{{"default", 4}, {"s3fifo", 4}, {"lru", 4}, {"belady", 4}}));
}

TEST(StoreReplayTest, MovesRealBytesUnlessToldToSimulate) {
  const std::string arguments = "--requests 100 --block-kib 4 --fractions 0.2 --policy lru belady";
  const nlohmann::json rows = Rows(arguments);
  ASSERT_EQ(rows.size(), 2u);
  EXPECT_EQ(rows[0].at("mode"), "real");
  EXPECT_EQ(rows[0].at("wrong_planes"), 0);
  EXPECT_EQ(rows[0].at("block_bytes"), 4096);
  EXPECT_GT(rows[0].at("bytes_moved").get<uint64_t>(), 0u);
  EXPECT_LE(rows[0].at("token_hit_ratio").get<double>(), rows[1].at("token_hit_ratio").get<double>());
  EXPECT_EQ(rows[1].at("mode"), "simulated");
}

TEST(StoreReplayTest, RefusesWhatItCannotDo) {
  for (const char* arguments :
       {"--policy mru", "--simulate --policy mru", "--fractions 0.5,2", "--trace /nonexistent", "--shape square",
        "--moves-bytes", "--simulate --block-kib 4", "--ssd-busy 0.1", "--ssd-fraction 0.1", "--ssd-path /tmp",
        "--ssd-fraction 0.1 --ssd-path /nonexistent"}) {
    EXPECT_NE(std::system(absl::StrCat(STORE_REPLAY " ", arguments, " >/dev/null 2>&1").c_str()), 0) << arguments;
  }
}

}  // namespace
}  // namespace perigee::bench
