#include "kvstore/store_core.h"

#include <spdlog/spdlog.h>

#include <limits>

#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/status.h"

namespace perigee::kvstore {
namespace {

int EvictionRank(pod::PlaneKind kind) {
  switch (kind) {
    case pod::PlaneKind::kProximal:
      return 0;
    case pod::PlaneKind::kDistant:
      return 1;
    case pod::PlaneKind::kSummary:
      return 2;
  }
  return 0;
}

}  // namespace

int64_t NowUnixUs() { return absl::ToUnixMicros(absl::Now()); }

const char* MissReasonName(MissReason reason) {
  switch (reason) {
    case MissReason::kNeverStored:
      return "never stored";
    case MissReason::kEvicted:
      return "evicted";
    case MissReason::kDeleted:
      return "deleted";
    case MissReason::kChecksum:
      return "dropped for a wrong checksum";
    case MissReason::kOtherTenant:
      return "another tenant's";
    case MissReason::kNoRoom:
      return "on the SSD, but no room in memory";
    case MissReason::kDiskLost:
      return "lost with its disk";
  }
  return "unknown";
}

Store::Store(std::unique_ptr<Core> core) : core_(std::move(core)) {}
Store::~Store() = default;

absl::StatusOr<std::unique_ptr<Store>> Store::Open(StoreOptions options, std::span<std::byte> slab) {
  if (slab.size() < kPageBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the slab has ", slab.size(), " bytes; it needs at least ", kPageBytes));
  }
  if (reinterpret_cast<uintptr_t>(slab.data()) % kPageBytes != 0) {
    return absl::InvalidArgumentError("the slab does not start on a page");
  }
  if (!options.now) options.now = SteadyNow;
  if (!options.sum_of_puts) options.sum_of_puts = [](std::span<const std::byte> bytes) { return Crc32c(bytes); };
  auto core = std::make_unique<Core>(std::move(options), slab);
  if (core->options.ssd) {
    if (core->options.ssd->memory.empty()) core->options.ssd->memory = slab;
    core->options.ssd->dropped = [c = core.get()](std::span<const SsdDropped> dropped) { c->NoteSsdDrops(dropped); };
    const auto note = [&core](const IndexEntry& found, const SsdRecord& record) {
      absl::MutexLock lock(&core->mu);
      auto entry = std::make_shared<Entry>();
      entry->id = found.id;
      entry->meta = found.meta;
      entry->number = ++core->next_entry;
      entry->ssd = record;
      entry->last_used_unix_us = found.meta.created_unix_us;
      core->index.emplace(found.id, std::move(entry));
    };
    PERIGEE_ASSIGN_OR_RETURN(core->ssd, SsdTier::Open(*core->options.ssd, note));
  }
  return std::unique_ptr<Store>(new Store(std::move(core)));
}

EventLog& Store::events() { return core_->events; }
bool Store::has_ssd() const { return core_->ssd != nullptr; }
absl::Duration Store::max_ttl() const { return core_->options.max_ttl; }

void Store::ReapExpired() {
  Core& c = *core_;
  std::vector<uint64_t> overdue;
  std::vector<StoreOptions::Reclaimed> reclaimed;
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    if (!c.options.before_reclaim) return;
    overdue = c.OverdueReservations();
    for (uint64_t id : overdue) {
      const ReservationState& r = c.reservations.at(id);
      reclaimed.push_back({id, c.Memory(r.extent, r.payload_bytes)});
    }
  }
  if (overdue.empty()) return;
  // What is overdue cannot be committed meanwhile.
  if (!c.options.before_reclaim(reclaimed)) return;
  absl::MutexLock lock(&c.mu);
  c.EndReservations(overdue);
}

absl::Status Store::Core::CheckBatch(size_t n) const {
  if (n > options.max_batch_planes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a batch of ", n, "; at most ", options.max_batch_planes, " are allowed in one call"));
  }
  return absl::OkStatus();
}

absl::StatusOr<absl::Duration> Store::Core::CheckTtl(absl::Duration ttl) const {
  if (ttl <= absl::ZeroDuration()) {
    return absl::InvalidArgumentError(absl::StrCat("a ttl of ", absl::FormatDuration(ttl), "; it must be positive"));
  }
  return std::min(ttl, options.max_ttl);
}

uint64_t Store::Core::NewId() {
  // Random, so that an id of an earlier start (or a guess) does not name something of this one.
  for (;;) {
    const uint64_t id = absl::Uniform<uint64_t>(absl::IntervalClosed, random, 1, std::numeric_limits<uint64_t>::max());
    if (!reservations.contains(id) && !leases.contains(id)) return id;
  }
}

EntryPtr Store::Core::Find(const PlaneId& id) {
  const auto it = index.find(id);
  return it == index.end() ? nullptr : it->second;
}

std::optional<uint64_t> Store::Core::AllocateExtent(uint64_t bytes) {
  if (const std::optional<uint64_t> extent = slab.Allocate(bytes)) return extent;
  if (bytes > slab.capacity_bytes() || RoundUpToPage(bytes) > slab.free_bytes() + evictable_bytes) return std::nullopt;
  for (;;) {
    if (!lru_copied.empty()) {
      EvictFromDram(EntryPtr(lru_copied.begin()->second));
    } else if (!lru_precious.empty()) {
      EvictFromDram(EntryPtr(lru_precious.begin()->second));
    } else {
      return std::nullopt;
    }
    if (const std::optional<uint64_t> extent = slab.Allocate(bytes)) return extent;
  }
}

