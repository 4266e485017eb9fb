// Hosts with two network devices.
#include "fixture.h"

namespace perigee::fault {
namespace {

class RailsTest : public FaultTest {
 protected:
  void UseTwoRails() {
    context_.reset();
    auto network = Network::Create(2);
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
    ASSERT_TRUE(network_->Enter(Place::kHostA).ok());
    context_ = MakeContext();
  }
};

// Several networks: UCX 1.13 numbers the devices in the order in which each host's /sys happens to list them, and goes
// wrong where the two orders differ and one context has both devices.
TEST_F(RailsTest, AHostWithTwoDevicesIsReachedAtTheFirst) {
  for (int round = 0; round < 5 && !HasFailure(); ++round) {
    UseTwoRails();
    // Without a default route the first device is taken; others are named by Options::devices, see transport/rails.
    {
      PeerProcess peer(*network_, Place::kHostB, kPort, kRegionBytes, {}, 0);
      ASSERT_NE(peer.port(), 0) << peer.said();
      const auto link = LinkTo(peer);
      ASSERT_TRUE(link.ok()) << "at " << peer.address() << ": " << link.status();
      ExpectWorks(*link, peer);
    }
  }
}

// UCX wants the device of a connection in use, the loopback's as well.
TEST_F(RailsTest, AHostWithTwoDevicesReachesItself) {
  UseTwoRails();
  const auto other = MakeContext();
  for (const std::string& address : {std::string("127.0.0.1"), Network::Address(Place::kHostA)}) {
    const auto listener = other->Listen(address, 0, transport::TrustEveryone);
    ASSERT_TRUE(listener.ok()) << listener.status();
    const auto connection = context_->Connect(address, listener->port(), absl::Now() + absl::Seconds(5));
    EXPECT_TRUE(connection.ok()) << "at " << address << ": " << connection.status();
  }
}

}  // namespace
}  // namespace perigee::fault
