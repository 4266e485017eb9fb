// Pin, ReportCorrupt, Delete, HandOver, List, Stats.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "absl/time/clock.h"
#include "base/status.h"
#include "kvstore/ssd/aligned_buffer.h"
#include "kvstore/store_core.h"

namespace perigee::kvstore {

void Store::Core::SetReplicas(EntryId id, uint32_t replicas, std::vector<SsdStored>* on_ssd) {
  if (table.details(id).replicas == replicas) return;
  table.details(id).replicas = replicas & 15;
  if (const auto record = table.SsdRecordOf(id)) on_ssd->push_back({table[id].id, *record});
}

void Store::Core::TellReplicas(std::span<const SsdStored> on_ssd, uint32_t replicas) {
  if (on_ssd.empty()) return;
  const absl::Status told = ssd->SetReplicas(on_ssd, static_cast<uint8_t>(replicas));
  if (!told.ok()) spdlog::warn("the number of replicas ends with this start: {}", std::string(told.message()));
}

absl::StatusOr<uint32_t> Store::Pin(std::span<const pod::BlockKey> keys, PinMode mode, absl::string_view tenant,
                                    uint32_t replicas) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(keys.size()));
  PERIGEE_RETURN_IF_ERROR(CheckReplicas(replicas));
  std::vector<EntryId> planes;
  std::vector<LoadJob> jobs;
  std::vector<SsdStored> on_ssd;
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    uint64_t more_bytes = 0;
    for (const pod::BlockKey& key : keys) {
      for (const pod::PlaneKind kind : pod::kPlaneKinds) {
        const EntryId id = c.table.Find({key, kind});
        if (id == kNoEntry || c.IsOthers(id, tenant)) continue;
        planes.push_back(id);
        if (!c.table[id].Is(kHardPinned)) more_bytes += RoundUpToPage(c.table[id].payload_bytes);
      }
    }
    const auto most = static_cast<uint64_t>(c.options.max_hard_pinned * static_cast<double>(c.slab.capacity_bytes()));
    if (mode == PinMode::kHard && c.stats.hard_pinned_bytes + more_bytes > most) {
      return absl::ResourceExhaustedError(absl::StrCat(c.stats.hard_pinned_bytes, " bytes are pinned hard and ",
                                                       more_bytes, " more would be; at most ", most,
                                                       " may: unpin others, or pin softly"));
    }
    for (const EntryId id : planes) c.Pin(id);  // Making room for one must not drop another.
    for (const EntryId id : planes) {
      if (replicas > 0) c.SetReplicas(id, replicas, &on_ssd);
      if (mode == PinMode::kKeep) continue;
      c.SetPinMode(id, mode);
      c.BringPinned(id);
    }
    for (const EntryId id : planes) c.Unpin(id);
    jobs = c.TakeLoads();
  }
  c.Begin(std::move(jobs));
  c.TellReplicas(on_ssd, replicas);
  return static_cast<uint32_t>(planes.size());
}

