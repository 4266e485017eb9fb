// ShardedStore::Reserve: one WriteBatch per store that takes the planes.
#include <algorithm>
#include <utility>

#include "base/status.h"
#include "kvstore/sharded_store.h"
#include "kvstore/store_connections.h"

namespace perigee::kvstore {

namespace internal {

struct ShardedWriteState {
  struct Target {
    std::shared_ptr<StoreConnection> store;
    WriteBatch batch;
    absl::Status dropped;  // Why it is left out, or OK. Under the state's mu.
  };
  int replicas = 0;
  std::vector<Target> targets;  // At least one.
  std::vector<int> written;     // [plane], after Commit.
  mutable absl::Mutex mu;

  std::vector<size_t> Live() const;
  // Asks call(target) of those that are not left out. OK where one says so; those that fail are left out then.
  // Otherwise the first error, and all stay as they were.
  absl::Status AtLive(bool at_once, const std::function<absl::Status(size_t)>& call);
  absl::Status CommitTo(Target& target, std::span<const pod::PlaneHeader> headers, Durability durability,
                        absl::Duration ttl, std::vector<absl::Status>* statuses);
  // Those that were left out still read the caller's bytes until their puts have ended.
  void SettleDropped();
};

namespace {

// Any store would have said so.
bool IsCallersMistake(const absl::Status& status) {
  return absl::IsInvalidArgument(status) || absl::IsOutOfRange(status);
}

}  // namespace

std::vector<size_t> ShardedWriteState::Live() const {
  absl::MutexLock lock(&mu);
  std::vector<size_t> live;
  for (size_t t = 0; t < targets.size(); ++t) {
    if (targets[t].dropped.ok()) live.push_back(t);
  }
  return live;
}

absl::Status ShardedWriteState::AtLive(bool at_once, const std::function<absl::Status(size_t)>& call) {
  const std::vector<size_t> live = Live();
  std::vector<absl::Status> said(live.size());
  const auto ask = [&](size_t i) {
    const StoreConnection::LongWait wait(targets[live[i]].store.get());
    said[i] = call(live[i]);
  };
  if (at_once) {
    AtOnce(live.size(), ask);
  } else {
    for (size_t i = 0; i < live.size(); ++i) ask(i);
  }
  absl::Status first;
  bool one_did = false;
  for (size_t i = 0; i < live.size(); ++i) {
    if (IsCallersMistake(said[i])) return said[i];
    targets[live[i]].store->Note(said[i]);
    first.Update(said[i]);
    one_did = one_did || said[i].ok();
  }
  absl::MutexLock lock(&mu);
  if (live.empty()) return targets[0].dropped;  // Two calls at once have each lost what the other had.
  if (!one_did) return first;
  for (size_t i = 0; i < live.size(); ++i) {
    Target& target = targets[live[i]];
    if (said[i].ok() || !target.dropped.ok()) continue;
    target.dropped = said[i];
    target.store->CountFailover();
  }
  return absl::OkStatus();
}

// The one place that commits: what a store is told about the other replicas goes in here.
absl::Status ShardedWriteState::CommitTo(Target& target, std::span<const pod::PlaneHeader> headers,
                                         Durability durability, absl::Duration ttl,
                                         std::vector<absl::Status>* statuses) {
  PERIGEE_ASSIGN_OR_RETURN(
      *statuses, target.batch.Commit(headers, durability, ttl,
                                     static_cast<uint32_t>(std::clamp(replicas, 1, static_cast<int>(kMaxReplicas)))));
  return absl::OkStatus();
}

void ShardedWriteState::SettleDropped() {
  for (Target& target : targets) {
    {
      absl::MutexLock lock(&mu);
      if (target.dropped.ok()) continue;
    }
    target.batch.WaitForPuts().IgnoreError();
  }
}

}  // namespace internal

absl::StatusOr<ShardedBatch> ShardedStore::Reserve(const pod::BlockKey& root, std::span<const PlaneRequest> planes,
                                                   int replicas) {
  const std::shared_ptr<const internal::StoreView> view = connections_->Current();
  auto state = std::make_unique<internal::ShardedWriteState>();
  state->replicas = replicas > 0 ? replicas : options_.replicas;
  const size_t wanted = static_cast<size_t>(std::max(state->replicas, 1));
  const auto ranked = view->Pick(view->map->Owners(GroupOf(root), std::max(wanted, options_.read_stores)));
  if (ranked.empty()) return view->NoStore();
  const size_t owners = std::min(wanted, ranked.size());

  std::vector<absl::StatusOr<WriteBatch>> batches(ranked.size());
  const auto reserve = [&](size_t i) {
    batches[i] = ranked[i]->Try(view->even_if_avoided(), [&](StoreClient& store) { return store.Reserve(planes); });
  };
  internal::AtOnce(owners, reserve);
  const auto took = [&](size_t i) { return batches[i].ok(); };
  const auto silent = [&](size_t i) { return internal::NoAnswer(batches[i].status()); };
  size_t asked = owners;
  const auto none = [&](const auto& what) {
    for (size_t i = 0; i < asked; ++i) {
      if (what(i)) return false;
    }
    return true;
  };
  const auto answered = [&](size_t i) { return !silent(i); };
  while (none(answered) && asked < ranked.size()) reserve(asked++);

  if (none(took)) {
    // An answer says more than silence: who hears that there is no room can wait for some.
    for (size_t i = 0; i < asked; ++i) {
      if (answered(i)) return batches[i].status();
    }
    return batches[0].status();
  }
  for (size_t i = 0; i < asked; ++i) {
    if (took(i)) {
      state->targets.push_back({ranked[i], *std::move(batches[i]), absl::OkStatus()});
    } else {
      ranked[i]->CountFailover();
    }
  }
  return ShardedBatch(std::move(state));
}

ShardedBatch::ShardedBatch() = default;
ShardedBatch::ShardedBatch(std::unique_ptr<internal::ShardedWriteState> state) : state_(std::move(state)) {}
ShardedBatch::ShardedBatch(ShardedBatch&&) noexcept = default;
ShardedBatch& ShardedBatch::operator=(ShardedBatch&&) noexcept = default;
ShardedBatch::~ShardedBatch() = default;

size_t ShardedBatch::size() const { return state_ == nullptr ? 0 : state_->targets[0].batch.size(); }

bool ShardedBatch::already_committed(size_t plane) const {
  const std::vector<size_t> live = state_->Live();
  return !live.empty() && std::all_of(live.begin(), live.end(), [this, plane](size_t t) {
    return state_->targets[t].batch.already_committed(plane);
  });
}

int ShardedBatch::replicas() const { return state_ == nullptr ? 0 : state_->replicas; }

absl::Status ShardedBatch::Put(std::span<const PutRange> ranges) {
  if (state_ == nullptr) return WriteBatch().Put(ranges);
  return state_->AtLive(/*at_once=*/false, [&](size_t t) { return state_->targets[t].batch.Put(ranges); });
}

absl::Status ShardedBatch::Put(size_t plane, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  const PutRange range{plane, offset_bytes, bytes};
  return Put({&range, 1});
}

absl::Status ShardedBatch::WaitForPuts() {
  if (state_ == nullptr) return WriteBatch().WaitForPuts();
  const absl::Status waited =
      state_->AtLive(/*at_once=*/true, [&](size_t t) { return state_->targets[t].batch.WaitForPuts(); });
  state_->SettleDropped();
  return waited;
}

absl::StatusOr<std::vector<absl::Status>> ShardedBatch::Commit(std::span<const pod::PlaneHeader> headers,
                                                               Durability durability, absl::Duration ttl) {
  if (state_ == nullptr) return WriteBatch().Commit(headers, durability, ttl);
  internal::ShardedWriteState& s = *state_;
  std::vector<std::vector<absl::Status>> said(s.targets.size());
  const absl::Status committed = s.AtLive(
      /*at_once=*/true, [&](size_t t) { return s.CommitTo(s.targets[t], headers, durability, ttl, &said[t]); });
  s.SettleDropped();
  PERIGEE_RETURN_IF_ERROR(committed);
  std::vector<absl::Status> out(size());
  s.written.assign(size(), 0);
  for (size_t plane = 0; plane < size(); ++plane) {
    for (const std::vector<absl::Status>& statuses : said) {
      if (statuses.empty()) continue;
      if (statuses[plane].ok()) {
        ++s.written[plane];
      } else {
        out[plane].Update(statuses[plane]);
      }
    }
    if (s.written[plane] > 0) out[plane] = absl::OkStatus();
  }
  return out;
}

int ShardedBatch::replicas_written(size_t plane) const {
  return state_ == nullptr || plane >= state_->written.size() ? 0 : state_->written[plane];
}

}  // namespace perigee::kvstore
