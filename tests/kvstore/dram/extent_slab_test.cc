#include "kvstore/dram/extent_slab.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>
#include <vector>

namespace perigee::kvstore {
namespace {

constexpr uint64_t kPage = kPageBytes;

// What a slab is, done the plain way: live extents, and the gaps between them.
class Oracle {
 public:
  explicit Oracle(uint64_t pages) : pages_(pages) {}
  void Add(const Extent& e, uint64_t bytes) {
    const uint64_t pages = RoundUpToPage(bytes) / kPage;
    ASSERT_LE(e.page + pages, pages_);
    const auto next = live_.lower_bound(e.page);
    if (next != live_.end()) {
      ASSERT_LE(e.page + pages, next->first);
    }
    if (next != live_.begin()) {
      ASSERT_LE(std::prev(next)->first + std::prev(next)->second, e.page);
    }
    live_[e.page] = pages;
    used_ += pages;
    slack_ += pages * kPage - bytes;
  }
  void Remove(const Extent& e, uint64_t bytes) {
    const auto it = live_.find(e.page);
    ASSERT_NE(it, live_.end());
    used_ -= it->second;
    slack_ -= it->second * kPage - bytes;
    live_.erase(it);
  }
  // Sizes of the gaps, in pages.
  std::vector<uint64_t> Gaps() const {
    std::vector<uint64_t> gaps;
    uint64_t at = 0;
    for (const auto& [page, pages] : live_) {
      if (page > at) gaps.push_back(page - at);
      at = page + pages;
    }
    if (pages_ > at) gaps.push_back(pages_ - at);
    return gaps;
  }
  uint64_t used() const { return used_; }
  uint64_t slack() const { return slack_; }

 private:
  const uint64_t pages_;
  std::map<uint64_t, uint64_t> live_;
  uint64_t used_ = 0, slack_ = 0;
};

struct Live {
  Extent extent;
  uint64_t bytes = 0;
};

// In a slab too small for runs: every request is answered exactly as the oracle would.
class WithoutRuns : public testing::TestWithParam<uint64_t> {};
INSTANTIATE_TEST_SUITE_P(Seeds, WithoutRuns, testing::Range(uint64_t{0}, uint64_t{6}));

TEST_P(WithoutRuns, RandomUseIsRefusedOnlyWhereNoGapFitsAndTakesTheTightestGap) {
  std::mt19937_64 random(GetParam());
  const uint64_t pages = 1 + random() % 3000;  // Of any size, not a power of two.
  ExtentSlab slab(pages * kPage + random() % kPage);
  ASSERT_EQ(slab.capacity_bytes(), pages * kPage);
  Oracle oracle(pages);
  std::vector<Live> live;
  const uint64_t largest = GetParam() % 2 == 0 ? 40 : 600;
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0 || live.empty()) {
      const uint64_t bytes = 1 + random() % (kPage * (1 + random() % largest));
      const uint64_t need = RoundUpToPage(bytes) / kPage;
      const std::vector<uint64_t> gaps = oracle.Gaps();
      uint64_t tightest = ~uint64_t{0};
      for (uint64_t gap : gaps) tightest = gap >= need ? std::min(tightest, gap) : tightest;
      const std::optional<Extent> extent = slab.Allocate(bytes);
      ASSERT_EQ(extent.has_value(), tightest != ~uint64_t{0});
      if (!extent) continue;
      ASSERT_NO_FATAL_FAILURE(oracle.Add(*extent, bytes));
      // One gap of that size is smaller by the extent now.
      const std::vector<uint64_t> after = oracle.Gaps();
      ASSERT_EQ(std::count(after.begin(), after.end(), tightest), std::count(gaps.begin(), gaps.end(), tightest) - 1);
      live.push_back({*extent, bytes});
    } else {
      const size_t i = random() % live.size();
      ASSERT_TRUE(slab.Free(live[i].extent));
      ASSERT_FALSE(slab.Free(live[i].extent)) << "twice";
      oracle.Remove(live[i].extent, live[i].bytes);
      live[i] = live.back();
      live.pop_back();
    }
    const std::vector<uint64_t> gaps = oracle.Gaps();
    ASSERT_EQ(slab.used_bytes(), oracle.used() * kPage);
    ASSERT_EQ(slab.internal_bytes(), oracle.slack());
    ASSERT_EQ(slab.extents(), live.size());
    ASSERT_EQ(slab.free_pieces(), gaps.size()) << "free neighbours are one piece";
    ASSERT_EQ(slab.largest_free_bytes(), gaps.empty() ? 0 : *std::max_element(gaps.begin(), gaps.end()) * kPage);
  }
  for (const Live& l : live) ASSERT_TRUE(slab.Free(l.extent));
  EXPECT_EQ(slab.free_pieces(), 1u);
  EXPECT_EQ(slab.largest_free_bytes(), slab.capacity_bytes());
  EXPECT_EQ(slab.fragmentation(), 0.0);
  EXPECT_EQ(slab.internal_bytes(), 0u);
}

