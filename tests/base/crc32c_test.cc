#include "base/crc32c.h"

#include <gtest/gtest.h>
#include <isa-l/crc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "base/crc32c_level.h"

namespace perigee {
namespace {

using internal::Crc32cAt;
using internal::Crc32cCopyAt;
using internal::Crc32cLevel;

// Byte by byte from the definition, sharing nothing with base/.
uint32_t Reference(std::span<const std::byte> bytes, uint32_t seed = 0) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> t{};
    for (uint32_t i = 0; i < 256; ++i) {
      t[i] = i;
      for (int bit = 0; bit < 8; ++bit) t[i] = (t[i] >> 1) ^ ((t[i] & 1) * 0x82F63B78u);
    }
    return t;
  }();
  uint32_t crc = ~seed;
  for (const std::byte b : bytes) crc = table[(crc ^ static_cast<uint32_t>(b)) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

std::vector<std::byte> RandomBytes(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(n);
  for (std::byte& b : bytes) b = static_cast<std::byte>(random());
  return bytes;
}

// RFC 3720, B.4, and the CRC catalogue's check value.
std::vector<std::pair<std::vector<std::byte>, uint32_t>> KnownVectors() {
  std::vector<std::byte> rising(32), falling(32);
  for (size_t i = 0; i < 32; ++i) rising[i] = falling[31 - i] = static_cast<std::byte>(i);
  const auto digits = AsBytes("123456789");
  return {{std::vector<std::byte>(32, std::byte{0}), 0x8a9136aa},
          {std::vector<std::byte>(32, std::byte{0xff}), 0x62a8ab43},
          {rising, 0x46dd794e},
          {falling, 0x113fdb5c},
          {std::vector<std::byte>(digits.begin(), digits.end()), 0xe3069283}};
}

// Memory whose bytes from `at` on are a destination; Verify finds what was written beside it.
class Guarded {
 public:
  static constexpr size_t kMargin = 256;
  explicit Guarded(size_t largest)
      : size_(largest + 2 * kMargin), bytes_(static_cast<std::byte*>(std::aligned_alloc(64, (size_ + 63) / 64 * 64))) {}
  ~Guarded() { std::free(bytes_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  // `misalignment` bytes past a cache line's start.
  std::byte* Prepare(size_t misalignment) {
    std::memset(bytes_, kGuard, size_);
    at_ = kMargin / 2 + misalignment;
    return bytes_ + at_;
  }
  void Verify(std::span<const std::byte> expected) const {
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), bytes_ + at_));
    const auto touched = [](std::byte b) { return b != std::byte{kGuard}; };
    EXPECT_TRUE(std::none_of(bytes_, bytes_ + at_, touched)) << "written before the destination";
    EXPECT_TRUE(std::none_of(bytes_ + at_ + expected.size(), bytes_ + size_, touched)) << "written past its end";
  }

 private:
  static constexpr uint8_t kGuard = 0xA5;
  size_t size_;
  std::byte* bytes_;
  size_t at_ = 0;
};

TEST(Crc32c, KnowsThePublishedValues) {
  for (const auto& [bytes, crc] : KnownVectors()) {
    EXPECT_EQ(Reference(bytes), crc);
    EXPECT_EQ(Crc32c(bytes), crc);
    std::vector<std::byte> copy(bytes.size());
    EXPECT_EQ(Crc32cCopy(copy.data(), bytes), crc);
    EXPECT_EQ(copy, bytes);
  }
}

TEST(Crc32c, ContinuesFromASeedAndLeavesItUnchangedOverNothing) {
  EXPECT_EQ(Crc32c(AsBytes("56789"), Crc32c(AsBytes("1234"))), 0xE3069283u);
  EXPECT_EQ(Crc32c({}, 77u), 77u);
  EXPECT_EQ(Crc32cCopy(nullptr, {}, 77u), 77u);
}

TEST(Crc32cCombine, EqualsTheSumOfTheWhole) {
  const std::vector<std::byte> bytes = RandomBytes(70000, 1);
  const std::span<const std::byte> all(bytes);
  for (const size_t first : {0, 1, 7, 64, 4095, 4096, 65536, 69999, 70000}) {
    const uint32_t a = Reference(all.first(first)), b = Reference(all.subspan(first));
    EXPECT_EQ(Crc32cCombine(a, b, all.size() - first), Reference(all)) << first;
  }
}

TEST(Crc32cCombine, IsAssociativeForLengthsBeyondAnyMemory) {
  const uint32_t a = 0x12345678, b = 0x9abcdef0, c = 0x0badcafe;
  for (const uint64_t n : {uint64_t{3}, uint64_t{1} << 31, (uint64_t{1} << 40) + 12345, uint64_t{1} << 61}) {
    const uint64_t m = n / 2 + 1;
    EXPECT_EQ(Crc32cCombine(Crc32cCombine(a, b, m), c, n), Crc32cCombine(a, Crc32cCombine(b, c, n), m + n)) << n;
  }
}

class Crc32cLevelTest : public testing::TestWithParam<Crc32cLevel> {
 protected:
  void SetUp() override {
    if (!internal::HasCrc32cLevel(GetParam())) {
      GTEST_SKIP() << "NOT TESTED: this processor lacks the instructions of " << testing::PrintToString(GetParam());
    }
  }
};

TEST_P(Crc32cLevelTest, KnowsThePublishedValues) {
  for (const auto& [bytes, crc] : KnownVectors()) EXPECT_EQ(Crc32cAt(GetParam(), bytes, 0), crc);
}

// Every length up to a few of the widest steps, then around the borders where an implementation changes its way.
TEST_P(Crc32cLevelTest, SumsAndCopiesEveryLengthAndNothingBeside) {
  std::vector<size_t> lengths(2100);
  std::iota(lengths.begin(), lengths.end(), size_t{0});
  for (const size_t border : {3072, 4096, 6144, 16384, 65536, 262144, 1 << 20}) {
    for (const int off : {-65, -64, -63, -9, -8, -7, -1, 0, 1, 7, 8, 9, 63, 64, 65}) lengths.push_back(border + off);
  }
  const std::vector<std::byte> bytes = RandomBytes(*std::max_element(lengths.begin(), lengths.end()), 2);
  Guarded guarded(bytes.size() + 64);
  for (const size_t n : lengths) {
    const auto source = std::span<const std::byte>(bytes).first(n);
    const uint32_t seed = static_cast<uint32_t>(n * 2654435761u);
    const uint32_t expected = Reference(source, seed);
    ASSERT_EQ(Crc32cAt(GetParam(), source, seed), expected) << n;
    ASSERT_EQ(~crc32_iscsi(reinterpret_cast<unsigned char*>(const_cast<std::byte*>(source.data())), static_cast<int>(n),
                           ~seed),
              expected)
        << n;
    ASSERT_EQ(Crc32cCopyAt(GetParam(), guarded.Prepare(n % 64), source, seed), expected) << n;
    guarded.Verify(source);
    ASSERT_FALSE(HasFailure()) << n;
  }
}

TEST_P(Crc32cLevelTest, CopiesBetweenAllMisalignments) {
  for (const size_t n : {63, 255, 321, 1100, 4999}) {
    const std::vector<std::byte> bytes = RandomBytes(n, 3);
    const uint32_t expected = Reference(bytes);
    Guarded from(n + 64), to(n + 64);
    for (size_t s = 0; s < 64; ++s) {
      std::byte* source = from.Prepare(s);
      std::memcpy(source, bytes.data(), n);
      ASSERT_EQ(Crc32cAt(GetParam(), {source, n}, 0), expected) << n << " from " << s;
      for (size_t d = 0; d < 64; ++d) {
        ASSERT_EQ(Crc32cCopyAt(GetParam(), to.Prepare(d), {source, n}, 0), expected) << n << ": " << s << " to " << d;
        to.Verify(bytes);
        ASSERT_FALSE(HasFailure()) << n << ": " << s << " to " << d;
      }
    }
  }
}

TEST_P(Crc32cLevelTest, ChainsSeedsAcrossAnySplit) {
  const std::vector<std::byte> bytes = RandomBytes(20000, 4);
  const std::span<const std::byte> all(bytes);
  const uint32_t expected = Reference(all);
  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    std::vector<std::byte> copy(bytes.size());
    uint32_t sum = 0, copied = 0;
    for (size_t at = 0; at < all.size();) {
      const size_t n = std::min<size_t>(random() % (round % 2 == 0 ? 100 : 6000), all.size() - at);
      sum = Crc32cAt(GetParam(), all.subspan(at, n), sum);
      copied = Crc32cCopyAt(GetParam(), copy.data() + at, all.subspan(at, n), copied);
      at += n;
    }
    ASSERT_EQ(sum, expected);
    ASSERT_EQ(copied, expected);
    ASSERT_EQ(copy, bytes);
  }
}

