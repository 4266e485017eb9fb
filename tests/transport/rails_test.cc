// Transfers over two network devices at once, on network namespaces as hosts: spread, redone when a link is lost,
// spread again when it is back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "hosts.h"
#include "process.h"
#include "transport/context.h"

namespace perigee::fault {
absl::Status hosts_status;
}

namespace perigee::transport {
namespace {

using fault::Network;
using fault::Place;
using fault::Process;

constexpr size_t kBytes = size_t{48} << 20;
constexpr int kKeepaliveMs = 300;
constexpr int kMegabitsPerSecond = 400;

absl::Time Soon() { return absl::Now() + absl::Seconds(45); }

uint64_t SentBytes(int rail) {
  std::ifstream file(absl::StrCat("/sys/class/net/", Network::Device(rail), "/statistics/tx_bytes"));
  uint64_t bytes = 0;
  file >> bytes;
  return bytes;
}

class RailsTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!fault::hosts_status.ok()) GTEST_SKIP() << "no test network here: " << fault::hosts_status;
    auto network = Network::Create(2);
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
    ASSERT_TRUE(network_->Enter(Place::kHostA).ok());
    for (int rail = 0; rail < 2; ++rail) {
      const absl::Status status = network_->LimitRate(rail, kMegabitsPerSecond);
      ASSERT_TRUE(status.ok()) << status;
    }
    local_.resize(kBytes);
  }

  static std::vector<std::string> Devices(int rails) {
    return rails == 1 ? std::vector<std::string>{"v1"} : std::vector<std::string>{"v1", "v2"};
  }
  // A server in host B with so many rails, a client here.
  void Open(int server_rails, int client_rails) {
    auto process = Process::Start(*network_, Place::kHostB,
                                  {TRANSPORT_PEER, "tcp", absl::StrCat(kBytes), Network::Address(Place::kHostB),
                                   server_rails == 1 ? "v1" : "v1,v2", absl::StrCat(kKeepaliveMs)});
    ASSERT_TRUE(process.ok()) << process.status();
    server_ = *std::move(process);
    const auto said = server_->Hear();
    ASSERT_TRUE(said.ok()) << said.status();
    int port = 0;
    std::vector<char> hex(8192);
    ASSERT_EQ(std::sscanf(said->c_str(), "%d %8191s", &port, hex.data()), 2) << *said;
    auto context = Context::Create(
        {.transports = "tcp", .devices = Devices(client_rails), .keepalive = absl::Milliseconds(kKeepaliveMs)});
    ASSERT_TRUE(context.ok()) << context.status();
    context_ = *std::move(context);
    auto endpoint = context_->Connect(Network::Address(Place::kHostB), static_cast<uint16_t>(port),
                                      absl::Now() + absl::Seconds(20));
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = *std::move(endpoint);
    auto remote = endpoint_.UnpackRemoteKey(*FromHex(hex.data()));
    ASSERT_TRUE(remote.ok()) << remote.status();
    remote_ = *std::move(remote);
  }
  void Randomise() {
    std::mt19937_64 random(++seed_);
    for (size_t i = 0; i < kBytes; i += 8) {
      const uint64_t word = random();
      std::memcpy(local_.data() + i, &word, 8);
    }
  }
  // Extents with gaps, so that there are many operations.
  template <typename Transfer>
  std::vector<Transfer> Transfers(std::vector<std::byte>& local) {
    std::vector<Transfer> transfers;
    constexpr size_t kStep = size_t{700} << 10;
    for (size_t at = 0; at + kStep <= kBytes; at += kStep) {
      transfers.push_back({std::span(local).subspan(at, kStep - 64), remote_.address() + at, &remote_});
    }
    return transfers;
  }
  void ExpectOwnerHas(const std::vector<std::byte>& expected) {
    std::vector<std::byte> back = expected;
    const auto gets = Transfers<GetTransfer>(back);
    for (const GetTransfer& get : gets) std::ranges::fill(get.local, std::byte{0});
    const absl::Status status = endpoint_.Get(gets, Soon());
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(back == expected);
  }
  void ExpectMoves() {
    Randomise();
    const absl::Status status = endpoint_.Put(Transfers<PutTransfer>(local_), Soon());
    ASSERT_TRUE(status.ok()) << status;
    ExpectOwnerHas(local_);
  }
  // The router drops all of rail 1 without a word to anybody.
  absl::Status Swallow(bool on) {
    return fault::RunCommand(network_->namespace_fd(Place::kRouter), {"nft", "-f", "-"},
                             on ? "table ip swallow {\nchain lose {\ntype filter hook prerouting priority raw\n"
                                  "iifname { \"ra2\", \"rb2\" } drop\n}\n}\n"
                                : "delete table ip swallow\n");
  }
  template <typename Condition>
  bool Eventually(Condition condition, absl::Duration limit) {
    const absl::Time until = absl::Now() + limit;
    while (!condition()) {
      if (absl::Now() > until) return false;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return true;
  }

  std::unique_ptr<Network> network_;
  std::unique_ptr<Process> server_;
  std::vector<std::byte> local_;
  uint64_t seed_ = 0;
  std::unique_ptr<Context> context_;
  Endpoint endpoint_;
  RemoteRegion remote_;
};

