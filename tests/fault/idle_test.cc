// Hosts that vanish while nothing is under way: no transfer misses a deadline, nobody resets a connection, and yet both
// sides find out and let go of what they hold for the other.
#include "fixture.h"

namespace perigee::fault {
namespace {

// Keep-alive: three unanswered pings, five seconds apart.
constexpr absl::Duration kNoticed = absl::Seconds(40);

class IdleTest : public FaultTest {};

TEST_F(IdleTest, AnInitiatorAndAnOwnerNoticeThatTheOtherHostHasVanished) {
  auto served = Serve(*context_, Network::Address(Place::kHostA), kPort, 1 << 20);
  ASSERT_TRUE(served.ok()) << served.status();
  const size_t files_before = OpenFiles(getpid());
  PeerProcess peer(*network_, Place::kHostB);
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  ASSERT_EQ(peer.Ask(absl::StrCat("open ", Network::Address(Place::kHostA), " ", kPort, " ", served->key, " 5000")),
            "ok");
  ASSERT_TRUE(network_->SetBlackHole(true).ok());
  peer.process().Kill();
  const absl::Time start = absl::Now();
  while ((link->endpoint.connected() || OpenFiles(getpid()) > files_before + 2) && absl::Now() < start + kNoticed) {
    absl::SleepFor(absl::Milliseconds(50));
  }
  EXPECT_FALSE(link->endpoint.connected()) << "the initiator still believes in its connection";
  EXPECT_LE(OpenFiles(getpid()), files_before + 2) << "the owner keeps the dead initiator's connection";
  std::printf("noticed after %.1f s\n", absl::ToDoubleSeconds(absl::Now() - start));
}

}  // namespace
}  // namespace perigee::fault
