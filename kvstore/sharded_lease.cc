// ShardedStore::Acquire, and what is done with its leases.
#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "kvstore/client_state.h"
#include "kvstore/sharded_store.h"
#include "kvstore/store_connections.h"

namespace perigee::kvstore {

namespace internal {

struct ShardedLeaseState {
  struct Part {
    std::shared_ptr<StoreConnection> store;
    ReadLease lease;
    std::vector<size_t> planes;  // [plane of the lease]: the caller's. Empty in `whole`'s.

    bool holds_any() const {
      return std::any_of(lease.planes().begin(), lease.planes().end(),
                         [](const HeldPlane& held) { return held.found; });
    }

    // An error of a transfer. The end of a lease's time looks like a store that does not answer, and is not.
    void Note(const absl::Status& status) const {
      if (absl::Now() < lease.expiry()) store->Note(status);
    }
  };
  struct Place {
    size_t part = 0, plane = 0;
  };
  std::vector<Part> parts;
  // One store has been asked for all planes and its answer is the answer. Else what follows is set.
  bool whole = false;
  std::vector<HeldPlane> planes;
  std::vector<Place> places;  // [plane], of those that were found.

  // From the first part's answer, which is not the whole one.
  void Spread() {
    if (!planes.empty()) return;
    planes = parts[0].lease.planes();
    for (size_t i = 0; i < planes.size(); ++i) {
      places.push_back({0, i});
      parts[0].planes.push_back(i);
    }
  }
};

// One store's share of a fetch.
struct FetchPart {
  std::shared_ptr<StoreConnection> store;
  absl::Time lease_expiry;  // When the fetch began; see ShardedLeaseState::Part::Note.
  LayeredFetch fetch;
  std::vector<size_t> planes;  // As in ShardedLeaseState::Part.
  std::atomic<bool> noted{false};

  void Note(const absl::Status& status) {
    if (!noted.exchange(true) && absl::Now() < lease_expiry) store->Note(status);
  }
};

struct ShardedFetchState {
  size_t groups = 0;
  std::vector<std::unique_ptr<FetchPart>> parts;
  absl::Mutex mu;
  absl::Status error ABSL_GUARDED_BY(mu);  // The first of any part.

  ~ShardedFetchState() {
    for (const std::unique_ptr<FetchPart>& part : parts) part->fetch.Cancel();  // All, before one is waited for.
  }
  absl::Status Wait(size_t group, absl::Time until);
  absl::Status End(const absl::Status& status);
};

absl::Status ShardedFetchState::Wait(size_t group, absl::Time until) {
  for (const std::unique_ptr<FetchPart>& part : parts) {
    const absl::Status arrived = part->fetch.Wait(group, until);
    if (arrived.ok()) continue;
    if (absl::IsDeadlineExceeded(arrived) && absl::Now() >= until) return arrived;  // It may still come.
    part->Note(arrived);
    return parts.size() == 1 ? arrived : End(arrived);
  }
  return absl::OkStatus();
}

// The caller may free its memory after an error: nothing moves into it any more when this returns.
absl::Status ShardedFetchState::End(const absl::Status& status) {
  {
    absl::MutexLock lock(&mu);
    error.Update(status);  // Before others are cancelled, so that nobody takes that for the reason.
  }
  for (const std::unique_ptr<FetchPart>& part : parts) part->fetch.Cancel();
  for (const std::unique_ptr<FetchPart>& part : parts) part->fetch.Wait(groups - 1).IgnoreError();
  absl::MutexLock lock(&mu);
  return error;
}

namespace {

// What an Acquire has learned so far.
struct Asked {
  std::span<const PlaneId> ids;
  absl::Time until;  // Patience with slower tiers.
  std::unique_ptr<ShardedLeaseState> state = std::make_unique<ShardedLeaseState>();
  std::vector<size_t> open;  // Planes that nobody had yet.
  std::vector<std::shared_ptr<StoreConnection>> silent;
  std::vector<size_t> unreachable;  // Planes that a silent store was asked for.
  absl::Status error;               // The first silent one's.
  size_t answers = 0;

