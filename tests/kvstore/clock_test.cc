// The wall clock jumps: somebody sets it, a machine wakes up, NTP finds its server. Times to live go on meaning what
// they say, and stored times are no more than information.
#include "absl/time/clock.h"

#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

#include "base/clock.h"
#include "kvstore/client.h"
#include "kvstore/server.h"
#include "kvstore/service.h"
#include "perigee/v1/kvstore.grpc.pb.h"
#include "planes.h"
#include "proto/grpc_server.h"

namespace {

std::atomic<int64_t> jump_s{0};

}  // namespace

// The C library's, for this whole program: the wall clock is wherever the test put it.
extern "C" __attribute__((visibility("default"))) int clock_gettime(clockid_t clock, struct timespec* now) noexcept {
  const int result = static_cast<int>(::syscall(SYS_clock_gettime, clock, now));
  if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += jump_s.load();
  return result;
}

namespace perigee::kvstore {
namespace {

constexpr int64_t kDay = 24 * 3600;

// Where the clock is from now on, until the object goes.
class Jump {
 public:
  explicit Jump(int64_t seconds) { jump_s = seconds; }
  ~Jump() { jump_s = 0; }
};

bool EventuallyTrue(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    ::usleep(2000);
  }
  return true;
}

TEST(Clock, TheTestMovesTheWallClockAndNotTheSteadyOne) {
  const absl::Time wall = absl::Now(), steady = SteadyNow();
  const Jump jump(kDay);
  EXPECT_GT(absl::Now() - wall, absl::Hours(23));
  EXPECT_LT(SteadyNow() - steady, absl::Minutes(1));
}

class JumpsOfTheClock : public testing::TestWithParam<int64_t> {
 protected:
  static absl::StatusOr<Lease> AcquireFor(Store& store, const PlaneId& id, absl::Duration ttl) {
    return store.Acquire({&id, 1}, ttl);
  }
  FakeSlab slab_{1 << 20};
  TempFolder folder_;
};

TEST_P(JumpsOfTheClock, LeasesAndReservationsOfTheStoreLiveAsLongAsTheySay) {
  auto store = OpenStore(slab_, "");
  const TestPlane plane = MakePlane(1, 5000);
  ASSERT_TRUE(Write(*store, plane).ok());
  const auto longer = AcquireFor(*store, plane.id, absl::Minutes(10));
  const auto brief = AcquireFor(*store, plane.id, absl::Milliseconds(50));
  ASSERT_TRUE(longer.ok() && brief.ok());
  const PlaneRequest request{MakePlane(2, 1).id, 4096};
  const auto reserved = store->Reserve({&request, 1}, absl::Minutes(10));
  ASSERT_TRUE(reserved.ok());
  const Jump jump(GetParam());
  EXPECT_TRUE(EventuallyTrue([&] { return store->Stats().leases == 1; }));
  EXPECT_TRUE(store->Renew(longer->id, absl::Minutes(10)).ok());
  EXPECT_EQ(store->Renew(brief->id, absl::Minutes(10)).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(store->Stats().reservations, 1u);
}

TEST_P(JumpsOfTheClock, WhatASessionMayTouchEndsWithItsLeaseAndTheSessionStays) {
  auto store = OpenStore(slab_, "");
  const TestPlane plane = MakePlane(1, 5000);
  ASSERT_TRUE(Write(*store, plane).ok());
  transport::GrantTable grants;
  SessionTable sessions({}, &grants);
  DataPlane data;
  data.epoch = 7;
  data.port = 1;
  const auto service = MakeStoreService(store.get(), &sessions, data);
  auto server = GrpcServer::Start("127.0.0.1:0", {service.grpc.get()});
  ASSERT_TRUE(server.ok()) << server.status();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  const auto stub = v1::KvStore::NewStub(
      grpc::CreateCustomChannel((*server)->address(), grpc::InsecureChannelCredentials(), arguments));
  v1::HelloRequest hello;
  v1::HelloResponse session;
  hello.set_protocol_version(kProtocolVersion);
  {
    grpc::ClientContext context;
    ASSERT_TRUE(stub->Hello(&context, hello, &session).ok());
  }
  const auto acquire = [&](absl::Duration ttl) {
    v1::AcquireRequest request;
    v1::AcquireResponse response;
    request.set_ttl_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(ttl)));
    request.add_planes()->set_key(plane.id.key.digest.data(), plane.id.key.digest.size());
    request.mutable_planes(0)->set_kind(static_cast<v1::PlaneKind>(plane.id.kind));
    grpc::ClientContext context;
    context.AddMetadata(kSessionMetadata, session.session_token());
    const grpc::Status status = stub->Acquire(&context, request, &response);
    EXPECT_TRUE(status.ok() && response.planes_size() == 1 && response.planes(0).found()) << status.error_message();
    return response;
  };
  const uint64_t number = sessions.Find(session.session_token())->id;
  const auto readable = [&](const v1::AcquireResponse& lease) {
    return grants.Allows(number, lease.planes(0).remote_address(), 5000, transport::Access::kRead, SteadyNow());
  };
  const v1::AcquireResponse brief = acquire(absl::Milliseconds(300));
  EXPECT_TRUE(readable(brief));
  const Jump jump(GetParam());
  EXPECT_TRUE(EventuallyTrue([&] { return store->Stats().leases == 0; }));
  EXPECT_FALSE(readable(brief)) << "the lease has ended, and the memory may be another's";
  const v1::AcquireResponse longer = acquire(absl::Minutes(10));
  jump_s = -GetParam();
  EXPECT_TRUE(readable(longer));
  sessions.Reap(absl::Hours(2));
  EXPECT_TRUE(readable(longer));
  EXPECT_EQ(sessions.size(), 1u) << "the session was used a moment ago";
  sessions.Reap(absl::ZeroDuration());
  EXPECT_EQ(sessions.size(), 0u);
}

