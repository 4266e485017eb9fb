// Many stores as one, some of them dead, dying or silent.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <atomic>
#include <thread>

#include "absl/base/call_once.h"
#include "absl/time/clock.h"
#include "kvstore/sharded_store.h"
#include "server_process.h"
#include "store_cluster.h"

namespace perigee::kvstore {
namespace {

using ::testing::Each;
using ::testing::HasSubstr;
using ::testing::SizeIs;

// Nobody answers there, at once.
constexpr char kNobody[] = "127.0.0.1:1";
constexpr absl::Duration kAvoid = absl::Milliseconds(300);

ShardedStoreOptions Quick(absl::Duration deadline = absl::Seconds(3)) {
  ShardedStoreOptions options;
  options.client.connect_deadline = options.client.call_deadline = options.client.transfer_deadline = deadline;
  options.avoid_after_failure = kAvoid;
  return options;
}

// Accepts connections, says nothing, and counts them.
class SilentPeer {
 public:
  SilentPeer() : socket_(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(::listen(socket_, 64), 0);
    socklen_t size = sizeof(address);
    EXPECT_EQ(::getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size), 0);
    address_ = absl::StrCat("127.0.0.1:", ntohs(address.sin_port));
    thread_ = std::thread([this] {
      for (int peer; (peer = ::accept(socket_, nullptr, nullptr)) >= 0;) peers_.push_back(peer);
    });
  }
  ~SilentPeer() {
    ::shutdown(socket_, SHUT_RDWR);
    thread_.join();
    for (const int peer : peers_) ::close(peer);
    ::close(socket_);
  }
  const std::string& address() const { return address_; }

 private:
  const int socket_;
  std::string address_;
  std::vector<int> peers_;
  std::thread thread_;
};

class ShardedFailuresTest : public ::testing::Test {
 protected:
  void Use(const std::vector<std::string>& addresses, ShardedStoreOptions options) {
    map_ = MapAt(addresses);
    directory_ = std::make_shared<StoreDirectory>(map_);
    sharded_ = std::make_unique<ShardedStore>(directory_, engine_.get(), std::move(options));
  }
  template <typename Done>
  bool Eventually(Done done) {
    const absl::Time limit = absl::Now() + absl::Seconds(20);
    while (absl::Now() < limit) {
      if (done()) return true;
      absl::SleepFor(absl::Milliseconds(20));
    }
    return false;
  }