// The source fills a page up to its border; the pages around it cannot be read.
TEST_P(Crc32cLevelTest, ReadsNothingOutsideTheSource) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  auto* pages = static_cast<std::byte*>(mmap(nullptr, 3 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(pages, MAP_FAILED);
  ASSERT_EQ(mprotect(pages + page, page, PROT_READ | PROT_WRITE), 0);
  const std::vector<std::byte> bytes = RandomBytes(page, 7);
  std::memcpy(pages + page, bytes.data(), page);
  std::vector<std::byte> copy(page);
  for (size_t n = 0; n <= page; n += n < 1100 ? 1 : 37) {
    for (const size_t at : {size_t{0}, page - n}) {
      const uint32_t expected = Reference(std::span(bytes).subspan(at, n));
      ASSERT_EQ(Crc32cAt(GetParam(), {pages + page + at, n}, 0), expected) << n << " at " << at;
      ASSERT_EQ(Crc32cCopyAt(GetParam(), copy.data(), {pages + page + at, n}, 0), expected) << n << " at " << at;
    }
  }
  munmap(pages, 3 * page);
}

// Long enough for streaming stores.
TEST_P(Crc32cLevelTest, CopiesMoreThanTheCachesHold) {
  const size_t n = (size_t{64} << 20) + 4097;
  std::vector<std::byte> bytes(n);
  uint64_t state = 6;
  for (size_t i = 0; i + 8 <= n; i += 8) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    std::memcpy(bytes.data() + i, &state, 8);
  }
  const uint32_t expected = Reference(bytes, 9);
  EXPECT_EQ(Crc32cAt(GetParam(), bytes, 9), expected);
  Guarded guarded(n + 64);
  EXPECT_EQ(Crc32cCopyAt(GetParam(), guarded.Prepare(13), bytes, 9), expected);
  guarded.Verify(bytes);
}

INSTANTIATE_TEST_SUITE_P(Levels, Crc32cLevelTest,
                         testing::Values(Crc32cLevel::kPortable, Crc32cLevel::kSse42, Crc32cLevel::kAvx512),
                         [](const auto& info) {
                           return std::string(std::array{"Portable", "Sse42", "Avx512"}[static_cast<int>(info.param)]);
                         });

}  // namespace
}  // namespace perigee
