#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <thread>

#include "base/bytes.h"
#include "base/file.h"
#include "base/log.h"
#include "base/parallel.h"
#include "base/status.h"

namespace perigee {
namespace {

using ::testing::HasSubstr;

TEST(Sha256, MatchesTheStandardsExample) {
  EXPECT_EQ(ToHex(Sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(Hex, RefusesWhatIsNotHex) {
  EXPECT_FALSE(FromHex("abc").ok());
  EXPECT_FALSE(FromHex("zz").ok());
  EXPECT_FALSE(DigestFromHex("00ff").ok());
  EXPECT_EQ(*FromHex("00FF"), std::string("\x00\xff", 2));
}

TEST(ByteReader, ReadsBackAndNeverReadsPastTheEnd) {
  ByteWriter w;
  w.U8(1);
  w.U16(0x203);
  w.U32(0x4050607);
  w.U64(0x1122334455667788);
  w.Counted("hello");
  ByteReader r(w.bytes());
  EXPECT_EQ(r.U8(), 1);
  EXPECT_EQ(r.U16(), 0x203);
  EXPECT_EQ(r.U32(), 0x4050607u);
  EXPECT_EQ(r.U64(), 0x1122334455667788u);
  EXPECT_EQ(r.Counted(), "hello");
  EXPECT_TRUE(r.ok());
  EXPECT_EQ(r.U32(), 0u);
  EXPECT_FALSE(r.ok());
  ByteReader hostile(absl::string_view("\xff\xff\xff\xff..", 6));
  EXPECT_EQ(hostile.Counted(), "");
  EXPECT_FALSE(hostile.ok());
}

TEST(File, WritesAtomicallyAndReadsBack) {
  const std::string path = testing::TempDir() + "/base_test_file";
  ASSERT_TRUE(WriteFileAtomically(path, "one").ok());
  ASSERT_TRUE(WriteFileAtomically(path, "two").ok());
  EXPECT_EQ(*ReadFile(path), "two");
  EXPECT_FALSE(ReadFile(path, 2).ok());
  EXPECT_EQ(AsView(MappedFile::Open(path)->bytes()), "two");
  std::filesystem::remove(path);
}

TEST(File, AMissingFileIsNotFoundAndNamed) {
  const auto result = ReadFile("/no/such/file");
  EXPECT_EQ(result.status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(result.status().message()), HasSubstr("/no/such/file"));
}

TEST(ParallelFor, CallsEveryIndexOnceFromSeveralCallersAndNested) {
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([] {
      for (int round = 0; round < 50; ++round) {
        std::vector<std::atomic<int>> hits(37);
        ParallelFor(hits.size(), [&](size_t i) { ParallelFor(3, [&](size_t) { ++hits[i]; }); });
        for (auto& h : hits) ASSERT_EQ(h.load(), 3);
      }
    });
  }
  for (auto& t : callers) t.join();
}

TEST(Log, RefusesAnUnknownLevel) { EXPECT_FALSE(InitLogging("test", "loud").ok()); }

}  // namespace
}  // namespace perigee
