// Client and store over real gRPC and UCX (tcp), in one process and in two.
#include "kvstore/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <thread>

#include "absl/time/clock.h"
#include "kvstore/server.h"
#include "kvstore/ssd/faulty_files.h"
#include "planes.h"
#include "server_process.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<transport::Context> MakeEngine() {
  transport::Options options;
  options.transports = "tcp";
  auto engine = transport::Context::Create(options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return *std::move(engine);
}

ServerOptions LocalOptions(const std::string& ssd_path = "") {
  ServerOptions options;
  options.port = 0;
  options.slab_bytes = 16 << 20;
  options.transport.transports = "tcp";
  if (!ssd_path.empty()) {
    options.store.ssd = SsdOptions{.path = ssd_path, .segment_bytes = 4 << 20, .reserve_bytes = 0};
  }
  return options;
}

absl::Status WriteAll(StoreClient& client, std::span<const TestPlane> planes,
                      Durability durability = Durability::kBest) {
  std::vector<PlaneRequest> requests;
  std::vector<pod::PlaneHeader> headers;
  for (const TestPlane& p : planes) {
    requests.push_back(p.request());
    headers.push_back(p.header);
  }
  auto batch = client.Reserve(requests);
  if (!batch.ok()) return batch.status();
  for (size_t i = 0; i < planes.size(); ++i) {
    // In pieces, as layers would finish.
    const std::span<const std::byte> payload(planes[i].payload);
    const size_t half = payload.size() / 2;
    absl::Status put = batch->Put(i, half, payload.subspan(half));
    put.Update(batch->Put(i, 0, payload.first(half)));
    if (!put.ok()) return put;
  }
  auto statuses = batch->Commit(headers, durability);
  if (!statuses.ok()) return statuses.status();
  for (const absl::Status& status : *statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadAll(StoreClient& client, std::span<const TestPlane> planes) {
  std::vector<PlaneId> ids;
  for (const TestPlane& p : planes) ids.push_back(p.id);
  auto lease = client.Acquire(ids);
  if (!lease.ok()) return lease.status();
  std::vector<std::vector<std::byte>> memory;
  std::vector<FetchRequest> requests;
  for (size_t i = 0; i < planes.size(); ++i) {
    memory.emplace_back(planes[i].payload.size());
    requests.push_back({.plane = i, .destination = memory.back()});
  }
  for (const absl::Status& status : lease->Fetch(requests)) {
    if (!status.ok()) return status;
  }
  for (size_t i = 0; i < planes.size(); ++i) {
    if (memory[i] != planes[i].payload || lease->planes()[i].header != planes[i].header) {
      return absl::DataLossError("other bytes than were written");
    }
  }
  return absl::OkStatus();
}

std::vector<TestPlane> SomePlanes(uint64_t first, size_t n, size_t bytes) {
  std::vector<TestPlane> planes;
  for (size_t i = 0; i < n; ++i) planes.push_back(MakePlane(first + i, bytes + i * 13, pod::kPlaneKinds[i % 3]));
  return planes;
}

TEST(Client, WritesAndReadsBackAndPayloadDoesNotCrossGrpc) {
  TempFolder folder;
  auto server = StoreServer::Start(LocalOptions(folder.path()));
  ASSERT_TRUE(server.ok()) << server.status();
  auto engine = MakeEngine();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  const std::vector<TestPlane> planes = SomePlanes(0, 12, 500000);
  uint64_t payload_bytes = 0;
  for (const TestPlane& p : planes) payload_bytes += p.payload.size();
  ASSERT_TRUE(WriteAll(**client, planes, Durability::kSynced).ok());
  const absl::Status read = ReadAll(**client, planes);
  ASSERT_TRUE(read.ok()) << read;
  const auto stat = (*client)->GetStat();
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(stat->store.committed_bytes, payload_bytes);
  EXPECT_EQ(stat->store.fetched_bytes, payload_bytes);
  EXPECT_EQ((*client)->stats().put_bytes, payload_bytes);
  EXPECT_EQ((*client)->stats().fetched_bytes, payload_bytes);
  EXPECT_GE(engine->Stats().put_bytes, payload_bytes);
  EXPECT_GE(engine->Stats().get_bytes, payload_bytes);
  EXPECT_GT(stat->grpc_message_bytes, 0u);
  EXPECT_LT(stat->grpc_message_bytes, payload_bytes / 100) << "payload crossed gRPC";
  EXPECT_LT((*client)->stats().grpc_bytes, payload_bytes / 100);
  EXPECT_EQ(stat->epoch, (*server)->epoch());

  const pod::BlockKey key = planes[0].id.key;
  const auto found = (*client)->Lookup({&key, 1});
  ASSERT_TRUE(found.ok());
  ASSERT_EQ(found->blocks[0].planes.size(), 1u);
  EXPECT_EQ(found->blocks[0].planes[0].payload_bytes, planes[0].payload.size());
  EXPECT_GT(found->estimated_fetch_us, 0u);
  EXPECT_EQ((*client)->List("", 5, "")->planes.size(), 5u);
  EXPECT_EQ(*(*client)->Delete({&key, 1}), 1u);
  EXPECT_EQ(ReadAll(**client, std::span(planes).first(1)).code(), absl::StatusCode::kNotFound);
}

TEST(Client, EvictsScrubsAndListsWhatIsBefore) {
  TempFolder folder;
  auto server = StoreServer::Start(LocalOptions(folder.path()));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto engine = MakeEngine();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  std::vector<TestPlane> planes = SomePlanes(0, 3, 50000);
  for (uint64_t i = 0; i < planes.size(); ++i) Follow(planes[i], i);
  ASSERT_TRUE(WriteAll(**client, planes, Durability::kSynced).ok());
  const std::vector<pod::BlockKey> some = {planes[1].id.key};
  EXPECT_EQ((*client)->Evict({.keys = some, .dry_run = true})->planes, 1u);
  EXPECT_EQ((*client)->Evict({.keys = some, .idle = absl::Hours(1)})->planes, 0u);
  EXPECT_EQ((*client)->Evict({.tenant = "somebody else"})->planes, 0u);
  EXPECT_EQ((*client)->Evict({.keys = some})->payload_bytes, planes[1].payload.size());
  EXPECT_EQ((*client)->Evict({})->planes, 2u);
  const auto page = (*client)->List("", 0, "", {.parents = true});
  ASSERT_TRUE(page.ok()) << page.status();
  for (const ListedPlane& plane : page->planes) {
    EXPECT_TRUE(plane.parent_known);
    EXPECT_EQ(plane.tier, Tier::kSsd);
    const auto i = static_cast<uint64_t>(plane.meta.base_position / 64);
    EXPECT_EQ(plane.meta.parent, i == 0 ? std::nullopt : std::optional(TestKey(i - 1))) << i;
  }
  EXPECT_TRUE((*client)->Scrub().ok());
  ClientOptions tenant;
  tenant.tenant = "tenant-a";
  auto other = StoreClient::Connect((*server)->address(), engine.get(), tenant);
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ((*other)->Scrub().code(), absl::StatusCode::kPermissionDenied);
}

TEST(Client, FollowsTheStoresEventsAndIsToldWhenItCannot) {
  const auto engine = MakeEngine();
  auto server = StoreServer::Start(LocalOptions());
  ASSERT_TRUE(server.ok()) << server.status();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  auto first = (*client)->ReadEvents(0, 0, absl::Seconds(5));
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_TRUE(first->page.gap) << "who knows nothing lists";
  EXPECT_EQ(first->epoch, (*server)->epoch());

  const std::vector<TestPlane> planes = {MakePlane(1, 5000), MakePlane(2, 100)};
  std::thread writer([&] { EXPECT_TRUE(WriteAll(**client, planes).ok()); });
  uint64_t after = first->page.up_to;
  std::vector<Event> seen;
  const absl::Time limit = absl::Now() + absl::Seconds(20);
  while (seen.size() < 2 && absl::Now() < limit) {
    const auto events = (*client)->ReadEvents(first->epoch, after, absl::Seconds(5));
    ASSERT_TRUE(events.ok()) << events.status();
    EXPECT_FALSE(events->page.gap);
    after = events->page.up_to;
    seen.insert(seen.end(), events->page.events.begin(), events->page.events.end());
  }
  writer.join();
  ASSERT_EQ(seen.size(), 2u);
  EXPECT_EQ(seen[0].id, planes[0].id);
  EXPECT_EQ(seen[1].payload_bytes, 100u);
  EXPECT_TRUE((*client)->ReadEvents(first->epoch + 1, after, absl::Seconds(5))->page.gap) << "another start's number";

  const auto prefix =
      (*client)->Lookup(std::vector{planes[0].id.key, MakePlane(9, 1).id.key, planes[1].id.key}, LookupMode::kPrefix);
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  EXPECT_EQ(prefix->blocks.size(), 2u);

  // A reader that waits does not hold up the store's end.
  std::thread waiting([&] { (*client)->ReadEvents(first->epoch, after, absl::Seconds(10)).IgnoreError(); });
  const absl::Time start = absl::Now();
  (*server)->Shutdown();
  EXPECT_LT(absl::Now() - start, absl::Seconds(8));
  waiting.join();
}

TEST(Client, SaysHowLongAndHowFirmlyPlanesAreKept) {
  TempFolder folder;
  auto server = StoreServer::Start(LocalOptions(folder.path()));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto engine = MakeEngine();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  const TestPlane plane = MakePlane(1, 5000);
  const PlaneRequest request = plane.request();
  const std::span headers(&plane.header, 1);
  auto batch = (*client)->Reserve({&request, 1});
  ASSERT_TRUE(batch.ok() && batch->Put(0, 0, plane.payload).ok());
  EXPECT_EQ(batch->Commit(headers, Durability::kBest, absl::Hours(24 * 200)).status().code(),
            absl::StatusCode::kInvalidArgument)
      << "longer than a record can say";
  EXPECT_EQ(batch->Commit(headers, Durability::kReplicated).status().code(), absl::StatusCode::kFailedPrecondition)
      << "there is no remote tier";
  const auto committed = batch->Commit(headers, Durability::kBest, absl::Milliseconds(3599500));
  ASSERT_TRUE(committed.ok() && (*committed)[0].ok()) << committed.status();
  auto listed = (*client)->List("", 0, "");
  ASSERT_TRUE(listed.ok() && listed->planes.size() == 1u) << listed.status();
  EXPECT_EQ(listed->planes[0].meta.ttl_s, 3600u);
  EXPECT_EQ(listed->planes[0].pin, PinMode::kNone);

  EXPECT_EQ(*(*client)->Pin({&plane.id.key, 1}, PinMode::kHard), 1u);
  EXPECT_EQ((*client)->List("", 0, "")->planes[0].pin, PinMode::kHard);
  EXPECT_EQ((*client)->GetStat()->store.hard_pinned_bytes, 8192u);
  EXPECT_EQ(*(*client)->Promote({&plane.id, 1}), 0u) << "it is in memory";
  EXPECT_EQ(*(*client)->Promote({&plane.id, 1}, /*drop=*/true), 0u);
  ClientOptions other;
  other.tenant = "tenant-b";
  auto stranger = StoreClient::Connect((*server)->address(), engine.get(), other);
  ASSERT_TRUE(stranger.ok()) << stranger.status();
  EXPECT_EQ(*(*stranger)->Pin({&plane.id.key, 1}, PinMode::kNone), 0u) << "another tenant's";
  EXPECT_EQ((*client)->List("", 0, "")->planes[0].pin, PinMode::kHard);
  EXPECT_EQ(*(*client)->Pin({&plane.id.key, 1}, PinMode::kNone), 1u);
  EXPECT_EQ((*client)->GetStat()->store.hard_pinned_bytes, 0u);
}

TEST(Client, LearnsThatAPlanesDiskDoesNotAnswerAndFindsThePlaneLater) {
  TempFolder folder;
  const TestPlane plane = MakePlane(1, 9000);
  {
    FakeSlab slab(1 << 20);
    ASSERT_TRUE(Write(*OpenStore(slab, folder.path()), plane, Durability::kSynced).ok());
  }
  auto real = OpenRealFiles({});
  ASSERT_TRUE(real.ok());
  const auto faults = std::make_shared<FaultyFiles>(std::shared_ptr<FileLayer>(*std::move(real)), 1);
  ServerOptions options = LocalOptions(folder.path());
  options.store.ssd->files = faults;
  auto server = StoreServer::Start(options);
  ASSERT_TRUE(server.ok()) << server.status();
  auto engine = MakeEngine();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  faults->Inject({.call = FaultyFiles::Call::kRead, .error = EIO});
  const auto lease = (*client)->Acquire({&plane.id, 1});
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_FALSE(lease->planes()[0].found);
  EXPECT_EQ(lease->planes()[0].miss.reason, MissReason::kUnreachable);
  faults->Clear();
  const auto again = (*client)->Acquire({&plane.id, 1});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->planes()[0].found) << "one error is no reason to throw a plane away";
}

TEST(Client, FetchesSingleSectionsAndRefusesWrongSizes) {
  auto server = StoreServer::Start(LocalOptions());
  ASSERT_TRUE(server.ok()) << server.status();
  auto engine = MakeEngine();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  const TestPlane p = MakePlane(1, 9000);
  ASSERT_TRUE(WriteAll(**client, {&p, 1}).ok());
  const std::vector<PlaneId> ids = {p.id, MakePlane(2, 1).id};
  auto lease = (*client)->Acquire(ids);
  ASSERT_TRUE(lease.ok());
  std::vector<std::byte> second(6000), small(10), none(1);
  const std::vector<FetchRequest> requests = {{.plane = 0, .destination = second, .first_section = 1, .sections = 1},
                                              {.plane = 0, .destination = small},
                                              {.plane = 1, .destination = none},
                                              {.plane = 9, .destination = none}};
  const auto statuses = lease->Fetch(requests);
  EXPECT_TRUE(statuses[0].ok()) << statuses[0];
  EXPECT_TRUE(std::equal(second.begin(), second.end(), p.payload.begin() + 3000));
  EXPECT_EQ(statuses[1].code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(statuses[2].code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(statuses[3].code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(lease->Renew(absl::Seconds(100)).ok());
}

TEST(Client, WrongBytesAreNeverAcceptedAndTheStoreIsTold) {
  auto server = StoreServer::Start(LocalOptions());
  ASSERT_TRUE(server.ok()) << server.status();
  auto engine = MakeEngine();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  const TestPlane p = MakePlane(1, 9000);
  ASSERT_TRUE(WriteAll(**client, {&p, 1}).ok());
  {
    const auto held = (*server)->store().Acquire({&p.id, 1}, absl::Seconds(60));
    *reinterpret_cast<char*>(held->planes[0].address + 4242) ^= 2;
    ASSERT_TRUE((*server)->store().Release(held->id, 0, 0).ok());
  }
  EXPECT_EQ(ReadAll(**client, {&p, 1}).code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ((*client)->stats().checksum_failures, 1u);
  EXPECT_EQ((*server)->store().Stats().checksum_failures, 1u);
  auto lease = (*client)->Acquire({&p.id, 1});
  ASSERT_TRUE(lease.ok());
  EXPECT_EQ(lease->planes()[0].miss.reason, MissReason::kChecksum);
}

TEST(Client, AnAbandonedBatchLeavesNothingAndABatchCannotWriteOutsideItself) {
  auto server = StoreServer::Start(LocalOptions());
  ASSERT_TRUE(server.ok()) << server.status();
  auto engine = MakeEngine();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  const TestPlane p = MakePlane(1, 9000);
  {
    const PlaneRequest request = p.request();
    auto batch = (*client)->Reserve({&request, 1});
    ASSERT_TRUE(batch.ok());
    EXPECT_TRUE(batch->Put(0, 0, p.payload).ok());
    EXPECT_EQ(batch->Put(0, 1, p.payload).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(batch->Put(0, UINT64_MAX, p.payload).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ(batch->Put(1, 0, p.payload).code(), absl::StatusCode::kOutOfRange);
    EXPECT_EQ((*server)->store().Stats().reservations, 1u);
  }
  EXPECT_EQ((*server)->store().Stats().reservations, 0u);
  EXPECT_EQ((*server)->store().Stats().slab_used_bytes, 0u);
  { auto lease = (*client)->Acquire({&p.id, 1}); }
  EXPECT_EQ((*server)->store().Stats().leases, 0u);
}

TEST(Client, ManyThreadsShareOneClient) {
  auto server = StoreServer::Start(LocalOptions());
  ASSERT_TRUE(server.ok()) << server.status();
  auto engine = MakeEngine();
  auto client = StoreClient::Connect((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  std::vector<std::thread> threads;
  std::atomic<int> failed{0};
  for (uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (uint64_t i = 0; i < 10; ++i) {
        const std::vector<TestPlane> planes = SomePlanes(t * 1000 + i * 10, 3, 20000);
        if (!WriteAll(**client, planes).ok() || !ReadAll(**client, planes).ok()) ++failed;
      }
    });
  }
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(failed, 0);
}

TEST(Client, AnAbsentStoreIsUnavailableNamedAndQuick) {
  auto engine = MakeEngine();
  const absl::Time started = absl::Now();
  ClientOptions options;
  options.connect_deadline = absl::Seconds(2);
  const auto client = StoreClient::Connect("127.0.0.1:1", engine.get(), options);
  EXPECT_EQ(client.status().code(), absl::StatusCode::kUnavailable) << client.status();
  EXPECT_THAT(std::string(client.status().message()), HasSubstr("127.0.0.1:1"));
  EXPECT_LT(absl::Now() - started, absl::Seconds(4));
  EXPECT_EQ(StoreClient::Connect("nowhere", engine.get(), options).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(Client, MadeWithoutConnectingItConnectsWithItsFirstCall) {
  auto server = StoreServer::Start(LocalOptions());
  ASSERT_TRUE(server.ok()) << server.status();
  auto engine = MakeEngine();
  auto client = StoreClient::Create((*server)->address(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ((*client)->stats().connects, 0u);
  const TestPlane p = MakePlane(1, 9000);
  EXPECT_TRUE(WriteAll(**client, {&p, 1}).ok());
  EXPECT_EQ((*client)->stats().connects, 1u);
  auto absent = StoreClient::Create("127.0.0.1:1", engine.get(), {});
  ASSERT_TRUE(absent.ok()) << "nobody needs to be there yet";
  EXPECT_TRUE(absl::IsUnavailable((*absent)->GetStat().status()));
  EXPECT_TRUE(absl::IsInvalidArgument(StoreClient::Create("nowhere", engine.get(), {}).status()));
}

TEST(Server, TakenPortsAndFoldersAreRefusedClearly) {
  TempFolder folder;
  auto first = StoreServer::Start(LocalOptions(folder.path()));
  ASSERT_TRUE(first.ok()) << first.status();
  ServerOptions same_port = LocalOptions();
  same_port.port =
      static_cast<uint16_t>(std::atoi((*first)->address().substr((*first)->address().rfind(':') + 1).c_str()));
  const auto second = StoreServer::Start(same_port);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kAlreadyExists) << second.status();
  // From another process.
  ServerProcess other(0, 1 << 20, folder.path());
  EXPECT_THAT(other.said(), HasSubstr("error FAILED_PRECONDITION"));
  EXPECT_THAT(other.said(), HasSubstr(folder.path()));
  (*first)->Shutdown();
  EXPECT_TRUE(StoreServer::Start(same_port).ok()) << "the port is free after Shutdown";
}

TEST(StoreProcess, KilledAndRestartedItKeepsWhatItAcknowledgedAndTheClientReconnects) {
  TempFolder folder;
  auto engine = MakeEngine();
  const std::vector<TestPlane> planes = SomePlanes(0, 9, 100000);
  auto process = std::make_unique<ServerProcess>(0, 16 << 20, folder.path());
  ClientOptions options;
  options.connect_deadline = absl::Seconds(3);
  auto client = StoreClient::Connect(process->said(), engine.get(), options);
  ASSERT_TRUE(client.ok()) << client.status() << process->said();
  ASSERT_TRUE(WriteAll(**client, planes, Durability::kSynced).ok());
  const uint64_t epoch = (*client)->epoch();

  // A batch and a lease that the kill catches.
  const PlaneRequest request = MakePlane(500, 50000).request();
  auto batch = (*client)->Reserve({&request, 1});
  auto lease = (*client)->Acquire({&planes[0].id, 1});
  ASSERT_TRUE(batch.ok() && lease.ok());

  const int port = process->port();
  process->Kill();
  const absl::Time started = absl::Now();
  EXPECT_EQ(ReadAll(**client, planes).code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(absl::Now() - started, absl::Seconds(8));

  process = std::make_unique<ServerProcess>(port, 16 << 20, folder.path());
  ASSERT_EQ(process->port(), port) << process->said();
  const absl::Status read = ReadAll(**client, planes);
  EXPECT_TRUE(read.ok()) << read;
  EXPECT_NE((*client)->epoch(), epoch);
  EXPECT_EQ((*client)->stats().connects, 2u);

  const TestPlane late = MakePlane(500, 50000);
  absl::Status put = batch->Put(0, 0, late.payload);
  if (put.ok()) put = batch->Commit({&late.header, 1}).status();
  EXPECT_FALSE(put.ok()) << "a batch of the dead store must not look committed";
  std::vector<std::byte> memory(planes[0].payload.size());
  const FetchRequest fetch{.plane = 0, .destination = memory};
  EXPECT_EQ(lease->Fetch({&fetch, 1})[0].code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(WriteAll(**client, {&late, 1}).ok());
}

TEST(StoreProcess, RestartedUnnoticedTheIdleClientStillReconnects) {
  TempFolder folder;
  auto engine = MakeEngine();
  auto process = std::make_unique<ServerProcess>(0, 4 << 20, folder.path());
  auto client = StoreClient::Connect(process->said(), engine.get(), {});
  ASSERT_TRUE(client.ok()) << client.status() << process->said();
  const std::vector<TestPlane> planes = SomePlanes(0, 3, 10000);
  ASSERT_TRUE(WriteAll(**client, planes).ok());
  const int port = process->port();
  process = nullptr;
  process = std::make_unique<ServerProcess>(port, 4 << 20, folder.path());
  ASSERT_EQ(process->port(), port) << process->said();
  const absl::Status read = ReadAll(**client, planes);
  EXPECT_TRUE(read.ok()) << read;
  ASSERT_TRUE(WriteAll(**client, SomePlanes(50, 3, 10000)).ok());
}

TEST(StoreProcess, KilledInTheMiddleOfATransferTheClientGetsAnErrorWithinTheDeadline) {
  auto engine = MakeEngine();
  const TestPlane big = MakePlane(1, 64 << 20);
  for (const bool kill : {true, false}) {
    ServerProcess process(0, 160 << 20, "");
    ClientOptions options;
    options.transfer_deadline = absl::Seconds(3);
    options.call_deadline = absl::Seconds(3);
    auto client = StoreClient::Connect(process.said(), engine.get(), options);
    ASSERT_TRUE(client.ok()) << client.status() << process.said();
    const PlaneRequest request = big.request();
    auto batch = (*client)->Reserve({&request, 1});
    ASSERT_TRUE(batch.ok()) << batch.status();
    if (!kill) process.Stop();  // Stalls without dying: only the deadline helps.
    const absl::Time started = absl::Now();
    absl::Status status = batch->Put(0, 0, big.payload);
    if (kill) process.Kill();
    if (status.ok()) status = batch->Commit({&big.header, 1}).status();
    EXPECT_FALSE(status.ok());
    EXPECT_LT(absl::Now() - started, absl::Seconds(10)) << status;
    *batch = WriteBatch();  // Does not hang either.
    EXPECT_LT(absl::Now() - started, absl::Seconds(12));
  }
}

}  // namespace
}  // namespace perigee::kvstore
