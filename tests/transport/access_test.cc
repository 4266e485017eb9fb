// Who may reach which bytes: the table of grants alone, and the transport that asks it.
#include "transport/access.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "transport/context.h"

namespace perigee::transport {
namespace {

using ::testing::HasSubstr;

const absl::Time kNow = absl::FromUnixSeconds(1000);
const absl::Time kLater = kNow + absl::Seconds(10);

TEST(GrantTableTest, AllowsExactlyTheGrantedRange) {
  GrantTable grants;
  grants.Grant(1, 100, 50, Access::kRead, kLater);
  EXPECT_TRUE(grants.Allows(1, 100, 50, Access::kRead, kNow));
  EXPECT_TRUE(grants.Allows(1, 149, 1, Access::kRead, kNow));
  EXPECT_FALSE(grants.Allows(1, 99, 1, Access::kRead, kNow));
  EXPECT_FALSE(grants.Allows(1, 99, 51, Access::kRead, kNow));
  EXPECT_FALSE(grants.Allows(1, 100, 51, Access::kRead, kNow));
  EXPECT_FALSE(grants.Allows(1, 150, 1, Access::kRead, kNow));
  EXPECT_FALSE(grants.Allows(1, 100, UINT64_MAX, Access::kRead, kNow));
  EXPECT_FALSE(grants.Allows(1, UINT64_MAX, 2, Access::kRead, kNow));
  EXPECT_FALSE(grants.Allows(1, 100, 50, Access::kWrite, kNow));
  EXPECT_FALSE(grants.Allows(2, 100, 50, Access::kRead, kNow));
}

TEST(GrantTableTest, GrantsOfOneSessionAndAccessAddUp) {
  GrantTable grants;
  grants.Grant(1, 100, 50, Access::kRead, kLater);
  grants.Grant(1, 160, 40, Access::kRead, kLater);
  EXPECT_FALSE(grants.Allows(1, 100, 100, Access::kRead, kNow));
  const uint64_t bridge = grants.Grant(1, 120, 45, Access::kRead, kLater);
  EXPECT_TRUE(grants.Allows(1, 100, 100, Access::kRead, kNow));
  grants.Revoke(bridge);
  grants.Grant(1, 120, 45, Access::kWrite, kLater);
  grants.Grant(2, 120, 45, Access::kRead, kLater);
  EXPECT_FALSE(grants.Allows(1, 100, 100, Access::kRead, kNow));
}

TEST(GrantTableTest, GrantsEndAtTheirExpiryAndWhenRevoked) {
  GrantTable grants;
  const uint64_t grant = grants.Grant(1, 0, 10, Access::kRead, kLater);
  EXPECT_TRUE(grants.Allows(1, 0, 10, Access::kRead, kLater - absl::Nanoseconds(1)));
  EXPECT_FALSE(grants.Allows(1, 0, 10, Access::kRead, kLater));
  grants.Extend(grant, kLater + absl::Seconds(1));
  EXPECT_TRUE(grants.Allows(1, 0, 10, Access::kRead, kLater));
  grants.Extend(grant, kNow);  // shorter too
  EXPECT_FALSE(grants.Allows(1, 0, 10, Access::kRead, kNow));
  grants.Extend(grant, absl::InfiniteFuture());
  EXPECT_TRUE(grants.Allows(1, 0, 10, Access::kRead, kNow));
  grants.Revoke(grant);
  EXPECT_FALSE(grants.Allows(1, 0, 10, Access::kRead, kNow));
  grants.Revoke(grant);  // again: nothing
  grants.Extend(grant, absl::InfiniteFuture());
  EXPECT_FALSE(grants.Allows(1, 0, 10, Access::kRead, kNow));
  EXPECT_EQ(grants.size(), 0u);
}

TEST(GrantTableTest, ASessionIsRevokedWhole) {
  GrantTable grants;
  for (int i = 0; i < 100; ++i) grants.Grant(1 + i % 2, i, 5, Access::kRead, kLater);
  grants.RevokeSession(1);
  grants.RevokeSession(3);  // has none
  EXPECT_EQ(grants.size(), 50u);
  EXPECT_FALSE(grants.Allows(1, 0, 1, Access::kRead, kNow));
  EXPECT_TRUE(grants.Allows(2, 1, 1, Access::kRead, kNow));
}

// Against a list that is searched byte by byte.
TEST(GrantTableTest, AgreesWithANaiveTable) {
  struct Naive {
    uint64_t id, session, address, size;
    Access access;
    absl::Time expiry;
  };
  std::mt19937 random(3);
  const auto upto = [&](uint64_t n) { return random() % n; };
  for (int round = 0; round < 30; ++round) {
    GrantTable grants;
    std::vector<Naive> naive;
    for (int step = 0; step < 300; ++step) {
      const auto access = upto(2) == 0 ? Access::kRead : Access::kWrite;
      switch (upto(10)) {
        case 0:
          if (!naive.empty()) {
            const size_t i = upto(naive.size());
            grants.Revoke(naive[i].id);
            naive.erase(naive.begin() + static_cast<ptrdiff_t>(i));
          }
          break;
        case 1:
          if (!naive.empty()) {
            Naive& grant = naive[upto(naive.size())];
            grant.expiry = kNow + absl::Seconds(upto(4));
            grants.Extend(grant.id, grant.expiry);
          }
          break;
        case 2:
          if (upto(10) == 0) {
            const uint64_t session = upto(3);
            grants.RevokeSession(session);
            std::erase_if(naive, [&](const Naive& grant) { return grant.session == session; });
          }
          break;
        default: {
          Naive grant{0, upto(3), upto(200), upto(40), access, kNow + absl::Seconds(upto(4))};
          grant.id = grants.Grant(grant.session, grant.address, grant.size, access, grant.expiry);
          naive.push_back(grant);
        }
      }
      ASSERT_EQ(grants.size(), naive.size());
      const uint64_t session = upto(3), address = upto(220), size = 1 + upto(60);
      const absl::Time now = kNow + absl::Seconds(upto(4));
      bool allowed = true;
      for (uint64_t byte = address; byte < address + size; ++byte) {
        allowed &= std::ranges::any_of(naive, [&](const Naive& grant) {
          return grant.session == session && grant.access == access && now < grant.expiry && byte >= grant.address &&
                 byte < grant.address + grant.size;
        });
      }
      ASSERT_EQ(grants.Allows(session, address, size, access, now), allowed)
          << "session " << session << ", " << size << " bytes at " << address;
    }
  }
}

// ---- With the transport ----

absl::Time Soon() { return absl::Now() + absl::Seconds(40); }

// By memcmp: byte by byte, a sanitizer's build takes minutes.
template <typename A, typename B>
bool Same(const A& a, const B& b) {
  return std::size(a) == std::size(b) && (std::empty(a) || std::memcmp(std::data(a), std::data(b), std::size(a)) == 0);
}

constexpr uint64_t kMine = 7, kOther = 8;
constexpr size_t kRegionBytes = size_t{4} << 20;

class AccessTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    server_ = Make();
    client_ = Make();
    auto listener = server_->Listen(
        "127.0.0.1", 0, [this](absl::string_view token, absl::string_view id) -> absl::StatusOr<PeerIdentity> {
          seen_id_ = std::string(id);
          if (token == "trusted") return PeerIdentity{"node", 1, true};
          if (token == "mine") return PeerIdentity{"tenant", kMine, false};
          if (token == absl::StrCat("for ", client_->id())) {
            return id == client_->id() ? absl::StatusOr<PeerIdentity>(PeerIdentity{"bound", kMine, false})
                                       : absl::PermissionDeniedError("that token is another's");
          }
          return absl::PermissionDeniedError("no such token; ask the control plane");
        });
    ASSERT_TRUE(listener.ok()) << listener.status();
    listener_ = *std::move(listener);
    auto region = server_->AllocateMemory(kRegionBytes, Sharing::kLeased);
    ASSERT_TRUE(region.ok());
    region_ = *std::move(region);
    for (size_t i = 0; i < kRegionBytes; ++i) region_.base()[i] = static_cast<std::byte>(i * 7 + i / 4096);
    before_.assign(region_.bytes().begin(), region_.bytes().end());
  }
  std::unique_ptr<Context> Make() {
    auto context = Context::Create({.transports = GetParam()});
    EXPECT_TRUE(context.ok()) << context.status();
    return *std::move(context);
  }
  void Open(absl::string_view token) {
    auto endpoint = client_->Connect("127.0.0.1", listener_.port(), Soon(), token);
    ASSERT_TRUE(endpoint.ok()) << endpoint.status();
    endpoint_ = *std::move(endpoint);
    auto remote = endpoint_.UnpackRemoteKey(region_.served_key());
    ASSERT_TRUE(remote.ok()) << remote.status();
    remote_ = *std::move(remote);
  }
  absl::Status Get(size_t offset, size_t size) {
    std::vector<std::byte> local(size, std::byte{0xee});
    const GetTransfer get{local, region_.address() + offset, &remote_};
    absl::Status status = endpoint_.Get({&get, 1}, Soon());
    const auto expected = std::span(before_).subspan(offset, size);
    if (status.ok() && !Same(local, expected)) return absl::DataLossError("wrong bytes");
    return status;
  }
  absl::Status Put(size_t offset, size_t size) {
    const std::vector<std::byte> local(size, std::byte{0xee});
    const PutTransfer put{local, region_.address() + offset, &remote_};
    return endpoint_.Put({&put, 1}, Soon());
  }
  bool Unchanged() const { return Same(region_.bytes(), before_); }
  uint64_t Grant(size_t offset, size_t size, Access access, uint64_t session = kMine) {
    return server_->grants().Grant(session, region_.address() + offset, size, access, absl::InfiniteFuture());
  }

