// What happens when the peer, another process, stalls or dies: an error by the deadline, and an engine that goes on
// working.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/file.h"
#include "transport/context.h"

extern char** environ;

namespace perigee::transport {
namespace {

constexpr size_t kRegionBytes = size_t{64} << 20;

class PeerProcess {
 public:
  explicit PeerProcess(const std::string& transports) : PeerProcess({transports, std::to_string(kRegionBytes)}) {}
  explicit PeerProcess(std::vector<std::string> arguments) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) std::abort();
    input_ = UniqueFd(in[1]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::string program = TRANSPORT_PEER;
    std::vector<char*> argv = {program.data()};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, TRANSPORT_PEER, &actions, nullptr, argv.data(), environ) != 0) std::abort();
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    FILE* stream = fdopen(out[0], "r");
    char hex[8192] = {};
    if (std::fscanf(stream, "%d %8191s", &port_, hex) != 2) port_ = 0;
    std::fclose(stream);
    auto key = FromHex(hex);
    if (key.ok()) key_ = *key;
  }
  ~PeerProcess() {
    if (pid_ > 0) Kill();
  }
  void Stall() {
    kill(pid_, SIGSTOP);
    waitpid(pid_, nullptr, WUNTRACED);  // a signal takes effect some time after kill returns
  }
  void Kill() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = -1;
  }
  uint16_t port() const { return static_cast<uint16_t>(port_); }
  const std::string& key() const { return key_; }

 private:
  pid_t pid_ = -1;
  UniqueFd input_;
  int port_ = 0;
  std::string key_;
};

absl::Time Soon() { return absl::Now() + absl::Seconds(30); }

struct Link {
  Endpoint connection;
  RemoteRegion remote;
};

class FailureTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    auto engine = Context::Create({.transports = GetParam()});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    buffer_.resize(kRegionBytes);
  }
  Link LinkTo(const PeerProcess& peer) {
    auto connection = engine_->Connect("127.0.0.1", peer.port(), Soon());
    EXPECT_TRUE(connection.ok()) << connection.status();
    auto remote = connection->UnpackRemoteKey(peer.key());
    EXPECT_TRUE(remote.ok()) << remote.status();
    return {*std::move(connection), *std::move(remote)};
  }
  std::vector<PutTransfer> Puts(const Link& link, int copies) {
    return std::vector<PutTransfer>(copies, {buffer_, link.remote.address(), &link.remote});
  }
  std::vector<GetTransfer> Gets(const Link& link, int copies) {
    return std::vector<GetTransfer>(copies, {buffer_, link.remote.address(), &link.remote});
  }
  void ExpectWorks(const Link& link) {
    const absl::Status status = link.connection.Put(Puts(link, 1), Soon());
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(link.connection.Get(Gets(link, 1), Soon()).ok());
  }

  std::unique_ptr<Context> engine_;
  std::vector<std::byte> buffer_;
};

TEST_P(FailureTest, APeerKilledDuringAPutIsUnavailableAndOthersGoOn) {
  PeerProcess victim(GetParam()), other(GetParam());
  const Link to_victim = LinkTo(victim), to_other = LinkTo(other);
  ExpectWorks(to_victim);
  const absl::Time start = absl::Now();
  // 64 GiB: cannot finish before the kill.
  auto handle = to_victim.connection.StartPut(Puts(to_victim, 1024), {.deadline = start + absl::Seconds(20)});
  ASSERT_TRUE(handle.ok());
  victim.Kill();
  const absl::Status status = handle->Wait();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_LT(absl::Now() - start, absl::Seconds(21));
  EXPECT_FALSE(to_victim.connection.connected());
  EXPECT_TRUE(absl::IsUnavailable(to_victim.connection.Put(Puts(to_victim, 1), Soon())));
  EXPECT_TRUE(absl::IsUnavailable(to_victim.connection.Call(1, "", "", Soon()).status()));
  EXPECT_TRUE(absl::IsUnavailable(to_victim.connection.UnpackRemoteKey(victim.key()).status()));
  ExpectWorks(to_other);
  PeerProcess restarted(GetParam());
  ExpectWorks(LinkTo(restarted));
  EXPECT_EQ(engine_->Stats().connections_failed, 1u);
}

TEST_P(FailureTest, APeerKilledDuringAGetIsUnavailableAndOthersGoOn) {
  PeerProcess victim(GetParam()), other(GetParam());
  const Link to_victim = LinkTo(victim), to_other = LinkTo(other);
  auto handle = to_victim.connection.StartGet(Gets(to_victim, 1024), {.deadline = Soon()});
  ASSERT_TRUE(handle.ok());
  victim.Kill();
  const absl::Status status = handle->Wait();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  ExpectWorks(to_other);
}

