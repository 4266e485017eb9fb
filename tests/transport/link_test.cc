// Connections that go quiet, and contexts that end: signs of life, bounded queues, nothing left behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "child.h"
#include "transport/context.h"

namespace perigee::transport {
namespace {

using ::testing::HasSubstr;

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr size_t kMostGrowth = size_t{376} << 20;  // AddressSanitizer keeps 256 MiB of what was freed
#else
constexpr size_t kMostGrowth = size_t{120} << 20;
#endif

absl::Time Soon() { return absl::Now() + absl::Seconds(40); }

size_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  size_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * 4096;
}
size_t OpenFiles() {
  const std::filesystem::directory_iterator files("/proc/self/fd");
  return static_cast<size_t>(std::distance(begin(files), end(files)));
}

template <typename Condition>
bool Eventually(Condition condition, absl::Duration limit = absl::Seconds(40)) {
  const absl::Time until = absl::Now() + limit;
  while (!condition()) {
    if (absl::Now() > until) return false;
    absl::SleepFor(absl::Milliseconds(2));
  }
  return true;
}

class LinkTest : public testing::TestWithParam<const char*> {
 protected:
  static constexpr size_t kBytes = size_t{16} << 20;

  std::unique_ptr<Context> Make(absl::Duration keepalive = absl::Seconds(5)) {
    auto context = Context::Create({.transports = GetParam(), .keepalive = keepalive});
    EXPECT_TRUE(context.ok()) << context.status();
    return *std::move(context);
  }
  struct Serving {
    explicit Serving(const char* transports) : child({TRANSPORT_PEER, transports, absl::StrCat(kBytes)}) {
      const std::string said = child.Hear();
      std::vector<char> hex(8192);
      int number = 0;
      EXPECT_EQ(std::sscanf(said.c_str(), "%d %8191s", &number, hex.data()), 2) << said;
      port = static_cast<uint16_t>(number);
      key = FromHex(hex.data()).value_or("");
    }
    Child child;
    uint16_t port = 0;
    std::string key;
  };
};

TEST_P(LinkTest, AnIdleConnectionToAStalledPeerIsClosedAndANewOneWorksLater) {
  const auto context = Make(absl::Milliseconds(200));
  Serving peer(GetParam());
  auto endpoint = context->Connect("127.0.0.1", peer.port, Soon());
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  const absl::Time start = absl::Now();
  peer.child.Pause();
  ASSERT_TRUE(Eventually([&] { return !endpoint->connected(); }));
  EXPECT_GE(absl::Now() - start, absl::Milliseconds(400)) << "three intervals, not one";
  const absl::Status status = endpoint->Call(1, "", "", Soon()).status();
  EXPECT_TRUE(absl::IsUnavailable(status)) << status;
  EXPECT_EQ(context->Stats().connections_failed, 1u);
  peer.child.Continue();
  auto again = context->Connect("127.0.0.1", peer.port, Soon());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(absl::IsNotFound(again->Call(1, "", "", Soon()).status()));
}

TEST_P(LinkTest, AnIdleConnectionToALivingPeerStaysOpenHoweverShortTheInterval) {
  const auto server = Make(absl::Milliseconds(10)), client = Make(absl::Milliseconds(10));
  auto listener = server->Listen("127.0.0.1", 0, TrustEveryone);
  ASSERT_TRUE(listener.ok());
  auto endpoint = client->Connect("127.0.0.1", listener->port(), Soon());
  ASSERT_TRUE(endpoint.ok()) << endpoint.status();
  EXPECT_FALSE(Eventually([&] { return !endpoint->connected(); }, absl::Seconds(2)));
  EXPECT_TRUE(absl::IsNotFound(endpoint->Call(1, "", "", Soon()).status()));
}

TEST_P(LinkTest, TheAcceptedSideForgetsClientsThatAreKilledOrStalled) {
  const auto server = Make(absl::Milliseconds(200));
  auto region = server->AllocateMemory(kBytes);
  auto listener = server->Listen("127.0.0.1", 0, TrustEveryone);
  ASSERT_TRUE(region.ok() && listener.ok());
  const std::string& key = region->remote_key();
  const std::string hex = ToHex({reinterpret_cast<const uint8_t*>(key.data()), key.size()});
  const std::vector<std::string> command = {TRANSPORT_PEER, GetParam(), absl::StrCat(listener->port()), hex, "put"};
  std::vector<std::string> get = command;
  get.back() = "get";
  {
    Child warm_up(command);
    ASSERT_EQ(warm_up.Hear(), "0 ok");
  }
  absl::SleepFor(absl::Milliseconds(100));
  ASSERT_TRUE(Eventually([&] { return server->Stats().connections_accepted == 1; }));
  const size_t before = OpenFiles();
  Child killed(command), stalled(command), stalled_get(get);
  for (Child* child : {&killed, &stalled, &stalled_get}) ASSERT_EQ(child->Hear(), "0 ok");
  EXPECT_GT(OpenFiles(), before);
  killed.Kill();
  stalled.Pause();
  stalled_get.Pause();
  // Its own pipes and those of three children aside, nothing of them is left.
  EXPECT_TRUE(Eventually([&] { return OpenFiles() <= before + 6; })) << before << " files became " << OpenFiles();
  // And it serves others.
  Child last(get);
  EXPECT_EQ(last.Hear(), "0 ok");
}

TEST_P(LinkTest, APutThatWasCutOffNeverLands) {
  const auto server = Make();
  std::vector<std::byte> memory(kBytes);  // registered, not allocated: reached by messages over either transport
  auto region = server->RegisterMemory(memory);
  auto listener = server->Listen("127.0.0.1", 0, TrustEveryone);
  ASSERT_TRUE(region.ok() && listener.ok());
  const std::string& key = region->remote_key();
  const std::string hex = ToHex({reinterpret_cast<const uint8_t*>(key.data()), key.size()});
  const std::span<const std::byte> elsewhere = std::span(memory).first(0), all = memory;
  int cut_off = 0;
  for (int round = 0; round < 8 && cut_off < 2; ++round) {
    Child writer({TRANSPORT_PEER, GetParam(), absl::StrCat(listener->port()), hex, "put"});
    ASSERT_EQ(writer.Hear(), "0 ok");
    ASSERT_TRUE(server->CutOffPuts({&elsewhere, 1}).ok());
    const uint64_t served = server->Stats().served_bytes;
    ASSERT_TRUE(Eventually([&] { return server->Stats().served_bytes > served; })) << "nothing of it was cut off";
    writer.Pause();
    ASSERT_TRUE(server->CutOffPuts({&all, 1}).ok());
    std::ranges::fill(memory, std::byte{0x5a});
    writer.Continue();
    if (writer.Hear(absl::Seconds(2)) != "(gone)") continue;  // nothing was under way in the moment of the pause
    cut_off++;
    EXPECT_TRUE(std::ranges::all_of(memory, [](std::byte b) { return b == std::byte{0x5a}; })) << "round " << round;
  }
  EXPECT_EQ(cut_off, 2);
}

TEST_P(LinkTest, APeerThatWakesUpAfterItsTransfersWereGivenUpServesAgain) {
  const auto context = Make();
  std::vector<std::byte> local(kBytes);
  int ended = 0;
  for (int round = 0; round < 12; ++round) {
    Serving peer(GetParam());
    auto endpoint = context->Connect("127.0.0.1", peer.port, Soon());
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    auto remote = endpoint->UnpackRemoteKey(peer.key);
    ASSERT_TRUE(remote.ok());
    const std::vector<PutTransfer> puts(64, {local, remote->address(), &*remote});
    const std::vector<GetTransfer> gets(64, {local, remote->address(), &*remote});
    auto batch = round % 4 == 0 ? endpoint->StartPut(puts, {.deadline = absl::Now() + absl::Milliseconds(200)})
                                : endpoint->StartGet(gets, {.deadline = absl::Now() + absl::Milliseconds(200)});
    ASSERT_TRUE(batch.ok());
    batch->WaitExtent(0, absl::Now() + absl::Milliseconds(20)).IgnoreError();
    peer.child.Pause();
    const absl::Status status = batch->Wait();
    EXPECT_TRUE(status.ok() || absl::IsDeadlineExceeded(status)) << status;
    peer.child.Continue();
    // What it still has in its buffers, and what it answers, arrives before this.
    auto again = context->Connect("127.0.0.1", peer.port, Soon());
    // One that was stopped in the middle of UCX's own work may still end in an assertion of UCX 1.13 (a send fails,
    // then the acknowledgement of the last one is read): about one in a hundred.
    if (absl::IsUnavailable(again.status())) {
      ended++;
      continue;
    }
    ASSERT_TRUE(again.ok()) << again.status();
    for (int i = 0; i < 20; ++i) {
      EXPECT_TRUE(absl::IsNotFound(again->Call(1, "", "", Soon()).status()));
    }
  }
  EXPECT_LE(ended, 1);
}

TEST_P(LinkTest, CallsAndSendsToAStalledPeerEndByTheirDeadlines) {
  const auto context = Make();
  Serving peer(GetParam());
  auto endpoint = context->Connect("127.0.0.1", peer.port, Soon());
  ASSERT_TRUE(endpoint.ok());
  peer.child.Pause();
  const std::string payload(kMaxMessageBytes / 2, 'x');
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0}, late{0};
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 30; ++i) {
        const absl::Time deadline = absl::Now() + absl::Milliseconds(20);
        const absl::Status status =
            t % 2 == 0 ? endpoint->Send(1, "", payload, deadline) : endpoint->Call(1, "", payload, deadline).status();
        // A Send may still fit into the kernel's buffers.
        if (!absl::IsDeadlineExceeded(status) && !(t % 2 == 0 && status.ok())) ++wrong;
        if (absl::Now() > deadline + absl::Seconds(3)) ++late;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(late, 0);
  EXPECT_TRUE(endpoint->connected()) << "a message that is late closes nothing";
  peer.child.Continue();
  EXPECT_TRUE(absl::IsNotFound(endpoint->Call(1, "", "", Soon()).status()));
}

