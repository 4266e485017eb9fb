#include "replay/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "replay/generator.h"

namespace perigee::bench {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::string Line(const std::string& timestamp, const std::string& input, const std::string& ids) {
  return "{\"timestamp\": " + timestamp + ", \"input_length\": " + input +
         ", \"output_length\": 5, \"hash_ids\": " + ids + "}\n";
}

TEST(TraceTest, ReadsMooncakesFormat) {
  const auto trace = ParseTrace(Line("3", "1025", "[7, 900, 8]") + "\n" + Line("40", "600", "[7, 9]"));
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->requests.size(), 2u);
  EXPECT_THAT(trace->requests[0].blocks, ElementsAre(0, 1, 2));
  EXPECT_THAT(trace->requests[1].blocks, ElementsAre(0, 3));
  EXPECT_THAT(trace->hash_ids, ElementsAre(7, 900, 8, 9));
  EXPECT_THAT(trace->parents, ElementsAre(kNoBlock, 0, 1, 0));
  EXPECT_EQ(trace->requests[0].TokensOf(1), 512u);
  EXPECT_EQ(trace->requests[0].TokensOf(2), 1u);
  EXPECT_EQ(trace->requests[1].timestamp_ms, 40);
  EXPECT_EQ(trace->total_tokens(), 1625u);
}

TEST(TraceTest, EveryRefusalNamesTheLineAndTheReason) {
  const std::string good = Line("3", "1000", "[1, 2]");
  const std::pair<std::string, const char*> bad[] = {
      {"{\"timestamp\": 3", "not a JSON object"},
      {"[1, 2]", "not a JSON object"},
      {Line("-3", "1000", "[1, 2]"), "timestamp"},
      {Line("3.5", "1000", "[1, 2]"), "timestamp"},
      {Line("9223372036854775808", "1000", "[1, 2]"), "timestamp"},
      {Line("2", "1000", "[1, 2]"), "sort the trace"},
      {Line("3", "0", "[]"), "input"},
      {Line("3", "1073741825", "[1]"), "input"},
      {Line("3", "1000", "[1]"), "1 hash ids"},
      {Line("3", "1000", "[1, 2, 3]"), "3 hash ids"},
      {Line("3", "1000", "[1, -2]"), "hash_ids"},
      {Line("3", "1000", "[1, \"2\"]"), "hash_ids"},
      {Line("3", "1000", "7"), "hash_ids"},
      {Line("3", "1000", "[2, 1]"), "hash id 2 follows no other id here and 1 before"},
      {Line("3", "1000", "[5, 5]"), "hash id 5 follows 5"},
      {"{\"timestamp\": 3, \"input_length\": 10, \"hash_ids\": [5]}", "output_length"},
  };
  for (const auto& [line, reason] : bad) {
    const auto trace = ParseTrace(good + line);
    ASSERT_FALSE(trace.ok()) << line;
    EXPECT_THAT(std::string(trace.status().message()), testing::AllOf(HasSubstr("line 2: "), HasSubstr(reason)))
        << line;
  }
  EXPECT_FALSE(ParseTrace("\n\n").ok());
}

TEST(GeneratorTest, EveryShapeMakesAValidTraceTheSameForEqualSeedsOnly) {
  for (const absl::string_view shape : Shapes()) {
    const Trace trace = GenerateTrace(*MixOf(shape), 3, 500);
    EXPECT_EQ(trace.requests.size(), 500u);
    const auto again = ParseTrace(FormatTrace(trace));
    ASSERT_TRUE(again.ok()) << shape << ": " << again.status();
    EXPECT_EQ(*again, trace);
    EXPECT_EQ(GenerateTrace(*MixOf(shape), 3, 500), trace);
    EXPECT_NE(GenerateTrace(*MixOf(shape), 4, 500), trace);
  }
  EXPECT_THAT(std::string(MixOf("square").status().message()), testing::AllOf(HasSubstr("square"), HasSubstr("mixed")));
}

// What the header says of the sessions, within what 4,000 requests can tell.
TEST(GeneratorTest, ConversationsHaveTheStatisticsThatAreDocumented) {
  const Trace trace = GenerateTrace(*MixOf("conversations"), 1, 4000);
  std::map<uint32_t, int> first_blocks;
  uint64_t repeated = 0;
  std::vector<bool> seen(trace.parents.size());
  for (const TraceRequest& r : trace.requests) {
    ++first_blocks[r.blocks[0]];
    for (uint32_t b : r.blocks) {
      repeated += seen[b];
      seen[b] = true;
    }
  }
  int most = 0;
  for (const auto& [block, times] : first_blocks) most = std::max(most, times);
  // 1 / (1 + 1/2 + ... + 1/24) = 0.26 of the sessions have the most popular system prompt, if it fills a block.
  EXPECT_GT(most, 400);
  EXPECT_LT(most, 1600);
  // Five turns a session: most blocks of a prompt have been there before.
  EXPECT_GT(static_cast<double>(repeated) / static_cast<double>(trace.total_tokens() / 512), 0.5);
}

}  // namespace
}  // namespace perigee::bench
