// A client without a data plane: it asks and tells a store, and moves no payload.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kvstore/client.h"
#include "kvstore/server.h"
#include "kvstore/shared_reservation.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;

// A store with one plane, whose data plane is told to be where nobody listens.
class ControlClientTest : public ::testing::Test {
 protected:
  ControlClientTest() {
    ServerOptions options;
    options.port = 0;
    options.slab_bytes = 16 << 20;
    options.transport.transports = "tcp";
    options.advertise_host = "127.0.0.9";
    server_ = std::move(StoreServer::Start(options).value());
    EXPECT_TRUE(Write(server_->store(), plane_).ok());
  }
  std::unique_ptr<StoreClient> Connect() {
    auto client = StoreClient::Connect(server_->address(), /*engine=*/nullptr, {});
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }

  const TestPlane plane_ = MakePlane(1, 50'000);
  std::unique_ptr<StoreServer> server_;
};

TEST_F(ControlClientTest, AsksAndTellsWhereTheDataPlaneDoesNotAnswer) {
  const auto engine = std::move(transport::Context::Create({.transports = "tcp"}).value());
  ClientOptions options;
  options.connect_deadline = absl::Seconds(2);
  const auto with_payload = StoreClient::Connect(server_->address(), engine.get(), options);
  EXPECT_THAT(std::string(with_payload.status().message()), HasSubstr("data plane"));

  const std::unique_ptr<StoreClient> client = Connect();
  const auto stat = client->GetStat();
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(stat->epoch, client->epoch());
  EXPECT_EQ(client->List("", 0, "")->planes.size(), 1u);
  EXPECT_EQ(client->Lookup({&plane_.id.key, 1})->blocks[0].planes.size(), 1u);
  EXPECT_EQ(*client->Pin({&plane_.id.key, 1}, PinMode::kSoft), 1u);
  EXPECT_EQ(client->Evict({})->planes, 0u);
  EXPECT_EQ(*client->Delete({&plane_.id.key, 1}), 1u);
  EXPECT_EQ(client->stats().connects, 1u) << "one session is enough for all";
}

TEST_F(ControlClientTest, SeesHeadersAndRefusesToMovePayload) {
  const std::unique_ptr<StoreClient> client = Connect();
  auto lease = client->Acquire({&plane_.id, 1});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_EQ(lease->planes()[0].header, plane_.header);
  std::vector<std::byte> memory(plane_.payload.size());
  const std::vector<FetchRequest> requests = {{.plane = 0, .destination = memory}};
  EXPECT_TRUE(absl::IsFailedPrecondition(lease->Fetch(requests)[0])) << lease->Fetch(requests)[0];
  auto fetch = lease->StartFetch({requests});
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  EXPECT_TRUE(absl::IsFailedPrecondition(fetch->Wait(0))) << fetch->Wait(0);
  const PlaneRequest request = MakePlane(2, 100).request();
  EXPECT_TRUE(absl::IsFailedPrecondition(client->Reserve({&request, 1}).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(client->Join("", absl::Now()).status()));
  EXPECT_EQ(client->stats().connects, 1u);
}

}  // namespace
}  // namespace perigee::kvstore
