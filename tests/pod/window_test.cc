#include "pod/window.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

namespace perigee::pod {
namespace {

using ::testing::HasSubstr;

TEST(Window, TheDefaultWindowNeedsNoChecking) { EXPECT_TRUE(ValidateWindow(Window{}).ok()); }

TEST(Window, AQueryAlwaysSeesItself) {
  const absl::Status status = ValidateWindow({16, 0});
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("recent_tokens is 0"));
  EXPECT_FALSE(ValidateWindow({16, -5}).ok());
}

TEST(Window, SinksMayBeNoneButNotNegative) {
  EXPECT_TRUE(ValidateWindow({0, 1}).ok());
  EXPECT_FALSE(ValidateWindow({-1, 1}).ok());
}

TEST(Window, SizesEndAtTwoToTheThirty) {
  EXPECT_TRUE(ValidateWindow({1 << 30, 1 << 30}).ok());
  EXPECT_FALSE(ValidateWindow({(1 << 30) + 1, 1}).ok());
  EXPECT_FALSE(ValidateWindow({1, (1 << 30) + 1}).ok());
  EXPECT_FALSE(ValidateWindow({INT32_MAX, INT32_MAX}).ok());
}

TEST(Window, SinksAreRoundedUpToABlock) {
  EXPECT_EQ(SinkEnd({0, 1}, 64), 0);
  EXPECT_EQ(SinkEnd({1, 1}, 64), 64);
  EXPECT_EQ(SinkEnd({16, 1}, 64), 64);
  EXPECT_EQ(SinkEnd({64, 1}, 64), 64);
  EXPECT_EQ(SinkEnd({65, 1}, 64), 128);
  EXPECT_EQ(SinkEnd({16, 1}, 16), 16);
}

TEST(Window, RecentTokensCountTheQuerysOwnAndAreRoundedDownToABlock) {
  const Window window{16, 128};
  EXPECT_EQ(RecentBegin(window, 64, 0), 0);
  EXPECT_EQ(RecentBegin(window, 64, 127), 0);   // Tokens 0..127 are the last 128.
  EXPECT_EQ(RecentBegin(window, 64, 128), 0);   // 1..128: token 1 lies in block 0.
  EXPECT_EQ(RecentBegin(window, 64, 190), 0);   // 63..190.
  EXPECT_EQ(RecentBegin(window, 64, 191), 64);  // 64..191: block 0 has just left.
  EXPECT_EQ(RecentBegin(window, 64, 254), 64);
  EXPECT_EQ(RecentBegin(window, 64, 255), 128);
  EXPECT_EQ(RecentBegin({0, 1}, 16, 33), 32);  // Its own block is all that is near.
}

TEST(Window, HugeValuesDoNotOverflow) {
  const Window window{1 << 30, 1 << 30};
  EXPECT_EQ(SinkEnd(window, 128), int64_t{1} << 30);
  EXPECT_EQ(RecentBegin(window, 128, (int64_t{1} << 62) - 1), (int64_t{1} << 62) - (int64_t{1} << 30));
  EXPECT_EQ(RecentBegin({0, 1}, 64, INT64_MAX), INT64_MAX / 64 * 64);
  EXPECT_FALSE(IsNear(window, 64, int64_t{1} << 40, int64_t{1} << 50));
}

TEST(Window, ABlockIsNearIfAndOnlyIfItHoldsANearToken) {
  for (const int block_tokens : {16, 32, 64, 128}) {
    for (const Window& window :
         {Window{0, 1}, Window{1, 1}, Window{16, 17}, Window{17, 64}, Window{130, 200}, Window{300, 300}}) {
      for (int64_t position = 0; position < 700; ++position) {
        int64_t previous_begin = position == 0 ? 0 : RecentBegin(window, block_tokens, position - 1);
        EXPECT_GE(RecentBegin(window, block_tokens, position), previous_begin);
        for (int64_t begin = 0; begin <= position; begin += block_tokens) {
          bool near = false;
          for (int64_t t = begin; t < begin + block_tokens && t <= position; ++t) {
            near |= t < window.sink_tokens || t > position - window.recent_tokens;
          }
          ASSERT_EQ(IsNear(window, block_tokens, begin, position), near)
              << "window " << window.sink_tokens << " + " << window.recent_tokens << ", block " << begin << " of "
              << block_tokens << ", position " << position;
        }
      }
    }
  }
}

// One rule for all blocks: on block borders it is the one of SinkEnd and RecentBegin, by which planes are stored.
TEST(Window, SpansOnBlockBordersAreNearByTheRoundedBounds) {
  for (const int block_tokens : {16, 32, 64, 128}) {
    for (const Window& window : {Window{0, 1}, Window{1, 1}, Window{15, 16}, Window{16, 17}, Window{17, 64},
                                 Window{64, 63}, Window{130, 200}, Window{300, 300}, Window{1 << 30, 1 << 30}}) {
      for (int64_t position = 0; position < 700; ++position) {
        const int64_t sink_end = SinkEnd(window, block_tokens);
        const int64_t recent_begin = RecentBegin(window, block_tokens, position);
        for (int64_t begin = 0; begin <= position; begin += block_tokens) {
          const bool near = begin < sink_end || begin >= recent_begin;
          ASSERT_EQ(IsSpanNear(window, begin, begin + block_tokens - 1, position), near)
              << "window " << window.sink_tokens << " + " << window.recent_tokens << ", block " << begin << " of "
              << block_tokens << ", position " << position;
          ASSERT_EQ(IsNear(window, block_tokens, begin, position), near);
        }
        // A block that is being filled and holds the query is near from its first token on.
        const int64_t own = position / block_tokens * block_tokens;
        for (int64_t last = position; last < own + block_tokens; ++last) {
          ASSERT_TRUE(IsSpanNear(window, own, last, position));
        }
      }
    }
  }
}

TEST(Window, SpansAnywhereAreNearIfTheirEndsAre) {
  const Window window{16, 128};
  EXPECT_TRUE(IsSpanNear(window, 15, 40, 1000));  // Begins among the sinks.
  EXPECT_FALSE(IsSpanNear(window, 16, 40, 1000));
  EXPECT_TRUE(IsSpanNear(window, 810, 873, 1000));  // The last 128 tokens of 1000 begin at 873.
  EXPECT_FALSE(IsSpanNear(window, 809, 872, 1000));
  EXPECT_TRUE(IsSpanNear(window, 873, 873, 1000));
  EXPECT_TRUE(IsSpanNear(window, 990, 1040, 1000));  // Holds the query and goes on.
  EXPECT_TRUE(IsSpanNear(window, 100, 5000, 5100));  // Tokens that stand apart: one of them is near.
}

}  // namespace
}  // namespace perigee::pod
