#include "transport/put_sums.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <vector>

#include "base/crc32c.h"

namespace perigee::transport::internal {
namespace {

constexpr size_t kGranule = PutSums::kGranuleBytes;

class PutSumsTest : public testing::Test {
 protected:
  PutSumsTest() : memory_(10 * kGranule + 100), sums_(memory_) {
    std::mt19937_64 random(1);
    for (std::byte& b : memory_) b = static_cast<std::byte>(random());
  }
  std::span<const std::byte> Bytes(size_t begin, size_t end) const {
    return std::span(memory_).subspan(begin, end - begin);
  }
  void Put(size_t begin, size_t end) { sums_.End(Bytes(begin, end), sums_.Begin(Bytes(begin, end))); }
  // What Sum says of bytes that were changed behind its back tells what it has read.
  void Spoil() {
    for (std::byte& b : memory_) b ^= std::byte{1};
  }

  std::vector<std::byte> memory_;
  PutSums sums_;
};

TEST_F(PutSumsTest, SumsAnyRangeWhateverIsKnown) {
  std::mt19937_64 random(2);
  for (int round = 0; round < 2000; ++round) {
    size_t begin = random() % (memory_.size() + 1), end = random() % (memory_.size() + 1);
    if (begin > end) std::swap(begin, end);
    if (round % 3 == 0) Put(begin, end);
    if (round % 17 == 0) sums_.Forget(Bytes(begin, end));
    ASSERT_EQ(sums_.Sum(Bytes(begin, end)), Crc32c(Bytes(begin, end))) << begin << " " << end;
    ASSERT_LE(sums_.UnknownBytes(Bytes(begin, end)), end - begin);
  }
}

TEST_F(PutSumsTest, WhatOnePutCoveredIsNotReadAgain) {
  Put(kGranule / 2, 5 * kGranule);
  EXPECT_EQ(sums_.UnknownBytes(Bytes(0, 6 * kGranule)), 2 * kGranule) << "the first is not covered, the last not put";
  const uint32_t whole = Crc32c(Bytes(kGranule, 5 * kGranule));
  Spoil();
  EXPECT_EQ(sums_.Sum(Bytes(kGranule, 5 * kGranule)), whole);
}

TEST_F(PutSumsTest, WhatIsForgottenOrPutInPartIsRead) {
  Put(0, 4 * kGranule);
  sums_.Forget(Bytes(kGranule, kGranule + 1));
  Put(3 * kGranule + 5, 3 * kGranule + 6);
  Spoil();
  Put(2 * kGranule, 2 * kGranule);  // nothing
  EXPECT_EQ(sums_.UnknownBytes(Bytes(0, 4 * kGranule)), 2 * kGranule);
  EXPECT_EQ(sums_.Sum(Bytes(kGranule, 2 * kGranule)), Crc32c(Bytes(kGranule, 2 * kGranule)));
  EXPECT_EQ(sums_.Sum(Bytes(3 * kGranule, 4 * kGranule)), Crc32c(Bytes(3 * kGranule, 4 * kGranule)));
  EXPECT_NE(sums_.Sum(Bytes(0, kGranule)), Crc32c(Bytes(0, kGranule)));
}

TEST_F(PutSumsTest, OfPutsThatOverlapInTimeOnlyASumTakenAfterBothCounts) {
  const auto range = Bytes(0, kGranule);
  uint32_t first = sums_.Begin(range), second = sums_.Begin(range);
  sums_.End(range, second);
  sums_.End(range, first);
  EXPECT_EQ(sums_.UnknownBytes(range), kGranule) << "the first may have changed what the second's sum is of";
  first = sums_.Begin(range), second = sums_.Begin(range);
  sums_.End(range, first);
  EXPECT_EQ(sums_.UnknownBytes(range), kGranule) << "the second is still writing";
  sums_.End(range, second);
  EXPECT_EQ(sums_.UnknownBytes(range), 0u);
}

TEST_F(PutSumsTest, APutThatNeverEndsLeavesNothingKnown) {
  Put(0, 2 * kGranule);
  sums_.Begin(Bytes(10, 20));
  EXPECT_EQ(sums_.UnknownBytes(Bytes(0, 2 * kGranule)), kGranule);
}

}  // namespace
}  // namespace perigee::transport::internal
