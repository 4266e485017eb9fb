// What networks do between two healthy processes: links that go down, packets that vanish with and without a trace,
// losses, delay, resets, stalls.
#include "fixture.h"
#include "proxy.h"

namespace perigee::fault {
namespace {

class LinkTest : public FaultTest, public testing::WithParamInterface<Way> {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    if (IsSkipped()) return;
    peer_ = std::make_unique<PeerProcess>(*network_, Place::kHostB);
  }
  // A batch that `fault` catches under way (the link is slow), its status and time.
  absl::Status MoveDuring(const Link& link, absl::Duration limit, const std::function<void()>& fault) {
    EXPECT_TRUE(network_->LimitRate(0, 100).ok());
    Fill(local_, kLocalGapSeed);
    const absl::Time start = absl::Now();
    auto batch = StartMove(link, GetParam(), local_, start + limit);
    EXPECT_TRUE(batch.ok()) << batch.status();
    if (!batch.ok()) return batch.status();
    absl::SleepFor(absl::Milliseconds(100));
    EXPECT_FALSE(batch->done());
    fault();
    const absl::Status status = batch->Wait();
    EXPECT_LT(absl::Now() - start, limit + kGrace);
    EXPECT_TRUE(network_->LimitRate(0, 10000).ok());
    return status;
  }
  // After the fault has been taken away: a new link of the same engine to the same process, and right bytes over it.
  void ExpectHeals() {
    Fill(local_, 55);
    const auto link = LinkTo(*peer_);
    ASSERT_TRUE(link.ok()) << link.status();
    EXPECT_EQ(CountWrong(local_, 55, 55), 0u) << "bytes came after their batch had ended";
    ExpectWorks(*link, *peer_);
  }
  std::unique_ptr<PeerProcess> peer_;
};

TEST_P(LinkTest, ALinkDownInMidBatchEndsItByTheDeadlineAndUpAgainAllWorks) {
  for (const Place host : {Place::kHostA, Place::kHostB}) {
    const auto link = LinkTo(*peer_);
    ASSERT_TRUE(link.ok()) << link.status();
    const absl::Status status =
        MoveDuring(*link, absl::Seconds(1), [&] { EXPECT_TRUE(network_->SetLink(host, 0, false).ok()); });
    EXPECT_TRUE(IsRetryable(status)) << status;
    const absl::Time start = absl::Now();
    const auto refused = LinkTo(*peer_, absl::Seconds(1));
    EXPECT_TRUE(IsRetryable(refused.status())) << refused.status();
    EXPECT_LT(absl::Now() - start, absl::Seconds(1) + kGrace);
    ASSERT_TRUE(network_->SetLink(host, 0, true).ok());
    ExpectHeals();
  }
}

TEST_P(LinkTest, ALinkDownForLessThanTheDeadlineOnlyMakesTheBatchLater) {
  const auto link = LinkTo(*peer_);
  ASSERT_TRUE(link.ok()) << link.status();
  const absl::Status status = MoveDuring(*link, absl::Seconds(20), [&] {
    EXPECT_TRUE(network_->SetLink(Place::kHostB, 0, false).ok());
    absl::SleepFor(absl::Milliseconds(500));
    EXPECT_TRUE(network_->SetLink(Place::kHostB, 0, true).ok());
  });
  EXPECT_TRUE(status.ok()) << status;
  ExpectWorks(*link, *peer_);
}

TEST_P(LinkTest, ABlackHoleEndsTheBatchByTheDeadlineAndHealsThoughTheOtherSideNeverHeardOfIt) {
  const auto link = LinkTo(*peer_);
  ASSERT_TRUE(link.ok()) << link.status();
  const absl::Status status =
      MoveDuring(*link, absl::Seconds(1), [&] { EXPECT_TRUE(network_->SetBlackHole(true).ok()); });
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  const absl::Time start = absl::Now();
  const auto refused = LinkTo(*peer_, absl::Seconds(1));
  EXPECT_TRUE(IsRetryable(refused.status())) << refused.status();
  EXPECT_LT(absl::Now() - start, absl::Seconds(1) + kGrace);
  ASSERT_TRUE(network_->SetBlackHole(false).ok());
  ExpectHeals();
}

TEST_P(LinkTest, AProcessThatCameBackDuringABlackHoleIsFoundWithoutTheOldConnectionsReset) {
  const auto link = LinkTo(*peer_);
  ASSERT_TRUE(link.ok()) << link.status();
  const absl::Status status = MoveDuring(*link, absl::Seconds(1), [&] {
    // The host loses power: its peers get no reset.
    EXPECT_TRUE(network_->SetBlackHole(true).ok());
    peer_->process().Kill();
  });
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  peer_ = std::make_unique<PeerProcess>(*network_, Place::kHostB);
  ASSERT_TRUE(network_->SetBlackHole(false).ok());
  ExpectHeals();
}

TEST_P(LinkTest, AResetInMidBatchIsUnavailableAtOnce) {
  auto proxy = Proxy::Start(network_.get());
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  const auto link = LinkTo(*peer_);
  ASSERT_TRUE(link.ok()) << link.status();
  const absl::Time start = absl::Now();
  const absl::Status status = MoveDuring(*link, absl::Seconds(10), [&] { (*proxy)->Cut(); });
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(2));
  ExpectHeals();
  EXPECT_GE((*proxy)->stats().connections, 4u) << "a control and a data connection each time, all through the proxy";
}

TEST_P(LinkTest, AStallInMidBatchEndsItByTheDeadline) {
  auto proxy = Proxy::Start(network_.get());
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  const auto link = LinkTo(*peer_);
  ASSERT_TRUE(link.ok()) << link.status();
  const absl::Status status = MoveDuring(*link, absl::Seconds(1), [&] { (*proxy)->SetStalled(true); });
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  (*proxy)->SetStalled(false);
  ExpectHeals();
}

INSTANTIATE_TEST_SUITE_P(Ways, LinkTest, testing::Values(Way::kGet, Way::kPut), [](const auto& info) {
  return info.param == Way::kGet ? std::string("Get") : std::string("Put");
});

class PoorLinkTest : public FaultTest {};

TEST_F(PoorLinkTest, TenPercentLossIsSlowerButRight) {
  local_.resize(8 << 20);
  PeerProcess peer(*network_, Place::kHostB, kPort, local_.size());
  ASSERT_TRUE(network_->SetLoss(10).ok());
  ExpectNewLinkWorks(peer, absl::Seconds(20));
}

TEST_F(PoorLinkTest, TwentyMillisecondsOfDelayEachWayAreRightAndDelayed) {
  PeerProcess peer(*network_, Place::kHostB);
  auto proxy = Proxy::Start(network_.get());
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  (*proxy)->SetDelay(absl::Milliseconds(20));
  const absl::Time start = absl::Now();
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(40)) << "the delay is not there";
  ExpectWorks(*link, peer);
  EXPECT_GE((*proxy)->stats().bytes, 2 * kRegionBytes / 16 * 15) << "payload went past the proxy";
}

}  // namespace
}  // namespace perigee::fault