// kMaxQueuedBytes and some for UCX; large messages, and many small ones, which cost more than their bytes.
TEST_P(LinkTest, AStalledPeerDoesNotFillMemory) {
  const auto context = Make(absl::Seconds(30));
  Serving peer(GetParam());
  auto endpoint = context->Connect("127.0.0.1", peer.port, Soon());
  ASSERT_TRUE(endpoint.ok());
  peer.child.Pause();
  const size_t before = ResidentBytes();
  for (const size_t bytes : {kMaxMessageBytes, size_t{0}}) {
    const std::string payload(bytes, 'x');
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t) {
      threads.emplace_back([&] {
        const int count = bytes == 0 ? 30000 : 100;  // 400 MiB
        for (int i = 0; i < count; ++i) {
          endpoint->Send(1, "", payload, absl::Now() + absl::Microseconds(20)).IgnoreError();
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_LT(ResidentBytes(), before + kMostGrowth) << bytes;
  }
}

TEST_P(LinkTest, AContextEndsInTheMiddleOfEverything) {
  for (int round = 0; round < 6; ++round) {
    SCOPED_TRACE(round);
    auto server = Make(), client = Make();
    server->SetHandler(1, [](absl::string_view, absl::string_view payload) { return std::string(payload); });
    auto region = server->AllocateMemory(kBytes);
    auto listener = server->Listen("127.0.0.1", 0, TrustEveryone);
    ASSERT_TRUE(region.ok() && listener.ok());
    auto endpoint = client->Connect("127.0.0.1", listener->port(), Soon());
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    auto remote = endpoint->UnpackRemoteKey(round % 2 == 0 ? region->remote_key() : region->served_key());
    ASSERT_TRUE(remote.ok());
    std::vector<std::byte> local(kBytes);
    std::vector<TransferBatch> batches;
    for (int i = 0; i < 8; ++i) {
      const PutTransfer put{local, remote->address(), &*remote};
      const GetTransfer get{local, remote->address(), &*remote};
      auto batch = i % 2 == 0 ? endpoint->StartPut({&put, 1}, {.deadline = Soon()})
                              : endpoint->StartGet({&get, 1}, {.deadline = Soon()});
      ASSERT_TRUE(batch.ok());
      batches.push_back(*std::move(batch));
    }
    std::atomic<bool> stop{false};
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    const auto fine = [](const absl::Status& status) {
      return status.ok() || absl::IsCancelled(status) || absl::IsUnavailable(status) ||
             absl::IsFailedPrecondition(status);
    };
    for (int t = 0; t < 3; ++t) {
      threads.emplace_back([&, t] {
        std::vector<std::byte> mine(300000);
        while (!stop) {
          const PutTransfer put{mine, remote->address(), &*remote};
          const absl::Status status = t == 0   ? endpoint->Put({&put, 1}, Soon())
                                      : t == 1 ? endpoint->Call(1, "", "text", Soon()).status()
                                               : endpoint->Send(1, "", "text", Soon());
          if (!fine(status)) ++wrong;
        }
      });
    }
    batches[0].WaitExtent(0, Soon()).IgnoreError();
    (round % 3 == 0 ? client : server).reset();
    if (round % 3 == 2) client.reset();
    for (TransferBatch& batch : batches) {
      const absl::Status status = batch.Wait();
      EXPECT_TRUE(fine(status)) << status;
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
  }
}

TEST_P(LinkTest, ContextsLeaveNothingBehind) {
  const auto once = [&] {
    auto server = Make(), client = Make();
    auto region = server->AllocateMemory(kBytes);
    auto listener = server->Listen("127.0.0.1", 0, TrustEveryone);
    ASSERT_TRUE(region.ok() && listener.ok());
    auto endpoint = client->Connect("127.0.0.1", listener->port(), Soon());
    ASSERT_TRUE(endpoint.ok());
    auto remote = endpoint->UnpackRemoteKey(region->served_key());
    ASSERT_TRUE(remote.ok());
    std::vector<std::byte> local(1 << 20);
    std::vector<PutTransfer> puts;  // scattered, so that staging buffers are made
    for (size_t at = 0; at < local.size(); at += 4096) {
      puts.push_back({std::span(local).subspan(at, 4096), remote->address() + 2 * at, &*remote});
    }
    EXPECT_TRUE(endpoint->Put(puts, Soon()).ok());
  };
  for (int i = 0; i < 3; ++i) once();
  const size_t files = OpenFiles(), resident = ResidentBytes();
  for (int i = 0; i < 25; ++i) once();
  EXPECT_LE(OpenFiles(), files + 3);
  EXPECT_LT(ResidentBytes() - std::min(resident, ResidentBytes()), size_t{25} << 20);
}

INSTANTIATE_TEST_SUITE_P(Transports, LinkTest, testing::Values("tcp", "shm,tcp"),
                         [](const auto& info) { return info.index == 0 ? "Tcp" : "SharedMemory"; });

}  // namespace
}  // namespace perigee::transport
