// Several stores in one process that keep planes where the map of stores has them.
#include "kvstore/rebalancer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <map>
#include <set>
#include <thread>

#include "absl/time/clock.h"
#include "kvstore/client.h"
#include "kvstore/server.h"
#include "planes.h"

namespace perigee::kvstore {
namespace {

using ::testing::HasSubstr;

constexpr size_t kPlaneBytes = 20000;
constexpr uint64_t kBlocks = 3;  // Of a chain.

// The distant plane of block `block` of chain `chain`.
TestPlane ChainPlane(uint64_t chain, uint64_t block, size_t bytes = kPlaneBytes) {
  TestPlane plane = MakePlane(chain * 100 + block, bytes);
  plane.header.base_position = static_cast<int64_t>(block) * 64;
  plane.header.has_parent = block > 0;
  if (block > 0) plane.header.parent = TestKey(chain * 100 + block - 1);
  plane.header.root = TestKey(chain * 100);
  return plane;
}
PlacementGroup GroupOf(const TestPlane& plane) { return kvstore::GroupOf(plane.header.root); }

bool Eventually(const std::function<bool()>& condition, absl::Duration limit = absl::Seconds(30)) {
  const absl::Time deadline = absl::Now() + limit;
  while (!condition()) {
    if (absl::Now() > deadline) return false;
    absl::SleepFor(absl::Milliseconds(5));
  }
  return true;
}

class RebalancerTest : public testing::Test {
 protected:
  RebalancerTest() {
    rebalancer_.settle = absl::Milliseconds(20);
    rebalancer_.every = absl::Milliseconds(200);
    rebalancer_.retry = absl::Milliseconds(50);
    rebalancer_.linger = absl::Milliseconds(100);
    transport::Options options;
    options.transports = "tcp";
    engine_ = *transport::Context::Create(options);
  }

  void StartStore(const std::string& id, const std::string& ssd_path = "", uint64_t slab_bytes = 16 << 20) {
    ServerOptions options;
    options.port = 0;
    options.slab_bytes = slab_bytes;
    options.transport.transports = "tcp";
    options.credentials = {{.secret = "between nodes", .tenant = "", .trusted = true}};
    options.directory = directory_;
    options.store_id = id;
    options.rebalancer = rebalancer_;
    options.rebalancer.secret = "between nodes";
    if (!ssd_path.empty()) {
      options.store.ssd = SsdOptions{.path = ssd_path, .segment_bytes = 1 << 20, .reserve_bytes = 0};
    }
    auto server = StoreServer::Start(options);
    ASSERT_TRUE(server.ok()) << server.status();
    ClientOptions client;
    client.secret = "between nodes";
    auto connected = StoreClient::Connect((*server)->address(), engine_.get(), client);
    ASSERT_TRUE(connected.ok()) << connected.status();
    servers_[id] = *std::move(server);
    clients_[id] = *std::move(connected);
  }
  // From now on these are the stores; those in `draining` are to become empty.
  void SetMap(const std::vector<std::string>& ids, const std::set<std::string>& draining = {}) {
    StoreMap map{.epoch = directory_->Get()->epoch + 1, .stores = {}};
    for (const std::string& id : ids) {
      map.stores.push_back({.id = id,
                            .address = servers_.at(id)->address(),
                            .state = draining.contains(id) ? StoreState::kDraining : StoreState::kServing});
    }
    directory_->Set(std::move(map));
  }
  RebalanceStats ProgressOf(const std::string& id) { return *servers_.at(id)->rebalance(); }
  // All stores of the map go by it, and have nothing to do.
  bool AwaitComplete() {
    return Eventually([&] {
      const auto map = directory_->Get();
      return std::all_of(map->stores.begin(), map->stores.end(), [&](const StoreEntry& store) {
        const RebalanceStats stats = ProgressOf(store.id);
        return stats.map_epoch == map->epoch && stats.complete;
      });
    });
  }
  std::vector<std::string> OwnersOf(const TestPlane& plane, size_t replicas) {
    const auto map = directory_->Get();
    std::vector<std::string> ids;
    for (const size_t i : map->Owners(GroupOf(plane), replicas)) ids.push_back(map->stores[i].id);
    return ids;
  }

