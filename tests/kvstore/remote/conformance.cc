#include "conformance.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/crc32c.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;

// A plane of so many sections of equal length; 600 of them make a head of 8 KiB.
TestPlane MakeSections(uint64_t n, size_t sections, size_t section_bytes) {
  TestPlane p = MakePlane(n, sections * section_bytes);
  p.header.sections.clear();
  for (size_t i = 0; i < sections; ++i) {
    p.header.sections.push_back(
        {static_cast<uint32_t>(section_bytes), Crc32c(std::span(p.payload).subspan(i * section_bytes, section_bytes))});
  }
  return p;
}

bool IsRetryable(const absl::Status& status) { return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status); }

TEST_P(RemoteTierTest, WhatWasPutComesBackOfEverySizeAndKind) {
  uint64_t n = 0;
  for (const size_t bytes : {1, 2, 4095, 4096, 4097, 100000, 1 << 20, (9 << 20) + 5}) {
    ++n;
    const TestPlane plane = MakePlane(n, bytes, pod::kPlaneKinds[n % 3]);
    const auto put = Put(*tier_, plane);
    ASSERT_TRUE(put.ok()) << bytes << ": " << put.status();
    EXPECT_EQ(*put, PutOutcome::kStored);
    EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus()) << bytes;
    const auto stat = Stat(*tier_, {plane.id});
    ASSERT_TRUE(stat[0].ok()) << stat[0].status();
    EXPECT_EQ(stat[0]->header, plane.header);
    EXPECT_EQ(stat[0]->encoded_header, plane.encoded());
    EXPECT_EQ(stat[0]->created_unix_us, 1234567);
  }
  EXPECT_EQ(tier_->health().operations, 0u);
  EXPECT_EQ(tier_->health().bytes, 0u);
}

TEST_P(RemoteTierTest, ObjectsOutliveTheTier) {
  const TestPlane plane = MakePlane(1, 50000);
  ASSERT_TRUE(Put(*tier_, plane).ok());
  OpenTier({});
  EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus());
}

TEST_P(RemoteTierTest, AHeadLongerThanUsualIsReadWholeAndInRanges) {
  const TestPlane plane = MakeSections(1, 600, 64);
  ASSERT_TRUE(Put(*tier_, plane).ok());
  EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus());
  EXPECT_TRUE(Stat(*tier_, {plane.id})[0].ok());
  std::vector<std::byte> got(64 * 10);
  const auto head = Get(*tier_, {plane.id, plane.payload.size(), 64 * 300, got});
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->header, plane.header);
  EXPECT_TRUE(std::equal(got.begin(), got.end(), plane.payload.begin() + 64 * 300));
}

