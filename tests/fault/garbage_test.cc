// Strangers on the network: whoever connects to any of a process's TCP ports and talks nonsense, or says nothing, takes
// nothing from those who belong there.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

#include "absl/strings/escaping.h"
#include "fixture.h"
#include "store_use.h"

namespace perigee::fault {
namespace {

// Strangers have an address of their own, which no peer has.
constexpr char kStranger[] = "10.77.0.66";

sockaddr_in SocketAddress(const std::string& host, uint16_t port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  inet_pton(AF_INET, host.c_str(), &address.sin_addr);
  return address;
}

// Nothing where nobody listens or nobody answers.
UniqueFd ConnectTo(const std::string& host, uint16_t port) {
  UniqueFd fd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const timeval limit{0, 30000};  // closed ports do not answer
  setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  sockaddr_in here = SocketAddress(kStranger, 0), address = SocketAddress(host, port);
  EXPECT_EQ(bind(fd.get(), reinterpret_cast<sockaddr*>(&here), sizeof(here)), 0);
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

// First messages of UCX's tcp transport, cut short or with absurd contents: its magic number, then lengths, events and
// addresses that are none.
std::vector<std::string> HalfHellos() {
  const uint64_t magic = 0xcafebabe12345678;
  const std::string begin(reinterpret_cast<const char*>(&magic), 8);
  std::vector<std::string> hellos = {begin.substr(0, 1), begin.substr(0, 7), begin};
  for (const char filler : {'\0', '\1', '\x7f', '\xff'}) {
    for (const size_t more : {1, 5, 9, 40, 4096}) hellos.push_back(begin + std::string(more, filler));
  }
  return hellos;
}

std::vector<std::string> Nonsense() {
  std::vector<std::string> nonsense = {
      "",
      "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11) + RandomBytes(500, 1),  // TLS
      std::string(1 << 20, '\0'),
      std::string(100, '\xff'),
      std::string("\x14\0\0\0\0\0\0\0", 8) + std::string(100, 'a'),
  };
  for (int i = 0; i < 20; ++i) nonsense.push_back(RandomBytes(size_t{1} << i, i));
  return nonsense;
}

class GarbageTest : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    if (IsSkipped()) return;
    const absl::Status added =
        RunCommand(network_->namespace_fd(Place::kHostA),
                   {"ip", "addr", "add", absl::StrCat(kStranger, "/24"), "dev", Network::Device()}, "");
    ASSERT_TRUE(added.ok()) << added;
  }
  void ExpectServesOnAfter(const std::vector<std::string>& nonsense) {
    PeerProcess peer(*network_, Place::kHostB);
    const auto link = LinkTo(peer);
    ASSERT_TRUE(link.ok()) << link.status();
    std::vector<UniqueFd> open;
    for (const std::string& bytes : nonsense) {
      TellAll(bytes, nullptr);
      TellAll(bytes, &open);  // and stays
      ASSERT_TRUE(peer.process().Alive()) << peer.process().end() << " before or after " << bytes.size()
                                          << " bytes, the first of them " << absl::CHexEscape(bytes.substr(0, 20));
    }
    ExpectWorks(*link, peer);
    ExpectNewLinkWorks(peer);
    open.clear();
    ExpectNewLinkWorks(peer);
    EXPECT_TRUE(peer.process().Alive()) << peer.process().end();
  }

  // Says `bytes` to every port in host B, and hangs up at once or stays.
  void TellAll(const std::string& bytes, std::vector<UniqueFd>* keep_open) {
    for (const uint16_t port : ListeningPorts(*network_, Place::kHostB)) {
      UniqueFd fd = ConnectTo(Network::Address(Place::kHostB), port);
      if (!fd) continue;  // on the loopback device only, or closed to strangers
      Send(fd, bytes);
      if (keep_open != nullptr) keep_open->push_back(std::move(fd));
    }
  }
};

TEST_F(GarbageTest, APeerServesOnWhateverStrangersSayToItsPorts) { ExpectServesOnAfter(Nonsense()); }

TEST_F(GarbageTest, APeerServesOnAfterHalfOfUcxsOwnHello) { ExpectServesOnAfter(HalfHellos()); }

TEST_F(GarbageTest, HundredsOfConnectionsThatSayNothingDoNotKeepOthersOut) {
  PeerProcess peer(*network_, Place::kHostB);
  const auto link = LinkTo(peer);
  ASSERT_TRUE(link.ok()) << link.status();
  const size_t files_before = OpenFiles(peer.process().pid());
  for (const bool stay : {false, true}) {
    std::vector<UniqueFd> open;
    for (int i = 0; i < 150; ++i) TellAll("", stay ? &open : nullptr);
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

TEST_F(GarbageTest, AStoreServesOnWhateverStrangersSayToItsControlPlane) {
  auto store = Process::Start(*network_, Place::kHostB,
                              {FAULT_STORE, "serve", Network::Address(Place::kHostB), "7100", "67108864"});
  ASSERT_TRUE(store.ok()) << store.status();
  const std::string address = (*store)->Hear().value_or("failed");
  const auto client = kvstore::StoreClient::Connect(address, context_.get(), QuickOptions());
  ASSERT_TRUE(client.ok()) << client.status();
  std::vector<UniqueFd> open;
  for (const std::string& bytes : Nonsense()) {
    for (const bool stay : {false, true}) {
      UniqueFd fd = ConnectTo(Network::Address(Place::kHostB), 7100);
      ASSERT_TRUE(bool{fd});
      Send(fd, bytes);
      if (stay) open.push_back(std::move(fd));
    }
  }
  const std::vector<kvstore::TestPlane> planes = {kvstore::MakePlane(1, 1 << 20), kvstore::MakePlane(2, 1 << 20)};
  size_t wrong = 0;
  EXPECT_EQ(Write(**client, planes), absl::OkStatus());
  EXPECT_EQ(Read(**client, planes, &wrong), absl::OkStatus());
  EXPECT_EQ(wrong, 0u);
  EXPECT_TRUE((*store)->Alive()) << (*store)->end();
}

}  // namespace
}  // namespace perigee::fault
