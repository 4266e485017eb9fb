// Processes that die, pause and come back, in the middle of batches, on two hosts.
#include <thread>

#include "fixture.h"

namespace perigee::fault {
namespace {

// How a batch under way ended, and how long that took.
struct Outcome {
  absl::Status status;
  absl::Duration took;
};

class ProcessTest : public FaultTest, public testing::WithParamInterface<Way> {
 protected:
  // Starts a batch that is sure to be under way when `fault` happens (the link is slow), and waits for it.
  Outcome MoveDuring(const Link& link, absl::Duration limit, const std::function<void()>& fault) {
    Fill(local_, kLocalGapSeed);
    const absl::Time start = absl::Now();
    auto batch = StartMove(link, GetParam(), local_, start + limit);
    EXPECT_TRUE(batch.ok()) << batch.status();
    if (!batch.ok()) return {batch.status(), absl::ZeroDuration()};
    absl::SleepFor(absl::Milliseconds(100));  // some pieces through, most not: 32 MiB take 2.7 s
    EXPECT_FALSE(batch->done());
    fault();
    const absl::Status status = batch->Wait();
    return {status, absl::Now() - start};
  }
  void SetUp() override {
    FaultTest::SetUp();
    if (IsSkipped()) return;
    ASSERT_TRUE(network_->LimitRate(0, 100).ok());
  }
  void Quicken() { ASSERT_TRUE(network_->LimitRate(0, 10000).ok()); }
};

TEST_P(ProcessTest, AnOwnerKilledInMidBatchIsUnavailableAndServesAgainAfterItsRestart) {
  auto peer = std::make_unique<PeerProcess>(*network_, Place::kHostB);
  const auto link = LinkTo(*peer);
  ASSERT_TRUE(link.ok()) << link.status();
  const Outcome outcome = MoveDuring(*link, absl::Seconds(5), [&] { peer->process().Kill(); });
  EXPECT_TRUE(IsRetryable(outcome.status)) << outcome.status;
  EXPECT_LT(outcome.took, absl::Seconds(5) + kGrace);
  // The batch has ended: nothing may come into this memory any more.
  Fill(local_, 55);
  Quicken();
  const uint16_t port = peer->port();
  peer = std::make_unique<PeerProcess>(*network_, Place::kHostB, port);
  ASSERT_EQ(peer->port(), port) << peer->said();
  const auto again = LinkTo(*peer);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(CountWrong(local_, 55, 55), 0u) << "bytes came after their batch had ended";
  ExpectWorks(*again, *peer);
}

TEST_P(ProcessTest, AnOwnerPausedInMidBatchIsMissedByTheDeadlineAndGoesOnAfterwards) {
  PeerProcess peer(*network_, Place::kHostB);
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  const absl::Duration limit = absl::Seconds(1);
  const Outcome outcome = MoveDuring(*link, limit, [&] { peer.process().Pause(); });
  EXPECT_TRUE(absl::IsDeadlineExceeded(outcome.status)) << outcome.status;
  EXPECT_LT(outcome.took, limit + kGrace);
  Fill(local_, 55);
  // While it is paused nothing hangs either.
  const absl::Time start = absl::Now();
  const auto refused = LinkTo(peer, limit);
  EXPECT_TRUE(IsRetryable(refused.status())) << refused.status();
  EXPECT_LT(absl::Now() - start, limit + kGrace);
  Quicken();
  peer.process().Continue();
  const auto again = LinkTo(peer);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(CountWrong(local_, 55, 55), 0u) << "bytes came after their batch had ended";
  ExpectWorks(*again, peer);
}

TEST_P(ProcessTest, AnOwnerPausedForLessThanTheDeadlineOnlyMakesTheBatchLater) {
  PeerProcess peer(*network_, Place::kHostB);
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  const Outcome outcome = MoveDuring(*link, absl::Seconds(20), [&] {
    peer.process().Pause();
    absl::SleepFor(absl::Seconds(1));
    peer.process().Continue();
    Quicken();
  });
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  ExpectWorks(*link, peer);
}

// The other side starts the transfers; this process owns the memory, stays and serves the next.
class OwnerTest : public ProcessTest {
 protected:
  void SetUp() override {
    ProcessTest::SetUp();
    if (IsSkipped()) return;
    auto served = Serve(*context_, Network::Address(Place::kHostA), kPort, kRegionBytes);
    ASSERT_TRUE(served.ok()) << served.status();
    served_ = *std::move(served);
    Fill(served_.region.bytes(), kGapSeed);
    FillPieces(served_.region.bytes(), 1);
  }
  std::string OpenLine() const {
    return absl::StrCat("open ", Network::Address(Place::kHostA), " ", kPort, " ", served_.key, " 5000");
  }
  const char* way() const { return GetParam() == Way::kGet ? "get" : "put"; }
  // A new initiator reads and writes right bytes, and nothing but the pieces has changed.
  void ExpectServes(PeerProcess& initiator) {
    Quicken();
    EXPECT_EQ(initiator.Ask(OpenLine()), "ok");
    EXPECT_EQ(initiator.Ask("put 2 10000"), "ok");
    EXPECT_EQ(CountWrong(served_.region.bytes(), 2, kGapSeed), 0u);
    EXPECT_EQ(initiator.Ask("get 2 10000"), "ok");
  }
  Served served_;
};

TEST_P(OwnerTest, AnInitiatorKilledInMidBatchDoesNotHarmTheOwner) {
  for (int round = 0; round < 3; ++round) {
    PeerProcess initiator(*network_, Place::kHostB);
    ASSERT_EQ(initiator.Ask(OpenLine()), "ok");
    initiator.process().Say(absl::StrCat(way(), " 1 20000"));
    absl::SleepFor(absl::Milliseconds(100));
    initiator.process().Kill();
    EXPECT_EQ(CountWrongInGaps(served_.region.bytes(), kGapSeed), 0u);
  }
  PeerProcess another(*network_, Place::kHostB);
  ExpectServes(another);
}

TEST_P(OwnerTest, AnInitiatorPausedInMidBatchDoesNotHoldUpOthersAndEndsByItsDeadline) {
  PeerProcess paused(*network_, Place::kHostB), other(*network_, Place::kHostB, 0);
  ASSERT_EQ(paused.Ask(OpenLine()), "ok");
  paused.process().Say(absl::StrCat(way(), " 1 1500"));
  absl::SleepFor(absl::Milliseconds(100));
  paused.process().Pause();
  Quicken();
  EXPECT_EQ(other.Ask(OpenLine()), "ok");
  EXPECT_EQ(other.Ask("get 1 10000"), "ok") << "while another initiator is paused";
  absl::SleepFor(absl::Milliseconds(1600));
  paused.process().Continue();
  // Its deadline passed while it did not run. It may find everything there and say ok; it may not hang.
  const auto said = paused.process().Hear(kGrace);
  ASSERT_TRUE(said.ok()) << said.status();
  EXPECT_TRUE(*said == "ok" || said->rfind("failed ", 0) == 0) << *said;
  EXPECT_EQ(CountWrongInGaps(served_.region.bytes(), kGapSeed), 0u);
  ExpectServes(paused);
}

const auto kWays = testing::Values(Way::kGet, Way::kPut);
std::string WayName(const testing::TestParamInfo<Way>& info) { return info.param == Way::kGet ? "Get" : "Put"; }
INSTANTIATE_TEST_SUITE_P(Ways, ProcessTest, kWays, WayName);
INSTANTIATE_TEST_SUITE_P(Ways, OwnerTest, kWays, WayName);

}  // namespace
}  // namespace perigee::fault