TEST_P(RemoteTierTest, RangesOfWholeSectionsAreDeliveredAndOthersRefused) {
  const TestPlane plane = MakeSections(1, 8, 5000);
  ASSERT_TRUE(Put(*tier_, plane).ok());
  for (size_t first = 0; first < 8; ++first) {
    for (size_t count = 1; first + count <= 8; count += 2) {
      std::vector<std::byte> got(count * 5000);
      const auto head = Get(*tier_, {plane.id, plane.payload.size(), first * 5000, got});
      ASSERT_TRUE(head.ok()) << head.status();
      ASSERT_TRUE(std::equal(got.begin(), got.end(), plane.payload.begin() + static_cast<ptrdiff_t>(first * 5000)));
    }
  }
  std::vector<std::byte> got(5000);
  const auto refused = [&](uint64_t payload_bytes, uint64_t offset, size_t bytes) {
    return Get(*tier_, {plane.id, payload_bytes, offset, std::span(got).first(bytes)}).status().code();
  };
  EXPECT_EQ(refused(40000, 1, 5000), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(40000, 5000, 4999), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(40000, 0, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(40000, 35001, 5000), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(40000, ~uint64_t{0}, 5000), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused(5000, 0, 5000), absl::StatusCode::kFailedPrecondition) << "another length than the plane's, whole";
  EXPECT_EQ(refused(45000, 5000, 5000), absl::StatusCode::kFailedPrecondition) << "the same, in a range";
}

TEST_P(RemoteTierTest, WhatIsNotThereIsNotFoundOneByOne) {
  const TestPlane stored = MakePlane(1, 5000), absent = MakePlane(2, 5000);
  ASSERT_TRUE(Put(*tier_, stored).ok());
  EXPECT_EQ(GetAndCompare(*tier_, absent).code(), absl::StatusCode::kNotFound);
  std::vector<std::byte> part(absent.header.sections[0].bytes);
  EXPECT_EQ(Get(*tier_, {absent.id, 5000, 0, part}).status().code(), absl::StatusCode::kNotFound);
  const auto stats = Stat(*tier_, {absent.id, stored.id, absent.id});
  ASSERT_EQ(stats.size(), 3u);
  EXPECT_TRUE(absl::IsNotFound(stats[0].status()) && stats[1].ok() && absl::IsNotFound(stats[2].status()));
  const auto deleted = Delete(*tier_, {absent.id, stored.id});
  EXPECT_EQ(deleted[0].code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(deleted[1], absl::OkStatus());
  EXPECT_EQ(GetAndCompare(*tier_, stored).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(*Put(*tier_, stored), PutOutcome::kStored) << "can be stored again";
}

TEST_P(RemoteTierTest, PutsThatCannotBeRightAreRefusedAndStoreNothing) {
  const TestPlane plane = MakePlane(1, 5000), other = MakePlane(2, 5000);
  RemotePut put = PutOf(plane);
  put.payload = std::span(plane.payload).first(4999);
  EXPECT_EQ(Put(*tier_, put).status().code(), absl::StatusCode::kInvalidArgument) << "length";
  put = PutOf(plane);
  put.payload = other.payload;
  EXPECT_EQ(Put(*tier_, put).status().code(), absl::StatusCode::kInvalidArgument) << "checksum";
  put = PutOf(plane);
  put.encoded_header = other.encoded();
  EXPECT_EQ(Put(*tier_, put).status().code(), absl::StatusCode::kInvalidArgument) << "another plane's header";
  put = PutOf(plane);
  put.encoded_header.push_back('x');
  EXPECT_EQ(Put(*tier_, put).status().code(), absl::StatusCode::kInvalidArgument) << "bytes behind the header";
  put = PutOf(plane);
  put.payload = {};
  EXPECT_EQ(Put(*tier_, put).status().code(), absl::StatusCode::kInvalidArgument) << "empty";
  const TestPlane huge = MakePlane(3, kMaxObjectBytes + 1);
  const auto refused = Put(*tier_, huge);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(refused.status().message()), HasSubstr(absl::StrCat("at most ", kMaxObjectBytes)));
  EXPECT_LE(tier_->capabilities().max_payload_bytes, kMaxObjectBytes);
  for (const auto& stat : Stat(*tier_, {plane.id, huge.id}))
    EXPECT_EQ(stat.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(tier_->health().operations, 0u);
}

TEST_P(RemoteTierTest, TheLargestPlaneThatTheTierClaimsToTakeFits) {
  const TestPlane plane = MakePlane(1, tier_->capabilities().max_payload_bytes);
  EXPECT_GT(plane.payload.size(), kMaxObjectBytes / 2);
  ASSERT_TRUE(Put(*tier_, plane).ok());
  EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus());
}

TEST_P(RemoteTierTest, RacingPutsOfOneNameAllSucceedAndLeaveOneWholeObject) {
  const TestPlane plane = MakePlane(1, 300000);
  std::vector<Begun<absl::StatusOr<PutOutcome>>> puts;
  for (int i = 0; i < 8; ++i) puts.push_back(BeginPut(*tier_, PutOf(plane, 1000 + i)));
  int stored = 0;
  for (auto& put : puts) {
    const auto outcome = Wait(put);
    ASSERT_TRUE(outcome.ok()) << outcome.status();
    stored += *outcome == PutOutcome::kStored;
  }
  EXPECT_GE(stored, 1);
  if (tier_->capabilities().atomic_put) {
    EXPECT_EQ(stored, 1);
  }
  EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus());
  EXPECT_EQ(*Put(*tier_, plane), PutOutcome::kAlreadyStored);
  EXPECT_EQ(List(*tier_, "", 100)->planes, std::vector<PlaneId>{plane.id});
}

TEST_P(RemoteTierTest, ReadsDuringADeleteGetTheWholePlaneOrNothing) {
  const TestPlane plane = MakePlane(1, 400000);
  int whole = 0;
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(Put(*tier_, plane).ok());
    std::vector<std::vector<std::byte>> got(6, std::vector<std::byte>(plane.payload.size()));
    std::vector<Begun<absl::StatusOr<RecordHead>>> gets;
    for (size_t i = 0; i < 3; ++i) gets.push_back(BeginGet(*tier_, {plane.id, got[i].size(), 0, got[i]}));
    auto deleted = std::thread([&] { EXPECT_EQ(Delete(*tier_, {plane.id})[0], absl::OkStatus()); });
    for (size_t i = 3; i < 6; ++i) gets.push_back(BeginGet(*tier_, {plane.id, got[i].size(), 0, got[i]}));
    for (size_t i = 0; i < gets.size(); ++i) {
      const auto head = Wait(gets[i]);
      if (head.ok()) {
        ASSERT_EQ(got[i], plane.payload);
        ++whole;
      } else {
        ASSERT_EQ(head.status().code(), absl::StatusCode::kNotFound) << head.status();
      }
    }
    deleted.join();
  }
  EXPECT_GT(whole, 0);
}

