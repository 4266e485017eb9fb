// Memory that is not there: refused in words, and no harm to what goes on or comes later.
#include "fixture.h"

namespace perigee::fault {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

class MemoryTest : public FaultTest {};

TEST_F(MemoryTest, MoreThanTheMachineHasIsResourceExhaustedAndLessIsGivenAfterwards) {
  PeerProcess peer(*network_, Place::kHostB);
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  for (const char* bytes : {"1125899906842624", "9223372036854775807"}) {
    EXPECT_THAT(peer.Ask(absl::StrCat("allocate ", bytes)), StartsWith("failed RESOURCE_EXHAUSTED"));
  }
  EXPECT_EQ(peer.Ask("allocate 67108864"), "ok");
  ExpectWorks(*link, peer);
  ExpectNewLinkWorks(peer);
}

TEST_F(MemoryTest, AProcessThatReachedItsLimitRefusesWhatIsTooMuchAndServesOn) {
  if (!kMemoryIsOurs) GTEST_SKIP() << "a sanitizer needs more address space";
  Limits limits;
  limits.address_space_bytes = size_t{768} << 20;
  PeerProcess peer(*network_, Place::kHostB, kPort, kRegionBytes, limits);
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  const std::string refused = peer.Ask("allocate 1073741824");
  EXPECT_THAT(refused, StartsWith("failed RESOURCE_EXHAUSTED"));
  EXPECT_THAT(refused, HasSubstr("1073741824")) << "the message names the size";
  ExpectWorks(*link, peer);
  EXPECT_EQ(peer.Ask("allocate 33554432"), "ok");
  ExpectNewLinkWorks(peer);
}

TEST_F(MemoryTest, WithoutTheRightToLockMemoryTcpWorks) {
  Limits limits;
  limits.locked_bytes = 4096;
  PeerProcess peer(*network_, Place::kHostB, kPort, kRegionBytes, limits);
  ASSERT_NE(peer.port(), 0) << peer.said();
  ExpectNewLinkWorks(peer);
}

TEST_F(MemoryTest, AServerWhoseRegionDoesNotFitSaysSoAndWithASmallerOneItStarts) {
  if (!kMemoryIsOurs) GTEST_SKIP() << "a sanitizer needs more address space";
  Limits limits;
  limits.address_space_bytes = size_t{768} << 20;
  PeerProcess refused(*network_, Place::kHostB, kPort, size_t{2} << 30, limits);
  EXPECT_THAT(refused.said(), StartsWith("failed RESOURCE_EXHAUSTED"));
  PeerProcess peer(*network_, Place::kHostB, kPort, kRegionBytes, limits);
  ExpectNewLinkWorks(peer);
}

}  // namespace
}  // namespace perigee::fault
