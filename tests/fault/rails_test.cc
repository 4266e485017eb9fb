// Hosts with two network devices.
#include "fixture.h"

namespace perigee::fault {
namespace {

class RailsTest : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    if (IsSkipped()) return;
    context_.reset();
    auto network = Network::Create(2);
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
    ASSERT_TRUE(network_->Enter(Place::kHostA).ok());
    context_ = MakeContext();
  }
};

// One UCX 1.13 context over several devices does not: some networks work at the first address, none at the second.
TEST_F(RailsTest, AHostWithTwoDevicesIsReachedAtEitherAddress) {
  for (int rail = 0; rail < 2; ++rail) {
    PeerProcess peer(*network_, Place::kHostB, kPort, kRegionBytes, {}, rail);
    ASSERT_NE(peer.port(), 0) << peer.said();
    const auto link = LinkTo(peer);
    EXPECT_TRUE(link.ok()) << "at " << peer.address() << ": " << link.status();
    if (link.ok()) ExpectWorks(*link, peer);
  }
}

}  // namespace
}  // namespace perigee::fault