  const std::unique_ptr<transport::Context> engine_ = MakeEngine();
  StoreMap map_;
  std::shared_ptr<StoreDirectory> directory_;
  std::unique_ptr<ShardedStore> sharded_;
};

TEST_F(ShardedFailuresTest, WhatAStoreThatIsDownMayHaveIsUnreachableUnlessAReplicaHasIt) {
  const auto server = StartServer();
  Use({kNobody, server->address()}, Quick());
  const pod::BlockKey root = RootOf(map_, {0, 1});
  const std::vector<TestPlane> planes = Planes(0, 3, 5000);
  for (const size_t n : {0, 1}) ASSERT_TRUE(Write(server->store(), planes[n]).ok());
  const auto found = sharded_->Lookup(root, KeysOf(planes));
  ASSERT_TRUE(found.ok()) << found.status();
  for (const size_t b : {0, 1}) EXPECT_THAT(found->blocks[b].planes, SizeIs(1));
  ASSERT_THAT(found->blocks[2].misses, SizeIs(3));
  for (const BlockInfo& block : found->blocks) {
    for (const MissedPlane& missed : block.misses) EXPECT_EQ(missed.miss.reason, MissReason::kUnreachable);
  }
  const auto prefix = sharded_->Lookup(root, KeysOf(planes), LookupMode::kPrefix);
  ASSERT_TRUE(prefix.ok()) << prefix.status();
  ASSERT_THAT(prefix->blocks, SizeIs(3));
  EXPECT_THAT(prefix->blocks[1].planes, SizeIs(1));
  EXPECT_EQ(prefix->blocks[2].misses[0].miss.reason, MissReason::kUnreachable);

  auto lease = sharded_->Acquire(root, IdsOf(planes));
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_TRUE(lease->planes()[1].found);
  EXPECT_EQ(lease->planes()[2].miss.reason, MissReason::kUnreachable);
  Memory memory(planes);
  const std::vector<absl::Status> statuses = lease->Fetch(memory.requests());
  EXPECT_TRUE(statuses[1].ok()) << statuses[1];
  EXPECT_TRUE(absl::IsNotFound(statuses[2])) << statuses[2];
  EXPECT_TRUE(ReadAll(*sharded_, root, std::span(planes).first(2)).ok());
  EXPECT_EQ(sharded_->stats().stores_avoided, 1u);
  EXPECT_EQ(sharded_->stats().failovers, 4u);
  // A chain whose first store has everything does not notice.
  const pod::BlockKey other = RootOf(map_, {1, 0});
  EXPECT_TRUE(ReadAll(*sharded_, other, std::span(planes).first(2)).ok());
  EXPECT_EQ(sharded_->stats().failovers, 4u);
  // Its own misses are what it says; what the dead one may have in addition is not known.
  const PlaneId last = planes[2].id;
  EXPECT_EQ(sharded_->Acquire(other, {&last, 1})->planes()[0].miss.reason, MissReason::kUnreachable);

  EXPECT_TRUE(absl::IsUnavailable(sharded_->Delete(root, KeysOf(planes)).status())) << "some may be left";
  EXPECT_EQ(*sharded_->Pin(root, KeysOf(planes), PinMode::kSoft), 0u) << "those that answer did delete";
}

TEST_F(ShardedFailuresTest, OnlyWhereNoReaderAnswersAReadIsUnavailable) {
  const auto server = StartServer();
  Use({kNobody, "127.0.0.1:2", server->address()}, Quick());
  const std::vector<TestPlane> planes = Planes(0, 1, 5000);
  const pod::BlockKey root = RootOf(map_, {0, 1, 2});
  for (int i = 0; i < 2; ++i) {
    for (const absl::Status& status :
         {sharded_->Lookup(root, KeysOf(planes)).status(),
          sharded_->Lookup(root, KeysOf(planes), LookupMode::kPrefix).status(),
          sharded_->Acquire(root, IdsOf(planes)).status(), WriteAll(*sharded_, root, planes, 2),
          sharded_->Promote(root, IdsOf(planes)).status()}) {
      EXPECT_TRUE(absl::IsUnavailable(status)) << status;
      EXPECT_THAT(std::string(status.message()), HasSubstr("127.0.0.1:1"));
    }
  }
  const auto visited = sharded_->ForEachStore([](const auto&, StoreClient& store) { return store.GetStat().status(); });
  EXPECT_TRUE(absl::IsUnavailable(visited[0].status) && absl::IsUnavailable(visited[1].status));
  EXPECT_TRUE(visited[2].status.ok()) << visited[2].status;
  // An address that is none is an error of its own, and does not stop the others.
  map_.stores[0].address = "nowhere";
  ++map_.epoch;
  directory_->Set(map_);
  EXPECT_TRUE(sharded_->Lookup(RootOf(map_, {0, 2, 1}), KeysOf(planes)).ok());
}

TEST_F(ShardedFailuresTest, AStoreThatComesUpLaterIsFoundAndAMovedOneAtOnce) {
  auto server = StartServer();
  const std::string address = server->address();
  server->Shutdown();
  const auto other = StartServer();
  ShardedStoreOptions options = Quick();
  options.avoid_after_failure = absl::Milliseconds(50);
  Use({address, other->address()}, options);
  const pod::BlockKey root = RootOf(map_, {0, 1});
  const std::vector<TestPlane> planes = Planes(0, 2, 5000);
  EXPECT_TRUE(WriteAll(*sharded_, root, planes).ok()) << "the next one takes it";
  EXPECT_TRUE(ReadAndCompare(other->store(), planes[0]).ok());
  ServerOptions same;
  same.port = static_cast<uint16_t>(std::atoi(address.substr(address.rfind(':') + 1).c_str()));
  same.slab_bytes = 4 << 20;
  same.transport.transports = "tcp";
  auto late = StoreServer::Start(same);
  ASSERT_TRUE(late.ok()) << late.status();
  EXPECT_TRUE(Eventually([&] {
    WriteAll(*sharded_, root, planes).IgnoreError();
    return ReadAndCompare((*late)->store(), planes[0]).ok();
  }));
  EXPECT_EQ(sharded_->stats().stores_avoided, 0u);

  // Dead again, and known to be; under a new address it is another one, which nobody avoids.
  (*late)->Shutdown();
  EXPECT_TRUE(ReadAll(*sharded_, root, planes).ok());
  EXPECT_EQ(sharded_->stats().stores_avoided, 1u);
  const auto moved = StartServer();
  map_.stores[0].address = moved->address();
  ++map_.epoch;
  directory_->Set(map_);
  EXPECT_EQ(sharded_->stats().stores_avoided, 0u);
  EXPECT_TRUE(WriteAll(*sharded_, root, planes).ok());
  EXPECT_TRUE(ReadAndCompare(moved->store(), planes[0]).ok());
}

TEST_F(ShardedFailuresTest, ASilentPeerDelaysItsOwnCallersOnceAndThenOneAtATime) {
  const SilentPeer silent;
  const auto server = StartServer();
  ShardedStoreOptions options = Quick(absl::Milliseconds(1500));
  options.avoid_after_failure = absl::Seconds(1);
  Use({silent.address(), server->address()}, options);
  const pod::BlockKey its = RootOf(map_, {0, 1}), others = RootOf(map_, {1, 0});
  const std::vector<TestPlane> planes = Planes(0, 1, 5000);
  ASSERT_TRUE(Write(server->store(), planes[0]).ok());
  const auto read = [&](const pod::BlockKey& root) {
    const absl::Time began = absl::Now();
    EXPECT_TRUE(ReadAll(*sharded_, root, planes).ok());
    return absl::Now() - began;
  };

  // Four at once wait for one attempt, not for one each; who has another store to ask waits for nothing.
  const absl::Time start = absl::Now();
  std::vector<std::thread> callers;
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([&] { EXPECT_GT(read(its), absl::Milliseconds(1400)); });
  }
  while (absl::Now() - start < absl::Milliseconds(700)) EXPECT_LT(read(others), absl::Milliseconds(700));
  for (std::thread& caller : callers) caller.join();
  const absl::Time known = absl::Now();
  EXPECT_LT(known - start, absl::Milliseconds(2500));

