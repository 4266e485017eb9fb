// Endpoints that come and go for a long time: memory and descriptors of both sides stay where they were after the first
// rounds. PERIGEE_SOAK_SECONDS: how long (default 15).
#include <cstdlib>

#include "fixture.h"

namespace perigee::fault {
namespace {

constexpr size_t kEndpoints = 200;
constexpr size_t kSoakBytes = 256 << 10;
constexpr int kWarmUpRounds = 3;
constexpr size_t kMostGrowthBytes = 8 << 20;
constexpr size_t kMostNewFiles = 8;

struct Use {
  size_t resident_bytes = 0, files = 0;
};

class SoakTest : public FaultTest {
 protected:
  static Use UseOf(pid_t pid) { return {ResidentBytes(pid), OpenFiles(pid)}; }

  // Closing is the peer's business too: waits until its descriptors are back at `files`, a while.
  static Use Settled(pid_t pid, size_t files) {
    const absl::Time until = absl::Now() + absl::Seconds(10);
    while (OpenFiles(pid) > files && absl::Now() < until) absl::SleepFor(absl::Milliseconds(10));
    return UseOf(pid);
  }
};

TEST_F(SoakTest, TwoHundredEndpointsComeAndGoWithoutGrowthOfMemoryOrFiles) {
  const char* wish = std::getenv("PERIGEE_SOAK_SECONDS");
  const absl::Duration length = absl::Seconds(wish == nullptr ? 15 : std::atoi(wish));
  PeerProcess peer(*network_, Place::kHostB, kPort, kSoakBytes);
  local_.resize(kSoakBytes);
  ASSERT_EQ(peer.Ask("fill 1"), "ok");
  const size_t files_here = OpenFiles(getpid()), files_there = OpenFiles(peer.process().pid());
  Use here, there;  // after the warm-up
  absl::Time end = absl::InfiniteFuture();
  uint64_t opened = 0;
  int round = 0;
  for (; absl::Now() < end; ++round) {
    std::vector<Link> links;
    for (size_t i = 0; i < kEndpoints; ++i) {
      auto link = LinkTo(peer);
      ASSERT_TRUE(link.ok()) << "round " << round << ", endpoint " << i << ": " << link.status();
      links.push_back(*std::move(link));
    }
    opened += links.size();
    // All of them are of use, the first and the last.
    for (size_t i = 0; i < links.size(); i += 20) {
      Fill(local_, kLocalGapSeed);
      const absl::Status got = Move(links[i], Way::kGet, local_, absl::Now() + absl::Seconds(5));
      ASSERT_TRUE(got.ok()) << got;
      ASSERT_EQ(CountWrong(local_, 1, kLocalGapSeed), 0u);
    }
    links.clear();
    const Use now_there = Settled(peer.process().pid(), files_there), now_here = Settled(getpid(), files_here);
    if (round < kWarmUpRounds) {
      here = now_here;
      there = now_there;
      if (round == kWarmUpRounds - 1) end = absl::Now() + length;
    } else {
      ASSERT_LE(now_here.files, here.files + kMostNewFiles) << "round " << round;
      ASSERT_LE(now_there.files, there.files + kMostNewFiles) << "round " << round;
      if (!kMemoryIsOurs) continue;
      ASSERT_LE(now_here.resident_bytes, here.resident_bytes + kMostGrowthBytes) << "round " << round;
      ASSERT_LE(now_there.resident_bytes, there.resident_bytes + kMostGrowthBytes) << "round " << round;
    }
  }
  const Use last_here = UseOf(getpid()), last_there = UseOf(peer.process().pid());
  std::printf(
      "%llu endpoints in %d rounds; initiator %zu -> %zu KiB, %zu -> %zu files; owner %zu -> %zu KiB, %zu -> %zu "
      "files\n",
      static_cast<unsigned long long>(opened), round, here.resident_bytes >> 10, last_here.resident_bytes >> 10,
      here.files, last_here.files, there.resident_bytes >> 10, last_there.resident_bytes >> 10, there.files,
      last_there.files);
}

}  // namespace
}  // namespace perigee::fault