  std::unique_ptr<Context> server_, client_;
  std::string seen_id_;
  Listener listener_;
  MemoryRegion region_;
  std::vector<std::byte> before_;
  Endpoint endpoint_;
  RemoteRegion remote_;
};

TEST_P(AccessTest, ARefusalsTextArrives) {
  const absl::Status status = client_->Connect("127.0.0.1", listener_.port(), Soon(), "guess").status();
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("no such token; ask the control plane"));
  EXPECT_TRUE(absl::IsPermissionDenied(client_->Connect("127.0.0.1", listener_.port(), Soon()).status()));
  EXPECT_EQ(server_->Stats().refused_peers, 2u);
  EXPECT_EQ(server_->Stats().connections_accepted, 0u);
}

TEST_P(AccessTest, ATokenCanBeBoundToAContext) {
  const std::string token = absl::StrCat("for ", client_->id());
  Open(token);
  EXPECT_EQ(seen_id_, client_->id());
  const auto thief = Make();
  const absl::Status status = thief->Connect("127.0.0.1", listener_.port(), Soon(), token).status();
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
}

TEST_P(AccessTest, TheNewestListenersAuthenticatorCounts) {
  auto second = server_->Listen("127.0.0.1", 0, [](absl::string_view, absl::string_view) {
    return absl::StatusOr<PeerIdentity>(absl::PermissionDeniedError("closed for today"));
  });
  ASSERT_TRUE(second.ok());
  for (const uint16_t port : {listener_.port(), second->port()}) {
    EXPECT_THAT(std::string(client_->Connect("127.0.0.1", port, Soon(), "trusted").status().message()),
                HasSubstr("closed for today"));
  }
}

