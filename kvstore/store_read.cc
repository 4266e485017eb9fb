// Lookup, and leases: Acquire, Renew, Release.
#include <algorithm>

#include "absl/time/clock.h"
#include "base/status.h"
#include "kvstore/store_core.h"

namespace perigee::kvstore {
namespace {

constexpr size_t kBlocksAtOnce = 512;  // Looked up while the lock is held.
constexpr absl::Duration kAskCancelled = absl::Milliseconds(5);
// A plane that is read when memory is full must be as likely as this to be wanted again, to stay.
constexpr double kLeastReuse = 0.05;

}  // namespace

absl::StatusOr<std::vector<BlockInfo>> Store::Lookup(std::span<const pod::BlockKey> keys, absl::string_view tenant,
                                                     LookupMode mode) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(keys.size()));
  constexpr size_t kKinds = std::size(pod::kPlaneKinds);
  std::vector<BlockInfo> out;
  std::vector<PlaneId> names;
  std::vector<EntryId> found;
  while (out.size() < keys.size()) {
    const std::span<const pod::BlockKey> some =
        keys.subspan(out.size(), std::min(keys.size() - out.size(), kBlocksAtOnce));
    names.clear();
    for (const pod::BlockKey& key : some) {
      for (const pod::PlaneKind kind : pod::kPlaneKinds) names.push_back({key, kind});
    }
    found.resize(names.size());
    absl::MutexLock lock(&c.mu);
    c.ExpireDue();
    c.table.FindAll(names, found);
    for (size_t i = 0; i < names.size(); ++i) {
      if (i % kKinds == 0) out.emplace_back();
      const pod::PlaneKind kind = names[i].kind;
      const EntryId id = found[i];
      if (id == kNoEntry) {
        out.back().misses.push_back({kind, c.history.Find(names[i])});
      } else if (c.IsOthers(id, tenant)) {
        out.back().misses.push_back({kind, {MissReason::kOtherTenant, 0}});
      } else {
        const uint64_t bytes = c.table[id].payload_bytes;
        const Tier tier = c.FastestTier(id);
        const double to_dram_us = tier == Tier::kDram ? 0 : c.CostUs(id);
        out.back().planes.push_back(
            {.kind = kind,
             .tier = tier,
             .payload_bytes = bytes,
             .estimated_fetch_us = c.dram_rate.EstimateUs(bytes) + static_cast<uint64_t>(to_dram_us),
             .replicas = c.table.details(id).replicas});
      }
      if (kind == pod::PlaneKind::kDistant) {
        ++(out.back().misses.empty() ? c.stats.lookups_found
                                     : c.stats.lookups_missed[static_cast<size_t>(out.back().misses[0].miss.reason)]);
      }
      const auto distant = [](const FoundPlane& plane) { return plane.kind == pod::PlaneKind::kDistant; };
      if (mode == LookupMode::kPrefix && i % kKinds == kKinds - 1 &&
          std::none_of(out.back().planes.begin(), out.back().planes.end(), distant)) {
        return out;
      }
    }
  }
  return out;
}

