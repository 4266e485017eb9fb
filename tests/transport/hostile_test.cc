// A hostile client (hostile_main.cc, raw UCX) against a server in this process: whatever it sends, it neither reads nor
// writes what it may not, the server lives, and an honest client is served.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "child.h"
#include "transport/context.h"
#include "transport/remote_key.h"
#include "transport/wire.h"

namespace perigee::transport {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr size_t kRegionBytes = size_t{4} << 20;
constexpr size_t kOpHeaderBytes = sizeof(internal::OpHeader);
constexpr uint64_t kTenant = 42;  // session

absl::Time Soon() { return absl::Now() + absl::Seconds(40); }

size_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  size_t all = 0, resident = 0;
  file >> all >> resident;
  return resident * 4096;
}

class HostileTest : public testing::Test {
 protected:
  void SetUp() override {
    auto server = Context::Create({.transports = "tcp", .keepalive = absl::Seconds(3)});
    auto client = Context::Create({.transports = "tcp"});
    ASSERT_TRUE(server.ok() && client.ok());
    server_ = *std::move(server);
    client_ = *std::move(client);
    auto listener =
        server_->Listen("127.0.0.1", 0, [](absl::string_view token, absl::string_view) -> absl::StatusOr<PeerIdentity> {
          if (token == "honest") return PeerIdentity{"honest", 1, /*trusted=*/true};
          if (token == "tenant") return PeerIdentity{"tenant", kTenant, /*trusted=*/false};
          return absl::PermissionDeniedError("who are you?");
        });
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    auto region = server_->AllocateMemory(kRegionBytes, Sharing::kLeased);
    ASSERT_TRUE(region.ok()) << region.status();
    region_ = *std::move(region);
    std::ranges::fill(region_.bytes(), std::byte{'S'});
    const auto key = DecodeRemoteKey(region_.served_key());
    ASSERT_TRUE(key.ok());
    region_id_ = key->region_id;
    server_->SetHandler(1, [this](absl::string_view, absl::string_view) -> absl::StatusOr<std::string> {
      handled_++;
      return "";
    });
  }

  Child Hostile() { return Child({TRANSPORT_HOSTILE, "127.0.0.1", absl::StrCat(listener_.port())}); }
  // Says hello as the tenant and knows the region.
  void LogIn(Child& hostile) {
    ASSERT_EQ(hostile.Ask("connect 1"), "ok");
    ASSERT_THAT(hostile.Ask("hello tenant 3 3 right"), StartsWith("answer 0"));
    ASSERT_EQ(hostile.Ask("own"), "ok");
    ASSERT_EQ(hostile.Ask(absl::StrCat("region ", region_id_)), "ok");
  }
  std::string Op(absl::string_view way, uint64_t address, uint64_t size, uint32_t pieces, size_t payload_bytes,
                 absl::string_view protocol = "eager", size_t header_bytes = kOpHeaderBytes, uint64_t piece_size = 0) {
    return absl::StrCat("op ", way, " ", header_bytes, " ", address, " ", size, " ", pieces, " ", payload_bytes, " ",
                        protocol, " ", piece_size);
  }

  bool Intact() const {
    return std::ranges::all_of(region_.bytes(), [](std::byte b) { return b == std::byte{'S'}; });
  }
  void ExpectServed() {
    auto endpoint = client_->Connect("127.0.0.1", listener_.port(), Soon(), "honest");
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    server_->grants().RevokeSession(kTrustedSession);
    server_->grants().Grant(kTrustedSession, region_.address(), kRegionBytes, Access::kWrite, absl::InfiniteFuture());
    auto remote = endpoint->UnpackRemoteKey(region_.remote_key());
    ASSERT_TRUE(remote.ok()) << remote.status();
    std::vector<std::byte> bytes(kRegionBytes);
    const GetTransfer get{bytes, remote->address(), &*remote};
    const absl::Status got = endpoint->Get({&get, 1}, Soon());
    ASSERT_TRUE(got.ok()) << got;
    EXPECT_TRUE(std::ranges::equal(bytes, region_.bytes()));
    const PutTransfer put{bytes, remote->address(), &*remote};
    const absl::Status stored = endpoint->Put({&put, 1}, Soon());
    EXPECT_TRUE(stored.ok()) << stored;
    const int before = handled_;
    EXPECT_TRUE(endpoint->Call(1, "", "", Soon()).ok());
    EXPECT_EQ(handled_, before + 1);
  }

  std::unique_ptr<Context> server_, client_;
  Listener listener_;
  MemoryRegion region_;
  uint64_t region_id_ = 0;
  std::atomic<int> handled_{0};
};