TEST_P(RemoteTierTest, ListsEveryPlaneOnceInPagesAndNothingOfOthers) {
  std::set<PlaneId> stored;
  for (uint64_t i = 0; i < 25; ++i) {
    const TestPlane plane = MakePlane(i, 1000, pod::kPlaneKinds[i % 3]);
    ASSERT_TRUE(Put(*tier_, plane).ok());
    stored.insert(plane.id);
  }
  backend_->AddStranger("notes");
  backend_->AddStranger("PREFIX.zz.distant");
  for (const size_t max : {1, 7, 1000}) {
    std::vector<PlaneId> listed;
    std::string token;
    int pages = 0;
    do {
      const auto page = List(*tier_, token, max);
      ASSERT_TRUE(page.ok()) << page.status();
      ASSERT_LE(page->planes.size(), max);
      listed.insert(listed.end(), page->planes.begin(), page->planes.end());
      token = page->next_page_token;
      if (max == 7 && pages == 1) OpenTier({});  // Tokens outlive the tier.
      ASSERT_LT(++pages, 1000);
    } while (!token.empty());
    EXPECT_EQ(listed.size(), stored.size());
    EXPECT_EQ(std::set<PlaneId>(listed.begin(), listed.end()), stored);
  }
  EXPECT_EQ(List(*tier_, "nonsense", 10).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(List(*tier_, "", 0).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(RemoteTierTest, AWrongByteAnywhereIsDataLossAndNeverData) {
  const TestPlane plane = MakePlane(1, 5000), neighbour = MakePlane(2, 5000);
  ASSERT_TRUE(Put(*tier_, neighbour).ok());
  // Magic, length of the header, payload's length, key, checksum, plane header, padding, payload, padding.
  for (const size_t at : {0, 13, 17, 50, 85, 100, 4000, 4096, 4096 + 4999, 4096 + 5000, 12287}) {
    ASSERT_TRUE(Put(*tier_, plane).ok());
    backend_->Edit(plane.id, [&](std::string& bytes) { bytes.at(at) ^= 0x40; });
    EXPECT_EQ(GetAndCompare(*tier_, plane).code(), absl::StatusCode::kDataLoss) << at;
    const auto stats = Stat(*tier_, {neighbour.id, plane.id});
    EXPECT_TRUE(stats[0].ok());
    if (at < 4096) {
      EXPECT_EQ(stats[1].status().code(), absl::StatusCode::kDataLoss) << at;
    }
    // Deleted and put again it is well.
    EXPECT_EQ(Delete(*tier_, {plane.id})[0], absl::OkStatus());
  }
  ASSERT_TRUE(Put(*tier_, plane).ok());
  EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus());
}

TEST_P(RemoteTierTest, ARangeIsCheckedByItself) {
  const TestPlane plane = MakeSections(1, 4, 5000);
  ASSERT_TRUE(Put(*tier_, plane).ok());
  backend_->Edit(plane.id, [&](std::string& bytes) { bytes.at(4096 + 12000) ^= 1; });
  std::vector<std::byte> got(5000);
  for (uint64_t i = 0; i < 4; ++i) {
    const auto head = Get(*tier_, {plane.id, plane.payload.size(), i * 5000, got});
    EXPECT_EQ(head.status().code(), i == 2 ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk) << i;
  }
}

TEST_P(RemoteTierTest, AnObjectThatIsCutOrLongerOrAnothersIsDataLoss) {
  const TestPlane plane = MakePlane(1, 5000), other = MakePlane(2, 5000);
  ASSERT_TRUE(Put(*tier_, other).ok());
  std::string others;
  backend_->Edit(other.id, [&](std::string& bytes) { others = bytes; });
  const std::vector<std::function<void(std::string&)>> changes = {
      [](std::string& bytes) { bytes.clear(); },
      [](std::string& bytes) { bytes.resize(50); },
      [](std::string& bytes) { bytes.resize(4000); },
      [](std::string& bytes) { bytes.resize(bytes.size() - 1); },
      [](std::string& bytes) { bytes.append(4096, '\0'); },
      [](std::string& bytes) { bytes.append(3 << 20, '\0'); },
      [&](std::string& bytes) { bytes = others; },
  };
  for (size_t i = 0; i < changes.size(); ++i) {
    ASSERT_TRUE(Put(*tier_, plane).ok());
    backend_->Edit(plane.id, changes[i]);
    EXPECT_EQ(GetAndCompare(*tier_, plane).code(), absl::StatusCode::kDataLoss) << i;
    EXPECT_EQ(Stat(*tier_, {plane.id})[0].status().code(), absl::StatusCode::kDataLoss) << i;
    EXPECT_EQ(Delete(*tier_, {plane.id})[0], absl::OkStatus());
  }
}

TEST_P(RemoteTierTest, AHangingReadEndsByItsDeadlineAndNeverWritesAfterwards) {
  const TestPlane plane = MakePlane(1, 200000);
  ASSERT_TRUE(Put(*tier_, plane).ok());
  backend_->Stall(plane.id);
  std::vector<std::byte> got(plane.payload.size(), std::byte{0xA5});
  const std::vector<std::byte> untouched = got;
  const absl::Time begin = absl::Now();
  const auto head = Get(*tier_, {plane.id, got.size(), 0, got}, absl::Milliseconds(300));
  EXPECT_EQ(head.status().code(), absl::StatusCode::kDeadlineExceeded) << head.status();
  EXPECT_GE(absl::Now() - begin, absl::Milliseconds(300));
  EXPECT_LT(absl::Now() - begin, absl::Milliseconds(300) + kGrace);
  EXPECT_TRUE(tier_->health().slow);
  EXPECT_FALSE(tier_->health().message.empty());
  EXPECT_EQ(Get(*tier_, {plane.id, got.size(), 0, got}, -absl::Seconds(1)).status().code(),
            absl::StatusCode::kDeadlineExceeded)
      << "a deadline in the past";
  backend_->Resume();
  EXPECT_TRUE(Eventually([&] { return tier_->health().operations == 0; }));
  EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus()) << "later answers have come by now";
  EXPECT_EQ(got, untouched);
}

TEST_P(RemoteTierTest, ACancelledReadEndsAtOnceAndNeverWritesAfterwards) {
  const TestPlane plane = MakePlane(1, 200000);
  ASSERT_TRUE(Put(*tier_, plane).ok());
  backend_->Stall(plane.id);
  std::vector<std::byte> got(plane.payload.size(), std::byte{0xA5});
  const std::vector<std::byte> untouched = got;
  auto get = BeginGet(*tier_, {plane.id, got.size(), 0, got});
  ASSERT_TRUE(get.id.ok());
  const absl::Time begin = absl::Now();
  tier_->Cancel(*get.id);
  EXPECT_EQ(Wait(get).status().code(), absl::StatusCode::kCancelled);
  EXPECT_LT(absl::Now() - begin, kGrace);
  tier_->Cancel(*get.id);  // Unknown by now: nothing happens.
  backend_->Resume();
  EXPECT_TRUE(Eventually([&] { return tier_->health().operations == 0; }));
  EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus());
  EXPECT_EQ(got, untouched);
}

