// A client that is killed with leases held: they end by their time to live, not before and not never, and what they
// held can make room then.
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "kvstore/server.h"
#include "planes.h"
#include "server_process.h"

namespace perigee::kvstore {
namespace {

TEST(DeadClient, ItsLeasesEndByTheirTimeToLiveAndItsPlanesCanBeEvictedThen) {
  constexpr size_t kPlaneBytes = 64 << 10, kPlanes = 16;
  constexpr absl::Duration kTtl = absl::Seconds(3);
  ServerOptions options;
  options.port = 0;
  options.slab_bytes = kPlanes * kPlaneBytes;
  options.store.free_low = options.store.free_high = 0;  // All of it is to be leased.
  options.transport.transports = "tcp";
  const auto server = StoreServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  Store& store = (*server)->store();
  for (uint64_t i = 0; i < kPlanes; ++i) ASSERT_TRUE(Write(store, MakePlane(i, kPlaneBytes)).ok());

  const absl::Time before = SteadyNow();
  ChildProcess client(
      {TEST_CLIENT, (*server)->address(), absl::StrCat(absl::ToInt64Milliseconds(kTtl)), "0", absl::StrCat(kPlanes)});
  ASSERT_EQ(client.said(), absl::StrCat(kPlanes));
  const absl::Time held = SteadyNow();
  EXPECT_EQ(store.Stats().leases, 1u);
  client.Kill();
  const absl::Status refused = Write(store, MakePlane(100, kPlaneBytes));
  const StoreStats stats = store.Stats();
  if (SteadyNow() - before < kTtl) {  // Else this machine has just slept.
    EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted)
        << refused << ": it could not know of the death yet";
    EXPECT_EQ(stats.leased_bytes, kPlanes * kPlaneBytes);
  }
  absl::Status written = refused;
  while (!written.ok() && SteadyNow() - held < kTtl + absl::Seconds(10)) {
    absl::SleepFor(absl::Milliseconds(10));
    written = Write(store, MakePlane(100, kPlaneBytes));
  }
  ASSERT_TRUE(written.ok()) << written;
  EXPECT_GE(SteadyNow() - before, kTtl) << "the lease was worth less than it said";
  EXPECT_EQ(store.Stats().leases, 0u);
  EXPECT_EQ(store.Stats().expired_leases, 1u);
  for (uint64_t i = 200; i < 200 + kPlanes; ++i) {
    ASSERT_TRUE(Write(store, MakePlane(i, kPlaneBytes)).ok()) << "all that it held";
    EXPECT_TRUE(ReadAndCompare(store, MakePlane(i, kPlaneBytes)).ok());
  }
}

}  // namespace
}  // namespace perigee::kvstore
