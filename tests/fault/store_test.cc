// The store and its client on two hosts, with what happens to processes and networks in the middle of writes and reads:
// calls end by their deadlines, wrong bytes are never OK, and the same client goes on afterwards.
#include <thread>

#include "fixture.h"
#include "proxy.h"
#include "store_use.h"

namespace perigee::fault {
namespace {

using kvstore::StoreClient;
using kvstore::TestPlane;

constexpr uint16_t kStorePort = 7100;
constexpr size_t kPlanes = 16;
constexpr size_t kPlaneBytes = 1 << 20;
constexpr size_t kSlabBytes = 64 << 20;

class StoreTest : public FaultTest {
 protected:
  void SetUp() override {
    FaultTest::SetUp();
    if (IsSkipped()) return;
    StartStore();
    auto client = StoreClient::Connect(address_, context_.get(), QuickOptions());
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    for (uint64_t i = 0; i < kPlanes; ++i) first_.push_back(MakePlane(i)), second_.push_back(MakePlane(100 + i));
  }

  static TestPlane MakePlane(uint64_t n) { return kvstore::MakePlane(n, kPlaneBytes + n * 13); }

  void StartStore() {
    store_ = nullptr;
    auto store = Process::Start(
        *network_, Place::kHostB,
        {FAULT_STORE, "serve", Network::Address(Place::kHostB), absl::StrCat(kStorePort), absl::StrCat(kSlabBytes)});
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
    address_ = store_->Hear().value_or("failed");
    ASSERT_EQ(address_, absl::StrCat(Network::Address(Place::kHostB), ":", kStorePort));
  }

  absl::Status Write(const std::vector<TestPlane>& planes) { return fault::Write(*client_, planes); }
  absl::Status Read(const std::vector<TestPlane>& planes) {
    size_t wrong = 0;
    const absl::Status status = fault::Read(*client_, planes, &wrong);
    EXPECT_EQ(wrong, 0u) << "wrong bytes were delivered as right";
    return status;
  }

  // Runs the call while `fault` happens in its middle (the link is slow: 16 MiB take 2.7 s).
  absl::Status During(const std::function<absl::Status()>& call, const std::function<void()>& fault) {
    EXPECT_TRUE(network_->LimitRate(0, 50).ok());
    absl::Status status;
    const absl::Time start = absl::Now();
    std::thread caller([&] { status = call(); });
    absl::SleepFor(absl::Milliseconds(300));
    fault();
    caller.join();
    EXPECT_LT(absl::Now() - start, kStoreUse + kGrace);
    EXPECT_TRUE(network_->LimitRate(0, 10000).ok());
    return status;
  }

  // The same client, within a few tries (the first may find out that its connection is dead): all planes, right bytes.
  void ExpectGoesOn() {
    absl::Status status = absl::UnknownError("");
    for (const auto* planes : {&first_, &second_}) {
      const absl::Time until = absl::Now() + absl::Seconds(8);
      do {
        status = Write(*planes);
      } while (!status.ok() && IsRetryable(status) && absl::Now() < until);
      ASSERT_TRUE(status.ok()) << status;
    }
    EXPECT_EQ(Read(first_), absl::OkStatus());
    EXPECT_EQ(Read(second_), absl::OkStatus());
  }

