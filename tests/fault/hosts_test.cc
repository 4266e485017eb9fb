// The test network itself, with plain sockets: what the other tests take for granted about it.
#include "hosts.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "absl/time/clock.h"
#include "process.h"
#include "proxy.h"

namespace perigee::fault {
namespace {

constexpr uint16_t kPort = 7400;

sockaddr_in Address(const std::string& host) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(kPort);
  inet_pton(AF_INET, host.c_str(), &address.sin_addr);
  return address;
}

class HostsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!hosts_status.ok()) GTEST_SKIP() << "no test network here: " << hosts_status;
    auto network = Network::Create(2);
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
    network_->RunIn(Place::kHostB, [this] {
      listener_ = UniqueFd(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const sockaddr_in any = Address("0.0.0.0");
      ASSERT_EQ(bind(listener_.get(), reinterpret_cast<const sockaddr*>(&any), sizeof(any)), 0);
      ASSERT_EQ(listen(listener_.get(), 10), 0);
    });
  }

  // Sends bytes from A to B over the rail; what arrived, and the time to the last byte. Empty after limit_ms of
  // silence.
  struct Arrived {
    std::string bytes;
    absl::Duration took;
  };
  Arrived Send(int rail, const std::string& bytes, int limit_ms = 3000) {
    Arrived arrived;
    network_->RunIn(Place::kHostA, [&] {
      const timeval limit{limit_ms / 1000, limit_ms % 1000 * 1000};
      const UniqueFd out(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
      setsockopt(out.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
      const sockaddr_in to = Address(Network::Address(Place::kHostB, rail));
      const absl::Time start = absl::Now();
      if (connect(out.get(), reinterpret_cast<const sockaddr*>(&to), sizeof(to)) != 0) return;
      std::thread receiver([&] {
        setsockopt(listener_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
        const UniqueFd in(accept(listener_.get(), nullptr, nullptr));
        setsockopt(in.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
        std::string buffer(1 << 20, '\0');
        while (arrived.bytes.size() < bytes.size()) {
          const ssize_t got = recv(in.get(), buffer.data(), buffer.size(), 0);
          if (got <= 0) break;
          arrived.bytes.append(buffer, 0, static_cast<size_t>(got));
        }
        arrived.took = absl::Now() - start;
      });
      for (size_t sent = 0; sent < bytes.size();) {
        const ssize_t n = send(out.get(), bytes.data() + sent, bytes.size() - sent, MSG_NOSIGNAL);
        if (n <= 0) break;
        sent += static_cast<size_t>(n);
      }
      receiver.join();
    });
    return arrived;
  }

  std::unique_ptr<Network> network_;
  UniqueFd listener_;
};

TEST_F(HostsTest, EachRailCarriesAtItsOwnRate) {
  ASSERT_TRUE(network_->LimitRate(0, 50).ok());
  ASSERT_TRUE(network_->LimitRate(1, 200).ok());
  const std::string bytes(4 << 20, 'x');
  const Arrived slow = Send(0, bytes), fast = Send(1, bytes);
  EXPECT_EQ(slow.bytes.size(), bytes.size());
  EXPECT_EQ(fast.bytes.size(), bytes.size());
  // 4 MiB less the bucket of 256 KiB: 0.63 s and 0.16 s.
  EXPECT_GT(slow.took, absl::Milliseconds(550));
  EXPECT_GT(fast.took, absl::Milliseconds(130));
  EXPECT_LT(fast.took, slow.took);
}

TEST_F(HostsTest, ALinkThatIsDownCarriesNothingAndItsNeighbourEverything) {
  ASSERT_TRUE(network_->SetLink(Place::kHostA, 0, false).ok());
  EXPECT_EQ(Send(0, "down", 300).bytes, "");
  EXPECT_EQ(Send(1, "the other").bytes, "the other");
  ASSERT_TRUE(network_->SetLink(Place::kHostA, 0, true).ok());
  EXPECT_EQ(Send(0, "up").bytes, "up");
}

TEST_F(HostsTest, ABlackHoleSwallowsWithoutAWord) {
  ASSERT_TRUE(network_->SetBlackHole(true).ok());
  const absl::Time start = absl::Now();
  EXPECT_EQ(Send(0, "lost", 300).bytes, "");
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(300)) << "somebody refused";
  ASSERT_TRUE(network_->SetBlackHole(false).ok());
  EXPECT_EQ(Send(0, "found").bytes, "found");
}

TEST_F(HostsTest, TheProxySeesEveryConnectionAndHitsTheByteAfterTheMarker) {
  auto proxy = Proxy::Start(network_.get());
  ASSERT_TRUE(proxy.ok()) << proxy.status();
  (*proxy)->CorruptAfter("MARK");
  (*proxy)->SetDelay(absl::Milliseconds(50));
  const Arrived arrived = Send(1, "aMARKbcMARKd");
  EXPECT_EQ(arrived.bytes,
            std::string("aMARK") + static_cast<char>('b' ^ 0xff) + "cMARK" + static_cast<char>('d' ^ 0xff));
  EXPECT_GE(arrived.took, absl::Milliseconds(50));
  (*proxy)->StopCorrupting();
  (*proxy)->CorruptAt(2);
  EXPECT_EQ(Send(0, "abcd").bytes, std::string("ab") + static_cast<char>('c' ^ 0xff) + "d");
  EXPECT_EQ((*proxy)->stats().connections, 2u);
  EXPECT_EQ((*proxy)->stats().corrupted_bytes, 3u);
  (*proxy)->StopCorrupting();
  (*proxy)->CorruptRandomly(1000, 1);
  const std::string zeros(100000, '\0');
  const std::string damaged = Send(0, zeros).bytes;
  ASSERT_EQ(damaged.size(), zeros.size());
  const auto hit = std::count(damaged.begin(), damaged.end(), '\xff');
  EXPECT_GT(hit, 50);
  EXPECT_LT(hit, 200);
  proxy->reset();
  EXPECT_EQ(Send(0, "direct").bytes, "direct");
}

TEST_F(HostsTest, ProgramsLiveInTheirHostAndDieWithTheirObject) {
  auto process = Process::Start(*network_, Place::kHostB, {"sh", "-c", "ls /sys/class/net; cat"});
  ASSERT_TRUE(process.ok()) << process.status();
  std::string devices;
  for (int i = 0; i < 3; ++i) devices += (*process)->Hear().value_or("?") + " ";
  EXPECT_EQ(devices, "lo v1 v2 ");
  EXPECT_EQ((*process)->Ask("hello").value_or("?"), "hello");
  EXPECT_TRUE((*process)->Alive());
  EXPECT_EQ(ListeningPorts(*network_, Place::kHostB), std::vector<uint16_t>{kPort});
  EXPECT_EQ(ListeningPorts(*network_, Place::kHostA), std::vector<uint16_t>{});
  const pid_t pid = (*process)->pid();
  process->reset();
  EXPECT_NE(kill(pid, 0), 0);
}

}  // namespace
}  // namespace perigee::fault
