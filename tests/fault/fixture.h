// What every fault test starts from: a network, this process in host A, and peers (fault_peer) in host B.
#ifndef PERIGEE_TESTS_FAULT_FIXTURE_H_
#define PERIGEE_TESTS_FAULT_FIXTURE_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "hosts.h"
#include "links.h"
#include "process.h"

namespace perigee::fault {

inline constexpr uint16_t kPort = 7300;
inline constexpr uint64_t kGapSeed = 7;  // of regions; of local buffers: 8
inline constexpr uint64_t kLocalGapSeed = 8;

// Sanitizers take address space and memory for themselves: limits and growth of these say nothing then.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
inline constexpr bool kMemoryIsOurs = false;
#else
inline constexpr bool kMemoryIsOurs = true;
#endif

// A fault_peer and where it serves.
class PeerProcess {
 public:
  PeerProcess(const Network& network, Place place, uint16_t port = kPort, size_t bytes = kRegionBytes,
              const Limits& limits = {}, int rail = 0)
      : address_(Network::Address(place, rail)) {
    auto process =
        Process::Start(network, place, {FAULT_PEER, address_, absl::StrCat(port), absl::StrCat(bytes)}, limits);
    EXPECT_TRUE(process.ok()) << process.status();
    process_ = *std::move(process);
    const auto greeting = process_->Hear();
    EXPECT_TRUE(greeting.ok()) << greeting.status();
    said_ = greeting.value_or("failed");
    const std::vector<std::string> words = absl::StrSplit(said_, ' ');
    port_ = static_cast<uint16_t>(std::atoi(words[0].c_str()));
    if (words.size() > 1) key_ = words[1];
  }
  Process& process() { return *process_; }
  const std::string& said() const { return said_; }
  const std::string& address() const { return address_; }
  uint16_t port() const { return port_; }
  const std::string& key() const { return key_; }
  std::string Ask(const std::string& line, absl::Duration limit = absl::Seconds(20)) {
    const auto answer = process_->Ask(line, limit);
    return answer.ok() ? *answer : answer.status().ToString();
  }

 private:
  std::unique_ptr<Process> process_;
  std::string address_, said_, key_;
  uint16_t port_ = 0;
};

class FaultTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!hosts_status.ok()) GTEST_SKIP() << "no test network here: " << hosts_status;
    auto network = Network::Create();
    ASSERT_TRUE(network.ok()) << network.status();
    network_ = *std::move(network);
    ASSERT_TRUE(network_->Enter(Place::kHostA).ok());
    context_ = MakeContext();
    local_.resize(kRegionBytes);
  }

  absl::StatusOr<Link> LinkTo(const PeerProcess& peer, absl::Duration limit = absl::Seconds(5)) {
    return Open(*context_, peer.address(), peer.port(), peer.key(), absl::Now() + limit);
  }

  // Right bytes both ways over the link, within the limit.
  void ExpectWorks(const Link& link, PeerProcess& peer, absl::Duration limit = absl::Seconds(10)) {
    const uint64_t seed = ++seed_;
    EXPECT_EQ(peer.Ask(absl::StrCat("fill ", kGapSeed)), "ok");
    Fill(local_, kLocalGapSeed);
    FillPieces(local_, seed);
    const absl::Status put = Move(link, Way::kPut, local_, absl::Now() + limit);
    ASSERT_TRUE(put.ok()) << put;
    EXPECT_EQ(peer.Ask(absl::StrCat("check ", seed, " ", kGapSeed)), "ok");
    Fill(local_, kLocalGapSeed);
    const absl::Status got = Move(link, Way::kGet, local_, absl::Now() + limit);
    ASSERT_TRUE(got.ok()) << got;
    EXPECT_EQ(CountWrong(local_, seed, kLocalGapSeed), 0u);
  }
  // The same over a new link.
  void ExpectNewLinkWorks(PeerProcess& peer, absl::Duration limit = absl::Seconds(10)) {
    const auto link = LinkTo(peer, limit);
    ASSERT_TRUE(link.ok()) << link.status();
    ExpectWorks(*link, peer, limit);
  }

  std::unique_ptr<Network> network_;
  std::unique_ptr<transport::Context> context_;  // this process's engine: never replaced within a test
  std::vector<std::byte> local_;
  uint64_t seed_ = 100;
};

}  // namespace perigee::fault

#endif  // PERIGEE_TESTS_FAULT_FIXTURE_H_