// Large enough for runs and for sizes that share a class.
TEST(ExtentSlab, RandomUseOfAllSizesNeverOverlapsAndEndsInOnePiece) {
  for (uint64_t seed = 0; seed < 6; ++seed) {
    std::mt19937_64 random(seed);
    const uint64_t pages = 100'003 + random() % 50'000;
    ExtentSlab slab(pages * kPage);
    Oracle oracle(pages);
    std::vector<Live> live;
    uint64_t refused = 0;
    for (int step = 0; step < 30000; ++step) {
      // In turns growing and shrinking, so that it is full at times and nearly empty at others.
      const bool grow = random() % 100 < (step / 5000 % 2 == 0 ? 65 : 35);
      if (grow || live.empty()) {
        const int octave = static_cast<int>(random() % 15);  // 1 page to 64 MiB, each scale as often.
        const uint64_t bytes = 1 + random() % (kPage << octave);
        const std::optional<Extent> extent = slab.Allocate(bytes);
        if (!extent) {
          ++refused;
          const uint64_t need = RoundUpToPage(bytes);
          // Refused only if nothing fits; above 16 MiB, if nothing of 1/2048 more fits.
          const std::vector<uint64_t> gaps = oracle.Gaps();
          if (slab.runs() == 0) {
            ASSERT_LT(*std::max_element(gaps.begin(), gaps.end()) * kPage, need + need / 2048 + kPage);
          }
          ASSERT_LT(slab.largest_free_bytes(), need);
          continue;
        }
        ASSERT_NO_FATAL_FAILURE(oracle.Add(*extent, bytes));
        live.push_back({*extent, bytes});
      } else {
        const size_t i = random() % live.size();
        ASSERT_TRUE(slab.Free(live[i].extent));
        oracle.Remove(live[i].extent, live[i].bytes);
        live[i] = live.back();
        live.pop_back();
      }
      ASSERT_GE(slab.used_bytes(), oracle.used() * kPage);
      // What is used beyond the extents' pages are the runs' ends.
      ASSERT_EQ(slab.used_bytes() - oracle.used() * kPage, slab.internal_bytes() - oracle.slack());
      ASSERT_LE(slab.internal_bytes() - oracle.slack(), slab.runs() * 9 * kPage);
      ASSERT_LE(slab.free_pieces(), slab.extents() + slab.runs() + 1);
      ASSERT_EQ(slab.extents(), live.size());
    }
    EXPECT_GT(refused, 10u) << "the slab was never full";
    for (const Live& l : live) ASSERT_TRUE(slab.Free(l.extent));
    EXPECT_EQ(slab.free_pieces(), 1u);
    EXPECT_EQ(slab.runs(), 0u);
    EXPECT_EQ(slab.largest_free_bytes(), pages * kPage);
  }
}

TEST(ExtentSlab, FullAndImpossibleRequestsAreRefused) {
  ExtentSlab slab(kPage * 4 + 100);
  EXPECT_EQ(slab.capacity_bytes(), kPage * 4);
  EXPECT_FALSE(slab.Allocate(0));
  EXPECT_FALSE(slab.Allocate(kPage * 4 + 1));
  EXPECT_FALSE(slab.Allocate(UINT64_MAX));
  const std::optional<Extent> all = slab.Allocate(kPage * 4);
  ASSERT_TRUE(all);
  EXPECT_EQ(all->offset(), 0u);
  EXPECT_FALSE(slab.Allocate(1));
  EXPECT_EQ(slab.largest_free_bytes(), 0u);
  EXPECT_EQ(slab.fragmentation(), 0.0);
  EXPECT_FALSE(slab.Free({all->node, 1})) << "inside an extent";
  EXPECT_FALSE(slab.Free({all->node + 1, 0}));
  EXPECT_FALSE(slab.Free(Extent{}));
  EXPECT_TRUE(slab.Free(*all));
  EXPECT_FALSE(slab.Free(*all)) << "twice";

  ExtentSlab none(kPage - 1);
  EXPECT_EQ(none.capacity_bytes(), 0u);
  EXPECT_FALSE(none.Allocate(1));
  EXPECT_EQ(none.largest_free_bytes(), 0u);
}

