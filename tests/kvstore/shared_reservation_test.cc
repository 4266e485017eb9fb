// Several clients put into one reservation; descriptions of it are checked like any other outside bytes.
#include "kvstore/shared_reservation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/time/clock.h"
#include "base/crc32c.h"
#include "base/file.h"
#include "kvstore/server.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<transport::Context> MakeEngine() {
  auto engine = transport::Context::Create({.transports = "tcp"});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::unique_ptr<StoreServer> StartServer(uint16_t port = 0) {
  ServerOptions options;
  options.port = port;
  options.slab_bytes = 16 << 20;
  options.transport.transports = "tcp";
  options.credentials = {{"a secret of the tests", "", true}};
  auto server = StoreServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

std::unique_ptr<StoreClient> Connect(const StoreServer& server, transport::Context* engine,
                                     absl::Duration ttl = absl::Seconds(60)) {
  ClientOptions options;
  options.secret = "a secret of the tests";
  options.reservation_ttl = ttl;
  auto client = StoreClient::Connect(server.address(), engine, options);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

class SharedReservationTest : public ::testing::Test {
 protected:
  const std::unique_ptr<transport::Context> engine_ = MakeEngine();
  const std::unique_ptr<StoreServer> server_ = StartServer();
  const std::unique_ptr<StoreClient> leader_ = Connect(*server_, engine_.get());
  const std::unique_ptr<StoreClient> other_ = Connect(*server_, engine_.get());
};

std::vector<std::byte> Fetched(StoreClient& client, const TestPlane& plane) {
  auto lease = client.Acquire({&plane.id, 1});
  EXPECT_TRUE(lease.ok()) << lease.status();
  if (!lease.ok() || !lease->planes()[0].found) return {};
  std::vector<std::byte> bytes(plane.payload.size());
  const FetchRequest request{.plane = 0, .destination = bytes};
  EXPECT_TRUE(lease->Fetch({&request, 1})[0].ok());
  return bytes;
}

TEST_F(SharedReservationTest, PlanesWrittenByThreeClientsAreWhole) {
  const TestPlane planes[] = {MakePlane(1, 300000), MakePlane(2, 12345)};
  const PlaneRequest requests[] = {planes[0].request(), planes[1].request()};
  const absl::Time before = absl::Now();
  auto batch = leader_->Reserve(requests);
  ASSERT_TRUE(batch.ok()) << batch.status();
  const auto description = batch->Describe();
  ASSERT_TRUE(description.ok()) << description.status();

  const auto third_client = Connect(*server_, engine_.get());
  StoreClient* const writers[] = {leader_.get(), other_.get(), third_client.get()};
  std::vector<std::thread> threads;
  for (size_t w = 0; w < 3; ++w) {
    threads.emplace_back([&, w] {
      auto joined = writers[w]->Join(*description, before);
      ASSERT_TRUE(joined.ok()) << joined.status();
      ASSERT_EQ(joined->size(), 2u);
      std::vector<PutRange> ranges;
      for (size_t p = 0; p < 2; ++p) {
        // Every third kilobyte is this writer's.
        const std::span<const std::byte> payload(planes[p].payload);
        for (size_t at = w * 1024; at < payload.size(); at += 3 * 1024) {
          ranges.push_back({p, at, payload.subspan(at, std::min<size_t>(1024, payload.size() - at))});
        }
      }
      ASSERT_TRUE(joined->Put(ranges).ok());
      const absl::Status finished = joined->Finish();
      ASSERT_TRUE(finished.ok()) << finished;
    });
  }
  for (std::thread& thread : threads) thread.join();

  const pod::PlaneHeader headers[] = {planes[0].header, planes[1].header};
  const auto statuses = batch->Commit(headers);
  ASSERT_TRUE(statuses.ok()) << statuses.status();
  for (const absl::Status& status : *statuses) EXPECT_TRUE(status.ok()) << status;
  for (const TestPlane& plane : planes) EXPECT_EQ(Fetched(*other_, plane), plane.payload);
  EXPECT_EQ(leader_->stats().put_bytes + other_->stats().put_bytes + third_client->stats().put_bytes, 312345u);
}

// The store compares payload and header at commit: a writer that did not write is found out.
TEST_F(SharedReservationTest, APlaneThatNobodyFinishedWritingIsNotCommitted) {
  const TestPlane plane = MakePlane(3, 100000);
  const PlaneRequest request = plane.request();
  auto batch = leader_->Reserve({&request, 1});
  ASSERT_TRUE(batch.ok()) << batch.status();
  auto joined = other_->Join(*batch->Describe(), absl::Now() - absl::Seconds(1));
  ASSERT_TRUE(joined.ok()) << joined.status();
  const PutRange half{0, 0, std::span(plane.payload).first(50000)};
  ASSERT_TRUE(joined->Put({&half, 1}).ok());
  ASSERT_TRUE(joined->Finish().ok());
  const auto statuses = batch->Commit({&plane.header, 1});
  ASSERT_TRUE(statuses.ok()) << statuses.status();
  EXPECT_FALSE((*statuses)[0].ok());
  EXPECT_TRUE(Fetched(*other_, plane).empty());
}

TEST_F(SharedReservationTest, APlaneThatTheStoreHasIsNotWrittenAgain) {
  const TestPlane plane = MakePlane(4, 5000);
  const PlaneRequest request = plane.request();
  {
    auto batch = leader_->Reserve({&request, 1});
    ASSERT_TRUE(batch.ok() && batch->Put(0, 0, plane.payload).ok());
    ASSERT_TRUE(batch->Commit({&plane.header, 1}).ok());
  }
  auto batch = leader_->Reserve({&request, 1});
  ASSERT_TRUE(batch.ok()) << batch.status();
  auto joined = other_->Join(*batch->Describe(), absl::Now() - absl::Seconds(1));
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_TRUE(joined->already_committed(0));
  const std::vector<std::byte> junk(5000);
  const PutRange range{0, 0, junk};
  EXPECT_TRUE(joined->Put({&range, 1}).ok());
  EXPECT_TRUE(joined->Finish().ok());
  EXPECT_EQ(other_->stats().put_bytes, 0u);
  EXPECT_EQ(Fetched(*other_, plane), plane.payload);
}

TEST_F(SharedReservationTest, PutsOutsideThePlaneAreRefusedWhole) {
  const TestPlane plane = MakePlane(5, 5000);
  const PlaneRequest request = plane.request();
  auto batch = leader_->Reserve({&request, 1});
  ASSERT_TRUE(batch.ok()) << batch.status();
  auto joined = other_->Join(*batch->Describe(), absl::Now() - absl::Seconds(1));
  ASSERT_TRUE(joined.ok()) << joined.status();
  const std::span<const std::byte> bytes(plane.payload);
  for (const PutRange& bad :
       {PutRange{0, 1, bytes}, {0, 5001, bytes.first(0)}, {1, 0, bytes}, {0, UINT64_MAX, bytes.first(2)}}) {
    const PutRange ranges[] = {{0, 0, bytes}, bad};
    EXPECT_TRUE(absl::IsOutOfRange(joined->Put(ranges)));
  }
  EXPECT_TRUE(joined->Finish().ok());
  EXPECT_EQ(other_->stats().put_bytes, 0u);
}

TEST_F(SharedReservationTest, NothingIsPutOnceTheReservationIsOver) {
  const TestPlane plane = MakePlane(6, 5000);
  const PlaneRequest request = plane.request();
  auto batch = leader_->Reserve({&request, 1});
  ASSERT_TRUE(batch.ok()) << batch.status();
  // 60 seconds to live, counted from two minutes ago.
  auto joined = other_->Join(*batch->Describe(), absl::Now() - absl::Minutes(2));
  ASSERT_TRUE(joined.ok()) << joined.status();
  const PutRange range{0, 0, plane.payload};
  absl::Status put = joined->Put({&range, 1});
  put.Update(joined->Finish());
  EXPECT_TRUE(absl::IsDeadlineExceeded(put)) << put;
}

TEST_F(SharedReservationTest, AReservationOfAnotherStartOfTheStoreIsUnavailable) {
  const std::string foreign =
      EncodeSharedReservation({.epoch = leader_->epoch() + 1, .remaining = absl::Seconds(10), .planes = {}});
  EXPECT_TRUE(absl::IsUnavailable(other_->Join(foreign, absl::Now()).status()));
}

TEST_F(SharedReservationTest, AddressesThatAreNotTheStoresAreRefused) {
  SharedReservation shared{.epoch = leader_->epoch(), .remaining = absl::Seconds(10), .planes = {{false, 16, 4096}}};
  EXPECT_TRUE(absl::IsOutOfRange(other_->Join(EncodeSharedReservation(shared), absl::Now()).status()));
  shared.planes[0] = {false, UINT64_MAX - 100, 4096};
  EXPECT_TRUE(absl::IsOutOfRange(other_->Join(EncodeSharedReservation(shared), absl::Now()).status()));
}

TEST_F(SharedReservationTest, MemoryOfADescribedBatchThatWasGivenUpRests) {
  const TestPlane plane = MakePlane(7, 5000);
  const PlaneRequest request = plane.request();
  const auto used = [&] { return leader_->GetStat()->store.slab_used_bytes; };
  const uint64_t before = used();
  {
    auto batch = leader_->Reserve({&request, 1});
    ASSERT_TRUE(batch.ok()) << batch.status();
  }
  EXPECT_EQ(used(), before);  // Given back at once: nobody else could write there.
  {
    auto batch = leader_->Reserve({&request, 1});
    ASSERT_TRUE(batch.ok() && batch->Describe().ok());
  }
  EXPECT_GT(used(), before);
}

SharedReservation Example() {
  return {.epoch = 0x0123456789abcdef,
          .remaining = absl::Milliseconds(59999),
          .planes = {{false, 0x7f0000001000, 4096}, {true, 0, 8192}, {false, 0x7f0000002000, 0}}};
}

TEST(SharedReservationFormat, WhatIsWrittenIsRead) {
  const auto read = DecodeSharedReservation(EncodeSharedReservation(Example()));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->epoch, Example().epoch);
  EXPECT_EQ(read->remaining, Example().remaining);
  ASSERT_EQ(read->planes.size(), 3u);
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(read->planes[i].already_committed, Example().planes[i].already_committed);
    EXPECT_EQ(read->planes[i].address, Example().planes[i].address);
    EXPECT_EQ(read->planes[i].payload_bytes, Example().planes[i].payload_bytes);
  }
}