  // Then nobody waits; and when the time is over, one does and the others still do not.
  std::atomic<int> slow{0};
  callers.clear();
  for (int t = 0; t < 4; ++t) {
    callers.emplace_back([&] {
      while (absl::Now() - known < absl::Milliseconds(1000 + 1500 + 500)) {
        if (read(its) < absl::Milliseconds(1400)) continue;
        EXPECT_GT(absl::Now() - known, absl::Milliseconds(1000 + 1400)) << "not before the time was over";
        ++slow;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(slow, 1);
}

TEST_F(ShardedFailuresTest, WithReplicasADeadOwnerIsLeftOut) {
  const auto first = StartServer(), second = StartServer();
  Use({kNobody, first->address(), second->address()}, Quick());
  const std::vector<TestPlane> planes = Planes(0, 2, 9000);
  const pod::BlockKey root = RootOf(map_, {1, 0, 2});
  auto batch = ReserveAndPut(*sharded_, root, planes, 2);
  ASSERT_TRUE(batch.ok()) << batch.status();
  const auto statuses = batch->Commit(HeadersOf(planes));
  ASSERT_TRUE(statuses.ok()) << statuses.status();
  EXPECT_THAT(*statuses, Each(absl::OkStatus()));
  for (size_t i = 0; i < planes.size(); ++i) EXPECT_EQ(batch->replicas_written(i), 1);
  EXPECT_TRUE(ReadAndCompare(first->store(), planes[0]).ok());
  EXPECT_TRUE(absl::IsNotFound(ReadAndCompare(second->store(), planes[0]))) << "not its share";
}

TEST_F(ShardedFailuresTest, AStoreThatDiesInTheMiddleOfAWriteIsDropped) {
  ServerProcess dying(0, 16 << 20, "");
  const auto server = StartServer();
  Use({dying.said(), server->address()}, Quick());
  const pod::BlockKey root = RootOf(map_, {0, 1});
  const std::vector<TestPlane> planes = Planes(0, 2, 500000);
  auto batch = ReserveAndPut(*sharded_, root, planes, 2);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_TRUE(batch->WaitForPuts().ok());
  dying.Kill();
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(batch->Put(0, 0, planes[0].payload).ok());
    EXPECT_TRUE(batch->WaitForPuts().ok());
  }
  const auto statuses = batch->Commit(HeadersOf(planes));
  ASSERT_TRUE(statuses.ok()) << statuses.status();
  EXPECT_THAT(*statuses, Each(absl::OkStatus()));
  for (size_t i = 0; i < planes.size(); ++i) EXPECT_EQ(batch->replicas_written(i), 1);
  EXPECT_EQ(sharded_->stats().failovers, 1u) << "left out once, then not asked any more";
  EXPECT_TRUE(ReadAll(*sharded_, root, planes).ok());
  EXPECT_EQ(sharded_->stats().stores_avoided, 1u);
}

TEST_F(ShardedFailuresTest, ABatchWhoseOnlyStoreDiesFails) {
  ServerProcess dying(0, 16 << 20, "");
  const auto server = StartServer();
  Use({dying.said(), server->address()}, Quick());
  const pod::BlockKey root = RootOf(map_, {0, 1});
  const std::vector<TestPlane> planes = Planes(0, 1, 500000);
  auto batch = ReserveAndPut(*sharded_, root, planes);
  ASSERT_TRUE(batch.ok()) << batch.status();
  dying.Kill();
  EXPECT_FALSE(batch->Commit(HeadersOf(planes)).ok());
  EXPECT_EQ(batch->replicas_written(0), 0);
  EXPECT_TRUE(WriteAll(*sharded_, root, planes).ok()) << "tried again, the next store takes it";
}

TEST_F(ShardedFailuresTest, AStoreThatDiesBetweenAcquireAndFetchSendsTheCallerToAReplica) {
  for (const bool layered : {false, true}) {
    SCOPED_TRACE(layered);
    ServerProcess dying(0, 16 << 20, "");
    const auto server = StartServer();
    Use({dying.said(), server->address()}, Quick());
    const pod::BlockKey root = RootOf(map_, {0, 1});
    const std::vector<TestPlane> planes = Planes(0, 3, 50000);
    ASSERT_TRUE(WriteAll(*sharded_, root, planes, 2).ok());
    auto lease = sharded_->Acquire(root, IdsOf(planes));
    ASSERT_TRUE(lease.ok()) << lease.status();
    dying.Kill();
    Memory memory(planes);
    if (layered) {
      auto fetch = lease->StartFetch(memory.groups());
      ASSERT_TRUE(fetch.ok()) << fetch.status();
      EXPECT_TRUE(absl::IsUnavailable(fetch->Wait(1))) << fetch->Wait(1);
    } else {
      EXPECT_TRUE(absl::IsUnavailable(lease->Fetch(memory.requests())[0]));
    }
    EXPECT_EQ(sharded_->stats().stores_avoided, 1u) << "known before anybody asks it again";
    EXPECT_TRUE(ReadAll(*sharded_, root, planes).ok());
  }
}

TEST_F(ShardedFailuresTest, AFetchFromTwoStoresEndsForBothWhenOneDiesOrStalls) {
  for (const bool kill : {true, false}) {
    SCOPED_TRACE(kill);
    ServerProcess dying(0, 64 << 20, "");
    const auto server = StartServer();
    ShardedStoreOptions options = Quick();
    options.client.fetch_batch_bytes = 1;
    absl::once_flag once;  // Whose first group lands waits until it is dead, and asks for the second then.
    options.client.on_fetch_landed = [&](size_t group) {
      if (group == 0) absl::call_once(once, [&] { kill ? dying.Kill() : dying.Stop(); });
      return absl::OkStatus();
    };
    Use({dying.said(), server->address()}, options);
    const pod::BlockKey root = RootOf(map_, {0, 1});
    const std::vector<TestPlane> planes = Planes(0, 4, 4 << 20);
    ASSERT_TRUE(WriteAll(*sharded_, root, std::span(planes).first(2)).ok());
    for (const size_t n : {2, 3}) ASSERT_TRUE(Write(server->store(), planes[n]).ok());
    auto lease = sharded_->Acquire(root, IdsOf(planes));
    ASSERT_TRUE(lease.ok()) << lease.status();
    auto memory = std::make_unique<Memory>(planes);
    const absl::Time start = absl::Now();
    auto fetch = lease->StartFetch(memory->groups());
    ASSERT_TRUE(fetch.ok()) << fetch.status();
    std::vector<std::thread> waiting;
    for (int t = 0; t < 3; ++t) {
      waiting.emplace_back([&] {
        const absl::Status last = fetch->Wait(1);
        EXPECT_TRUE(absl::IsUnavailable(last) || absl::IsDeadlineExceeded(last)) << last;
      });
    }
    for (std::thread& thread : waiting) thread.join();
    memory = nullptr;  // After an error nothing arrives any more.
    EXPECT_LT(absl::Now() - start, absl::Seconds(8));
    EXPECT_LT(fetch->arrived(), 2u);
    EXPECT_EQ(sharded_->stats().stores_avoided, 1u);
    *fetch = ShardedFetch();
    *lease = ShardedLease();
    EXPECT_TRUE(Eventually([&] { return server->store().Stats().leases == 0; }));
  }
}

TEST_F(ShardedFailuresTest, AnErrorIsToldWhenNothingMovesAnyMoreAtAnyStore) {
  const auto server = StartServer();
  ServerProcess stalled(0, 64 << 20, "");
  ShardedStoreOptions options = Quick(absl::Seconds(2));
  options.client.fetch_batch_bytes = 1;
  absl::once_flag once;
  options.client.on_fetch_landed = [&](size_t group) {
    if (group == 0) absl::call_once(once, [&] { stalled.Stop(); });
    return absl::OkStatus();
  };
  Use({server->address(), stalled.said()}, options);
  const pod::BlockKey root = RootOf(map_, {0, 1}), at_stalled = RootOf(map_, {1, 0});
  const std::vector<TestPlane> planes = Planes(0, 2, 4 << 20);
  ASSERT_TRUE(WriteAll(*sharded_, root, std::span(planes).first(1)).ok());
  ASSERT_TRUE(WriteAll(*sharded_, at_stalled, std::span(planes).subspan(1)).ok());
  Damage(server->store(), planes[0].id, 3 << 20);  // In its second section.
  auto lease = sharded_->Acquire(root, IdsOf(planes));
  ASSERT_TRUE(lease.ok()) << lease.status();
  Memory memory(planes);
  auto fetch = lease->StartFetch(memory.groups());
  ASSERT_TRUE(fetch.ok()) << fetch.status();
  const absl::Status wrong = fetch->Wait(1);
  EXPECT_TRUE(absl::IsDataLoss(wrong)) << wrong;
  const absl::Duration took = fetch->duration();
  absl::SleepFor(absl::Milliseconds(1));
  EXPECT_EQ(fetch->duration(), took) << "it was still going on";
  EXPECT_LT(took, absl::Seconds(8));
}

TEST_F(ShardedFailuresTest, AStoreThatStallsInTheMiddleOfAWriteHoldsItNoLongerThanItsAnswersMayTake) {
  ServerProcess stalled(0, 16 << 20, "");
  const auto server = StartServer();
  ShardedStoreOptions options = Quick(absl::Seconds(60));
  options.client.answer_deadline = absl::Milliseconds(500);
  for (const bool in_put : {true, false}) {
    const std::vector<TestPlane> planes = Planes(in_put ? 0 : 10, 2, 500000);
    Use({stalled.said(), server->address()}, options);
    const pod::BlockKey root = RootOf(map_, {0, 1});
    auto batch = ReserveAndPut(*sharded_, root, planes, 2);
    ASSERT_TRUE(batch.ok()) << batch.status();
    EXPECT_TRUE(batch->WaitForPuts().ok());
    stalled.Stop();
    const absl::Time start = absl::Now();
    if (in_put) {
      EXPECT_TRUE(batch->Put(0, 0, planes[0].payload).ok());
      EXPECT_TRUE(batch->WaitForPuts().ok());
    }
    const auto statuses = batch->Commit(HeadersOf(planes));
    EXPECT_LT(absl::Now() - start, absl::Seconds(20));
    ASSERT_TRUE(statuses.ok()) << statuses.status();
    EXPECT_THAT(*statuses, Each(absl::OkStatus()));
    for (size_t i = 0; i < planes.size(); ++i) EXPECT_EQ(batch->replicas_written(i), 1);
    stalled.Continue();
  }
}

TEST_F(ShardedFailuresTest, AStoreThatStallsAnswersAgainAndIsUsedAgain) {
  ServerProcess stalled(0, 16 << 20, "");
  const auto server = StartServer();
  Use({stalled.said(), server->address()}, Quick(absl::Milliseconds(700)));
  const pod::BlockKey root = RootOf(map_, {0, 1});
  const std::vector<TestPlane> planes = Planes(0, 2, 9000);
  ASSERT_TRUE(WriteAll(*sharded_, root, planes, 2).ok());
  stalled.Stop();
  EXPECT_TRUE(ReadAll(*sharded_, root, planes).ok());
  EXPECT_EQ(sharded_->stats().stores_avoided, 1u);
  const absl::Time start = absl::Now();
  EXPECT_TRUE(ReadAll(*sharded_, root, planes).ok());
  EXPECT_LT(absl::Now() - start, kAvoid) << "avoided";
  stalled.Continue();
  EXPECT_TRUE(
      Eventually([&] { return ReadAll(*sharded_, root, planes).ok() && sharded_->stats().stores_avoided == 0; }));
}

}  // namespace
}  // namespace perigee::kvstore