TEST_P(AccessTest, AServedKeyGoesByMessagesAndATrustedPeersKeyByWhatThereIs) {
  Open("trusted");
  EXPECT_EQ(remote_.path(), "messages");
  auto whole = endpoint_.UnpackRemoteKey(region_.remote_key());
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(whole->path(), absl::string_view(GetParam()) == "tcp" ? "messages" : "shared memory");
  // Trusted: no grant is needed to read, over either key.
  EXPECT_TRUE(Get(0, kRegionBytes).ok());
}

TEST_P(AccessTest, ATrustedPeersPutsAreGrantedToAllTrustedPeers) {
  Open("trusted");
  for (const size_t size : {size_t{5000}, size_t{2} << 20}) {  // with the message, by rendezvous
    EXPECT_TRUE(absl::IsPermissionDenied(Put(100, size)));
    EXPECT_TRUE(Unchanged());
    const uint64_t grant = Grant(100, size, Access::kWrite, kTrustedSession);
    EXPECT_TRUE(Put(100, size).ok());
    EXPECT_FALSE(Unchanged());
    std::ranges::fill(std::span(before_).subspan(100, size), std::byte{0xee});
    server_->grants().Revoke(grant);
    EXPECT_TRUE(absl::IsPermissionDenied(Put(100, size))) << "late";
    EXPECT_TRUE(Unchanged());
  }
}