  std::unique_ptr<Process> store_;
  std::string address_;
  std::unique_ptr<StoreClient> client_;  // never replaced within a test
  std::vector<TestPlane> first_, second_;
};

TEST_F(StoreTest, KilledInMidWriteAndRestarted) {
  const absl::Status status = During([&] { return Write(first_); }, [&] { store_->Kill(); });
  EXPECT_TRUE(IsRetryable(status)) << status;
  StartStore();
  ExpectGoesOn();
}

TEST_F(StoreTest, KilledInMidReadAndRestarted) {
  ASSERT_EQ(Write(first_), absl::OkStatus());
  const absl::Status status = During([&] { return Read(first_); }, [&] { store_->Kill(); });
  EXPECT_TRUE(IsRetryable(status)) << status;
  StartStore();
  ExpectGoesOn();
}

TEST_F(StoreTest, PausedInMidWrite) {
  ASSERT_EQ(Write(second_), absl::OkStatus());
  const absl::Status status = During([&] { return Write(first_); }, [&] { store_->Pause(); });
  EXPECT_TRUE(IsRetryable(status)) << status;
  store_->Continue();
  EXPECT_EQ(Read(second_), absl::OkStatus()) << "what was committed before";
  ExpectGoesOn();
}

TEST_F(StoreTest, PausedInMidRead) {
  ASSERT_EQ(Write(first_), absl::OkStatus());
  const absl::Status status = During([&] { return Read(first_); }, [&] { store_->Pause(); });
  EXPECT_TRUE(IsRetryable(status)) << status;
  const absl::Time start = absl::Now();
  EXPECT_TRUE(IsRetryable(Read(first_))) << "while it is paused";
  EXPECT_LT(absl::Now() - start, kStoreUse + kGrace);
  store_->Continue();
  ExpectGoesOn();
}

TEST_F(StoreTest, LinkDownInMidWriteAndUp) {
  const absl::Status status =
      During([&] { return Write(first_); }, [&] { EXPECT_TRUE(network_->SetLink(Place::kHostB, 0, false).ok()); });
  EXPECT_TRUE(IsRetryable(status)) << status;
  ASSERT_TRUE(network_->SetLink(Place::kHostB, 0, true).ok());
  ExpectGoesOn();
}

TEST_F(StoreTest, LinkDownInMidReadAndUp) {
  ASSERT_EQ(Write(first_), absl::OkStatus());
  const absl::Status status =
      During([&] { return Read(first_); }, [&] { EXPECT_TRUE(network_->SetLink(Place::kHostA, 0, false).ok()); });
  EXPECT_TRUE(IsRetryable(status)) << status;
  ASSERT_TRUE(network_->SetLink(Place::kHostA, 0, true).ok());
  ExpectGoesOn();
}

TEST_F(StoreTest, ABlackHoleInMidReadHeals) {
  ASSERT_EQ(Write(first_), absl::OkStatus());
  const absl::Status status =
      During([&] { return Read(first_); }, [&] { EXPECT_TRUE(network_->SetBlackHole(true).ok()); });
  EXPECT_TRUE(IsRetryable(status)) << status;
  ASSERT_TRUE(network_->SetBlackHole(false).ok());
  ExpectGoesOn();
}

TEST_F(StoreTest, RoomReservedByAWriterThatVanishedIsRefusedToOthersAndThenFreeAgain) {
  kvstore::ClientOptions options = QuickOptions();
  options.reservation_ttl = absl::Seconds(2);
  auto vanishing = StoreClient::Connect(address_, context_.get(), options);
  ASSERT_TRUE(vanishing.ok()) << vanishing.status();
  const size_t many = kSlabBytes / kPlaneBytes - 8;  // less is left than the others want
  std::vector<kvstore::PlaneRequest> requests;
  for (uint64_t i = 0; i < many; ++i) requests.push_back({MakePlane(1000 + i).id, kPlaneBytes});
  auto batch = (*vanishing)->Reserve(requests);
  ASSERT_TRUE(batch.ok()) << batch.status();
  const TestPlane plane = MakePlane(1000);
  ASSERT_TRUE(network_->SetBlackHole(true).ok());
  ASSERT_TRUE(batch->Put(0, 0, std::span(plane.payload).first(kPlaneBytes)).ok()) << "it is only started";
  const absl::Status put = batch->Commit(std::vector<pod::PlaneHeader>(many)).status();
  EXPECT_TRUE(IsRetryable(put)) << put;
  *batch = {};
  ASSERT_TRUE(network_->SetBlackHole(false).ok());
  EXPECT_EQ(Write(first_).code(), absl::StatusCode::kResourceExhausted);
  // The store was not told; the reservation's time to live and the grace for late writes end it.
  const absl::Time until = absl::Now() + options.reservation_ttl + absl::Seconds(2) + kGrace;
  absl::Status status = absl::UnknownError("");
  while (!status.ok() && absl::Now() < until) status = Write(first_);
  EXPECT_EQ(status, absl::OkStatus());
  ExpectGoesOn();
}

// Payload in which a marker stands every KiB, so that the proxy can hit payload and nothing else.
class DamagedStoreTest : public StoreTest {
 protected:
  static constexpr char kMarker[] = "!corrupt me here!";
  static TestPlane Marked(uint64_t n) {
    TestPlane plane = kvstore::MakePlane(n, kPlaneBytes);
    for (size_t at = 0; at + 1024 <= plane.payload.size(); at += 1024) {
      std::memcpy(plane.payload.data() + at, kMarker, sizeof(kMarker) - 1);
    }
    size_t begin = 0;
    for (pod::SectionSum& section : plane.header.sections) {
      section.crc32c = Crc32c(std::span(plane.payload).subspan(begin, section.bytes));
      begin += section.bytes;
    }
    return plane;
  }
  void SetUp() override {
    StoreTest::SetUp();
    if (IsSkipped()) return;
    auto proxy = Proxy::Start(network_.get());
    ASSERT_TRUE(proxy.ok()) << proxy.status();
    proxy_ = *std::move(proxy);
    // The client's connection was made before the proxy.
    StartStore();
    for (uint64_t n = 500; n < 504; ++n) marked_.push_back(Marked(n));
  }
  void TearDown() override {
    client_ = nullptr;  // says good-bye through the proxy
    proxy_ = nullptr;
  }
  absl::Status WriteRetrying(const std::vector<TestPlane>& planes) {
    absl::Status status = Write(planes);
    for (int i = 0; i < 3 && IsRetryable(status); ++i) status = Write(planes);
    return status;
  }
  std::unique_ptr<Proxy> proxy_;
  std::vector<TestPlane> marked_;
};

TEST_F(DamagedStoreTest, PayloadDamagedOnItsWayToTheReaderIsDataLossAndTheNextReadIsRight) {
  ASSERT_EQ(WriteRetrying(marked_), absl::OkStatus());
  for (int round = 0; round < 3; ++round) {
    const uint64_t before = proxy_->stats().corrupted_bytes;
    proxy_->CorruptAfter(kMarker);
    const absl::Status status = Read(marked_);
    EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
    EXPECT_GT(proxy_->stats().corrupted_bytes, before);
    proxy_->StopCorrupting();
    EXPECT_EQ(Read(marked_), absl::OkStatus()) << "the store's own copy was right";
  }
  EXPECT_GE(client_->stats().checksum_failures, 3u);
}

TEST_F(DamagedStoreTest, PayloadDamagedOnItsWayToTheStoreIsRefusedAtCommitAndTheNextWriteIsRight) {
  ASSERT_EQ(WriteRetrying(first_), absl::OkStatus());
  proxy_->CorruptAfter(kMarker);
  const absl::Status status = Write(marked_);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
  proxy_->StopCorrupting();
  EXPECT_EQ(Read(marked_).code(), absl::StatusCode::kNotFound) << "what Commit refused does not exist";
  EXPECT_EQ(Write(marked_), absl::OkStatus());
  EXPECT_EQ(Read(marked_), absl::OkStatus());
  EXPECT_EQ(Read(first_), absl::OkStatus());
}

}  // namespace
}  // namespace perigee::fault