// UCX 1.13 ends the process when a send fails while the answer to an earlier write has been read but not handled.
TEST_P(FailureTest, APeerKilledAtAnyMomentOfPutsGetsAndCallsHarmsNobody) {
  std::mt19937 random(1);
  std::vector<std::byte> landing(kRegionBytes);
  for (int round = 0; round < 25; ++round) {
    PeerProcess victim(GetParam());
    const Link link = LinkTo(victim);
    std::vector<PutTransfer> puts;
    std::vector<GetTransfer> gets;
    for (size_t offset = 0; offset < kRegionBytes; offset += size_t{4} << 20) {
      // Long ones, in some rounds, and such as are sent together.
      const size_t size = static_cast<int>(random() % 16) < round % 8 ? size_t{3} << 20 : size_t{100} << 10;
      const size_t times = size < 1 << 20 ? 8 : 1;
      for (size_t i = 0, at = offset; i < times; ++i, at += size + 64) {
        puts.push_back({std::span(buffer_).subspan(at, size), link.remote.address() + at, &link.remote});
        gets.push_back({std::span(landing).subspan(at, size), link.remote.address() + at, &link.remote});
      }
    }
    std::vector<TransferBatch> batches;
    for (int i = 0; i < 4; ++i) {
      auto put = link.connection.StartPut(puts, {.deadline = Soon()});
      auto get = link.connection.StartGet(gets, {.deadline = Soon()});
      ASSERT_TRUE(put.ok() && get.ok());
      batches.push_back(*std::move(put));
      batches.push_back(*std::move(get));
    }
    const absl::Time end = absl::Now() + absl::Microseconds(random() % 20000);
    while (absl::Now() < end &&
           link.connection.Call(1, "", "", Soon()).status().code() == absl::StatusCode::kNotFound) {
    }
    victim.Kill();
    for (TransferBatch& batch : batches) {
      const absl::Status status = batch.Wait();
      EXPECT_TRUE(status.ok() || absl::IsUnavailable(status)) << status;
    }
  }
}

TEST_P(FailureTest, AStalledPeerIsDeadlineExceededAndOthersGoOn) {
  PeerProcess victim(GetParam()), other(GetParam());
  const Link to_victim = LinkTo(victim), to_other = LinkTo(other);
  victim.Stall();
  const absl::Time start = absl::Now();
  // A message needs the peer's processor on every transport.
  const absl::Status call = to_victim.connection.Call(1, "", "", start + absl::Milliseconds(200)).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(call)) << call;
  EXPECT_TRUE(to_victim.connection.connected());
  const absl::Status put = to_victim.connection.Put(Puts(to_victim, 256), start + absl::Milliseconds(500));
  EXPECT_TRUE(absl::IsDeadlineExceeded(put)) << put;
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  // Copies into shared memory need nobody else, so there was nothing to cut off.
  EXPECT_EQ(to_victim.connection.connected(), to_victim.remote.path() == "shared memory");
  ExpectWorks(to_other);
}

TEST_P(FailureTest, AStalledPeerEndsConnect) {
  PeerProcess victim(GetParam());
  victim.Stall();
  const absl::Status status =
      engine_->Connect("127.0.0.1", victim.port(), absl::Now() + absl::Milliseconds(300)).status();
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
}

TEST_P(FailureTest, AnIdleConnectionNoticesThePeersDeath) {
  PeerProcess victim(GetParam());
  const Link link = LinkTo(victim);
  victim.Kill();
  const absl::Time limit = Soon();
  while (link.connection.connected() && absl::Now() < limit) absl::SleepFor(absl::Milliseconds(1));
  EXPECT_FALSE(link.connection.connected());
}

TEST_P(FailureTest, AHandleDroppedInMidTransferEndsByItsDeadline) {
  PeerProcess victim(GetParam());
  const Link link = LinkTo(victim);
  victim.Stall();
  const absl::Time start = absl::Now();
  { auto handle = link.connection.StartPut(Puts(link, 256), {.deadline = start + absl::Milliseconds(300)}); }
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_EQ(link.connection.connected(), link.remote.path() == "shared memory");
}

TEST_P(FailureTest, AServerSurvivesClientsKilledInMidTransfer) {
  auto region = engine_->AllocateMemory(kRegionBytes);
  auto listener = engine_->Listen("127.0.0.1", 0, TrustEveryone);
  ASSERT_TRUE(region.ok() && listener.ok());
  const std::string& key = region->remote_key();
  const std::string hex = ToHex({reinterpret_cast<const uint8_t*>(key.data()), key.size()});
  for (int i = 0; i < 6; ++i) {
    PeerProcess client({GetParam(), std::to_string(listener->port()), hex, i % 2 == 0 ? "get" : "put"});
    client.Kill();  // it has moved the region once and is at it again
  }
  PeerProcess other(GetParam());
  ExpectWorks(LinkTo(other));
  auto loop = engine_->Connect("127.0.0.1", listener->port(), Soon());
  ASSERT_TRUE(loop.ok()) << loop.status();
  EXPECT_EQ(engine_->Stats().connections_accepted, 7u);
}

INSTANTIATE_TEST_SUITE_P(Transports, FailureTest, testing::Values("tcp", "shm,tcp"),
                         [](const auto& info) { return info.param == "tcp" ? "Tcp" : "SharedMemory"; });

}  // namespace
}  // namespace perigee::transport
