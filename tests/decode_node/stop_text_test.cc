#include "decode_node/stop_text.h"

#include <gtest/gtest.h>

#include <random>

#include "absl/strings/match.h"

namespace perigee::decode_node {
namespace {

TEST(StopTextTest, WithoutStopsEverythingPassesAtOnce) {
  StopText stop({});
  EXPECT_EQ(stop.Push("hello"), "hello");
  EXPECT_EQ(stop.Push(""), "");
  EXPECT_EQ(stop.Finish(), "");
  EXPECT_FALSE(stop.stopped());
}

TEST(StopTextTest, AnEmptyStopTextStopsNothing) {
  StopText stop({"", ""});
  EXPECT_EQ(stop.Push("abc"), "abc");
  EXPECT_FALSE(stop.stopped());
}

TEST(StopTextTest, EndsBeforeTheStopText) {
  StopText stop({"END"});
  EXPECT_EQ(stop.Push("one END two"), "one ");
  EXPECT_TRUE(stop.stopped());
  EXPECT_EQ(stop.Push("three"), "");
  EXPECT_EQ(stop.Finish(), "");
}

TEST(StopTextTest, AStopTextOverSeveralPiecesNeverShows) {
  StopText stop({"END"});
  EXPECT_EQ(stop.Push("a E"), "a ");
  EXPECT_EQ(stop.Push("N"), "");
  EXPECT_EQ(stop.Push("D b"), "");
  EXPECT_TRUE(stop.stopped());
}

TEST(StopTextTest, WhatOnlyLookedLikeOneComesOutLater) {
  StopText stop({"END"});
  EXPECT_EQ(stop.Push("EN"), "");
  EXPECT_EQ(stop.Push("EN"), "EN");
  EXPECT_EQ(stop.Finish(), "EN");
  EXPECT_FALSE(stop.stopped());
}

TEST(StopTextTest, TheEarliestOfSeveralWins) {
  StopText stop({"later", "soon"});
  EXPECT_EQ(stop.Push("x soon y later"), "x ");
}

TEST(StopTextTest, SelfOverlappingStopTexts) {
  StopText stop({"aab"});
  EXPECT_EQ(stop.Push("aaa"), "a");
  EXPECT_EQ(stop.Push("b!"), "");
  EXPECT_TRUE(stop.stopped());
}

TEST(StopTextTest, ShowsWhatTheNaiveDefinitionShowsHoweverTheTextIsCut) {
  std::mt19937 random(1);
  const auto word = [&](size_t max) {
    std::string s;
    for (size_t n = random() % (max + 1); n > 0; --n) s += static_cast<char>('a' + random() % 2);
    return s;
  };
  for (int trial = 0; trial < 20000; ++trial) {
    std::vector<std::string> stops = {word(5)};
    if (trial % 2 == 0) stops.insert(stops.end(), {word(3), word(4)});
    const std::string text = word(16);
    size_t end = std::string::npos;
    for (const std::string& s : stops) {
      if (!s.empty()) end = std::min(end, text.find(s));
    }
    StopText stop(stops);
    std::string shown;
    for (size_t i = 0; i < text.size();) {
      const size_t n = std::min(text.size() - i, size_t{1} + random() % 4);
      shown += stop.Push(absl::string_view(text).substr(i, n));
      ASSERT_TRUE(absl::StartsWith(text, shown)) << text;
      i += n;
    }
    shown += stop.Finish();
    ASSERT_EQ(stop.stopped(), end != std::string::npos) << text;
    // Of several the first to be complete ends the answer, which may be one that begins later; none shows in any case.
    if (stops.size() == 1 || !stop.stopped()) {
      ASSERT_EQ(shown, text.substr(0, end)) << text << " / " << stops[0];
    }
    for (const std::string& s : stops) {
      if (!s.empty()) {
        ASSERT_FALSE(absl::StrContains(shown, s)) << text << " / " << s;
      }
    }
  }
}

}  // namespace
}  // namespace perigee::decode_node
