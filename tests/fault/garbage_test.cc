// Strangers on the network: whoever connects to any of a process's TCP ports and talks nonsense, or says nothing, takes
// nothing from those who belong there.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>
#include <set>

#include "fixture.h"
#include "proxy.h"

namespace perigee::fault {
namespace {

UniqueFd ConnectTo(const std::string& host, uint16_t port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval limit{2, 0};
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  inet_pton(AF_INET, host.c_str(), &address.sin_addr);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) fd.Reset();
  return fd;
}

void Send(const UniqueFd& fd, const std::string& bytes) {
  size_t sent = 0;
  while (sent < bytes.size()) {
    const ssize_t n = send(fd.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
    if (n <= 0) return;  // it hung up on us, as it may
    sent += static_cast<size_t>(n);
  }
}

std::string RandomBytes(size_t n, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(n, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

// A first message of UCX's tcp transport and of its connection manager, cut short or with absurd lengths: magic number,
// then an event, then an address.
std::vector<std::string> HalfHellos() {
  const uint64_t magic = 0x0dda0b0b;
  std::vector<std::string> hellos;
  for (const size_t bytes : {size_t{1}, size_t{4}, size_t{8}}) {
    hellos.emplace_back(reinterpret_cast<const char*>(&magic), bytes);
  }
  std::string full(reinterpret_cast<const char*>(&magic), 8);
  for (const char filler : {'\0', '\1', '\x7f', '\xff'}) {
    for (const size_t more : {1, 5, 9, 40, 4096}) hellos.push_back(full + std::string(more, filler));
  }
  return hellos;
}

class GarbageTest : public FaultTest {
 protected:
  // Says `bytes` to every port in host B and waits a moment for what it may do.
  void TellAll(const std::string& bytes, std::vector<UniqueFd>* keep_open) {
    for (const uint16_t port : ListeningPorts(*network_, Place::kHostB)) {
      UniqueFd fd = ConnectTo(Network::Address(Place::kHostB), port);
      if (!fd) continue;  // on the loopback device only
      reached_.insert(port);
      Send(fd, bytes);
      if (keep_open != nullptr) keep_open->push_back(std::move(fd));
    }
  }
  std::set<uint16_t> reached_;
};

TEST_F(GarbageTest, APeerServesOnWhateverStrangersSayToItsPorts) {
  PeerProcess peer(*network_, Place::kHostB);
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  local_.resize(kRegionBytes);
  std::vector<UniqueFd> open;
  std::vector<std::string> nonsense = {"", "GET / HTTP/1.1\r\nHost: x\r\n\r\n", std::string(1 << 20, '\0'),
                                       std::string(100, '\xff')};
  for (int i = 0; i < 20; ++i) nonsense.push_back(RandomBytes(1 << i, i));
  for (std::string& hello : HalfHellos()) nonsense.push_back(std::move(hello));
  for (const std::string& bytes : nonsense) {
    TellAll(bytes, nullptr);
    TellAll(bytes, &open);  // and stays
    ASSERT_TRUE(peer.process().Alive()) << peer.process().end() << " after " << bytes.size() << " bytes of nonsense";
  }
  EXPECT_GE(reached_.size(), 2u) << "the listener's port and the data connections' were meant";
  ExpectWorks(*link, peer);
  ExpectNewLinkWorks(peer);
  open.clear();
  ExpectNewLinkWorks(peer);
}

TEST_F(GarbageTest, AThousandConnectionsThatSayNothingDoNotKeepOthersOut) {
  PeerProcess peer(*network_, Place::kHostB);
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  const size_t files_before = OpenFiles(peer.process().pid());
  for (const bool stay : {false, true}) {
    std::vector<UniqueFd> open;
    for (int i = 0; i < 400; ++i) TellAll("", stay ? &open : nullptr);
    ASSERT_TRUE(peer.process().Alive()) << peer.process().end();
    ExpectWorks(*link, peer);
    ExpectNewLinkWorks(peer);
  }
  // Theirs are closed again.
  const absl::Time until = absl::Now() + absl::Seconds(10);
  while (OpenFiles(peer.process().pid()) > files_before + 4 && absl::Now() < until) {
    absl::SleepFor(absl::Milliseconds(20));
  }
  EXPECT_LE(OpenFiles(peer.process().pid()), files_before + 4);
}

}  // namespace
}  // namespace perigee::fault