void Store::Core::EvictFromDram(const EntryPtr& entry) {
  LruErase(entry);
  slab.Free(*entry->extent);
  entry->extent.reset();
  entry->header.clear();
  entry->header.shrink_to_fit();
  ++stats.dram_evictions;
  if (entry->ssd) return;
  if (entry->precious) ++stats.dram_only_evictions;
  Unlink(entry);
  Gone(*entry, MissReason::kEvicted);
}

void Store::Core::Unlink(const EntryPtr& entry) {
  const auto it = index.find(entry->id);
  if (it != index.end() && it->second == entry) index.erase(it);
  entry->dead = true;
  LruErase(entry);
  if (entry->pins == 0 && entry->extent) {
    slab.Free(*entry->extent);
    entry->extent.reset();
  }
}

void Store::Core::Gone(const Entry& entry, MissReason reason) {
  const int64_t now = NowUnixUs();
  history.Record(entry.id, reason, now);
  events.Removed(entry.id, reason, entry.meta.tenant, now);
}

void Store::Core::LruInsert(const EntryPtr& entry) {
  if (entry->in_lru || entry->dead || entry->pins > 0 || !entry->extent) return;
  (entry->precious ? lru_precious : lru_copied).emplace(entry->lru, entry);
  entry->in_lru = true;
  evictable_bytes += RoundUpToPage(entry->meta.payload_bytes);
}

void Store::Core::LruErase(const EntryPtr& entry) {
  if (!entry->in_lru) return;
  evictable_bytes -= RoundUpToPage(entry->meta.payload_bytes);
  entry->in_lru = false;
  (entry->precious ? lru_precious : lru_copied).erase(LruKey(entry->lru));
}

void Store::Core::Pin(const EntryPtr& entry) {
  if (entry->pins++ == 0) {
    LruErase(entry);
    stats.leased_bytes += RoundUpToPage(entry->meta.payload_bytes);
  }
}

void Store::Core::Unpin(const EntryPtr& entry) {
  if (--entry->pins > 0) return;
  stats.leased_bytes -= RoundUpToPage(entry->meta.payload_bytes);
  if (entry->dead) {
    if (entry->extent) slab.Free(*entry->extent);
    entry->extent.reset();
    return;
  }
  LruInsert(entry);
}

void Store::Core::Touch(const EntryPtr& entry, uint64_t tick, size_t place) {
  const bool listed = entry->in_lru;
  LruErase(entry);
  entry->lru = {tick, EvictionRank(entry->id.kind), std::numeric_limits<uint64_t>::max() - place, entry->number};
  entry->last_used_unix_us = NowUnixUs();
  if (entry->ssd) ssd->Touch(entry->id, *entry->ssd);
  if (listed) LruInsert(entry);
}

void Store::Core::EndReservation(uint64_t id) {
  const auto it = reservations.find(id);
  if (it == reservations.end()) return;
  slab.Free(it->second.extent);
  stats.reserved_bytes -= RoundUpToPage(it->second.payload_bytes);
  reservation_ends.erase({it->second.expiry + options.reclaim_grace, id});
  reservations.erase(it);
}

void Store::Core::EndLease(uint64_t id) {
  const auto it = leases.find(id);
  if (it == leases.end()) return;
  for (const EntryPtr& entry : it->second.entries) Unpin(entry);
  lease_ends.erase({it->second.expiry, id});
  leases.erase(it);
}

void Store::Core::Reap() {
  const absl::Time now = options.now();
  while (!lease_ends.empty() && lease_ends.begin()->first <= now) {
    EndLease(lease_ends.begin()->second);
    ++stats.expired_leases;
  }
  if (!options.before_reclaim) EndReservations(OverdueReservations());
}

std::vector<uint64_t> Store::Core::OverdueReservations() const {
  const absl::Time now = options.now();
  std::vector<uint64_t> overdue;
  for (auto it = reservation_ends.begin(); it != reservation_ends.end() && it->first <= now; ++it) {
    if (!reservations.at(it->second).committing) overdue.push_back(it->second);
  }
  return overdue;
}

void Store::Core::EndReservations(std::span<const uint64_t> ids) {
  for (uint64_t id : ids) {
    const auto it = reservations.find(id);
    if (it == reservations.end()) continue;
    if (!it->second.ended) ++stats.expired_reservations;
    EndReservation(id);
  }
}

void Store::Core::NoteSsdDrops(std::span<const SsdDropped> dropped) {
  if (dropped.empty()) return;
  absl::MutexLock lock(&mu);
  for (const SsdDropped& gone : dropped) {
    const bool evicted = gone.reason == SsdDropReason::kEvicted;
    const bool wrong = gone.reason == SsdDropReason::kWrong;
    if (evicted) ++stats.ssd_evictions;
    const EntryPtr entry = Find(gone.id);
    if (entry == nullptr || entry->ssd != gone.record) continue;
    entry->ssd.reset();
    if (wrong) ++stats.checksum_failures;
    if (entry->extent) continue;  // DRAM still has it (or is just getting it).
    Unlink(entry);
    Gone(*entry, evicted ? MissReason::kEvicted : wrong ? MissReason::kChecksum : MissReason::kDiskLost);
  }
}

}  // namespace perigee::kvstore
