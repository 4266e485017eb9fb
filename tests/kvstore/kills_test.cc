// A real store, killed (SIGKILL) 200 times at random moments under writes, reads and deletes, and started again each
// time: every plane whose synced commit was acknowledged is there, none whose delete was acknowledged is back, and no
// read ever gave a wrong byte as right.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>
#include <vector>

#include "absl/time/clock.h"
#include "kvstore/client.h"
#include "planes.h"
#include "server_process.h"

namespace perigee::kvstore {
namespace {

constexpr int kRounds = 200;
constexpr size_t kSlabBytes = 1 << 20;         // Less than what is stored: reads come from the SSD too.
constexpr uint64_t kSegmentBytes = 128 << 10;  // Few records each: segments are made, compacted and unlinked all along.
constexpr size_t kLivePlanes = 80;             // Beyond these, deletes keep pace with writes.
constexpr size_t kDeletedLookedAt = 400;

TestPlane PlaneOf(uint64_t n) { return MakePlane(n, 2500 + n % 5 * 2700, pod::kPlaneKinds[n % 3]); }

// What is known of the store's content: by acknowledgements only.
class Ledger {
 public:
  enum class State : uint8_t { kUnsure, kStored, kDeleted };

  void Set(uint64_t plane, State state) {
    std::lock_guard lock(mu_);
    planes_[plane] = state;
  }
  // Not stored before, by anyone.
  std::vector<uint64_t> Fresh(size_t n) {
    std::lock_guard lock(mu_);
    std::vector<uint64_t> out;
    for (size_t i = 0; i < n; ++i) planes_[next_] = State::kUnsure, out.push_back(next_++);
    return out;
  }
  // A stored plane as chance has it; becoming unsure where it is about to be deleted.
  std::optional<uint64_t> Pick(std::mt19937_64& random, bool to_delete) {
    std::lock_guard lock(mu_);
    std::vector<uint64_t> stored;
    for (const auto& [n, state] : planes_) {
      if (state == State::kStored) stored.push_back(n);
    }
    if (stored.empty() || (to_delete && stored.size() < kLivePlanes)) return std::nullopt;
    const uint64_t n = stored[random() % stored.size()];
    if (to_delete) planes_[n] = State::kUnsure;
    return n;
  }
  State Get(uint64_t plane) {
    std::lock_guard lock(mu_);
    return planes_.at(plane);
  }
  std::map<uint64_t, State> All() {
    std::lock_guard lock(mu_);
    return planes_;
  }
  void Forget(uint64_t plane) {
    std::lock_guard lock(mu_);
    planes_.erase(plane);
  }

