#include "kvstore/rebalancer.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <deque>
#include <map>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "base/clock.h"
#include "kvstore/peer_stores.h"
#include "kvstore/policy/bandwidth_quota.h"

namespace perigee::kvstore {
namespace {

constexpr absl::Duration kAskToStop = absl::Milliseconds(50);
constexpr size_t kMostLeaving = 65536;
constexpr uint8_t kNoRank = 255;

ClientOptions ForPeers(const RebalancerOptions& options) {
  ClientOptions out;
  out.connect_deadline = out.call_deadline = options.call_deadline;
  out.transfer_deadline = 2 * options.call_deadline;
  out.secret = options.secret;
  return out;
}

}  // namespace

class Rebalancer::Mover {
 public:
  Mover(Store* store, std::string store_id, std::shared_ptr<const StoreDirectory> directory, transport::Context* engine,
        RebalancerOptions options)
      : store_(store),
        store_id_(std::move(store_id)),
        directory_(std::move(directory)),
        options_(std::move(options)),
        peers_(store, engine, ForPeers(options_), options_.planes_in_flight, options_.bytes_in_flight,
               [this] { return stopping(); }) {
    bandwidth_.Set("", std::max<uint64_t>(options_.bytes_per_s, 1), SteadyNow());
    thread_ = std::thread([this] { Run(); });
  }

  void Stop() {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    if (thread_.joinable()) thread_.join();
  }

  RebalanceStats Progress() const {
    absl::MutexLock lock(&mu_);
    return stats_;
  }

 private:
  // A plane that is here, with its owners and what they said.
  struct Task {
    ListedPlane plane;
    std::vector<size_t> owners;  // Indices into the map.
    std::optional<size_t> rank;  // This store's among them.
    std::vector<OwnersCopy> copies;
    bool sent = false;
  };
  // To be given up, once its time has come.
  struct Leaving {
    absl::Time due;
    std::vector<Task> tasks;
  };

  void Run();
  void Adopt(std::shared_ptr<const StoreMap> map);
  bool RunRound();  // False: something is left to do.
  void CountPlanesToMove();
  void DoPage(std::vector<ListedPlane> planes);
  std::vector<Task> TasksOf(std::vector<ListedPlane> planes) const;
  void Ask(std::span<Task* const> tasks, uint64_t map_epoch, bool repair_replicas);
  void SendAll(std::vector<Task>& tasks);
  void GiveUp(std::vector<Task> tasks);
  void GiveUpDue(bool all);
  bool BeforeBatch(uint64_t bytes);

  // Whether a plane is another store's business as well.
  bool Concerns(PlacementGroup group, uint32_t replicas) const {
    const bool mine = ranks_[group] < replicas;
    return !mine || (replicas > 1 && serving_ > 1);
  }

  bool stopping() const {
    absl::MutexLock lock(&mu_);
    return stopping_;
  }
  // The round is not to go on.
  bool Interrupted() const { return stopping() || directory_->Get()->epoch != map_->epoch; }
  // False: interrupted.
  bool PauseUntil(absl::Time until) const {
    while (SteadyNow() < until) {
      if (Interrupted()) return false;
      const absl::Duration slice = std::min(kAskToStop, until - SteadyNow());
      directory_->AwaitNewer(map_->epoch, absl::Now() + slice);
    }
    return !Interrupted();
  }

  Store* const store_;
  const std::string store_id_;
  const std::shared_ptr<const StoreDirectory> directory_;
  const RebalancerOptions options_;

  // The thread's.
  PeerStores peers_;
  BandwidthQuota bandwidth_;
  std::shared_ptr<const StoreMap> map_;  // The one that has settled.
  std::optional<size_t> self_;           // In the map.
  size_t serving_ = 0;
  std::vector<uint8_t> ranks_;  // [group]: this store's place among the owners; kNoRank.
  std::deque<Leaving> leaving_;
  size_t planes_leaving_ = 0;
  bool found_work_ = false;  // In this round.

