// What a group's inbox makes of messages that are early, late, twice, foreign or damaged.
#include "transport/collective/inbox.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "absl/time/clock.h"

namespace perigee::transport::internal {
namespace {

using testing::HasSubstr;

constexpr uint64_t kGroup = 77;

Operation Sum(uint64_t sequence, uint64_t bytes = 400) { return {sequence, OperationKind::kAllReduceSum, 0, bytes}; }
Operation Barrier(uint64_t sequence) { return {sequence, OperationKind::kBarrier, 0, 0}; }

bool Connected() { return true; }
bool Lost() { return false; }

class InboxTest : public testing::Test {
 protected:
  InboxTest() { inbox_.Open(kGroup, /*rank=*/0, /*size=*/3); }
  void From(int rank, const Operation& operation, uint32_t step, absl::string_view payload) {
    inbox_.Deliver(EncodeStep(kGroup, rank, operation, step), payload);
  }
  absl::StatusOr<std::string> Take(int rank, uint32_t step) { return inbox_.Take(rank, step, absl::Now(), Connected); }
  Inbox inbox_;
};

TEST_F(InboxTest, StepsMayComeBeforeTheirOperationAndInAnyOrder) {
  From(2, Sum(2), 1, "two, one");
  From(2, Sum(2), 0, "two, zero");
  From(1, Sum(1), 0, "one");
  ASSERT_TRUE(inbox_.Begin(Sum(1)).ok());
  EXPECT_EQ(*Take(1, 0), "one");
  EXPECT_TRUE(absl::IsDeadlineExceeded(Take(2, 0).status()));  // of operation 1, which rank 2 has not sent
  ASSERT_TRUE(inbox_.Begin(Sum(2)).ok());
  EXPECT_EQ(*Take(2, 0), "two, zero");
  EXPECT_EQ(*Take(2, 1), "two, one");
}

TEST_F(InboxTest, AnotherOperationOfTheSameNumberIsADisagreementWheneverItComes) {
  From(1, Barrier(1), 0, "");
  const absl::Status early = inbox_.Begin(Sum(1));
  EXPECT_TRUE(absl::IsInternal(early));
  EXPECT_THAT(std::string(early.message()), AllOf(HasSubstr("Barrier"), HasSubstr("AllReduceSum of 400 bytes")));

  for (const Operation& other : {Barrier(1), Sum(1, 404), Operation{1, OperationKind::kBroadcast, 1, 400}, Sum(0),
                                 Sum(4), Operation{1, static_cast<OperationKind>(99), 0, 400}}) {
    Inbox inbox;
    inbox.Open(kGroup, 0, 3);
    ASSERT_TRUE(inbox.Begin(Sum(1)).ok());
    inbox.Deliver(EncodeStep(kGroup, 1, other, 0), "");
    EXPECT_TRUE(absl::IsInternal(inbox.Take(2, 0, absl::Now(), Connected).status())) << Describe(other);
  }
}

TEST_F(InboxTest, AStepThatComesTwiceBreaksTheGroup) {
  ASSERT_TRUE(inbox_.Begin(Sum(1)).ok());
  From(1, Sum(1), 0, "a");
  From(1, Sum(1), 0, "a");
  EXPECT_TRUE(absl::IsInternal(inbox_.status()));
}

TEST_F(InboxTest, ARankThatRunsAheadIsCutOffBeforeItFillsTheMemory) {
  ASSERT_TRUE(inbox_.Begin(Sum(1)).ok());
  uint32_t step = 0;
  while (inbox_.status().ok() && step < 100000) From(1, Sum(1), step++, "x");
  EXPECT_TRUE(absl::IsInternal(inbox_.status()));
  EXPECT_LE(step, 300u);
}

TEST_F(InboxTest, ForeignAndDamagedMessagesAreDropped) {
  ASSERT_TRUE(inbox_.Begin(Sum(1)).ok());
  inbox_.Deliver(EncodeStep(kGroup + 1, 1, Barrier(1), 0), "another group's");
  inbox_.Deliver(EncodeStep(kGroup, 3, Barrier(1), 0), "no such rank");
  inbox_.Deliver(EncodeStep(kGroup, 0, Barrier(1), 0), "from this rank itself");
  inbox_.Deliver(EncodeStep(kGroup, -1, Barrier(1), 0), "no such rank");
  inbox_.Deliver(EncodeAbort(kGroup + 1, 1, 1, absl::UnavailableError("another group's")), "");
  const std::string good = EncodeStep(kGroup, 1, Barrier(1), 0);
  for (size_t n = 0; n < good.size(); ++n) inbox_.Deliver(good.substr(0, n), "truncated");
  inbox_.Deliver(good + "x", "too long");
  inbox_.Deliver("x" + good.substr(1), "another magic");
  EXPECT_TRUE(inbox_.status().ok()) << inbox_.status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(Take(1, 0).status()));
}

TEST_F(InboxTest, GivingUpInALaterOperationLetsThisOneEnd) {
  ASSERT_TRUE(inbox_.Begin(Sum(1)).ok());
  inbox_.Deliver(EncodeAbort(kGroup, 2, 2, absl::UnavailableError("rank 1 died")), "");
  From(1, Sum(1), 0, "late");
  EXPECT_EQ(*Take(1, 0), "late");
  const absl::Status next = inbox_.Begin(Sum(2));
  EXPECT_TRUE(absl::IsUnavailable(next));
  EXPECT_THAT(std::string(next.message()), HasSubstr("rank 2 gave up: rank 1 died"));
}

TEST_F(InboxTest, ADisagreementElsewhereIsTold) {
  ASSERT_TRUE(inbox_.Begin(Sum(1)).ok());
  inbox_.Deliver(EncodeAbort(kGroup, 2, 1, absl::InternalError("the ranks disagree")), "");
  EXPECT_TRUE(absl::IsInternal(Take(1, 0).status()));
}

TEST_F(InboxTest, ALostRanksLastMessageStillCounts) {
  ASSERT_TRUE(inbox_.Begin(Sum(1)).ok());
  From(1, Sum(1), 0, "last words");
  const absl::Time deadline = absl::Now() + absl::Seconds(30);
  EXPECT_EQ(*inbox_.Take(1, 0, deadline, Lost), "last words");
  const absl::Status gone = inbox_.Take(2, 0, deadline, Lost).status();
  EXPECT_TRUE(absl::IsUnavailable(gone)) << gone;
  EXPECT_LT(absl::Now(), deadline - absl::Seconds(10));
  // At the deadline a loss is still a loss.
  EXPECT_TRUE(absl::IsUnavailable(inbox_.Take(2, 0, absl::Now(), Lost).status()));
}

TEST(ClosedInboxTest, DropsEverythingBeforeTheGroupIsKnown) {
  Inbox inbox;
  inbox.Deliver(EncodeStep(0, 1, Sum(1), 0), "x");
  inbox.Open(kGroup, 0, 2);
  ASSERT_TRUE(inbox.Begin(Sum(1)).ok());
  EXPECT_TRUE(absl::IsDeadlineExceeded(inbox.Take(1, 0, absl::Now(), Connected).status()));
}

}  // namespace
}  // namespace perigee::transport::internal