TEST_P(AccessTest, AnUntrustedSessionReachesWhatIsGrantedAndNotAByteMore) {
  Open("mine");
  // 12345: eager; 1 MiB and more: UCX's rendezvous, and several operations.
  for (const size_t size : {size_t{1}, size_t{12345}, size_t{1} << 20, (size_t{2} << 20) + 17}) {
    SCOPED_TRACE(size);
    constexpr size_t kAt = 1000;
    EXPECT_TRUE(absl::IsPermissionDenied(Get(kAt, size)));
    EXPECT_TRUE(absl::IsPermissionDenied(Put(kAt, size)));
    const uint64_t read = Grant(kAt, size, Access::kRead);
    EXPECT_TRUE(Get(kAt, size).ok());
    EXPECT_TRUE(absl::IsPermissionDenied(Get(kAt - 1, 1)));
    EXPECT_TRUE(absl::IsPermissionDenied(Get(kAt, size + 1)));
    EXPECT_TRUE(absl::IsPermissionDenied(Get(kAt + size, 1)));
    EXPECT_TRUE(absl::IsPermissionDenied(Put(kAt, size))) << "a grant to read is none to write";
    EXPECT_TRUE(Unchanged());
    server_->grants().Revoke(read);
    EXPECT_TRUE(absl::IsPermissionDenied(Get(kAt, size)));

    const uint64_t write = Grant(kAt, size, Access::kWrite);
    EXPECT_TRUE(absl::IsPermissionDenied(Get(kAt, size))) << "nor the other way round";
    EXPECT_TRUE(absl::IsPermissionDenied(Put(kAt - 1, 1)));
    EXPECT_TRUE(absl::IsPermissionDenied(Put(kAt + size, 1)));
    EXPECT_TRUE(Unchanged());
    EXPECT_TRUE(Put(kAt, size).ok());
    EXPECT_FALSE(Unchanged());
    std::ranges::fill(std::span(before_).subspan(kAt, size), std::byte{0xee});
    EXPECT_TRUE(Unchanged());
    server_->grants().Revoke(write);
    EXPECT_TRUE(absl::IsPermissionDenied(Put(kAt, size)));
  }
  EXPECT_TRUE(endpoint_.connected()) << "a refusal is not the connection's end";
  EXPECT_GT(server_->Stats().refused_serves, 0u);
}

TEST_P(AccessTest, AScatteredBatchWithOneForeignExtentChangesNothingForeign) {
  Open("mine");
  Grant(0, 1 << 20, Access::kWrite);
  const std::vector<std::byte> local(4096, std::byte{0xee});
  std::vector<PutTransfer> puts;
  for (size_t i = 0; i < 64; ++i) puts.push_back({local, region_.address() + i * 8192, &remote_});
  puts.push_back({local, region_.address() + (1 << 20) - 1, &remote_});
  const absl::Status status = endpoint_.Put(puts, Soon());
  EXPECT_TRUE(absl::IsPermissionDenied(status)) << status;
  EXPECT_TRUE(Same(region_.bytes().subspan(1 << 20), std::span(before_).subspan(1 << 20)));
}

TEST_P(AccessTest, AnothersGrantAndAnExpiredOneDoNotHelp) {
  Open("mine");
  Grant(0, kRegionBytes, Access::kRead, kOther);
  Grant(0, kRegionBytes, Access::kWrite, kOther);
  EXPECT_TRUE(absl::IsPermissionDenied(Get(0, 4096)));
  EXPECT_TRUE(absl::IsPermissionDenied(Put(0, 1 << 20)));
  const uint64_t grant = server_->grants().Grant(kMine, region_.address(), kRegionBytes, Access::kRead, Soon());
  EXPECT_TRUE(Get(0, kRegionBytes).ok());
  server_->grants().Extend(grant, absl::Now());
  EXPECT_TRUE(absl::IsPermissionDenied(Get(0, 4096)));
  server_->grants().Extend(grant, Soon());
  EXPECT_TRUE(Get(0, 4096).ok());
  server_->grants().RevokeSession(kMine);
  EXPECT_TRUE(absl::IsPermissionDenied(Get(0, 4096)));
  EXPECT_TRUE(Unchanged());
}

TEST_P(AccessTest, AnOpenRegionIsForEveryAuthenticatedPeer) {
  auto open = server_->AllocateMemory(4096);
  ASSERT_TRUE(open.ok());
  Open("mine");
  auto remote = endpoint_.UnpackRemoteKey(open->served_key());
  ASSERT_TRUE(remote.ok());
  const std::vector<std::byte> local(4096, std::byte{1});
  const PutTransfer put{local, open->address(), &*remote};
  EXPECT_TRUE(endpoint_.Put({&put, 1}, Soon()).ok());
  EXPECT_EQ(open->base()[4095], std::byte{1});
}

INSTANTIATE_TEST_SUITE_P(Transports, AccessTest, testing::Values("tcp", "shm,tcp"),
                         [](const auto& info) { return info.index == 0 ? "Tcp" : "SharedMemory"; });

}  // namespace
}  // namespace perigee::transport