TEST_F(RailsTest, TransfersAreSpreadOverBothLinks) {
  Open(2, 2);
  if (HasFatalFailure() || IsSkipped()) return;
  EXPECT_EQ(endpoint_.rails(), 2);
  const uint64_t before[2] = {SentBytes(0), SentBytes(1)};
  ExpectMoves();
  for (int rail = 0; rail < 2; ++rail) {
    EXPECT_GT(SentBytes(rail) - before[rail], kBytes / 5) << "rail " << rail;
  }
  EXPECT_LT(SentBytes(0) - before[0] + SentBytes(1) - before[1], kBytes / 2 * 3) << "nothing goes twice";
  EXPECT_EQ(endpoint_.rails(), 2);
}

TEST_F(RailsTest, ALinkThatGoesDownInMidTransferIsDoneWithoutAndTakenBackWhenItIsUp) {
  Open(2, 2);
  if (HasFatalFailure() || IsSkipped()) return;
  for (const int lost : {1, 0}) {
    SCOPED_TRACE(absl::StrCat("rail ", lost));
    ASSERT_TRUE(Eventually([&] { return endpoint_.rails() == 2; }, absl::Seconds(40)));
    Randomise();
    auto batch = endpoint_.StartPut(Transfers<PutTransfer>(local_), {.deadline = Soon()});
    ASSERT_TRUE(batch.ok()) << batch.status();
    ASSERT_TRUE(Eventually([&] { return batch->extent_done(8); }, absl::Seconds(20)));
    ASSERT_FALSE(batch->done());
    ASSERT_TRUE(network_->SetLink(Place::kHostA, lost, false).ok());
    const absl::Status status = batch->Wait();
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(endpoint_.connected());
    ExpectOwnerHas(local_);
    EXPECT_TRUE(Eventually([&] { return endpoint_.rails() == 1; }, absl::Seconds(20))) << endpoint_.rails();
    ExpectMoves();
    // Long enough for several tries to pile up.
    EXPECT_FALSE(Eventually([&] { return endpoint_.rails() != 1; }, absl::Seconds(5)));
    ASSERT_TRUE(network_->SetLink(Place::kHostA, lost, true).ok());
    EXPECT_TRUE(Eventually([&] { return endpoint_.rails() == 2; }, absl::Seconds(40))) << endpoint_.rails();
    EXPECT_FALSE(Eventually([&] { return endpoint_.rails() != 2; }, absl::Seconds(3))) << endpoint_.rails();
    const uint64_t before = SentBytes(lost);
    ExpectMoves();
    EXPECT_GT(SentBytes(lost) - before, kBytes / 5) << "it is used again";
  }
}

TEST_F(RailsTest, ALinkThatSwallowsEverythingIsNoticedAndDoneWithout) {
  Open(2, 2);
  if (HasFatalFailure() || IsSkipped()) return;
  Randomise();
  auto batch = endpoint_.StartPut(Transfers<PutTransfer>(local_), {.deadline = Soon()});
  ASSERT_TRUE(batch.ok()) << batch.status();
  ASSERT_TRUE(Eventually([&] { return batch->extent_done(8); }, absl::Seconds(20)));
  const absl::Status swallowed = Swallow(true);
  ASSERT_TRUE(swallowed.ok()) << swallowed;
  const absl::Status status = batch->Wait();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(endpoint_.rails(), 1);
  ExpectOwnerHas(local_);
  // Several tries are under way when it answers again; one of them counts.
  EXPECT_FALSE(Eventually([&] { return endpoint_.rails() != 1; }, absl::Seconds(8)));
  ASSERT_TRUE(Swallow(false).ok());
  EXPECT_TRUE(Eventually([&] { return endpoint_.rails() == 2; }, absl::Seconds(45))) << endpoint_.rails();
  EXPECT_FALSE(Eventually([&] { return endpoint_.rails() != 2; }, absl::Seconds(3))) << endpoint_.rails();
  ExpectMoves();
}

TEST_F(RailsTest, SidesWithUnequalRailsUseWhatBothHave) {
  for (const auto& [server, client] : std::vector<std::pair<int, int>>{{1, 2}, {2, 1}}) {
    SCOPED_TRACE(absl::StrCat("server ", server, ", client ", client));
    endpoint_ = Endpoint();
    Open(server, client);
    if (HasFatalFailure() || IsSkipped()) return;
    EXPECT_EQ(endpoint_.rails(), 1);
    ExpectMoves();
  }
}

}  // namespace
}  // namespace perigee::transport

int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  signal(SIGPIPE, SIG_IGN);
  perigee::fault::hosts_status = perigee::fault::PrepareHosts();
  const int result = RUN_ALL_TESTS();
  if (perigee::fault::hosts_status.ok() || result != 0) return result;
  std::fprintf(stderr, "SKIPPED: no test network here: %s\n", perigee::fault::hosts_status.ToString().c_str());
  return 77;  // ctest shows it as skipped
}