TEST_P(RemoteTierTest, OverTheBoundsOperationsAreRefusedUntilOthersHaveEnded) {
  const TestPlane plane = MakePlane(1, 100000);
  for (const RemoteLimits& limits : {RemoteLimits{.max_operations = 2, .max_bytes = 1 << 30},
                                     RemoteLimits{.max_operations = 100, .max_bytes = 250000}}) {
    OpenTier(limits);
    ASSERT_TRUE(Put(*tier_, plane).ok());
    backend_->Stall(plane.id);
    std::vector<std::byte> a(100000), b(100000), c(100000);
    auto first = BeginGet(*tier_, {plane.id, 100000, 0, a}), second = BeginGet(*tier_, {plane.id, 100000, 0, b});
    ASSERT_TRUE(first.id.ok() && second.id.ok());
    EXPECT_EQ(tier_->health().operations, 2u);
    EXPECT_GE(tier_->health().bytes, 200000u);
    auto third = BeginGet(*tier_, {plane.id, 100000, 0, c});
    EXPECT_EQ(third.id.status().code(), absl::StatusCode::kAborted) << third.id.status();
    EXPECT_FALSE(third.pending->ready());
    tier_->Cancel(*first.id);
    tier_->Cancel(*second.id);
    EXPECT_EQ(Wait(first).status().code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(Wait(second).status().code(), absl::StatusCode::kCancelled);
    backend_->Resume();
    EXPECT_TRUE(Eventually([&] { return tier_->health().operations == 0; }));
    EXPECT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus());
  }
  EXPECT_EQ(Delete(*tier_, std::vector<PlaneId>(101, plane.id))[0].code(), absl::StatusCode::kInvalidArgument)
      << "a batch that can never go through";
}