  absl::Status WriteTo(const std::string& id, const TestPlane& plane, absl::Duration ttl = absl::InfiniteDuration(),
                       uint32_t replicas = 1) {
    const PlaneRequest request = plane.request();
    auto batch = clients_.at(id)->Reserve({&request, 1});
    if (!batch.ok()) return batch.status();
    if (absl::Status put = batch->Put(0, 0, plane.payload); !put.ok()) return put;
    const auto statuses = batch->Commit({&plane.header, 1}, Durability::kBest, ttl, replicas);
    return statuses.ok() ? (*statuses)[0] : statuses.status();
  }
  // At the owners.
  void WriteChains(uint64_t chains, uint32_t replicas = 1) {
    for (uint64_t c = 0; c < chains; ++c) {
      for (uint64_t b = 0; b < kBlocks; ++b) {
        planes_.push_back(ChainPlane(c, b));
        for (const std::string& id : OwnersOf(planes_.back(), replicas)) {
          const absl::Status written = WriteTo(id, planes_.back(), absl::InfiniteDuration(), replicas);
          ASSERT_TRUE(written.ok()) << written;
        }
      }
    }
  }
  std::map<PlaneId, ListedPlane> Listed(const std::string& id) {
    std::map<PlaneId, ListedPlane> out;
    std::string token;
    do {
      const auto page = clients_.at(id)->List(token, 0, "");
      EXPECT_TRUE(page.ok()) << page.status();
      if (!page.ok()) break;
      for (const ListedPlane& plane : page->planes) out.emplace(plane.id, plane);
      token = page->next_page_token;
    } while (!token.empty());
    return out;
  }
  // Every plane is in its owners, with the bytes that were written, and nowhere else.
  void ExpectInPlace(uint32_t replicas) {
    std::map<std::string, std::map<PlaneId, ListedPlane>> listed;
    size_t copies = 0;
    for (const StoreEntry& store : directory_->Get()->stores) {
      listed[store.id] = Listed(store.id);
      copies += listed[store.id].size();
    }
    size_t expected = 0;
    for (const TestPlane& plane : planes_) {
      for (const std::string& id : OwnersOf(plane, replicas)) {
        ++expected;
        ASSERT_TRUE(listed[id].contains(plane.id)) << id << " lacks " << plane.id.ToString();
        EXPECT_EQ(listed[id][plane.id].meta.replicas, replicas);
        EXPECT_EQ(listed[id][plane.id].meta.group, GroupOf(plane));
        const absl::Status read = ReadFrom(*clients_.at(id), plane);
        EXPECT_TRUE(read.ok()) << id << ": " << read;
      }
    }
    EXPECT_EQ(copies, expected);
  }
  static absl::Status ReadFrom(StoreClient& client, const TestPlane& plane) {
    auto lease = client.Acquire({&plane.id, 1});
    if (!lease.ok()) return lease.status();
    std::vector<std::byte> bytes(plane.payload.size());
    const FetchRequest request{.destination = bytes};
    const absl::Status fetched = lease->Fetch({&request, 1})[0];
    if (!fetched.ok()) return fetched;
    return bytes == plane.payload && lease->planes()[0].header == plane.header ? absl::OkStatus()
                                                                               : absl::DataLossError("other bytes");
  }
  // As a client does that looks in one store more than have it.
  absl::Status ReadByTheMap(const TestPlane& plane, size_t replicas) {
    const auto map = directory_->Get();
    absl::Status status = absl::NotFoundError("no store");
    for (const size_t i : map->Readers(GroupOf(plane), replicas + 1)) {
      status = ReadFrom(*clients_.at(map->stores[i].id), plane);
      if (status.ok()) return status;
    }
    return status;
  }