 private:
  std::mutex mu_;
  std::map<uint64_t, State> planes_;
  uint64_t next_ = 0;
};
using State = Ledger::State;

ClientOptions Quick() {
  ClientOptions options;
  options.connect_deadline = options.call_deadline = absl::Seconds(5);
  options.transfer_deadline = absl::Seconds(5);
  return options;
}

// Until the first error, which is the store's death.
void WriteOn(StoreClient& client, Ledger& ledger, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (;;) {
    const std::vector<uint64_t> numbers = ledger.Fresh(1 + random() % 4);
    std::vector<TestPlane> planes;
    std::vector<PlaneRequest> requests;
    std::vector<pod::PlaneHeader> headers;
    for (const uint64_t n : numbers) {
      planes.push_back(PlaneOf(n));
      requests.push_back(planes.back().request());
      headers.push_back(planes.back().header);
    }
    auto batch = client.Reserve(requests);
    if (!batch.ok()) return;
    for (size_t i = 0; i < planes.size(); ++i) {
      if (!batch->Put(i, 0, planes[i].payload).ok()) return;
    }
    const auto statuses = batch->Commit(headers, Durability::kSynced);
    if (!statuses.ok()) return;
    for (size_t i = 0; i < numbers.size(); ++i) {
      if ((*statuses)[i].ok()) ledger.Set(numbers[i], State::kStored);
    }
    for (size_t i = 0; i < numbers.size() + 1; ++i) {
      const auto victim = ledger.Pick(random, /*to_delete=*/true);
      if (!victim) break;
      const pod::BlockKey key = PlaneOf(*victim).id.key;
      if (!client.Delete({&key, 1}).ok()) return;
      ledger.Set(*victim, State::kDeleted);
    }
  }
}

struct Tally {
  std::atomic<uint64_t> reads{0}, found_again{0}, stored{0}, deleted{0}, resolved{0};
};

// Reads the planes under one lease; which of them were there. Wrong bytes, and errors that are no misses, fail the
// test; an error of the wire (the store was killed) ends with nullopt.
std::optional<std::vector<bool>> ReadSome(StoreClient& client, const std::vector<uint64_t>& numbers) {
  std::vector<TestPlane> planes;
  std::vector<PlaneId> ids;
  for (const uint64_t n : numbers) {
    planes.push_back(PlaneOf(n));
    ids.push_back(planes.back().id);
  }
  auto lease = client.Acquire(ids);
  if (!lease.ok()) return std::nullopt;
  std::vector<std::vector<std::byte>> memory(planes.size());
  std::vector<FetchRequest> requests;
  std::vector<size_t> places;
  std::vector<bool> there(planes.size(), false);
  for (size_t i = 0; i < planes.size(); ++i) {
    if (!lease->planes()[i].found) {
      EXPECT_EQ(lease->planes()[i].miss.reason == MissReason::kChecksum, false) << "plane " << numbers[i];
      continue;
    }
    there[i] = true;
    memory[i].resize(planes[i].payload.size());
    requests.push_back({.plane = i, .destination = memory[i]});
    places.push_back(i);
  }
  const std::vector<absl::Status> fetched = lease->Fetch(requests);
  for (size_t r = 0; r < places.size(); ++r) {
    EXPECT_FALSE(absl::IsDataLoss(fetched[r])) << fetched[r];
    if (!fetched[r].ok()) return std::nullopt;
    EXPECT_TRUE(memory[places[r]] == planes[places[r]].payload) << "wrong bytes of plane " << numbers[places[r]];
    EXPECT_EQ(lease->planes()[places[r]].header, planes[places[r]].header);
  }
  return there;
}

// Until the first error. A plane that was stored before and after the read was there in between.
void ReadOn(StoreClient& client, Ledger& ledger, uint64_t seed, Tally& tally) {
  std::mt19937_64 random(seed);
  for (;;) {
    const auto n = ledger.Pick(random, /*to_delete=*/false);
    const auto there = ReadSome(client, {n.value_or(UINT64_MAX)});
    if (!there) return;
    if (!n) continue;
    if (ledger.Get(*n) == State::kStored) {
      EXPECT_TRUE((*there)[0]) << "plane " << *n << " is a miss";
    }
    ++tally.reads;
  }
}

// After a restart: the ledger holds, and what it was unsure of is settled.
void Verify(StoreClient& client, Ledger& ledger, Tally& tally) {
  std::vector<uint64_t> deleted, others;
  const std::map<uint64_t, State> all = ledger.All();
  for (const auto& [n, state] : all) (state == State::kDeleted ? deleted : others).push_back(n);
  while (deleted.size() > kDeletedLookedAt) {
    ledger.Forget(deleted.front());
    deleted.erase(deleted.begin());
  }
  std::vector<pod::BlockKey> keys;
  for (const uint64_t n : deleted) keys.push_back(PlaneOf(n).id.key);
  const auto found = client.Lookup(keys);
  ASSERT_TRUE(found.ok()) << found.status();
  for (size_t i = 0; i < deleted.size(); ++i) {
    EXPECT_TRUE(found->blocks[i].planes.empty()) << "plane " << deleted[i] << " was deleted and is back";
  }
  constexpr size_t kAtATime = 60;  // They fit the slab.
  for (size_t at = 0; at < others.size(); at += kAtATime) {
    const std::vector<uint64_t> some(
        others.begin() + static_cast<std::ptrdiff_t>(at),
        others.begin() + static_cast<std::ptrdiff_t>(std::min(others.size(), at + kAtATime)));
    const auto there = ReadSome(client, some);
    ASSERT_TRUE(there.has_value());
    for (size_t i = 0; i < some.size(); ++i) {
      if (all.at(some[i]) == State::kStored) {
        EXPECT_TRUE((*there)[i]) << "plane " << some[i] << " was acknowledged as synced and is gone";
        ++tally.found_again;
      } else {
        ++tally.resolved;
      }
      // What a restarted store serves is on its disk.
      ledger.Set(some[i], (*there)[i] ? State::kStored : State::kDeleted);
    }
  }
  const auto stat = client.GetStat();
  ASSERT_TRUE(stat.ok()) << stat.status();
  EXPECT_EQ(stat->store.ssd.lost_at_start, 0u);
  EXPECT_EQ(stat->store.checksum_failures, 0u);
}

TEST(Kills, TwoHundredAtRandomMomentsLoseNothingAcknowledgedAndServeNoWrongByte) {
  TempFolder folder;
  transport::Options tcp;
  tcp.transports = "tcp";
  const auto engine = transport::Context::Create(tcp);
  ASSERT_TRUE(engine.ok()) << engine.status();
  Ledger ledger;
  Tally tally;
  std::mt19937_64 random(200);
  for (int round = 0; round < kRounds && !testing::Test::HasFailure(); ++round) {
    SCOPED_TRACE(round);
    if (random() % 8 == 0) {  // In the middle of starting.
      ServerProcess starting(0, kSlabBytes, folder.path(), kSegmentBytes, /*wait=*/false);
      absl::SleepFor(absl::Milliseconds(static_cast<int64_t>(random() % 60)));
      starting.Kill();
      continue;
    }
    ServerProcess server(0, kSlabBytes, folder.path(), kSegmentBytes);
    ASSERT_EQ(server.said().find("error"), std::string::npos) << server.said();
    auto client = StoreClient::Connect(server.said(), engine->get(), Quick());
    ASSERT_TRUE(client.ok()) << client.status();
    Verify(**client, ledger, tally);
    std::vector<std::thread> users;
    for (uint64_t t = 0; t < 2; ++t) {
      users.emplace_back([&, seed = random()] { WriteOn(**client, ledger, seed); });
    }
    users.emplace_back([&, seed = random()] { ReadOn(**client, ledger, seed, tally); });
    // The random moment; now and then a late one, after compaction has begun.
    const uint64_t longest = round % 20 == 0 ? 400 : 75;
    absl::SleepFor(absl::Milliseconds(static_cast<int64_t>(5 + random() % longest)));
    server.Kill();
    for (std::thread& user : users) user.join();
  }
  for (const auto& [n, state] : ledger.All()) {
    tally.stored += state == State::kStored;
    tally.deleted += state == State::kDeleted;
  }
  std::printf(
      "%d kills: %llu reads under load, %llu acknowledged planes read after restarts, %llu settled, %llu stored\n",
      kRounds, static_cast<unsigned long long>(tally.reads), static_cast<unsigned long long>(tally.found_again),
      static_cast<unsigned long long>(tally.resolved), static_cast<unsigned long long>(tally.stored));
  EXPECT_GT(tally.reads, 200u) << "the kills met no reads";
  EXPECT_GT(tally.found_again, 2000u) << "too little was acknowledged to prove anything";
  EXPECT_GT(tally.resolved, 20u) << "the kills met no writes";
}

}  // namespace
}  // namespace perigee::kvstore
