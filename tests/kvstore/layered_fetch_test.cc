// Fetching group by group over real gRPC and UCX (tcp): what is usable when, and what is left when it breaks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "kvstore/client.h"
#include "kvstore/server.h"
#include "planes.h"
#include "server_process.h"

namespace perigee::kvstore {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr size_t kSections = 6;

std::unique_ptr<transport::Context> MakeEngine() {
  auto engine = transport::Context::Create({.transports = "tcp"});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

std::unique_ptr<StoreServer> StartServer() {
  ServerOptions options;
  options.port = 0;
  options.slab_bytes = 32 << 20;
  options.transport.transports = "tcp";
  auto server = StoreServer::Start(options);
  EXPECT_TRUE(server.ok()) << server.status();
  return *std::move(server);
}

// A plane of kSections equal sections.
TestPlane MakeLayered(uint64_t n, size_t section_bytes) {
  TestPlane p = MakePlane(n, kSections * section_bytes);
  p.header.sections.clear();
  for (size_t s = 0; s < kSections; ++s) {
    const std::span<const std::byte> section = std::span(p.payload).subspan(s * section_bytes, section_bytes);
    p.header.sections.push_back({static_cast<uint32_t>(section_bytes), Crc32c(section)});
  }
  return p;
}

// Some planes in a store, and their sections as groups of a fetch: group s is section s of every plane.
class LayeredFetchTest : public ::testing::Test {
 protected:
  void Prepare(const std::string& address, size_t section_bytes, ClientOptions options) {
    section_bytes_ = section_bytes;
    auto client = StoreClient::Connect(address, engine_.get(), options);
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    Write();
  }
  void Write() {
    planes_.clear();
    std::vector<PlaneRequest> requests;
    std::vector<pod::PlaneHeader> headers;
    for (uint64_t n = 0; n < 4; ++n) {
      planes_.push_back(MakeLayered(n, section_bytes_));
      requests.push_back(planes_.back().request());
      headers.push_back(planes_.back().header);
    }
    auto batch = client_->Reserve(requests);
    ASSERT_TRUE(batch.ok()) << batch.status();
    std::vector<PutRange> ranges;
    for (size_t i = 0; i < planes_.size(); ++i) {
      ranges.push_back({i, section_bytes_, std::span(planes_[i].payload).subspan(section_bytes_)});
      ranges.push_back({i, 0, std::span(planes_[i].payload).first(section_bytes_)});
    }
    ASSERT_TRUE(batch->Put(ranges).ok());
    auto statuses = batch->Commit(headers);
    ASSERT_TRUE(statuses.ok()) << statuses.status();
    for (const absl::Status& status : *statuses) ASSERT_TRUE(status.ok()) << status;
  }
  absl::StatusOr<ReadLease> Acquire() const {
    std::vector<PlaneId> ids;
    for (const TestPlane& p : planes_) ids.push_back(p.id);
    return client_->Acquire(ids);
  }
  std::vector<std::vector<FetchRequest>> Groups() {
    memory_.assign(planes_.size(), std::vector<std::byte>(kSections * section_bytes_));
    std::vector<std::vector<FetchRequest>> groups(kSections);
    for (size_t s = 0; s < kSections; ++s) {
      for (size_t p = 0; p < planes_.size(); ++p) {
        groups[s].push_back({.plane = p,
                             .destination = std::span(memory_[p]).subspan(s * section_bytes_, section_bytes_),
                             .first_section = s,
                             .sections = 1});
      }
    }
    return groups;
  }
  bool GroupIsRight(size_t s) const {
    for (size_t p = 0; p < planes_.size(); ++p) {
      const auto at = static_cast<ptrdiff_t>(s * section_bytes_);
      if (!std::equal(memory_[p].begin() + at, memory_[p].begin() + at + static_cast<ptrdiff_t>(section_bytes_),
                      planes_[p].payload.begin() + at))
        return false;
    }
    return true;
  }

  const std::unique_ptr<transport::Context> engine_ = MakeEngine();
  size_t section_bytes_ = 0;
  std::unique_ptr<StoreClient> client_;
  std::vector<TestPlane> planes_;
  std::vector<std::vector<std::byte>> memory_;
};

TEST_F(LayeredFetchTest, TheFirstGroupIsUsableWhileLaterOnesAreHeldBack) {
  const auto server = StartServer();
  absl::Notification go_on;
  std::vector<size_t> order;  // Of batches, by their first group; written by the fetch's one thread.
  ClientOptions options;
  options.fetch_batch_bytes = 1;
  options.on_fetch_landed = [&](size_t group) {
    order.push_back(group);
    if (group == 2) go_on.WaitForNotification();
    return absl::OkStatus();
  };
  Prepare(server->address(), 30000, options);
  auto lease = Acquire();
  ASSERT_TRUE(lease.ok()) << lease.status();
  auto fetch = lease->StartFetch(Groups());
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  EXPECT_EQ(fetch->groups(), kSections);
  EXPECT_TRUE(fetch->Wait(0).ok());
  EXPECT_TRUE(GroupIsRight(0));
  EXPECT_TRUE(fetch->Wait(1).ok());
  EXPECT_TRUE(GroupIsRight(1));
  EXPECT_EQ(fetch->arrived(), 2u);
  go_on.Notify();
  EXPECT_TRUE(fetch->Wait(kSections - 1).ok());
  for (size_t s = 0; s < kSections; ++s) EXPECT_TRUE(GroupIsRight(s)) << s;
  EXPECT_EQ(fetch->Wait(kSections).code(), absl::StatusCode::kOutOfRange);
  EXPECT_THAT(order, ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_EQ(client_->stats().fetched_bytes, 4 * kSections * section_bytes_);
}

TEST_F(LayeredFetchTest, SmallGroupsAfterTheFirstShareABatch) {
  const auto server = StartServer();
  std::vector<size_t> order;
  ClientOptions options;
  options.fetch_batch_bytes = 4 * 1000 * 3;  // Three groups' worth.
  options.on_fetch_landed = [&](size_t group) {
    order.push_back(group);
    return absl::OkStatus();
  };
  Prepare(server->address(), 1000, options);
  auto lease = Acquire();
  ASSERT_TRUE(lease.ok()) << lease.status();
  auto groups = Groups();
  groups.insert(groups.begin() + 1, std::vector<FetchRequest>{});  // A layer that needs nothing more.
  auto fetch = lease->StartFetch(std::move(groups));
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  EXPECT_TRUE(fetch->Wait(kSections).ok());
  for (size_t s = 0; s < kSections; ++s) EXPECT_TRUE(GroupIsRight(s)) << s;
  EXPECT_THAT(order, ElementsAre(0, 1, 5));
}

TEST_F(LayeredFetchTest, AWrongSectionEndsTheFetchAtItsGroupAndTheStoreIsTold) {
  const auto server = StartServer();
  ClientOptions options;
  options.fetch_batch_bytes = 1;
  Prepare(server->address(), 5000, options);
  {
    const auto held = server->store().Acquire({&planes_[2].id, 1}, absl::Seconds(60));
    *reinterpret_cast<char*>(held->planes[0].address + (kSections - 1) * section_bytes_ + 17) ^= 4;
    ASSERT_TRUE(server->store().Release(held->id, 0, 0).ok());
  }
  auto lease = Acquire();
  ASSERT_TRUE(lease.ok()) << lease.status();
  auto fetch = lease->StartFetch(Groups());
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  EXPECT_TRUE(fetch->Wait(kSections - 2).ok());
  const absl::Status last = fetch->Wait(kSections - 1);
  EXPECT_TRUE(absl::IsDataLoss(last)) << last;
  EXPECT_THAT(std::string(last.message()), HasSubstr(planes_[2].id.ToString()));
  EXPECT_THAT(fetch->wrong_planes(), ElementsAre(2));
  EXPECT_EQ(fetch->arrived(), kSections - 1);
  EXPECT_EQ(server->store().Stats().checksum_failures, 1u);
  EXPECT_EQ(client_->stats().checksum_failures, 1u);
  *fetch = LayeredFetch();
  *lease = ReadLease();
  auto again = Acquire();
  ASSERT_TRUE(again.ok());
  EXPECT_EQ(again->planes()[2].miss.reason, MissReason::kChecksum);
}

TEST_F(LayeredFetchTest, TheLeaseLivesAsLongAsTheFetchAndNoLonger) {
  const auto server = StartServer();
  absl::Notification go_on;
  ClientOptions options;
  options.fetch_batch_bytes = 1;
  options.on_fetch_landed = [&](size_t group) {
    if (group == 1) go_on.WaitForNotification();
    return absl::OkStatus();
  };
  Prepare(server->address(), 5000, options);
  absl::StatusOr<LayeredFetch> fetch;
  {
    auto lease = Acquire();
    ASSERT_TRUE(lease.ok()) << lease.status();
    fetch = lease->StartFetch(Groups());
    ASSERT_TRUE(fetch.ok()) << fetch.status();
  }
  EXPECT_TRUE(fetch->Wait(0).ok());
  EXPECT_EQ(server->store().Stats().leases, 1u);
  go_on.Notify();
  *fetch = LayeredFetch();  // Abandoned or at its end: either way nothing is held afterwards.
  EXPECT_EQ(server->store().Stats().leases, 0u);
}

TEST_F(LayeredFetchTest, CancelledItKeepsWhatIsHereAndEndsWithoutTheRest) {
  const auto server = StartServer();
  absl::Notification landed, go_on;
  ClientOptions options;
  options.fetch_batch_bytes = 1;
  options.on_fetch_landed = [&](size_t group) {
    if (group != 1) return absl::OkStatus();
    landed.Notify();
    go_on.WaitForNotification();
    return absl::OkStatus();
  };
  Prepare(server->address(), 5000, options);
  auto lease = Acquire();
  ASSERT_TRUE(lease.ok()) << lease.status();
  auto fetch = lease->StartFetch(Groups());
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  landed.WaitForNotification();
  fetch->Cancel();
  EXPECT_TRUE(fetch->Wait(0).ok());
  go_on.Notify();
  EXPECT_TRUE(absl::IsCancelled(fetch->Wait(kSections - 1))) << fetch->Wait(kSections - 1);
  EXPECT_EQ(fetch->arrived(), 2u);
}

TEST_F(LayeredFetchTest, WhatCannotBeFetchedIsRefusedBeforeAnythingStarts) {
  const auto server = StartServer();
  Prepare(server->address(), 5000, {});
  planes_.push_back(MakeLayered(77, section_bytes_));  // Never stored.
  auto lease = Acquire();
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE(absl::IsNotFound(lease->StartFetch(Groups()).status()));
  planes_.pop_back();
  auto groups = Groups();
  groups[3][1].destination = groups[3][1].destination.first(9);
  EXPECT_TRUE(absl::IsInvalidArgument(lease->StartFetch(groups).status()));
  EXPECT_TRUE(absl::IsFailedPrecondition(ReadLease().StartFetch({}).status()));
  EXPECT_EQ(client_->stats().fetched_bytes, 0u);
}

TEST_F(LayeredFetchTest, AStoreThatDiesOrStallsInMidFetchIsAnErrorWithinTheDeadline) {
  for (const bool kill : {true, false}) {
    SCOPED_TRACE(kill);
    ServerProcess process(0, 64 << 20, "");
    ClientOptions options;
    options.fetch_batch_bytes = 1;
    options.transfer_deadline = options.call_deadline = absl::Seconds(3);
    options.on_fetch_landed = [&](size_t group) {
      if (group == 0) kill ? process.Kill() : process.Stop();
      return absl::OkStatus();
    };
    Prepare(process.said(), 400000, options);
    auto lease = Acquire();
    ASSERT_TRUE(lease.ok()) << lease.status();
    const absl::Time started = absl::Now();
    auto fetch = lease->StartFetch(Groups());
    ASSERT_TRUE(fetch.ok()) << fetch.status();
    EXPECT_TRUE(fetch->Wait(0).ok());
    EXPECT_TRUE(GroupIsRight(0));
    const absl::Status last = fetch->Wait(kSections - 1);
    EXPECT_TRUE(absl::IsUnavailable(last) || absl::IsDeadlineExceeded(last)) << last;
    *fetch = LayeredFetch();
    EXPECT_LT(absl::Now() - started, absl::Seconds(8));
  }
}

}  // namespace
}  // namespace perigee::kvstore