  RebalancerOptions rebalancer_;
  std::shared_ptr<StoreDirectory> directory_ = std::make_shared<StoreDirectory>();  // Of the stores started next.
  std::unique_ptr<transport::Context> engine_;
  std::map<std::string, std::unique_ptr<StoreServer>> servers_;
  std::map<std::string, std::unique_ptr<StoreClient>> clients_;
  std::vector<TestPlane> planes_;
};

// Reads all planes again and again, until it goes.
class Reader {
 public:
  Reader(const std::vector<TestPlane>& planes, std::function<absl::Status(const TestPlane&)> read)
      : thread_([this, &planes, read = std::move(read)] {
          for (size_t i = 0; !stop_; i = (i + 1) % planes.size()) {
            const absl::Status status = read(planes[i]);
            if (!status.ok() && failures_++ == 0)
              first_ = absl::StrCat(planes[i].id.ToString(), ": ", status.ToString());
            ++reads_;
          }
        }) {}
  void Stop() {
    stop_ = true;
    thread_.join();
  }
  uint64_t reads() const { return reads_; }
  int failures() const { return failures_; }
  const std::string& first() const { return first_; }  // After Stop.

 private:
  std::atomic<bool> stop_{false};
  std::atomic<uint64_t> reads_{0};
  std::atomic<int> failures_{0};
  std::string first_;
  std::thread thread_;
};

TEST_F(RebalancerTest, AStoreThatIsAddedGetsItsShareAndNothingElseMovesWhileAllPlanesStayReadable) {
  for (const char* id : {"a", "b", "c"}) StartStore(id);
  SetMap({"a", "b"});
  WriteChains(40);
  ASSERT_TRUE(AwaitComplete());
  EXPECT_EQ(ProgressOf("a").moved_planes + ProgressOf("b").moved_planes, 0u);

  Reader reader(planes_, [&](const TestPlane& plane) { return ReadByTheMap(plane, 1); });
  ASSERT_TRUE(Eventually([&] { return reader.reads() > 100; }));
  SetMap({"a", "b", "c"});
  EXPECT_TRUE(AwaitComplete());
  const uint64_t reads = reader.reads();
  EXPECT_TRUE(Eventually([&] { return reader.reads() > reads + planes_.size(); }));
  reader.Stop();
  EXPECT_EQ(reader.failures(), 0) << reader.first();

  ExpectInPlace(1);
  size_t share = 0;
  for (const TestPlane& plane : planes_) share += OwnersOf(plane, 1)[0] == "c";
  EXPECT_GT(share, 0u);
  EXPECT_LT(share, planes_.size());
  const RebalanceStats a = ProgressOf("a"), b = ProgressOf("b"), c = ProgressOf("c");
  EXPECT_EQ(a.moved_planes + b.moved_planes, share);
  EXPECT_EQ(a.moved_bytes + b.moved_bytes, share * kPlaneBytes);
  EXPECT_EQ(a.given_up_planes + b.given_up_planes, share);
  EXPECT_EQ(c.moved_planes + c.given_up_planes, 0u);
  EXPECT_EQ(a.repaired_planes + b.repaired_planes + c.repaired_planes, 0u);
  EXPECT_EQ(Listed("c").size(), share);
}

TEST_F(RebalancerTest, ADrainedStoreBecomesEmptyAndNothingIsLost) {
  for (const char* id : {"a", "b", "c"}) StartStore(id);
  SetMap({"a", "b", "c"});
  WriteChains(20, 2);
  Reader reader(planes_, [&](const TestPlane& plane) { return ReadByTheMap(plane, 2); });
  SetMap({"a", "b", "c"}, {"b"});
  EXPECT_TRUE(Eventually([&] { return ProgressOf("b").drained(); }));
  EXPECT_TRUE(AwaitComplete());
  reader.Stop();
  EXPECT_EQ(reader.failures(), 0) << reader.first();
  EXPECT_TRUE(Listed("b").empty());
  ExpectInPlace(2);
  const auto stat = clients_["b"]->GetStat();
  ASSERT_TRUE(stat.ok() && stat->rebalance);
  EXPECT_TRUE(stat->rebalance->drained());
  EXPECT_GT(stat->rebalance->given_up_planes, 0u);
}

TEST_F(RebalancerTest, TimeToLivePinAndReplicasGoAlong) {
  for (const char* id : {"a", "b"}) StartStore(id);
  SetMap({"a"});
  const TestPlane pinned = ChainPlane(1, 0), passing = ChainPlane(2, 0);
  ASSERT_TRUE(WriteTo("a", pinned, absl::InfiniteDuration(), 1).ok());
  ASSERT_TRUE(WriteTo("a", passing, absl::Hours(1), 3).ok());
  ASSERT_EQ(*clients_["a"]->Pin({&pinned.id.key, 1}, PinMode::kSoft), 1u);
  SetMap({"a", "b"}, {"a"});
  ASSERT_TRUE(AwaitComplete());
  EXPECT_TRUE(Listed("a").empty());
  auto listed = Listed("b");
  ASSERT_EQ(listed.size(), 2u);
  EXPECT_EQ(listed[pinned.id].pin, PinMode::kSoft);
  EXPECT_EQ(listed[pinned.id].meta.ttl_s, 0u);
  EXPECT_EQ(listed[pinned.id].meta.replicas, 1);
  EXPECT_EQ(listed[passing.id].pin, PinMode::kNone);
  EXPECT_EQ(listed[passing.id].meta.replicas, 3);
  EXPECT_LE(listed[passing.id].meta.ttl_s, 3600u);
  EXPECT_GT(listed[passing.id].meta.ttl_s, 3500u);
}

TEST_F(RebalancerTest, AfterALossTheStoresThatAreLeftMakeTheLostReplicasOnce) {
  for (const char* id : {"a", "b", "c"}) StartStore(id);
  SetMap({"a", "b", "c"});
  WriteChains(20, 2);
  ASSERT_TRUE(AwaitComplete());
  const size_t lost = Listed("c").size();
  ASSERT_GT(lost, 0u);
  clients_.erase("c");
  servers_["c"]->Shutdown();
  SetMap({"a", "b"});
  ASSERT_TRUE(Eventually([&] { return Listed("a").size() == planes_.size() && Listed("b").size() == planes_.size(); }));
  ASSERT_TRUE(AwaitComplete());
  ExpectInPlace(2);
  EXPECT_EQ(ProgressOf("a").repaired_planes + ProgressOf("b").repaired_planes, lost);
  EXPECT_EQ(ProgressOf("a").given_up_planes + ProgressOf("b").given_up_planes, 0u);
}

TEST_F(RebalancerTest, AnOwnerThatWasToldFewerReplicasHearsOfMore) {
  for (const char* id : {"a", "b"}) StartStore(id);
  SetMap({"a", "b"});
  const TestPlane plane = ChainPlane(1, 0);
  const std::vector<std::string> owners = OwnersOf(plane, 2);
  ASSERT_TRUE(WriteTo(owners[0], plane).ok());
  ASSERT_TRUE(WriteTo(owners[1], plane, absl::InfiniteDuration(), 2).ok());
  planes_ = {plane};
  EXPECT_TRUE(Eventually([&] { return Listed(owners[0])[plane.id].meta.replicas == 2; }));
  ExpectInPlace(2);
}

TEST_F(RebalancerTest, PlanesStayWhileTheirNewStoreIsFullAndMoveWhenItHasRoom) {
  StartStore("a");
  StartStore("b", "", /*slab_bytes=*/1 << 20);
  SetMap({"a"});
  WriteChains(5);
  // All of b's memory is in use.
  std::vector<TestPlane> fillers;
  std::vector<PlaneId> ids;
  for (uint64_t i = 0; i < 8; ++i) {
    fillers.push_back(MakePlane(5000 + i, 128 << 10));
    fillers.back().header.root = {};  // Belongs nowhere.
    ids.push_back(fillers.back().id);
    ASSERT_TRUE(WriteTo("b", fillers.back()).ok());
  }
  auto lease = clients_["b"]->Acquire(ids);
  ASSERT_TRUE(lease.ok());
  SetMap({"a", "b"}, {"a"});
  ASSERT_TRUE(Eventually([&] { return ProgressOf("a").map_epoch == 2 && ProgressOf("a").failures > 0; }));
  EXPECT_THAT(ProgressOf("a").last_failure, HasSubstr("store b at "));
  EXPECT_EQ(Listed("a").size(), planes_.size());
  EXPECT_EQ(ProgressOf("a").planes_to_move, planes_.size());
  EXPECT_EQ(ProgressOf("a").bytes_to_move, planes_.size() * kPlaneBytes);
  EXPECT_FALSE(ProgressOf("a").drained());
  *lease = ReadLease();
  EXPECT_TRUE(Eventually([&] { return ProgressOf("a").drained(); }));
  EXPECT_TRUE(Listed("a").empty());
  for (const TestPlane& plane : planes_) EXPECT_TRUE(ReadFrom(*clients_["b"], plane).ok());
}

TEST_F(RebalancerTest, PlanesWhoseHeaderNamesNoRootStay) {
  for (const char* id : {"a", "b"}) StartStore(id);
  SetMap({"a"});
  TestPlane old = ChainPlane(1, 0), old_second = ChainPlane(1, 1);
  old.header.root = old_second.header.root = {};  // Written as version 1.
  const TestPlane recent = ChainPlane(2, 0);
  for (const TestPlane* plane : std::initializer_list<const TestPlane*>{&old, &old_second, &recent})
    ASSERT_TRUE(WriteTo("a", *plane).ok());
  SetMap({"a", "b"}, {"a"});
  ASSERT_TRUE(AwaitComplete());
  EXPECT_EQ(Listed("a").size(), 2u);
  EXPECT_FALSE(Listed("a")[old.id].meta.group.has_value());
  for (const TestPlane* plane : {&old, &old_second}) EXPECT_TRUE(ReadFrom(*clients_["a"], *plane).ok());
  EXPECT_TRUE(ReadFrom(*clients_["b"], recent).ok());
}

TEST_F(RebalancerTest, AStoreThatIsNotInTheMapOrAloneMovesAndRemovesNothing) {
  for (const char* id : {"a", "b", "c"}) StartStore(id);
  SetMap({"b"});
  for (uint64_t c = 0; c < 10; ++c) {
    planes_.push_back(ChainPlane(c, 0));
    ASSERT_TRUE(WriteTo("a", planes_.back()).ok());
    ASSERT_TRUE(WriteTo("b", planes_.back(), absl::InfiniteDuration(), 3).ok());
  }
  ASSERT_TRUE(Eventually([&] { return ProgressOf("b").rounds > 2 && ProgressOf("a").map_epoch == 1; }));
  EXPECT_FALSE(ProgressOf("a").in_map);
  EXPECT_EQ(ProgressOf("a").rounds, 0u);
  EXPECT_EQ(Listed("a").size(), 10u);
  EXPECT_EQ(Listed("b").size(), 10u);
  EXPECT_TRUE(Listed("c").empty());
  EXPECT_TRUE(ProgressOf("b").complete);
}

TEST_F(RebalancerTest, AStoreThatIsBackBeforeTheMapHasSettledMovesNothing) {
  rebalancer_.settle = absl::Seconds(2);
  for (const char* id : {"a", "b", "c"}) StartStore(id);
  SetMap({"a", "b", "c"});
  WriteChains(20, 2);
  ASSERT_TRUE(AwaitComplete());
  SetMap({"a", "b"});
  absl::SleepFor(absl::Milliseconds(300));  // A restart takes its time.
  SetMap({"a", "b", "c"});
  ASSERT_TRUE(AwaitComplete());
  for (const char* id : {"a", "b", "c"}) {
    EXPECT_EQ(ProgressOf(id).map_epoch, 3u);
    EXPECT_EQ(ProgressOf(id).moved_planes + ProgressOf(id).repaired_planes + ProgressOf(id).given_up_planes, 0u) << id;
  }
  ExpectInPlace(2);
}

TEST_F(RebalancerTest, OnlyAStoreThatGoesByTheSameMapConfirmsWhatItHas) {
  StartStore("a");
  SetMap({"a"});
  ASSERT_TRUE(AwaitComplete());
  const pod::BlockKey key = TestKey(1);
  EXPECT_TRUE(clients_["a"]->Lookup({&key, 1}, LookupMode::kAll, 1).ok());
  EXPECT_EQ(clients_["a"]->Lookup({&key, 1}, LookupMode::kAll, 2).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(RebalancerTest, NothingIsGivenUpToAStoreThatGoesByAnotherMap) {
  StartStore("a");
  const auto first = directory_;
  // "b" has heard of no map yet.
  directory_ = std::make_shared<StoreDirectory>();
  StartStore("b");
  const auto second = directory_;
  directory_ = first;
  SetMap({"a"});
  WriteChains(3);
  SetMap({"a", "b"}, {"a"});
  ASSERT_TRUE(Eventually([&] { return Listed("b").size() == planes_.size(); }));
  const uint64_t rounds = ProgressOf("a").rounds;
  ASSERT_TRUE(Eventually([&] { return ProgressOf("a").rounds > rounds + 1; }));
  EXPECT_EQ(Listed("a").size(), planes_.size());
  second->Set(*first->Get());
  EXPECT_TRUE(Eventually([&] { return Listed("a").empty(); }));
  EXPECT_EQ(Listed("b").size(), planes_.size());
}

TEST_F(RebalancerTest, AfterARestartPlanesOfTheSsdStillKnowWhereTheyBelong) {
  TempFolder folder;
  StartStore("a", folder.path());
  StartStore("b");
  StartStore("c");
  SetMap({"a"});
  for (uint64_t c = 0; c < 6; ++c) {
    planes_.push_back(ChainPlane(c, 0));
    ASSERT_TRUE(WriteTo("a", planes_.back(), absl::InfiniteDuration(), 2).ok());
  }
  clients_.erase("a");
  servers_.erase("a");
  StartStore("a", folder.path());
  auto listed = Listed("a");
  ASSERT_EQ(listed.size(), planes_.size());
  for (const TestPlane& plane : planes_) {
    EXPECT_EQ(listed[plane.id].tier, Tier::kSsd);
    EXPECT_EQ(listed[plane.id].meta.group, GroupOf(plane));
    EXPECT_EQ(listed[plane.id].meta.replicas, 2);
  }
  SetMap({"a", "b", "c"}, {"a"});
  EXPECT_TRUE(Eventually([&] { return ProgressOf("a").drained(); }));
  EXPECT_TRUE(Listed("a").empty());
  ExpectInPlace(2);
  clients_.clear();
  servers_.clear();  // Before its folder goes.
}

TEST_F(RebalancerTest, ACopyStaysForAWhileAfterTheOtherHasCome) {
  rebalancer_.linger = absl::Seconds(2);
  for (const char* id : {"a", "b"}) StartStore(id);
  SetMap({"a"});
  planes_ = {ChainPlane(1, 0)};
  ASSERT_TRUE(WriteTo("a", planes_[0]).ok());
  SetMap({"a", "b"}, {"a"});
  ASSERT_TRUE(Eventually([&] { return Listed("b").size() == 1; }));
  const absl::Time came = absl::Now();
  ASSERT_TRUE(Eventually([&] { return Listed("a").empty(); }));
  EXPECT_GT(absl::Now() - came, absl::Milliseconds(500));
}

TEST_F(RebalancerTest, ClientsTellAndAreToldGroupAndReplicas) {
  StartStore("a");
  const TestPlane one = ChainPlane(1, 0), two = ChainPlane(2, 1);
  ASSERT_TRUE(WriteTo("a", one, absl::InfiniteDuration(), 2).ok());
  ASSERT_TRUE(WriteTo("a", two).ok());
  StoreClient& client = *clients_["a"];
  EXPECT_EQ(client.Lookup({&one.id.key, 1})->blocks[0].planes[0].replicas, 2u);
  EXPECT_EQ(*client.Pin({&two.id.key, 1}, PinMode::kKeep, 5), 1u);
  EXPECT_EQ(client.Lookup({&two.id.key, 1})->blocks[0].planes[0].replicas, 5u);
  const auto of_group = client.List("", 0, "", {.group = GroupOf(two)});
  ASSERT_EQ(of_group->planes.size(), 1u);
  EXPECT_EQ(of_group->planes[0].id, two.id);
  EXPECT_EQ(of_group->planes[0].meta.group, GroupOf(two));
  EXPECT_EQ(client.List("", 0, "", {.least_replicas = 3})->planes.size(), 1u);
  EXPECT_EQ(client.List("", 0, "", {.least_replicas = 2})->planes.size(), 2u);
  EXPECT_EQ(client.Pin({&two.id.key, 1}, PinMode::kKeep, 9).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteTo("a", ChainPlane(3, 0), absl::InfiniteDuration(), 9).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(client.List("", 0, "", {.placed = [](PlacementGroup, uint32_t) { return true; }}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(RebalancerTest, StopsWithinItsDeadlineWhenAnotherStoreDoesNotAnswer) {
  rebalancer_.call_deadline = absl::Milliseconds(500);
  const int silent = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  ASSERT_EQ(::bind(silent, reinterpret_cast<sockaddr*>(&address), length), 0);
  ASSERT_EQ(::listen(silent, 1), 0);
  ASSERT_EQ(::getsockname(silent, reinterpret_cast<sockaddr*>(&address), &length), 0);
  StartStore("a");
  planes_ = {ChainPlane(1, 0)};
  ASSERT_TRUE(WriteTo("a", planes_[0]).ok());
  directory_->Set({.epoch = 1,
                   .stores = {{.id = "a", .address = servers_["a"]->address(), .state = StoreState::kDraining},
                              {.id = "silent", .address = absl::StrCat("127.0.0.1:", ntohs(address.sin_port))}}});
  ASSERT_TRUE(Eventually([&] { return ProgressOf("a").planes_to_move == 1; }));
  ASSERT_TRUE(Eventually([&] { return ProgressOf("a").failures > 0; }));
  EXPECT_THAT(ProgressOf("a").last_failure, HasSubstr("no store answers"));
  EXPECT_EQ(Listed("a").size(), 1u);
  clients_.clear();
  const absl::Time before = absl::Now();
  servers_["a"]->Shutdown();
  EXPECT_LT(absl::Now() - before, absl::Seconds(5));
  ::close(silent);
}

TEST_F(RebalancerTest, SendsNoFasterThanItMay) {
  rebalancer_.bytes_per_s = 500'000;
  rebalancer_.planes_in_flight = 4;
  for (const char* id : {"a", "b"}) StartStore(id);
  SetMap({"a"});
  WriteChains(20);  // 1.2 MB, and a bucket of 0.5 MB that is full at first.
  const absl::Time before = absl::Now();
  SetMap({"a", "b"}, {"a"});
  ASSERT_TRUE(Eventually([&] { return Listed("b").size() == planes_.size(); }));
  EXPECT_GT(absl::Now() - before, absl::Seconds(0.5));
}

TEST(Rebalancer, AStoreThatKnowsOthersNeedsAName) {
  ServerOptions options;
  options.port = 0;
  options.directory = std::make_shared<StoreDirectory>();
  EXPECT_EQ(StoreServer::Start(options).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace perigee::kvstore