// (a), (b): nobody who has not said hello, or does not know the channel, is answered.
TEST_F(HostileTest, NothingIsServedBeforeTheHelloOrForAGuessedChannel) {
  Child hostile = Hostile();
  ASSERT_EQ(hostile.Ask("connect 1"), "ok");
  hostile.Ask(absl::StrCat("region ", region_id_));
  for (const char* channel : {"guess 0", "guess 1", "guess 18446744073709551615", "guess 77"}) {
    hostile.Ask(channel);
    for (const char* way : {"put", "get"}) {
      for (const char* protocol : {"eager", "rndv"}) {
        const size_t payload = absl::string_view(way) == "put" ? 4096 : 0;
        if (payload == 0 && absl::string_view(protocol) == "rndv") continue;
        EXPECT_THAT(hostile.Ask(Op(way, region_.address(), 4096, 1, payload, protocol)), AnyOf("nothing", "closed"));
      }
    }
    EXPECT_THAT(hostile.Ask("message 2 1 0"), AnyOf("nothing", "closed"));
  }
  EXPECT_EQ(handled_, 0);
  EXPECT_EQ(server_->Stats().messages_received, 0u);
  EXPECT_TRUE(Intact());
  ExpectServed();
}

TEST_F(HostileTest, AnotherPeersChannelIsNotToBeGuessedFromOnesOwn) {
  Child hostile = Hostile();
  LogIn(hostile);
  EXPECT_EQ(hostile.Ask("message 2 1 0"), "reply 0");  // so its own works
  EXPECT_EQ(handled_, 1);
  hostile.Ask("guess 78");
  EXPECT_EQ(hostile.Ask("message 2 1 0"), "nothing");
  EXPECT_EQ(handled_, 1);
  ExpectServed();
}

// (c): what makes no sense closes the connection or is refused; nothing of it is done.
TEST_F(HostileTest, AbsurdRequestsAreRefused) {
  const uint64_t base = region_.address();
  server_->grants().Grant(kTenant, base, 64 << 10, Access::kRead, absl::InfiniteFuture());
  server_->grants().Grant(kTenant, base, 64 << 10, Access::kWrite, absl::InfiniteFuture());
  const uint64_t end = base + kRegionBytes;
  const std::vector<std::string> requests = {
      // Sizes.
      Op("get", base, 0, 1, 0), Op("get", base, (1 << 20) + 1, 1, 0), Op("get", base, UINT64_MAX, 1, 0),
      Op("put", base, 0, 1, 0), Op("put", base, UINT64_MAX, 1, 64), Op("put", base, 4096, 1, 64),
      Op("put", base, 64, 1, 4096), Op("put", base, 4096, 1, 64, "rndv"), Op("put", base, 64, 1, 1 << 20, "rndv"),
      Op("put", base, 1 << 20, 1, 2 << 20, "rndv"), Op("put", base, 1 << 20, 1, 2 << 20, "eager"),
      // Pieces.
      Op("get", base, 4096, 0, 0), Op("get", base, 4096, 4097, 65552), Op("get", base, 4096, UINT32_MAX, 64),
      Op("get", base, 4096, 2, 0), Op("get", base, 4096, 2, 31), Op("put", base, 64, 0, 64), Op("put", base, 64, 2, 64),
      Op("put", base, 64, 4096, 128, "rndv"),
      // Tables that do not add up, or whose pieces are empty or too large.
      Op("get", base, 4096, 2, 32, "eager", kOpHeaderBytes, 4096),
      Op("get", base, 4096, 2, 32, "eager", kOpHeaderBytes, UINT64_MAX / 2 + 2049),
      Op("put", base, 4096, 2, 32 + 4096, "eager", kOpHeaderBytes, 1024),
      Op("put", base, 4096, 2, 32 + 4096, "rndv", kOpHeaderBytes, 1 << 30),
      Op("get", base, 4096, 4, 64, "rndv", kOpHeaderBytes, 1024),
      // Outside.
      Op("get", base - 1, 4096, 1, 0), Op("get", end - 1, 2, 1, 0), Op("get", end, 1, 1, 0), Op("get", 0, 8, 1, 0),
      Op("get", UINT64_MAX, 8, 1, 0), Op("put", base - 4096, 4096, 1, 4096), Op("put", end, 4096, 1, 4096, "rndv"),
      Op("put", UINT64_MAX - 100, 4096, 1, 4096, "rndv"),
      // Half in, half out: of the region, and of what is granted.
      Op("put", end - 2048, 4096, 2, 32 + 4096, "eager", kOpHeaderBytes, 2048),
      Op("put", base + (62 << 10), 4096, 2, 32 + 4096, "rndv", kOpHeaderBytes, 2048),
      Op("put", base + (64 << 10) - 1, 2, 1, 2), Op("get", base + (64 << 10), 1, 1, 0),
      // Headers.
      Op("get", base, 4096, 1, 0, "eager", 0), Op("get", base, 4096, 1, 0, "eager", 8),
      Op("get", base, 4096, 1, 0, "eager", kOpHeaderBytes - 1),
      Op("get", base, 4096, 1, 0, "eager", kOpHeaderBytes + 1),
      Op("put", base, 4096, 1, 4096, "rndv", kOpHeaderBytes - 1)};
  auto hostile =
      std::make_unique<Child>(std::vector<std::string>{TRANSPORT_HOSTILE, "127.0.0.1", absl::StrCat(listener_.port())});
  LogIn(*hostile);
  for (const std::string& request : requests) {
    SCOPED_TRACE(request);
    // Headers of another size are dropped without a word, for which it waits two seconds.
    const std::string said = hostile->Ask(request);
    const bool wrong_header = !absl::StartsWith(request, absl::StrCat("op get ", kOpHeaderBytes, " ")) &&
                              !absl::StartsWith(request, absl::StrCat("op put ", kOpHeaderBytes, " "));
    if (wrong_header) {
      EXPECT_EQ(said, "nothing");
    } else {
      EXPECT_THAT(said, AnyOf("closed", "answer 3", "answer 7", "answer 11"));
    }
    if (said == "closed") LogIn(*hostile);  // a new connection
  }
  EXPECT_TRUE(Intact());
  // Inside of the grant it works.
  EXPECT_EQ(hostile->Ask(Op("get", base, 64, 1, 0)), "data 64");
  ExpectServed();
}