TEST(ExtentSlab, TheWholeOfAnyCapacityIsOneExtent) {
  // Above 16 MiB a class holds several sizes: the whole must be found although its class' least size is smaller.
  for (const uint64_t pages : {1, 63, 64, 65, 4095, 4096, 4097, 16'383, 16'385, 1'000'003}) {
    ExtentSlab slab(pages * kPage);
    EXPECT_EQ(slab.largest_free_bytes(), pages * kPage);
    const std::optional<Extent> all = slab.Allocate(pages * kPage);
    ASSERT_TRUE(all) << pages;
    EXPECT_EQ(slab.free_bytes(), 0u);
    EXPECT_TRUE(slab.Free(*all));
    EXPECT_EQ(slab.largest_free_bytes(), pages * kPage);
  }
}

TEST(ExtentSlab, TerabytesAreCountedRight) {
  ExtentSlab slab(uint64_t{12} << 40);
  const auto a = slab.Allocate(uint64_t{5} << 40), b = slab.Allocate(uint64_t{7} << 40);
  ASSERT_TRUE(a && b);
  EXPECT_EQ(b->offset(), uint64_t{5} << 40);
  EXPECT_EQ(slab.free_bytes(), 0u);
  ASSERT_TRUE(slab.Free(*a) && slab.Free(*b));
  EXPECT_EQ(slab.free_pieces(), 1u);
}

// The place of a freed plane fits the next plane of its size, whatever the size. (With classes of several sizes whose
// least must fit, as in plain TLSF, a place of 1000 pages is passed over when 1000 are asked for.)
TEST(ExtentSlab, FreedPlacesFitPlanesOfTheSameSize) {
  for (const uint64_t pages : {3, 17, 100, 1000, 2050, 4095, 5001, 9999}) {
    constexpr uint64_t kCount = 40;
    ExtentSlab slab((pages * kCount + 1) * kPage);
    std::vector<Extent> extents;
    for (uint64_t i = 0; i < kCount; ++i) extents.push_back(*slab.Allocate(pages * kPage));
    for (int round = 0; round < 3; ++round) {
      for (size_t i = 0; i < kCount; i += 2) ASSERT_TRUE(slab.Free(extents[i]));  // Never two neighbours.
      for (size_t i = 0; i < kCount; i += 2) {
        const std::optional<Extent> again = slab.Allocate(pages * kPage);
        ASSERT_TRUE(again) << pages;
        extents[i] = *again;
      }
    }
  }
}

// The worst that can be done to a slab that moves nothing: keep one small extent in each piece of memory. The bound of
// the header: refused only where every piece is too small, and there are no more pieces than extents and one.
TEST(ExtentSlab, WorstCaseFragmentationIsWithinTheBound) {
  constexpr uint64_t kPages = 32'768;                // 128 MiB
  for (const uint64_t kept : {20, 32, 100}) {        // Pages of those that stay (not small: small ones have runs).
    for (const uint64_t wanted : {64, 256, 1024}) {  // Pages of those that are asked for afterwards.
      ExtentSlab slab(kPages * kPage);
      std::vector<Extent> fill, stay;
      for (;;) {
        const auto s = slab.Allocate(kept * kPage);
        const auto f = slab.Allocate((wanted - 1) * kPage);
        if (s) stay.push_back(*s);
        if (f) fill.push_back(*f);
        if (!s && !f) break;
      }
      while (slab.largest_free_bytes() > 0) stay.push_back(*slab.Allocate(slab.largest_free_bytes()));
      for (const Extent& e : fill) ASSERT_TRUE(slab.Free(e));
      // The adversary has made it: nothing of that size fits. It cost him an extent for every piece.
      EXPECT_FALSE(slab.Allocate(wanted * kPage));
      EXPECT_LE(slab.free_pieces(), stay.size() + 1);
      EXPECT_LT(slab.free_bytes(), (stay.size() + 1) * wanted * kPage);
      EXPECT_GT(slab.used_bytes(), slab.capacity_bytes() * kept / (kept + wanted) * 9 / 10);
      for (const Extent& e : stay) ASSERT_TRUE(slab.Free(e));
    }
  }
}

