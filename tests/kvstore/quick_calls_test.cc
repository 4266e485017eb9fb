// Which control calls go by message and which over gRPC; both give the same.
#include "kvstore/quick_calls.h"

#include <grpcpp/impl/service_type.h>
#include <gtest/gtest.h>

#include "kvstore/client.h"
#include "kvstore/server.h"
#include "kvstore/service.h"
#include "planes.h"
#include "proto/grpc_server.h"

namespace perigee::kvstore {
namespace {

constexpr char kSecret[] = "a secret for trusted nodes";

class QuickCallsTest : public testing::Test {
 protected:
  void Start(bool trusted, const std::string& ssd_path = "") {
    ServerOptions options;
    options.port = 0;
    options.slab_bytes = 16 << 20;
    options.transport.transports = "tcp";
    if (trusted) options.credentials = {{.secret = kSecret, .tenant = "", .trusted = true}};
    if (!ssd_path.empty()) {
      options.store.ssd = SsdOptions{.path = ssd_path, .segment_bytes = 4 << 20, .reserve_bytes = 0};
    }
    auto server = StoreServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    Connect(server_->address());
  }
  void Connect(const std::string& address) {
    auto engine = transport::Context::Create({.transports = "tcp"});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    ClientOptions options;
    options.secret = kSecret;
    auto client = StoreClient::Connect(address, engine_.get(), options);
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }
  // How many quick calls the store has answered since the last time.
  uint64_t QuickCalls() {
    const uint64_t before = seen_;
    seen_ = client_->stats().quick_calls;
    return seen_ - before;
  }
  void Put(const TestPlane& plane) {
    const PlaneRequest request = plane.request();
    auto batch = client_->Reserve({&request, 1});
    ASSERT_TRUE(batch.ok()) << batch.status();
    ASSERT_TRUE(batch->Put(0, 0, plane.payload).ok());
    const auto statuses = batch->Commit({&plane.header, 1});
    ASSERT_TRUE(statuses.ok()) << statuses.status();
    ASSERT_TRUE((*statuses)[0].ok()) << (*statuses)[0];
  }
  // Where it was.
  Tier Get(const TestPlane& plane) {
    auto lease = client_->Acquire({&plane.id, 1});
    EXPECT_TRUE(lease.ok()) << lease.status();
    std::vector<std::byte> memory(plane.payload.size());
    const FetchRequest request{.plane = 0, .destination = memory};
    EXPECT_TRUE(lease->Fetch({&request, 1})[0].ok());
    EXPECT_EQ(memory, plane.payload);
    return lease->planes()[0].tier;
  }