CorruptReport Store::ReportCorrupt(const PlaneId& name, absl::string_view tenant) {
  Core& c = *core_;
  CorruptReport report;
  EntryId id = kNoEntry;
  bool in_dram = false;
  std::optional<SsdRecord> record;
  std::string encoded;
  std::span<const std::byte> payload;
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    id = c.table.Find(name);
    if (id == kNoEntry || c.IsOthers(id, tenant)) return report;
    c.Pin(id);
    const auto ready = [&c, id]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(c.mu) { return !c.table[id].Is(kLoading); };
    c.mu.Await(absl::Condition(&ready));
    in_dram = c.Resident(id);
    record = c.table.SsdRecordOf(id);
    if (in_dram) {
      encoded = std::string(c.headers.Get(c.table[id].header));
      payload = c.Memory(c.table.ExtentOf(id), c.table[id].payload_bytes);
    }
  }

  bool dram_good = false;
  if (in_dram) {
    const absl::StatusOr<pod::PlaneHeader> header = pod::DecodePlaneHeader(encoded);
    dram_good = header.ok() && pod::VerifyPayload(*header, payload).ok();
  }
  bool ssd_wrong = false;
  if (record) {
    const AlignedBuffer copy(record->payload_bytes);
    const absl::StatusOr<std::string> head = c.ssd->Read(name, *record, copy.span());
    const absl::Status read =
        head.ok() ? VerifyRecord(*head, copy.span(), name, record->payload_bytes).status() : head.status();
    ssd_wrong = absl::IsDataLoss(read) || absl::IsFailedPrecondition(read);  // Else gone, or the disk's trouble.
  }

  {
    absl::MutexLock lock(&c.mu);
    report.dram_copy_dropped = in_dram && !dram_good;
    report.ssd_copy_dropped = ssd_wrong;
    c.stats.checksum_failures += report.dram_copy_dropped + report.ssd_copy_dropped;
    if (!c.table[id].Is(kDead)) {
      if (ssd_wrong && c.table.SsdRecordOf(id) == record) c.LeaveSsd(id, /*evicted=*/false);
      if (report.dram_copy_dropped && !c.LastCopy(id)) {
        // Leases may still look at the wrong bytes, so this plane dies with them; its good copies get a new one.
        PlaneMeta meta = c.table.MetaOf(id);
        meta.ttl_s = c.TtlSeconds(id);
        const bool on_remote = c.table[id].Is(kOnRemote);
        const std::optional<SsdRecord> good = c.table.SsdRecordOf(id);
        const EntryId previous = c.table.details(id).previous, next = c.table.details(id).next;
        c.Drop(id, MissReason::kChecksum);
        const EntryId fresh = c.Insert(name, meta);
        if (fresh != kNoEntry) {
          c.table.details(fresh).previous = previous;
          c.table.details(fresh).next = next;
          if (good) c.EnterSsd(fresh, *good);
          c.SetOnRemote(fresh, on_remote);
          c.events.Stored(name, meta.payload_bytes, meta.tenant, c.WallUs());
        }
      } else if (report.dram_copy_dropped) {
        c.Drop(id, MissReason::kChecksum);
      } else {
        c.DropIfNowhere(id, MissReason::kChecksum);
      }
    }
    report.still_stored = c.table.Find(name) != kNoEntry;
    c.Unpin(id);
  }
  if (report.dram_copy_dropped || report.ssd_copy_dropped) {
    spdlog::error("quarantined after a reader's report: {} (DRAM copy {}, SSD copy {})", name.ToString(),
                  report.dram_copy_dropped ? "wrong" : "kept", report.ssd_copy_dropped ? "wrong" : "kept");
  }
  if (report.ssd_copy_dropped) {
    const SsdStored wrong{name, *record};
    const absl::Status removed = c.RemoveFromSsd({&wrong, 1});
    if (!removed.ok()) spdlog::warn("quarantine: {}", std::string(removed.message()));
  }
  return report;
}

absl::StatusOr<uint32_t> Store::Delete(std::span<const pod::BlockKey> keys, absl::string_view tenant) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(keys.size()));
  if (c.ssd) PERIGEE_RETURN_IF_ERROR(Annotate(c.ssd->NoteDeletion(), "delete"));
  std::vector<SsdStored> stored;
  std::vector<PlaneId> names;
  uint32_t deleted = 0;
  for (const pod::BlockKey& key : keys) {
    for (const pod::PlaneKind kind : pod::kPlaneKinds) names.push_back({key, kind});
  }
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    if (!tenant.empty() && c.options.remote && !c.remote_listed) {
      return absl::UnavailableError("whose planes the remote tier holds is not all known yet; try again");
    }
    // What others are about to store, here or in a slower tier, is deleted too.
    c.AwaitIdle(names);
    if (!tenant.empty()) {
      std::erase_if(names, [&](const PlaneId& name) ABSL_NO_THREAD_SAFETY_ANALYSIS {
        const EntryId id = c.table.Find(name);
        return id == kNoEntry || c.IsOthers(id, tenant);
      });
    }
    if (c.options.remote) c.Claim(names);
    for (const PlaneId& name : names) {
      const EntryId id = c.table.Find(name);
      if (id == kNoEntry) continue;
      if (const auto record = c.table.SsdRecordOf(id)) stored.push_back({name, *record});
      c.Drop(id, MissReason::kDeleted);
      ++deleted;
    }
  }
  absl::Status removed = c.RemoveFromSsd(stored);
  // Known to be there or not: the store may not have heard of it yet.
  if (c.options.remote) removed.Update(c.RemoveClaimedFromRemote(names));
  PERIGEE_RETURN_IF_ERROR(Annotate(removed, "delete"));
  return deleted;
}