TEST(ExtentSlab, SmallExtentsThatStayDoNotCutTheMemory) {
  constexpr uint64_t kMiB = uint64_t{1} << 20;
  ExtentSlab slab(512 * kMiB);
  // Blocks as a store sees them: a large plane, then a summary that outlives it.
  std::vector<Extent> large, small;
  for (;;) {
    const auto l = slab.Allocate(4 * kMiB);
    if (!l) break;
    large.push_back(*l);
    const auto s = slab.Allocate(2 * kPage);
    ASSERT_TRUE(s || large.size() > 100);
    if (s) small.push_back(*s);
  }
  EXPECT_GE(large.size(), 126u);
  for (const Extent& e : large) ASSERT_TRUE(slab.Free(e));
  // All summaries stay, and yet nearly all memory is one piece.
  EXPECT_GE(slab.largest_free_bytes(), 510 * kMiB);
  EXPECT_LE(slab.run_free_bytes(), kPage * 256);
  for (const Extent& e : small) ASSERT_TRUE(slab.Free(e));
  EXPECT_EQ(slab.largest_free_bytes(), 512 * kMiB);
}

TEST(ExtentSlab, SmallRequestsGetWhatIsLeftWhenNoRunCanBeHad) {
  ExtentSlab slab(ExtentSlab::kLeastForRuns);
  ASSERT_TRUE(slab.Allocate(slab.capacity_bytes() - 20 * kPage));
  std::vector<Extent> small;
  for (;;) {
    const auto s = slab.Allocate(kPage);
    if (!s) break;
    small.push_back(*s);
  }
  EXPECT_EQ(small.size(), 20u);
  EXPECT_EQ(slab.runs(), 0u);
  for (const Extent& e : small) ASSERT_TRUE(slab.Free(e));
  EXPECT_EQ(slab.largest_free_bytes(), 20 * kPage);
}

TEST(ExtentSlab, EverySmallSizeFillsItsRuns) {
  for (uint64_t pages = 1; pages <= ExtentSlab::kSmallBytes / kPage; ++pages) {
    ExtentSlab slab(ExtentSlab::kLeastForRuns);
    const uint64_t in_run = ExtentSlab::kRunBytes / (pages * kPage);
    std::vector<Extent> extents;
    for (uint64_t i = 0; i < 3 * in_run; ++i) extents.push_back(*slab.Allocate(pages * kPage));
    EXPECT_EQ(slab.runs(), 3u);
    EXPECT_EQ(slab.run_free_bytes(), 0u);
    EXPECT_LE(static_cast<double>(slab.internal_bytes()), 0.036 * 3 * ExtentSlab::kRunBytes);
    std::mt19937_64 random(pages);
    std::shuffle(extents.begin(), extents.end(), random);
    // One freed in each of the runs: its place is used again before a new run is taken.
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(slab.Free(extents[static_cast<size_t>(i)]));
      EXPECT_EQ(slab.run_free_bytes(), pages * kPage);
      extents[static_cast<size_t>(i)] = *slab.Allocate(pages * kPage);
    }
    EXPECT_EQ(slab.runs(), 3u);
    for (const Extent& e : extents) ASSERT_TRUE(slab.Free(e));
    EXPECT_EQ(slab.runs(), 0u);
    EXPECT_EQ(slab.free_pieces(), 1u);
  }
}

TEST(ExtentSlab, BookkeepingIsUsedAgain) {
  ExtentSlab slab(uint64_t{1} << 30);
  std::mt19937_64 random(1);
  std::vector<Extent> live;
  uint64_t after_first_round = 0;
  for (int round = 0; round < 5; ++round) {
    for (int i = 0; i < 20000; ++i) {
      if (const auto e = slab.Allocate(kPage * (1 + random() % 30))) live.push_back(*e);
    }
    for (const Extent& e : live) ASSERT_TRUE(slab.Free(e));
    live.clear();
    if (round == 0) after_first_round = slab.MemoryBytes();
  }
  EXPECT_LE(slab.MemoryBytes(), after_first_round + after_first_round / 4);
  EXPECT_LE(after_first_round, 4u << 20);
}

}  // namespace
}  // namespace perigee::kvstore