  std::unique_ptr<StoreServer> server_;
  std::unique_ptr<transport::Context> engine_;
  std::unique_ptr<StoreClient> client_;
  uint64_t seen_ = 0;
};

TEST_F(QuickCallsTest, ATrustedClientPutsAndGetsWithoutGrpc) {
  Start(/*trusted=*/true);
  const TestPlane plane = MakePlane(1, 1 << 20);
  Put(plane);
  EXPECT_EQ(QuickCalls(), 2u) << "Reserve and Commit";
  Get(plane);
  EXPECT_EQ(QuickCalls(), 2u) << "Acquire and Release";
  EXPECT_EQ(server_->store().Stats().leases, 0u);
  EXPECT_EQ(server_->store().Stats().fetched_bytes, plane.payload.size());
}

TEST_F(QuickCallsTest, OneThatIsNotTrustedCommitsAndReleasesOverGrpc) {
  Start(/*trusted=*/false);
  const TestPlane plane = MakePlane(1, 1 << 20);
  Put(plane);
  EXPECT_EQ(QuickCalls(), 1u);
  Get(plane);
  EXPECT_EQ(QuickCalls(), 1u);
  EXPECT_EQ(server_->store().Stats().leases, 0u);
}

TEST_F(QuickCallsTest, WhatWasSummedOnArrivalIsCommittedAtOnceHoweverMuchItIs) {
  Start(/*trusted=*/true);
  const TestPlane plane = MakePlane(1, 2 * kMaxQuickSumBytes);
  Put(plane);
  EXPECT_EQ(QuickCalls(), 2u) << "Reserve and Commit";
  Get(plane);
}

TEST_F(QuickCallsTest, MuchPayloadThatIsNotSummedYetIsCommittedOverGrpc) {
  Start(/*trusted=*/true);
  constexpr size_t kPiece = 8 << 10;  // too short to be summed on arrival
  for (const size_t bytes : {kMaxQuickSumBytes, kMaxQuickSumBytes + kPiece}) {
    const TestPlane plane = MakePlane(bytes, bytes);
    const PlaneRequest request = plane.request();
    auto batch = client_->Reserve({&request, 1});
    ASSERT_TRUE(batch.ok()) << batch.status();
    const std::span<const std::byte> payload(plane.payload);
    for (size_t at = 0; at < bytes; at += kPiece) ASSERT_TRUE(batch->Put(0, at, payload.subspan(at, kPiece)).ok());
    const auto statuses = batch->Commit({&plane.header, 1});
    ASSERT_TRUE(statuses.ok()) << statuses.status();
    EXPECT_TRUE((*statuses)[0].ok()) << (*statuses)[0];
    EXPECT_EQ(QuickCalls(), bytes == kMaxQuickSumBytes ? 2u : 1u);
    Get(plane);
    QuickCalls();
  }
}

TEST_F(QuickCallsTest, ABatchIsCommittedPlaneByPlaneInOneCall) {
  Start(/*trusted=*/true);
  std::vector<TestPlane> planes;
  std::vector<PlaneRequest> requests;
  std::vector<pod::PlaneHeader> headers;
  for (uint64_t i = 0; i < 7; ++i) {
    planes.push_back(MakePlane(i, 1 << 20));
    requests.push_back(planes.back().request());
    headers.push_back(planes.back().header);
  }
  auto batch = client_->Reserve(requests);
  ASSERT_TRUE(batch.ok()) << batch.status();
  planes[4].payload[5] ^= std::byte{1};
  for (size_t i = 0; i < planes.size(); ++i) ASSERT_TRUE(batch->Put(i, 0, planes[i].payload).ok());
  const auto statuses = batch->Commit(headers);
  ASSERT_TRUE(statuses.ok()) << statuses.status();
  EXPECT_EQ(QuickCalls(), 2u) << "Reserve and Commit";
  for (size_t i = 0; i < planes.size(); ++i) {
    EXPECT_EQ((*statuses)[i].code(), i == 4 ? absl::StatusCode::kDataLoss : absl::StatusCode::kOk) << i;
    if (i != 4) Get(planes[i]);
  }
}

TEST_F(QuickCallsTest, WhatTheSsdIsNeededForGoesOverGrpc) {
  TempFolder folder;
  Start(/*trusted=*/true, folder.path());
  std::vector<TestPlane> planes;
  for (uint64_t i = 0; i < 10; ++i) planes.push_back(MakePlane(i, 2 << 20));
  for (const TestPlane& plane : planes) Put(plane);
  EXPECT_EQ(QuickCalls(), planes.size()) << "commits wait for the disk";
  EXPECT_EQ(Get(planes[9]), Tier::kDram);
  EXPECT_EQ(QuickCalls(), 2u);
  EXPECT_EQ(Get(planes[0]), Tier::kSsd) << "the slab has room for seven";
  EXPECT_EQ(QuickCalls(), 1u) << "the release";
  EXPECT_EQ(server_->store().Stats().leases, 0u) << "the refused call leased nothing";
}

TEST_F(QuickCallsTest, RefusalsAreTheStoresOwn) {
  Start(/*trusted=*/true);
  const TestPlane plane = MakePlane(1, 1000);
  const PlaneRequest too_large{plane.id, 1 << 30};
  EXPECT_EQ(client_->Reserve({&too_large, 1}).status().code(), absl::StatusCode::kResourceExhausted);
  const PlaneRequest request = plane.request();
  auto batch = client_->Reserve({&request, 1});
  ASSERT_TRUE(batch.ok());
  const std::vector<std::byte> wrong(1000);
  ASSERT_TRUE(batch->Put(0, 0, wrong).ok());
  const auto statuses = batch->Commit({&plane.header, 1});
  ASSERT_TRUE(statuses.ok());
  EXPECT_EQ((*statuses)[0].code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(QuickCalls(), 3u);
  const auto lease = client_->Acquire({&plane.id, 1});
  ASSERT_TRUE(lease.ok());
  EXPECT_FALSE(lease->planes()[0].found);
}

// As StoreServer without the handler.
TEST_F(QuickCallsTest, AnOlderStoreIsAskedOverGrpc) {
  auto engine = transport::Context::Create({.transports = "tcp"});
  ASSERT_TRUE(engine.ok());
  auto slab = (*engine)->AllocateMemory(4 << 20, transport::Sharing::kLeased);
  ASSERT_TRUE(slab.ok());
  auto store = Store::Open({}, slab->bytes());
  ASSERT_TRUE(store.ok());
  SessionTable sessions({{.secret = kSecret, .tenant = "", .trusted = true}}, &(*engine)->grants());
  auto listener = (*engine)->Listen("127.0.0.1", 0, [&sessions](absl::string_view token, absl::string_view context_id) {
    return sessions.Authenticate(token, context_id);
  });
  ASSERT_TRUE(listener.ok());
  DataPlane data;
  data.port = listener->port();
  data.remote_key = slab->remote_key();
  data.served_key = slab->served_key();
  data.slab_address = slab->address();
  data.slab_bytes = slab->size_bytes();
  const StoreService service = MakeStoreService(store->get(), &sessions, data);
  auto server = GrpcServer::Start("127.0.0.1:0", {service.grpc.get()});
  ASSERT_TRUE(server.ok());
  Connect((*server)->address());
  const TestPlane plane = MakePlane(1, 1 << 20);
  Put(plane);
  Get(plane);
  EXPECT_EQ(QuickCalls(), 0u);
  client_.reset();
  engine_.reset();
}

}  // namespace
}  // namespace perigee::kvstore