absl::StatusOr<uint32_t> Store::HandOver(std::span<const PlaneId> planes) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(planes.size()));
  std::vector<SsdStored> stored;
  uint32_t gone = 0;
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    c.AwaitIdle(planes);
    for (const PlaneId& name : planes) {
      const EntryId id = c.table.Find(name);
      if (id == kNoEntry) continue;
      if (const auto record = c.table.SsdRecordOf(id)) stored.push_back({name, *record});
      c.Drop(id, MissReason::kMoved);
      ++gone;
    }
  }
  // What comes back after a restart is handed over once more.
  PERIGEE_RETURN_IF_ERROR(Annotate(c.RemoveFromSsd(stored), "hand over"));
  return gone;
}

absl::StatusOr<ListPage> Store::List(absl::string_view page_token, size_t limit, absl::string_view tenant,
                                     const ListFilter& filter) {
  Core& c = *core_;
  limit = limit == 0 ? 1000 : std::min<size_t>(limit, 10000);
  // The token is the number to go on from.
  EntryId from = 0;
  if (!page_token.empty()) {
    if (page_token.size() != sizeof(from)) {
      return absl::InvalidArgumentError("the page token is not one that List gave; begin with an empty one");
    }
    std::memcpy(&from, page_token.data(), sizeof(from));
  }
  ListPage page;
  absl::MutexLock lock(&c.mu);
  c.ExpireDue();
  size_t looked_at = 0;
  for (EntryId id = c.table.NextFrom(from); id != kNoEntry; id = c.table.NextFrom(id + 1)) {
    // Also bounds what a filter may pass over in one call; such a page is short and has a token.
    if (page.planes.size() == limit || looked_at == 20000) {
      page.next_page_token.assign(reinterpret_cast<const char*>(&id), sizeof(id));
      break;
    }
    ++looked_at;
    if (c.IsOthers(id, tenant)) continue;
    const PlaneDetails& details = c.table.details(id);
    const bool grouped = details.has_group;
    if (filter.group && !(grouped && details.group == *filter.group)) continue;
    if (details.replicas < filter.least_replicas) continue;
    if (filter.placed && !(grouped && filter.placed(details.group, details.replicas))) continue;
    const PlaneEntry& entry = c.table[id];
    PlaneMeta meta = c.table.MetaOf(id);
    meta.ttl_s = c.TtlSeconds(id);
    page.planes.push_back({.id = entry.id,
                           .meta = std::move(meta),
                           .tier = c.FastestTier(id),
                           .on_ssd = details.ssd_number != 0,
                           .on_remote = entry.Is(kOnRemote),
                           .pin = entry.Is(kHardPinned)   ? PinMode::kHard
                                  : entry.Is(kSoftPinned) ? PinMode::kSoft
                                                          : PinMode::kNone,
                           .last_used_unix_us = entry.last_used_unix_us()});
  }
  return page;
}

StoreStats Store::Stats() {
  Core& c = *core_;
  absl::MutexLock lock(&c.mu);
  c.Reap();
  StoreStats s = c.stats;
  s.slab_bytes = c.slab.capacity_bytes();
  s.slab_used_bytes = c.slab.used_bytes();
  s.slab_fragmentation = c.slab.fragmentation();
  s.index_bytes = c.table.MemoryBytes() + c.slab.MemoryBytes() + c.headers.MemoryBytes() +
                  c.dram_policy->MemoryBytes() + (c.ssd_policy ? c.ssd_policy->MemoryBytes() : 0);
  if (c.ssd) {
    s.ssd = c.ssd->Stats();
    s.ssd_capacity_bytes = c.ssd->options().capacity_bytes;
  }
  if (c.options.remote) {
    s.has_remote = true;
    s.remote = c.options.remote->health();
  }
  s.tenants_over_quota = std::max(c.dram_quotas.over(), c.ssd_quotas.over());
  s.reservations = c.reservations.size();
  s.leases = c.leases.size();
  s.dram_bytes_per_s = c.dram_rate.bytes_per_s();
  s.ssd_bytes_per_s = c.ssd_rate.bytes_per_s();
  s.remote_bytes_per_s = c.remote_rate.bytes_per_s();
  return s;
}

}  // namespace perigee::kvstore