  Asked(std::span<const PlaneId> all, absl::Duration within) : ids(all), until(absl::Now() + within), open(all.size()) {
    for (size_t i = 0; i < open.size(); ++i) open[i] = i;
  }
  void Ask(const std::shared_ptr<StoreConnection>& store, bool even_if_avoided);
  void Take(const std::shared_ptr<StoreConnection>& store, ReadLease lease);
  std::unique_ptr<ShardedLeaseState> Result() &&;
};

void Asked::Ask(const std::shared_ptr<StoreConnection>& store, bool even_if_avoided) {
  std::vector<PlaneId> some;
  if (answers > 0) {
    for (const size_t i : open) some.push_back(ids[i]);
  }
  absl::StatusOr<ReadLease> lease = store->Try(even_if_avoided, [&](StoreClient& client) {
    absl::StatusOr<ReadLease> said =
        client.Acquire(answers > 0 ? std::span<const PlaneId>(some) : ids, until - absl::Now());
    // The caller's patience is at its end, not the store.
    if (absl::IsDeadlineExceeded(said.status()) && absl::Now() >= until) {
      return absl::StatusOr<ReadLease>(absl::AbortedError(said.status().message()));
    }
    return said;
  });
  if (lease.ok()) {
    Take(store, *std::move(lease));
    return;
  }
  error.Update(lease.status());
  silent.push_back(store);
  unreachable.insert(unreachable.end(), open.begin(), open.end());
}

void Asked::Take(const std::shared_ptr<StoreConnection>& store, ReadLease lease) {
  ShardedLeaseState& s = *state;
  const std::vector<HeldPlane>& held = lease.planes();
  if (answers++ == 0) {
    s.parts.push_back({store, std::move(lease), {}});
    std::erase_if(open, [&held](size_t i) { return held[i].found; });
    return;
  }
  s.Spread();
  for (size_t k = 0; k < open.size(); ++k) {
    HeldPlane& plane = s.planes[open[k]];
    if (held[k].found) {
      plane = held[k];
      s.places[open[k]] = {s.parts.size(), k};
    } else if (plane.miss.reason == MissReason::kNeverStored) {
      plane.miss = held[k].miss;
    }
  }
  std::vector<size_t> asked = open;
  std::erase_if(open, [&s](size_t i) { return s.planes[i].found; });
  if (open.size() < asked.size()) s.parts.push_back({store, std::move(lease), std::move(asked)});
}

std::unique_ptr<ShardedLeaseState> Asked::Result() && {
  ShardedLeaseState& s = *state;
  for (const auto& store : silent) store->CountFailover();
  if (!unreachable.empty() && !open.empty()) s.Spread();
  s.whole = s.planes.empty();
  if (s.whole) return std::move(state);
  for (const size_t i : unreachable) {
    if (!s.planes[i].found) s.planes[i].miss = {MissReason::kUnreachable, 0};
  }
  return std::move(state);
}

}  // namespace
}  // namespace internal

absl::StatusOr<ShardedLease> ShardedStore::Acquire(const pod::BlockKey& root, std::span<const PlaneId> planes,
                                                   absl::Duration within) {
  const std::shared_ptr<const internal::StoreView> view = connections_->Current();
  const auto readers = view->Pick(view->map->Readers(GroupOf(root), options_.read_stores));
  if (readers.empty()) return view->NoStore();
  internal::Asked asked(planes, within);
  for (const auto& reader : readers) {
    if (asked.answers > 0 && asked.open.empty()) break;
    asked.Ask(reader, view->even_if_avoided());
  }
  if (asked.answers == 0) {
    return absl::IsAborted(asked.error) ? absl::DeadlineExceededError(asked.error.message()) : asked.error;
  }
  return ShardedLease(std::move(asked).Result());
}

ShardedLease::ShardedLease() = default;
ShardedLease::ShardedLease(std::unique_ptr<internal::ShardedLeaseState> state) : state_(std::move(state)) {}
ShardedLease::ShardedLease(ShardedLease&&) noexcept = default;
ShardedLease& ShardedLease::operator=(ShardedLease&&) noexcept = default;
ShardedLease::~ShardedLease() = default;

const std::vector<HeldPlane>& ShardedLease::planes() const {
  if (state_ == nullptr) return ReadLease().planes();
  return state_->whole ? state_->parts[0].lease.planes() : state_->planes;
}

absl::Time ShardedLease::expiry() const {
  if (state_ == nullptr) return ReadLease().expiry();
  std::optional<absl::Time> earliest;
  for (const auto& part : state_->parts) {
    if (part.holds_any()) earliest = std::min(earliest.value_or(absl::InfiniteFuture()), part.lease.expiry());
  }
  return earliest.value_or(state_->parts[0].lease.expiry());
}

std::vector<absl::Status> ShardedLease::Fetch(std::span<const FetchRequest> requests) {
  if (state_ == nullptr) return ReadLease().Fetch(requests);
  internal::ShardedLeaseState& s = *state_;
  const auto note = [](const internal::ShardedLeaseState::Part& part, const std::vector<absl::Status>& statuses) {
    for (const absl::Status& status : statuses) part.Note(status);
  };
  if (s.whole) {
    std::vector<absl::Status> out = s.parts[0].lease.Fetch(requests);
    note(s.parts[0], out);
    return out;
  }
  std::vector<absl::Status> out(requests.size());
  std::vector<std::vector<FetchRequest>> split(s.parts.size());
  std::vector<std::vector<size_t>> origin(s.parts.size());  // [part][request]: the caller's.
  for (size_t i = 0; i < requests.size(); ++i) {
    out[i] = internal::CheckHeld(s.planes, requests[i].plane);
    if (!out[i].ok()) continue;
    const auto& place = s.places[requests[i].plane];
    split[place.part].push_back(requests[i]);
    split[place.part].back().plane = place.plane;
    origin[place.part].push_back(i);
  }
  internal::AtOnce(s.parts.size(), [&](size_t p) {
    const std::vector<absl::Status> statuses = s.parts[p].lease.Fetch(split[p]);
    note(s.parts[p], statuses);
    for (size_t k = 0; k < statuses.size(); ++k) out[origin[p][k]] = statuses[k];
  });
  return out;
}

absl::StatusOr<ShardedFetch> ShardedLease::StartFetch(std::vector<std::vector<FetchRequest>> groups) {
  if (state_ == nullptr) return ReadLease().StartFetch(std::move(groups)).status();
  internal::ShardedLeaseState& s = *state_;
  auto fetch = std::make_unique<internal::ShardedFetchState>();
  fetch->groups = groups.size();
  const auto start = [&](internal::ShardedLeaseState::Part& part,
                         std::vector<std::vector<FetchRequest>> its_groups) -> absl::Status {
    auto started = std::make_unique<internal::FetchPart>();
    started->store = part.store;
    started->lease_expiry = part.lease.expiry();
    started->planes = part.planes;
    PERIGEE_ASSIGN_OR_RETURN(started->fetch, part.lease.StartFetch(std::move(its_groups)));
    fetch->parts.push_back(std::move(started));
    return absl::OkStatus();
  };
  if (s.whole) {
    PERIGEE_RETURN_IF_ERROR(start(s.parts[0], std::move(groups)));
    return ShardedFetch(std::move(fetch));
  }
  std::vector<std::vector<std::vector<FetchRequest>>> split(s.parts.size());
  std::vector<bool> needed(s.parts.size());
  for (auto& of_part : split) of_part.resize(groups.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    for (FetchRequest& request : groups[g]) {
      PERIGEE_RETURN_IF_ERROR(internal::CheckHeld(s.planes, request.plane));
      const auto& place = s.places[request.plane];
      request.plane = place.plane;
      split[place.part][g].push_back(request);
      needed[place.part] = true;
    }
  }
  for (size_t p = 0; p < s.parts.size(); ++p) {
    if (needed[p]) PERIGEE_RETURN_IF_ERROR(start(s.parts[p], std::move(split[p])));
  }
  return ShardedFetch(std::move(fetch));
}

absl::Status ShardedLease::Renew(absl::Duration ttl) {
  if (state_ == nullptr) return ReadLease().Renew(ttl);
  for (auto& part : state_->parts) {
    if (!part.holds_any() && state_->parts.size() > 1) continue;
    const absl::Status renewed = part.lease.Renew(ttl);
    part.Note(renewed);
    PERIGEE_RETURN_IF_ERROR(renewed);
  }
  return absl::OkStatus();
}

ShardedFetch::ShardedFetch() = default;
ShardedFetch::ShardedFetch(std::unique_ptr<internal::ShardedFetchState> state) : state_(std::move(state)) {}
ShardedFetch::ShardedFetch(ShardedFetch&&) noexcept = default;
ShardedFetch& ShardedFetch::operator=(ShardedFetch&&) noexcept = default;
ShardedFetch::~ShardedFetch() = default;

size_t ShardedFetch::groups() const { return state_ == nullptr ? 0 : state_->groups; }

absl::Status ShardedFetch::Wait(size_t group, absl::Time until) const {
  if (group >= groups()) return absl::OutOfRangeError(absl::StrCat("group ", group, " of a fetch of ", groups()));
  return state_->Wait(group, until);
}

size_t ShardedFetch::arrived() const {
  size_t arrived = groups();
  if (state_ == nullptr) return arrived;
  for (const auto& part : state_->parts) arrived = std::min(arrived, part->fetch.arrived());
  return arrived;
}

std::vector<size_t> ShardedFetch::wrong_planes() const {
  std::vector<size_t> wrong;
  if (state_ == nullptr) return wrong;
  for (const auto& part : state_->parts) {
    for (const size_t plane : part->fetch.wrong_planes()) {
      wrong.push_back(part->planes.empty() ? plane : part->planes[plane]);
    }
  }
  std::sort(wrong.begin(), wrong.end());
  return wrong;
}

absl::Duration ShardedFetch::duration() const {
  absl::Duration longest;
  if (state_ == nullptr) return longest;
  for (const auto& part : state_->parts) longest = std::max(longest, part->fetch.duration());
  return longest;
}

}  // namespace perigee::kvstore