// The seed was made from docs/formats.md by a program that shares no code with this one.
TEST(SharedReservationFormat, TheWrittenBytesAreThoseOfTheFormatsPage) {
  const auto golden =
      ReadFile(PERIGEE_SOURCE_DIR "/tests/fuzz/seeds/fuzz_shared_reservation/shared_reservation_v1.bin");
  ASSERT_TRUE(golden.ok()) << golden.status();
  EXPECT_EQ(EncodeSharedReservation(Example()), *golden);
}

TEST(SharedReservationFormat, EveryTruncationAndEveryFlippedBitIsRefused) {
  const std::string bytes = EncodeSharedReservation(Example());
  for (size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(DecodeSharedReservation(bytes.substr(0, n)).ok()) << n;
  EXPECT_FALSE(DecodeSharedReservation(bytes + "x").ok());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string damaged = bytes;
    damaged[bit / 8] = static_cast<char>(damaged[bit / 8] ^ (1 << bit % 8));
    EXPECT_FALSE(DecodeSharedReservation(damaged).ok()) << bit;
  }
}

// Under a right checksum, as a hostile writer would send them.
TEST(SharedReservationFormat, ImpossibleValuesAreRefusedBeforeAnythingIsAllocated) {
  const std::string good = EncodeSharedReservation(Example());
  const auto with = [&](size_t at, const std::string& bytes) {
    std::string out = good;
    out.replace(at, bytes.size(), bytes);
    const uint32_t crc = Crc32c(AsBytes(absl::string_view(out).substr(14)));
    for (int i = 0; i < 4; ++i) out[10 + static_cast<size_t>(i)] = static_cast<char>(crc >> (8 * i));
    return DecodeSharedReservation(out).status();
  };
  const std::string ones(8, '\xff');
  EXPECT_TRUE(with(14, "").ok());
  EXPECT_THAT(std::string(with(14 + 8, ones).message()), HasSubstr("time to live"));
  EXPECT_THAT(std::string(with(14 + 16, ones.substr(0, 4)).message()), HasSubstr("does not fit 4294967295 planes"));
  EXPECT_THAT(std::string(with(14 + 20, "\x02").message()), HasSubstr("commit flag 2"));
  EXPECT_THAT(std::string(with(14 + 20, "\x01").message()), HasSubstr("address of a stored plane"));
  EXPECT_THAT(std::string(with(14 + 20 + 9, ones).message()), HasSubstr("payload_bytes"));
  EXPECT_TRUE(absl::IsFailedPrecondition(with(8, "\x02")));
  EXPECT_TRUE(absl::IsFailedPrecondition(with(0, "X")));
}

}  // namespace
}  // namespace perigee::kvstore