TEST_F(HostileTest, MessagesOfEveryIdAndLengthAreSurvived) {
  Child hostile = Hostile();
  LogIn(hostile);
  std::vector<int> ids(16);
  std::iota(ids.begin(), ids.end(), 0);
  for (const int id : {16, 17, 31, 32, 63, 255, 256, 1000, 4095, 32767, 65535}) ids.push_back(id);
  for (const int id : ids) {
    for (const int bytes : {0, 1, 7, 8, 16, 24, 32, 48, 64, 1000}) {
      const std::string said = hostile.Ask(absl::StrCat("am ", id, " ", bytes));
      if (said == "closed") LogIn(hostile);
    }
  }
  // Kinds that are none, answers to calls that were not made, a header longer than the message.
  for (const char* message :
       {"message 0 1 0", "message 3 1 0", "message 9 1 0", "message 1 1 8", "message 2 1 4000000"}) {
    EXPECT_EQ(hostile.Ask(message), "nothing") << message;
  }
  EXPECT_EQ(handled_, 0);
  EXPECT_TRUE(Intact());
  ExpectServed();
}

// (d)
TEST_F(HostileTest, OneSidedOperationsReachNoMemory) {
  for (const size_t size : {8, 4096, 65536, 1 << 20}) {
    Child hostile = Hostile();
    LogIn(hostile);
    const std::string put = hostile.Ask(absl::StrCat("rma put ", region_.address(), " ", size));
    EXPECT_TRUE(Intact()) << size << ": " << put;
    const std::string get = hostile.Ask(absl::StrCat("rma get ", region_.address(), " ", size));
    EXPECT_THAT(get, testing::Not(HasSubstr("LEAKED"))) << size;
    ExpectServed();
  }
}

// (e)
TEST_F(HostileTest, HellosAreJudgedByMagicVersionAndToken) {
  const auto hello = [&](const std::string& line) {
    Child hostile = Hostile();
    EXPECT_EQ(hostile.Ask("connect 1"), "ok");
    return hostile.Ask(line);
  };
  EXPECT_EQ(hello("hello tenant 3 3 wrong"), "closed");
  const std::string future = hello("hello tenant 4 9 right");
  EXPECT_THAT(future, StartsWith("answer 9 "));  // FAILED_PRECONDITION
  EXPECT_THAT(future, HasSubstr("4 to 9"));
  EXPECT_THAT(hello("hello tenant 0 2 right"), StartsWith("answer 9 "));
  EXPECT_THAT(hello("hello tenant 9 3 right"), StartsWith("answer 9 "));  // an empty range
  EXPECT_THAT(hello("hello tenant 3 9 right"), StartsWith("answer 0"));
  EXPECT_THAT(hello("hello tenant 0 65535 right"), StartsWith("answer 0"));
  EXPECT_EQ(hello("hello stranger 3 3 right"), "answer 7 who are you?");  // PERMISSION_DENIED
  EXPECT_EQ(server_->Stats().connections_accepted, 2u);
  ExpectServed();
}

