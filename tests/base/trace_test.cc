#include "base/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/histogram.h"
#include "base/log.h"

namespace perigee {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

TEST(TraceTest, AThreadThatWorksForNoRequestRecordsNothing) {
  const uint64_t before = ProcessTrace().Find("").size();
  {
    Span span("work");
    EXPECT_FALSE(span.recording());
    TraceInstant("moment");
  }
  EXPECT_EQ(ProcessTrace().Find("").size(), before);
  EXPECT_EQ(CurrentRequest(), "");
}

TEST(TraceTest, SpansNestAndCarryTheirAttributes) {
  {
    const RequestScope scope("trace-nest");
    Span outer("outer");
    outer.Set("tokens", 7);
    { const Span inner("in", "ner"); }
    TraceInstant("moment");
  }
  const std::vector<TraceSpan> spans = ProcessTrace().Find("trace-nest");
  ASSERT_EQ(spans.size(), 3u);
  const auto find = [&](const std::string& name) -> const TraceSpan& {
    return *std::find_if(spans.begin(), spans.end(), [&](const TraceSpan& s) { return s.name == name; });
  };
  const TraceSpan &outer = find("outer"), &inner = find("inner"), &moment = find("moment");
  EXPECT_EQ(outer.attributes, (std::vector<std::pair<std::string, std::string>>{{"tokens", "7"}}));
  EXPECT_LE(outer.begin_unix_us, inner.begin_unix_us);
  EXPECT_LE(inner.end_unix_us, moment.begin_unix_us);
  EXPECT_LE(moment.end_unix_us, outer.end_unix_us);
  EXPECT_EQ(moment.begin_unix_us, moment.end_unix_us);
  EXPECT_EQ(inner.thread, outer.thread);
}

TEST(TraceTest, ScopesEndWithTheirObjectsAndAreOfOneThread) {
  const RequestScope outer("trace-a");
  {
    const RequestScope inner("trace-b");
    EXPECT_EQ(CurrentRequest(), "trace-b");
    {
      const RequestScope nobody("");
      EXPECT_EQ(CurrentRequest(), "");
    }
    std::thread([] { EXPECT_EQ(CurrentRequest(), ""); }).join();
  }
  EXPECT_EQ(CurrentRequest(), "trace-a");
}

TEST(TraceTest, ARingForgetsTheOldest) {
  TraceRing ring(4);
  for (int i = 0; i < 10; ++i) {
    ring.Add({.request_id = "r", .name = std::to_string(i), .begin_unix_us = i, .end_unix_us = i, .attributes = {}});
  }
  const std::vector<TraceSpan> spans = ring.Find("r");
  ASSERT_EQ(spans.size(), 4u);
  EXPECT_EQ(spans[0].name, "6");
  EXPECT_EQ(spans[3].name, "9");
  EXPECT_EQ(ring.forgotten(), 6u);
  EXPECT_TRUE(ring.Find("other").empty());
}

TEST(TraceTest, WhatCouldBreakALogLineIsNoRequestId) {
  EXPECT_TRUE(IsRequestId("req_1.a:b-C"));
  for (const std::string& wrong : {std::string(), std::string("a b"), std::string("a\nb"), std::string("\"x\""),
                                   std::string(129, 'x'), std::string("\xc3\xa9")}) {
    EXPECT_FALSE(IsRequestId(wrong)) << wrong;
  }
}

// What InitLogging's logger writes to standard error.
std::string Logged(const std::string& format, const std::function<void()>& body) {
  const std::string path = testing::TempDir() + "/perigee_log_test.txt";
  std::fflush(stderr);
  const int before = ::dup(2);
  std::FILE* file = std::fopen(path.c_str(), "w");
  ::dup2(::fileno(file), 2);
  EXPECT_TRUE(InitLogging("tester", "info", format).ok());
  body();
  spdlog::default_logger()->flush();
  std::fflush(stderr);
  ::dup2(before, 2);
  ::close(before);
  std::fclose(file);
  return ReadFile(path).value_or("");
}

TEST(LogTest, LinesNameTheRequestThatTheirThreadWorksFor) {
  const std::string text = Logged("text", [] {
    spdlog::info("alone");
    const RequestScope scope("req-1");
    spdlog::info("with {}", "it");
  });
  EXPECT_THAT(text, HasSubstr("info tester: alone\n"));
  EXPECT_THAT(text, HasSubstr("info tester: [req-1] with it\n"));
}

TEST(LogTest, JsonLinesAreObjectsWhateverTheirText) {
  const std::string text = Logged("json", [] {
    const RequestScope scope("req-2");
    spdlog::warn("a \"quoted\\\" text\nof two lines");
    spdlog::warn("caf\xc3\xa9 \xff\xc3");
  });
  EXPECT_THAT(text, StartsWith("{\"time\":\"20"));
  EXPECT_THAT(text, HasSubstr(R"("level":"warning","process":"tester","request_id":"req-2","message":"a \"quoted\\\")"
                              R"( text\u000aof two lines"})"));
  EXPECT_THAT(text, HasSubstr("\"message\":\"caf\xc3\xa9 \\ufffd\\ufffd\"}\n"));
  EXPECT_FALSE(InitLogging("tester", "info", "xml").ok());
}

TEST(HistogramTest, DurationsFallIntoTheFirstBucketThatHoldsThem) {
  DurationHistogram histogram;
  histogram.Record(absl::Seconds(kDurationBounds_s[3]));  // Bounds are inclusive.
  histogram.Record(absl::Microseconds(1));
  histogram.Record(absl::Hours(1));
  const DurationCounts counts = histogram.Snapshot();
  EXPECT_EQ(counts.buckets[3], 1u);
  EXPECT_EQ(counts.buckets.front(), 1u);
  EXPECT_EQ(counts.buckets.back(), 1u);
  EXPECT_EQ(counts.count, 3u);
  EXPECT_NEAR(counts.sum_s, 3600.001001, 1e-6);
}

}  // namespace
}  // namespace perigee