TEST_P(RemoteTierTest, WhileTheBackendIsAwayEverythingEndsRetryablyAndLaterWorksAgain) {
  const TestPlane before = MakePlane(1, 100000), during = MakePlane(2, 100000);
  ASSERT_TRUE(Put(*tier_, before).ok());
  backend_->GoAway();
  const absl::Duration limit = absl::Seconds(1);
  const absl::Time begin = absl::Now();
  EXPECT_TRUE(IsRetryable(GetAndCompare(*tier_, before, limit)));
  EXPECT_TRUE(IsRetryable(Put(*tier_, during, limit).status()));
  EXPECT_TRUE(IsRetryable(Stat(*tier_, {before.id}, limit)[0].status()));
  EXPECT_TRUE(IsRetryable(Delete(*tier_, {before.id}, limit)[0]));
  EXPECT_TRUE(IsRetryable(List(*tier_, "", 10, limit).status()));
  EXPECT_LT(absl::Now() - begin, 5 * (limit + kGrace));
  EXPECT_TRUE(Eventually([&] { return !tier_->health().reachable; }));
  EXPECT_FALSE(tier_->health().message.empty());
  backend_->ComeBack();
  EXPECT_TRUE(Eventually([&] { return tier_->health().reachable; }));
  const absl::Status deleted = Delete(*tier_, {before.id})[0];
  EXPECT_TRUE(deleted.ok() || absl::IsNotFound(deleted)) << deleted << "; a delete given up may have been done";
  ASSERT_TRUE(Put(*tier_, during).ok());
  EXPECT_EQ(GetAndCompare(*tier_, during), absl::OkStatus());
  ASSERT_TRUE(Put(*tier_, before).ok());
  EXPECT_EQ(GetAndCompare(*tier_, before), absl::OkStatus());
  EXPECT_TRUE(Eventually([&] { return tier_->health().operations == 0; }));
}

TEST_P(RemoteTierTest, DestroyingTheTierEndsWhatIsUnderWay) {
  const TestPlane plane = MakePlane(1, 100000);
  ASSERT_TRUE(Put(*tier_, plane).ok());
  backend_->Stall(plane.id);
  std::vector<std::byte> got(100000);
  auto get = BeginGet(*tier_, {plane.id, 100000, 0, got});
  std::thread destroying([&] { tier_.reset(); });
  EXPECT_EQ(Wait(get).status().code(), absl::StatusCode::kCancelled);
  backend_->Resume();
  destroying.join();
}

TEST_P(RemoteTierTest, ManyOperationsOfManyThreadsEndRight) {
  std::vector<std::thread> threads;
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 40; ++i) {
        const TestPlane plane = MakePlane(t * 1000 + i % 10, 20000 + 1000 * t);
        const auto put = Put(*tier_, plane);
        ASSERT_TRUE(put.ok()) << put.status();
        ASSERT_EQ(GetAndCompare(*tier_, plane), absl::OkStatus());
        if (i % 3 == 0) {
          auto get = BeginGet(*tier_, {plane.id, plane.payload.size(), 0, std::span<std::byte>()});
          EXPECT_FALSE(get.id.ok());
          ASSERT_EQ(Delete(*tier_, {plane.id})[0], absl::OkStatus());
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tier_->health().operations, 0u);
}

}  // namespace
}  // namespace perigee::kvstore