TEST(Clock, SetBackItLetsNobodyReadWhatALeaseHeldThatHasEnded) {
  ServerOptions options;
  options.port = 0;
  options.slab_bytes = 1 << 20;
  options.transport.transports = "tcp";
  const auto server = StoreServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  const TestPlane plane = MakePlane(1, 5000);
  ASSERT_TRUE(Write((*server)->store(), plane).ok());
  const auto engine = transport::Context::Create(options.transport);
  ASSERT_TRUE(engine.ok()) << engine.status();
  ClientOptions brief;
  brief.lease_ttl = absl::Milliseconds(500);
  const auto client = StoreClient::Connect((*server)->address(), engine->get(), brief);
  ASSERT_TRUE(client.ok()) << client.status();
  auto lease = (*client)->Acquire({&plane.id, 1});
  ASSERT_TRUE(lease.ok() && lease->planes()[0].found) << lease.status();
  const Jump jump(-kDay);  // The reader's clock too: it believes that its lease is good for another day.
  ASSERT_TRUE(EventuallyTrue([&] { return (*server)->store().Stats().leases == 0; }));
  std::vector<std::byte> memory(plane.payload.size());
  const FetchRequest request{.plane = 0, .destination = memory};
  EXPECT_FALSE(lease->Fetch({&request, 1})[0].ok());
  EXPECT_NE(memory, plane.payload);
}

TEST_P(JumpsOfTheClock, PlanesStoredAtAnotherTimeAreServedListedAndEvictedByTheirUse) {
  constexpr uint64_t kCapacity = 32 * 8192;
  FakeSlab slab(4096 * 4);  // Small, so that DRAM hides nothing.
  int64_t then = 0;
  {
    const Jump jump(GetParam());
    then = absl::ToUnixMicros(absl::Now());
    auto store = OpenStore(slab, folder_.path(), kCapacity);
    for (uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(Write(*store, MakePlane(i, 4096), Durability::kSynced).ok());
  }
  auto store = OpenStore(slab, folder_.path(), kCapacity);
  const auto listed = store->List("", 0, "");
  ASSERT_TRUE(listed.ok());
  ASSERT_EQ(listed->planes.size(), 8u);
  for (const ListedPlane& plane : listed->planes) {
    EXPECT_GE(plane.meta.created_unix_us, then);
    EXPECT_LT(plane.meta.created_unix_us, then + 60'000'000);
  }
  for (uint64_t i = 0; i < 8; ++i) EXPECT_TRUE(ReadAndCompare(*store, MakePlane(i, 4096)).ok()) << i;
  // None of the old ones is used any more; from a future or a past, they make room.
  for (uint64_t i = 100; i < 160; ++i) {
    ASSERT_TRUE(Write(*store, MakePlane(i, 4096), Durability::kSynced).ok()) << i;
    ASSERT_TRUE(ReadAndCompare(*store, MakePlane(i, 4096)).ok()) << "used as often as the old ones, " << i;
  }
  int gone = 0;
  for (uint64_t i = 0; i < 8; ++i) gone += absl::IsNotFound(ReadAndCompare(*store, MakePlane(i, 4096)));
  EXPECT_GE(gone, 6);
  EXPECT_TRUE(ReadAndCompare(*store, MakePlane(159, 4096)).ok());
}

INSTANTIATE_TEST_SUITE_P(OneDay, JumpsOfTheClock, testing::Values(kDay, -kDay),
                         [](const auto& test) { return test.param > 0 ? "Ahead" : "Back"; });

// Times to live run on options.now, wherever that goes.
TEST(Clock, AStoresOwnClockThatJumpsEndsLeasesWhenItPassesThemAndNeverTwice) {
  FakeSlab slab(1 << 20);
  absl::Time now = absl::FromUnixSeconds(1'000'000);
  StoreOptions options;
  options.now = [&] { return now; };
  auto opened = Store::Open(options, slab.span());
  ASSERT_TRUE(opened.ok()) << opened.status();
  Store& store = **opened;
  const TestPlane plane = MakePlane(1, 5000);
  ASSERT_TRUE(Write(store, plane).ok());
  const auto lease = store.Acquire({&plane.id, 1}, absl::Seconds(60));
  ASSERT_TRUE(lease.ok());
  now -= absl::Hours(24);  // Held for longer, never for less.
  EXPECT_TRUE(store.Renew(lease->id, absl::Seconds(60)).ok());
  now += absl::Seconds(61);
  EXPECT_EQ(store.Renew(lease->id, absl::Seconds(60)).code(), absl::StatusCode::kNotFound);
  now -= absl::Hours(1);
  EXPECT_EQ(store.Renew(lease->id, absl::Seconds(60)).code(), absl::StatusCode::kNotFound) << "ended is ended";
  EXPECT_EQ(store.Stats().leased_bytes, 0u);
  EXPECT_TRUE(ReadAndCompare(store, plane).ok());
}

}  // namespace
}  // namespace perigee::kvstore