  mutable absl::Mutex mu_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  RebalanceStats stats_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

void Rebalancer::Mover::Run() {
  map_ = std::make_shared<const StoreMap>();
  while (!stopping()) {
    std::shared_ptr<const StoreMap> newest = directory_->Get();
    if (newest->epoch != map_->epoch) {
      // What comes back at once, as a store that is restarted does, shall not move anything.
      map_ = std::move(newest);
      if (!PauseUntil(SteadyNow() + options_.settle)) continue;
      Adopt(map_);
    }
    const bool complete = !self_ || RunRound();
    // Who writes by an older map still writes to a store that drains.
    PauseUntil(SteadyNow() + (complete && !Progress().draining ? options_.every : options_.retry));
  }
}

// From here on this store confirms what it has to those who go by the same map. Nothing that was to be given up by an
// earlier one is left: so no two stores can each give up a plane because the other has it.
void Rebalancer::Mover::Adopt(std::shared_ptr<const StoreMap> map) {
  self_ = std::nullopt;
  serving_ = 0;
  for (size_t i = 0; i < map->stores.size(); ++i) {
    if (map->stores[i].id == store_id_) self_ = i;
    if (map->stores[i].state == StoreState::kServing) ++serving_;
  }
  ranks_.assign(size_t{1} << 16, kNoRank);
  for (size_t group = 0; self_ && group < ranks_.size(); ++group) {
    const std::vector<size_t> owners = map->Owners(static_cast<PlacementGroup>(group), kMaxReplicas);
    const auto own = std::find(owners.begin(), owners.end(), *self_);
    if (own != owners.end()) ranks_[group] = static_cast<uint8_t>(own - owners.begin());
  }
  absl::MutexLock lock(&mu_);
  stats_.map_epoch = map->epoch;
  stats_.in_map = self_.has_value();
  stats_.draining = self_ && map->stores[*self_].state == StoreState::kDraining;
  stats_.complete = false;
  stats_.planes_to_move = stats_.bytes_to_move = 0;
}

bool Rebalancer::Mover::RunRound() {
  peers_.BeginRound(*map_);
  leaving_.clear();
  planes_leaving_ = 0;
  found_work_ = false;
  const uint64_t failures = peers_.failures();
  CountPlanesToMove();
  const ListFilter filter{.placed = [this](PlacementGroup g, uint32_t r) { return Concerns(g, r); }};
  std::string token;
  do {
    const absl::StatusOr<ListPage> page = store_->List(token, options_.page_planes, "", filter);
    if (!page.ok()) break;  // Only for a token that List did not give.
    token = page->next_page_token;
    DoPage(page->planes);
    GiveUpDue(/*all=*/false);
  } while (!token.empty() && !Interrupted());
  GiveUpDue(/*all=*/true);
  absl::MutexLock lock(&mu_);
  ++stats_.rounds;
  stats_.failures += peers_.failures() - failures;
  stats_.last_failure = peers_.last_failure();
  stats_.complete = !found_work_ && peers_.failures() == failures && stats_.planes_to_move == 0;
  return stats_.complete;
}

void Rebalancer::Mover::CountPlanesToMove() {
  const ListFilter filter{.placed = [this](PlacementGroup g, uint32_t r) { return ranks_[g] >= r; }};
  uint64_t planes = 0, bytes = 0;
  std::string token;
  do {
    const absl::StatusOr<ListPage> page = store_->List(token, options_.page_planes, "", filter);
    if (!page.ok()) break;
    token = page->next_page_token;
    for (const ListedPlane& plane : page->planes) {
      if (plane.tier == Tier::kRemote) continue;
      ++planes;
      bytes += plane.meta.payload_bytes;
    }
  } while (!token.empty() && !Interrupted());
  absl::MutexLock lock(&mu_);
  stats_.planes_to_move = planes;
  stats_.bytes_to_move = bytes;
}

// Chains from their start, so that what has come is a prefix.
std::vector<Rebalancer::Mover::Task> Rebalancer::Mover::TasksOf(std::vector<ListedPlane> planes) const {
  std::erase_if(planes, [](const ListedPlane& plane) { return plane.tier == Tier::kRemote || !plane.meta.group; });
  const auto place = [](const ListedPlane& p) {
    return std::tuple(*p.meta.group, p.meta.base_position, p.id.kind != pod::PlaneKind::kSummary, p.id.kind);
  };
  std::sort(planes.begin(), planes.end(),
            [&](const ListedPlane& a, const ListedPlane& b) { return place(a) < place(b); });
  std::vector<Task> tasks;
  for (ListedPlane& plane : planes) {
    Task task{.plane = std::move(plane),
              .owners = map_->Owners(*plane.meta.group, plane.meta.replicas),
              .rank = std::nullopt,
              .copies = {}};
    if (task.owners.empty()) continue;  // Nobody serves.
    const auto own = std::find(task.owners.begin(), task.owners.end(), *self_);
    if (own != task.owners.end()) task.rank = static_cast<size_t>(own - task.owners.begin());
    tasks.push_back(std::move(task));
  }
  return tasks;
}

void Rebalancer::Mover::Ask(std::span<Task* const> tasks, uint64_t map_epoch, bool repair_replicas) {
  std::map<size_t, std::vector<std::pair<Task*, size_t>>> by_peer;  // With the peer's rank.
  for (Task* task : tasks) {
    task->copies.assign(task->owners.size(), OwnersCopy::kUnknown);
    for (size_t rank = 0; rank < task->owners.size(); ++rank) {
      if (task->rank == rank) {
        task->copies[rank] = OwnersCopy::kThere;
      } else {
        by_peer[task->owners[rank]].emplace_back(task, rank);
      }
    }
  }
  for (const auto& [peer, asked] : by_peer) {
    if (Interrupted()) return;
    const StoreEntry& entry = map_->stores[peer];
    std::vector<const ListedPlane*> planes;
    for (const auto& [task, rank] : asked) planes.push_back(&task->plane);
    const std::vector<PeerStores::Answer> answers = peers_.Ask(entry, planes, map_epoch);
    std::map<uint32_t, std::vector<pod::BlockKey>> too_few;  // By how many there are to be.
    for (size_t i = 0; i < asked.size(); ++i) {
      const auto& [task, rank] = asked[i];
      task->copies[rank] = answers[i].copy;
      const uint32_t wanted = task->plane.meta.replicas;
      if (answers[i].copy == OwnersCopy::kThere && answers[i].replicas < wanted) {
        too_few[wanted].push_back(task->plane.id.key);
      }
    }
    if (!repair_replicas) continue;
    for (const auto& [replicas, keys] : too_few) peers_.SetReplicas(entry, keys, replicas);
  }
}

void Rebalancer::Mover::DoPage(std::vector<ListedPlane> planes) {
  std::vector<Task> tasks = TasksOf(std::move(planes));
  std::vector<Task*> all;
  for (Task& task : tasks) all.push_back(&task);
  Ask(all, /*map_epoch=*/0, /*repair_replicas=*/true);
  if (Interrupted()) return;
  SendAll(tasks);
  if (Interrupted()) return;
  // What was sent just now is there, or it is not.
  std::vector<Task*> again;
  for (Task& task : tasks) {
    if (task.sent && !task.rank) again.push_back(&task);
  }
  Ask(again, /*map_epoch=*/0, /*repair_replicas=*/false);
  Leaving leaving{.due = SteadyNow() + options_.linger, .tasks = {}};
  for (Task& task : tasks) {
    if (DecideRebalance(task.copies, task.rank).give_up) leaving.tasks.push_back(std::move(task));
  }
  if (leaving.tasks.empty()) return;
  planes_leaving_ += leaving.tasks.size();
  leaving_.push_back(std::move(leaving));
}

void Rebalancer::Mover::SendAll(std::vector<Task>& tasks) {
  std::map<size_t, std::vector<Task*>> moves, repairs;  // By peer.
  for (Task& task : tasks) {
    for (const size_t rank : DecideRebalance(task.copies, task.rank).send_to) {
      (task.rank ? repairs : moves)[task.owners[rank]].push_back(&task);
      task.sent = true;
      found_work_ = true;
    }
  }
  for (const bool repair : {false, true}) {
    for (const auto& [peer, sending] : repair ? repairs : moves) {
      if (Interrupted()) return;
      std::vector<const ListedPlane*> planes;
      for (const Task* task : sending) planes.push_back(&task->plane);
      const PeerStores::Sent sent = peers_.Send(map_->stores[peer], planes, absl::ToUnixMicros(absl::Now()),
                                                [this](uint64_t bytes) { return BeforeBatch(bytes); });
      absl::MutexLock lock(&mu_);
      (repair ? stats_.repaired_planes : stats_.moved_planes) += sent.planes;
      (repair ? stats_.repaired_bytes : stats_.moved_bytes) += sent.bytes;
      stats_.failures += sent.failed;
      stats_.last_failure = peers_.last_failure();
    }
  }
}

bool Rebalancer::Mover::BeforeBatch(uint64_t bytes) {
  if (!PauseUntil(SteadyNow() + bandwidth_.Wait("", SteadyNow()))) return false;
  bandwidth_.Use("", bytes);
  return true;
}

void Rebalancer::Mover::GiveUpDue(bool all) {
  while (!leaving_.empty()) {
    Leaving& next = leaving_.front();
    if (next.due > SteadyNow() && !all && planes_leaving_ < kMostLeaving) return;
    if (!PauseUntil(next.due)) {
      leaving_.clear();
      planes_leaving_ = 0;
      return;
    }
    planes_leaving_ -= next.tasks.size();
    GiveUp(std::move(next.tasks));
    leaving_.pop_front();
  }
}

void Rebalancer::Mover::GiveUp(std::vector<Task> tasks) {
  std::vector<Task*> asked;
  for (Task& task : tasks) asked.push_back(&task);
  Ask(asked, map_->epoch, /*repair_replicas=*/false);
  if (Interrupted()) return;
  std::vector<PlaneId> ids;
  uint64_t bytes = 0;
  for (const Task& task : tasks) {
    if (!DecideRebalance(task.copies, task.rank).give_up) continue;
    ids.push_back(task.plane.id);
    bytes += task.plane.meta.payload_bytes;
  }
  if (ids.empty()) return;
  const absl::StatusOr<uint32_t> gone = store_->HandOver(ids);
  if (!gone.ok()) spdlog::warn("rebalancing: {}", std::string(gone.status().message()));
  absl::MutexLock lock(&mu_);
  stats_.given_up_planes += gone.ok() ? *gone : 0;
  stats_.failures += gone.ok() ? 0 : ids.size();
  stats_.planes_to_move -= std::min<uint64_t>(stats_.planes_to_move, ids.size());
  stats_.bytes_to_move -= std::min(stats_.bytes_to_move, bytes);
}

Rebalancer::Rebalancer(Store* store, std::string store_id, std::shared_ptr<const StoreDirectory> directory,
                       transport::Context* engine, RebalancerOptions options)
    : mover_(std::make_unique<Mover>(store, std::move(store_id), std::move(directory), engine, std::move(options))) {}
Rebalancer::~Rebalancer() { Stop(); }
void Rebalancer::Stop() { mover_->Stop(); }
RebalanceStats Rebalancer::Progress() const { return mover_->Progress(); }

}  // namespace perigee::kvstore