TEST_F(HostileTest, ARefusedPeerMayNotTryTokensUntilOneFits) {
  Child hostile = Hostile();
  ASSERT_EQ(hostile.Ask("connect 1"), "ok");
  ASSERT_THAT(hostile.Ask("hello stranger 3 3 right"), StartsWith("answer 7"));
  EXPECT_EQ(hostile.Ask("hello tenant 3 3 right"), "closed");
  EXPECT_EQ(server_->Stats().connections_accepted, 0u);
  ExpectServed();
}

// (f)
TEST_F(HostileTest, AStalledPutHoldsUpNobodyAndNeverLandsLate) {
  const uint64_t base = region_.address();
  const uint64_t grant = server_->grants().Grant(kTenant, base, 1 << 20, Access::kWrite, absl::InfiniteFuture());
  Child hostile = Hostile();
  LogIn(hostile);
  // More than the server has staging buffers for. After "ok" it reads its input and nothing else.
  ASSERT_EQ(hostile.Ask(absl::StrCat("stall 40 ", base, " ", 1 << 20)), "ok");
  // Others go on, packed puts, which need staging too, included.
  for (int i = 0; i < 3; ++i) {
    ExpectServed();
    auto endpoint = client_->Connect("127.0.0.1", listener_.port(), Soon(), "honest");
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    auto remote = endpoint->UnpackRemoteKey(region_.served_key());
    ASSERT_TRUE(remote.ok());
    std::vector<std::byte> bytes(1 << 20, std::byte{'S'});
    std::vector<PutTransfer> puts;
    for (size_t at = 0; at < bytes.size(); at += 8192) {
      puts.push_back({std::span(bytes).subspan(at, 4096), base + at, &*remote});
    }
    const absl::Status status = endpoint->Put(puts, Soon());
    EXPECT_TRUE(status.ok()) << status;
  }
  // The lease ends; the memory is another's now.
  server_->grants().Revoke(grant);
  ASSERT_EQ(hostile.Ask("resume"), "ok");
  EXPECT_TRUE(Intact());
  ExpectServed();
}

// (g)
TEST_F(HostileTest, AnswersThatNobodyTakesDoNotFillMemory) {
  server_->SetHandler(2, [this](absl::string_view, absl::string_view) -> absl::StatusOr<std::string> {
    handled_++;
    return std::string(kMaxMessageBytes, 'a');
  });
  const size_t before = ResidentBytes();
  Child hostile = Hostile();
  LogIn(hostile);
  ASSERT_EQ(hostile.Ask("flood 2000 2"), "sent");  // 2 GiB of answers, and it reads none of them
  const absl::Time limit = Soon();
  size_t most = 0;
  // Until it is cut off. It takes no answers, so nothing else tells: handled calls no longer become more.
  while (absl::Now() < limit && handled_ < 20) absl::SleepFor(absl::Milliseconds(1));
  int handled = -1;
  for (absl::Time still = absl::Now(); absl::Now() < still + absl::Seconds(2) && absl::Now() < limit;) {
    if (handled != handled_) still = absl::Now();
    most = std::max(most, ResidentBytes());
    absl::SleepFor(absl::Milliseconds(1));
    handled = handled_;
  }
  most = std::max(most, ResidentBytes());
  EXPECT_LT(most - std::min(before, most), size_t{400} << 20) << handled_ << " calls were handled";
  EXPECT_LT(handled_, 200);
  ExpectServed();
}

// (h)
TEST_F(HostileTest, SilentConnectionsAreClosedByThemselves) {
  constexpr int kConnections = 500;
  const absl::Time start = absl::Now();
  Child hostile = Hostile();
  ASSERT_EQ(hostile.Ask(absl::StrCat("connect ", kConnections)), "ok");
  ASSERT_EQ(hostile.Ask("resume"), "ok");  // UCX's part of connecting
  ExpectServed();
  while (server_->Stats().refused_peers < kConnections && absl::Now() - start < absl::Seconds(40)) {
    absl::SleepFor(absl::Milliseconds(10));
  }
  EXPECT_EQ(server_->Stats().refused_peers, static_cast<uint64_t>(kConnections));
  ExpectServed();
}

}  // namespace
}  // namespace perigee::transport
