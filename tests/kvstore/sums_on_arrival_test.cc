// The store believes sums that its transport took while puts arrived. Whatever was put, how and in which order: what
// Commit says is true of the bytes that lie there.
#include <gtest/gtest.h>

#include "kvstore/client.h"
#include "kvstore/server.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

constexpr char kSecret[] = "a secret for trusted nodes";
constexpr size_t kBytes = size_t{3} << 20;

class SumsOnArrivalTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    ServerOptions options;
    options.port = 0;
    options.slab_bytes = 4 << 20;  // one plane at a time, always in the same place
    options.transport.transports = GetParam();
    options.credentials = {{.secret = kSecret, .tenant = "", .trusted = true}};
    auto server = StoreServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto engine = transport::Context::Create({.transports = GetParam()});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    ClientOptions client_options;
    client_options.secret = kSecret;
    auto client = StoreClient::Connect(server_->address(), engine_.get(), client_options);
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  WriteBatch Reserve(const TestPlane& plane) {
    const PlaneRequest request = plane.request();
    auto batch = client_->Reserve({&request, 1});
    EXPECT_TRUE(batch.ok()) << batch.status();
    return *std::move(batch);
  }
  static void Put(WriteBatch& batch, size_t offset, std::span<const std::byte> bytes) {
    ASSERT_TRUE(batch.Put(0, offset, bytes).ok());
    ASSERT_TRUE(batch.WaitForPuts().ok());
  }
  static absl::Status Commit(WriteBatch& batch, const TestPlane& plane) {
    const auto statuses = batch.Commit({&plane.header, 1});
    return statuses.ok() ? (*statuses)[0] : statuses.status();
  }
  void ExpectStored(const TestPlane& plane) {
    auto lease = client_->Acquire({&plane.id, 1});
    ASSERT_TRUE(lease.ok()) << lease.status();
    std::vector<std::byte> memory(plane.payload.size());
    const FetchRequest request{.plane = 0, .destination = memory};
    EXPECT_TRUE(lease->Fetch({&request, 1})[0].ok());
    EXPECT_EQ(memory, plane.payload);
  }

  std::unique_ptr<StoreServer> server_;
  std::unique_ptr<transport::Context> engine_;
  std::unique_ptr<StoreClient> client_;
};

TEST_P(SumsOnArrivalTest, AnotherByteThanTheHeadersIsFoundWhereverItIs) {
  const TestPlane plane = MakePlane(1, kBytes);
  for (const size_t at : {size_t{0}, kBytes / 3, kBytes / 2, kBytes - 1}) {
    std::vector<std::byte> wrong = plane.payload;
    wrong[at] ^= std::byte{1};
    WriteBatch batch = Reserve(plane);
    Put(batch, 0, wrong);
    EXPECT_EQ(Commit(batch, plane).code(), absl::StatusCode::kDataLoss) << at;
  }
  WriteBatch batch = Reserve(plane);
  Put(batch, 0, plane.payload);
  EXPECT_TRUE(Commit(batch, plane).ok());
  ExpectStored(plane);
}

TEST_P(SumsOnArrivalTest, WhatWasPutLastCounts) {
  const TestPlane plane = MakePlane(1, kBytes);
  const std::span<const std::byte> payload(plane.payload);
  // Long and short pieces: those that are summed on arrival, and those that are not.
  for (const size_t bytes : {size_t{1} << 20, size_t{200} << 10, size_t{64} << 10, size_t{100}}) {
    for (const size_t offset : {size_t{0}, size_t{12345}, kBytes - bytes}) {
      const std::vector<std::byte> wrong(bytes);
      WriteBatch spoilt = Reserve(plane);
      Put(spoilt, 0, payload);
      Put(spoilt, offset, wrong);
      EXPECT_EQ(Commit(spoilt, plane).code(), absl::StatusCode::kDataLoss) << bytes << " at " << offset;
      WriteBatch mended = Reserve(plane);
      std::vector<std::byte> before = plane.payload;
      std::copy(wrong.begin(), wrong.end(), before.begin() + static_cast<ptrdiff_t>(offset));
      Put(mended, 0, before);
      Put(mended, offset, payload.subspan(offset, bytes));
      EXPECT_TRUE(Commit(mended, plane).ok()) << bytes << " at " << offset;
      ExpectStored(plane);
      ASSERT_TRUE(client_->Delete({&plane.id.key, 1}).ok());
    }
  }
}

TEST_P(SumsOnArrivalTest, AFormerPlanesSumsAreForgottenWithIt) {
  const TestPlane former = MakePlane(1, kBytes), next = MakePlane(2, kBytes);
  WriteBatch first = Reserve(former);
  Put(first, 0, former.payload);
  ASSERT_TRUE(Commit(first, former).ok());
  ASSERT_TRUE(client_->Delete({&former.id.key, 1}).ok());
  WriteBatch unwritten = Reserve(next);
  EXPECT_EQ(Commit(unwritten, next).code(), absl::StatusCode::kDataLoss);
  WriteBatch second = Reserve(next);
  constexpr size_t kPiece = size_t{8} << 10;
  for (size_t at = 0; at < kBytes; at += kPiece) {
    ASSERT_TRUE(second.Put(0, at, std::span(next.payload).subspan(at, kPiece)).ok());
  }
  EXPECT_TRUE(Commit(second, next).ok());
  ExpectStored(next);
}

INSTANTIATE_TEST_SUITE_P(Transports, SumsOnArrivalTest, testing::Values("tcp", "shm,tcp"),
                         [](const auto& info) { return std::string(info.param) == "tcp" ? "Tcp" : "SharedMemory"; });

}  // namespace
}  // namespace perigee::kvstore