absl::StatusOr<Lease> Store::Acquire(std::span<const PlaneId> planes, absl::Duration ttl,
                                     const AcquireOptions& options) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(planes.size()));
  PERIGEE_ASSIGN_OR_RETURN(ttl, c.CheckTtl(ttl));
  Lease out;
  out.planes.resize(planes.size());
  std::vector<EntryId> entries(planes.size());  // Pinned; kNoEntry for misses.
  LoadWaiter waiter;
  std::vector<LoadJob> jobs;
  const int64_t now_us = c.WallUs();

  c.mu.Lock();
  c.Reap();
  c.table.FindAll(planes, entries);
  if (options.resident_only) {
    for (const EntryId id : entries) {
      if (id == kNoEntry || c.Resident(id)) continue;
      const std::string name = c.table[id].id.ToString();
      c.mu.Unlock();
      return absl::UnimplementedError(absl::StrCat(name, " has to come from a slower tier first"));
    }
  }
  const absl::Time now = c.options.now();
  c.Prefetch(entries);
  // First those that are there, so that making room for the others does not throw them out.
  for (size_t i = 0; i < planes.size(); ++i) {
    EntryId& id = entries[i];
    LeasedPlane& plane = out.planes[i];
    if (id == kNoEntry) {
      plane.miss = c.history.Find(planes[i]);
    } else if (c.IsOthers(id, options.tenant)) {
      plane.miss = {MissReason::kOtherTenant, 0};
      id = kNoEntry;
    } else if (!options.background &&
               c.bandwidth.Wait(c.table.tenants().Name(c.table[id].tenant), now) > absl::ZeroDuration()) {
      plane.miss = {MissReason::kOverQuota, 0};
      ++c.stats.over_quota;
      id = kNoEntry;
    } else {
      plane.tier = c.FastestTier(id);
      c.Pin(id);
      if (!c.table[id].Is(kInDram)) continue;
      if (options.background) continue;
      c.Touch(id, now_us);
      c.table[id].Set(kPassing, false);  // Wanted twice already.
    }
  }
  EntryId last_read = kNoEntry;
  for (size_t i = 0; i < planes.size(); ++i) {
    const EntryId id = entries[i];
    if (id == kNoEntry || c.Resident(id)) continue;
    if (!c.table[id].Is(kInDram)) {
      const uint64_t bytes = c.table[id].payload_bytes;
      const uint32_t account = c.dram_quotas.NumberOf(c.table.tenants().Name(c.table[id].tenant));
      const std::optional<Extent> extent = c.AllocateExtent(bytes, account);
      // Whether it is worth its room is asked before this use of it counts.
      bool stays = !options.background;
      if (stays && extent && c.slab.free_bytes() < c.LowBytes()) {
        const PlaneFacts facts = c.DramFacts(id);
        stays = c.table[id].Is(kSoftPinned) || c.table[id].Is(kHardPinned) ||
                c.dram_policy->Admit(facts, kLeastReuse * facts.cost_us);
      }
      if (!options.background) c.Touch(id, now_us);
      if (!extent) {
        out.planes[i].miss = {MissReason::kNoRoom, 0};
        entries[i] = kNoEntry;
        c.Unpin(id);
        continue;
      }
      c.StartLoad(id, *extent, /*ahead=*/false);
      if (!stays) {
        c.table[id].Set(kPassing);
        if (!options.background) ++c.stats.unadmitted_reads;
      }
      if (planes[i].kind == pod::PlaneKind::kDistant) last_read = id;
    }
    c.WaitFor(id, &waiter);
  }
  if (last_read != kNoEntry && !options.background) c.ReadAhead(last_read);
  jobs = c.TakeLoads();
  c.mu.Unlock();
  c.Begin(std::move(jobs));

  bool cancelled = false;
  absl::MutexLock lock(&c.mu);
  const auto arrived = [&waiter] { return waiter.left == 0; };
  while (!cancelled && waiter.left > 0) {
    if (!options.cancelled) {
      c.mu.Await(absl::Condition(&arrived));
    } else if (!c.mu.AwaitWithTimeout(absl::Condition(&arrived), kAskCancelled)) {
      c.mu.Unlock();  // It may take its time.
      cancelled = options.cancelled();
      c.mu.Lock();
    }
  }
  if (cancelled) {
    c.GiveUp(entries, &waiter);
    return absl::CancelledError("the caller has gone");
  }
  uint64_t payload = 0;
  for (size_t i = 0; i < planes.size(); ++i) {
    EntryId& id = entries[i];
    LeasedPlane& plane = out.planes[i];
    if (id != kNoEntry && c.table[id].header == HeaderArena::kNone) {  // It could not be read.
      plane.miss = c.table[id].Is(kDead) ? c.history.Find(planes[i]) : Miss{MissReason::kUnreachable, 0};
      c.Unpin(id);
      id = kNoEntry;
    }
    if (id == kNoEntry) {
      if (!options.background) {
        ++c.stats.misses;
        ++c.stats.misses_because[static_cast<size_t>(plane.miss.reason)];
      }
      continue;
    }
    const PlaneEntry& entry = c.table[id];
    plane.found = true;
    plane.address = c.Address(c.table.ExtentOf(id));
    plane.payload_bytes = entry.payload_bytes;
    plane.header = std::string(c.headers.Get(entry.header));
    plane.estimated_fetch_us = c.dram_rate.EstimateUs(plane.payload_bytes);
    if (options.background) continue;
    ++(plane.tier == Tier::kDram  ? c.stats.hits_dram
       : plane.tier == Tier::kSsd ? c.stats.hits_ssd
                                  : c.stats.hits_remote);
    payload += plane.payload_bytes;
    c.bandwidth.Use(c.table.tenants().Name(entry.tenant), plane.payload_bytes);
  }
  c.stats.leased_payload_bytes += payload;
  std::erase(entries, kNoEntry);
  if (!entries.empty()) {
    out.id = c.NewId();
    const auto end = c.lease_ends.Add(absl::ToUnixNanos(c.options.now() + ttl), out.id);
    c.leases.emplace(out.id, LeaseState{std::move(entries), end});
  }
  return out;
}

absl::Status Store::Renew(uint64_t lease_id, absl::Duration ttl) {
  Core& c = *core_;
  PERIGEE_ASSIGN_OR_RETURN(ttl, c.CheckTtl(ttl));
  absl::MutexLock lock(&c.mu);
  c.Reap();
  const auto it = c.leases.find(lease_id);
  if (it == c.leases.end()) {
    return absl::NotFoundError(absl::StrCat("lease ", lease_id, " is unknown or has expired; acquire again"));
  }
  c.lease_ends.Move(it->second.end, absl::ToUnixNanos(c.options.now() + ttl));
  return absl::OkStatus();
}

absl::Status Store::Release(uint64_t lease_id, uint64_t fetched_bytes, uint64_t fetch_us) {
  Core& c = *core_;
  absl::MutexLock lock(&c.mu);
  c.Reap();
  const auto it = c.leases.find(lease_id);
  if (it == c.leases.end()) {
    return absl::NotFoundError(absl::StrCat("lease ", lease_id, " is unknown or has expired"));
  }
  if (fetched_bytes > 0) {  // Believed as far as it can be.
    uint64_t leased = 0;
    for (const EntryId id : it->second.planes) leased += c.table[id].payload_bytes;
    fetched_bytes = std::min(fetched_bytes, leased);
  }
  c.EndLease(lease_id);
  c.stats.fetched_bytes += fetched_bytes;
  c.dram_rate.Add(fetched_bytes, static_cast<double>(fetch_us) * 1e-6);
  return absl::OkStatus();
}

}  // namespace perigee::kvstore
