// Lookup, leases, ReportCorrupt, List, Stats.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstdlib>

#include "absl/synchronization/blocking_counter.h"
#include "absl/time/clock.h"
#include "base/parallel.h"
#include "base/status.h"
#include "kvstore/store_core.h"

namespace perigee::kvstore {
namespace {

struct FreeDeleter {
  void operator()(std::byte* p) const { std::free(p); }
};

}  // namespace

absl::StatusOr<std::vector<BlockInfo>> Store::Lookup(std::span<const pod::BlockKey> keys, absl::string_view tenant,
                                                     LookupMode mode) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(keys.size()));
  std::vector<BlockInfo> out(keys.size());
  absl::MutexLock lock(&c.mu);
  for (size_t i = 0; i < keys.size(); ++i) {
    for (const pod::PlaneKind kind : pod::kPlaneKinds) {
      const PlaneId id{keys[i], kind};
      const EntryPtr entry = c.Find(id);
      if (entry == nullptr) {
        out[i].misses.push_back({kind, c.history.Find(id)});
      } else if (!tenant.empty() && tenant != entry->meta.tenant) {
        out[i].misses.push_back({kind, {MissReason::kOtherTenant, 0}});
      } else {
        const uint64_t bytes = entry->meta.payload_bytes;
        const bool in_dram = entry->extent && !entry->loading;
        out[i].planes.push_back(
            {.kind = kind,
             .tier = in_dram ? Tier::kDram : Tier::kSsd,
             .payload_bytes = bytes,
             .estimated_fetch_us = c.dram_rate.EstimateUs(bytes) + (in_dram ? 0 : c.ssd_rate.EstimateUs(bytes))});
      }
    }
    const auto distant = [](const FoundPlane& plane) { return plane.kind == pod::PlaneKind::kDistant; };
    if (mode == LookupMode::kPrefix && std::none_of(out[i].planes.begin(), out[i].planes.end(), distant)) {
      out.resize(i + 1);
      break;
    }
  }
  return out;
}

absl::StatusOr<Lease> Store::Acquire(std::span<const PlaneId> planes, absl::Duration ttl, absl::string_view tenant,
                                     bool resident_only) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(planes.size()));
  PERIGEE_ASSIGN_OR_RETURN(ttl, c.CheckTtl(ttl));
  Lease out;
  out.planes.resize(planes.size());
  std::vector<EntryPtr> entries(planes.size());  // Pinned; null for misses.
  struct Loading {
    size_t place;
    SsdRecord record;
    uint64_t extent;
    absl::StatusOr<std::string> header;  // At first the record's head.
  };
  std::vector<Loading> loads;
  std::vector<size_t> waits;  // Planes that another call (or an earlier place of this one) is loading.

  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    for (size_t i = 0; resident_only && i < planes.size(); ++i) {
      const EntryPtr entry = c.Find(planes[i]);
      if (entry != nullptr && (!entry->extent || entry->loading)) {
        return absl::UnimplementedError(absl::StrCat(planes[i].ToString(), " has to come from the SSD first"));
      }
    }
    const uint64_t tick = ++c.ticks;
    for (size_t i = 0; i < planes.size(); ++i) {
      LeasedPlane& plane = out.planes[i];
      const EntryPtr entry = c.Find(planes[i]);
      if (entry == nullptr) {
        plane.miss = c.history.Find(planes[i]);
        continue;
      }
      if (!tenant.empty() && tenant != entry->meta.tenant) {
        plane.miss = {MissReason::kOtherTenant, 0};
        continue;
      }
      if (entry->extent) {
        c.Pin(entry);
        if (entry->loading) waits.push_back(i);
        plane.tier = entry->loading ? Tier::kSsd : Tier::kDram;
      } else {
        const std::optional<uint64_t> extent = c.AllocateExtent(entry->meta.payload_bytes);
        if (!extent) {
          plane.miss = {MissReason::kNoRoom, 0};
          continue;
        }
        entry->extent = extent;
        entry->loading = true;
        c.Pin(entry);
        plane.tier = Tier::kSsd;
        loads.push_back({i, *entry->ssd, *extent, std::string()});
      }
      c.Touch(entry, tick, i);
      entries[i] = entry;
    }
  }

  const absl::Time started = absl::Now();
  if (!loads.empty()) {
    absl::BlockingCounter left(static_cast<int>(loads.size()));
    std::vector<SsdRead> reads;
    for (Loading& l : loads) {
      reads.push_back({planes[l.place], l.record, c.Memory(l.extent, RoundUpToPage(l.record.payload_bytes)),
                       [&left, &l](absl::StatusOr<std::string> head) {
                         l.header = std::move(head);
                         left.DecrementCount();
                       }});
    }
    c.ssd->ReadAsync(std::move(reads));
    left.Wait();
    ParallelFor(loads.size(), [&](size_t i) {
      Loading& l = loads[i];
      if (!l.header.ok()) return;
      absl::StatusOr<RecordHead> record =
          VerifyRecord(*l.header, c.Memory(l.extent, RoundUpToPage(l.record.payload_bytes)), planes[l.place],
                       l.record.payload_bytes);
      l.header = record.ok() ? absl::StatusOr<std::string>(std::move(record->encoded_header)) : record.status();
    });
  }
  const double seconds = absl::ToDoubleSeconds(absl::Now() - started);

  std::vector<SsdStored> wrong;
  {
    absl::MutexLock lock(&c.mu);
    uint64_t loaded_bytes = 0;
    for (Loading& l : loads) {
      EntryPtr& entry = entries[l.place];
      entry->loading = false;
      if (l.header.ok()) {
        entry->header = *std::move(l.header);
        loaded_bytes += entry->meta.payload_bytes;
        continue;
      }
      // Its bytes are wrong or unreadable: it must never be served. (NOT_FOUND: its segment was evicted meanwhile.)
      const bool evicted = absl::IsNotFound(l.header.status());
      const bool unreadable = absl::IsUnavailable(l.header.status());
      if (!evicted) {
        if (!unreadable && entry->ssd == l.record) ++c.stats.checksum_failures;  // Else the scrubber was first.
        wrong.push_back({entry->id, l.record});
        spdlog::error("quarantined: {}", std::string(l.header.status().message()));
      }
      if (!entry->dead) {
        c.Gone(*entry, evicted ? MissReason::kEvicted : unreadable ? MissReason::kDiskLost : MissReason::kChecksum);
      }
      c.Unlink(entry);
    }
    c.ssd_rate.Add(loaded_bytes, seconds);
    for (const size_t i : waits) {
      Entry* entry = entries[i].get();
      const auto ready = [entry] { return !entry->loading; };
      c.mu.Await(absl::Condition(&ready));
    }
    for (size_t i = 0; i < planes.size(); ++i) {
      LeasedPlane& plane = out.planes[i];
      if (entries[i] != nullptr && entries[i]->header.empty()) {  // The load failed, here or elsewhere.
        plane.miss = c.history.Find(planes[i]);
        c.Unpin(entries[i]);
        entries[i] = nullptr;
      }
      if (entries[i] == nullptr) {
        ++c.stats.misses;
        continue;
      }
      const Entry& entry = *entries[i];
      plane.found = true;
      plane.address = c.Address(*entry.extent);
      plane.payload_bytes = entry.meta.payload_bytes;
      plane.header = entry.header;
      plane.estimated_fetch_us = c.dram_rate.EstimateUs(plane.payload_bytes);
      ++(plane.tier == Tier::kDram ? c.stats.hits_dram : c.stats.hits_ssd);
      c.stats.leased_payload_bytes += plane.payload_bytes;
    }
    std::erase(entries, nullptr);
    if (!entries.empty()) {
      out.id = c.NewId();
      const absl::Time expiry = c.options.now() + ttl;
      c.lease_ends.insert({expiry, out.id});
      c.leases.emplace(out.id, LeaseState{std::move(entries), expiry});
    }
  }
  if (!wrong.empty()) {
    const absl::Status removed = c.ssd->Remove(wrong);
    if (!removed.ok()) spdlog::warn("quarantine: {}", std::string(removed.message()));
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
  c.lease_ends.erase({it->second.expiry, lease_id});
  it->second.expiry = c.options.now() + ttl;
  c.lease_ends.insert({it->second.expiry, lease_id});
  return absl::OkStatus();
}

absl::Status Store::Release(uint64_t lease_id, uint64_t fetched_bytes, uint64_t fetch_us) {
  Core& c = *core_;
  absl::MutexLock lock(&c.mu);
  c.Reap();
  if (!c.leases.contains(lease_id)) {
    return absl::NotFoundError(absl::StrCat("lease ", lease_id, " is unknown or has expired"));
  }
  c.EndLease(lease_id);
  c.stats.fetched_bytes += fetched_bytes;
  c.dram_rate.Add(fetched_bytes, static_cast<double>(fetch_us) * 1e-6);
  return absl::OkStatus();
}

CorruptReport Store::ReportCorrupt(const PlaneId& id) {
  Core& c = *core_;
  CorruptReport report;
  EntryPtr entry;
  bool in_dram = false;
  std::optional<SsdRecord> record;
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    entry = c.Find(id);
    if (entry == nullptr) return report;
    c.Pin(entry);
    const auto ready = [e = entry.get()] { return !e->loading; };
    c.mu.Await(absl::Condition(&ready));
    in_dram = entry->extent && !entry->header.empty();
    record = entry->ssd;
  }

  bool dram_good = false;
  if (in_dram) {
    // Pinned: header and extent stay as they are.
    const absl::StatusOr<pod::PlaneHeader> header = pod::DecodePlaneHeader(entry->header);
    dram_good = header.ok() && pod::VerifyPayload(*header, c.Memory(*entry->extent, entry->meta.payload_bytes)).ok();
  }
  bool ssd_good = false;
  bool ssd_wrong = false;
  if (record) {
    const size_t bytes = RoundUpToPage(record->payload_bytes);
    const std::unique_ptr<std::byte, FreeDeleter> copy(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes)));
    if (copy == nullptr) {
      ssd_good = true;  // Not looked at; the next Acquire will.
    } else {
      const std::span<std::byte> memory(copy.get(), bytes);
      const absl::StatusOr<std::string> head = c.ssd->Read(id, *record, memory);
      ssd_good = head.ok() && VerifyRecord(*head, memory, id, record->payload_bytes).ok();
      ssd_wrong = !ssd_good && !absl::IsNotFound(head.status());
    }
  }

  {
    absl::MutexLock lock(&c.mu);
    report.dram_copy_dropped = in_dram && !dram_good;
    report.ssd_copy_dropped = ssd_wrong;
    if (report.dram_copy_dropped) ++c.stats.checksum_failures;
    if (report.ssd_copy_dropped) {
      ++c.stats.checksum_failures;
      if (entry->ssd == record) entry->ssd.reset();
    }
    if (!entry->dead && (in_dram ? !dram_good : ssd_wrong)) {
      // Leases may still look at the wrong bytes, so this entry dies with them; a good SSD copy gets a new one.
      c.Unlink(entry);
      if (ssd_good && entry->ssd) {
        auto fresh = std::make_shared<Entry>();
        fresh->id = id;
        fresh->meta = entry->meta;
        fresh->number = ++c.next_entry;
        fresh->ssd = entry->ssd;
        fresh->lru = entry->lru;
        fresh->last_used_unix_us = entry->last_used_unix_us;
        c.index[id] = std::move(fresh);
      } else {
        c.Gone(*entry, MissReason::kChecksum);
      }
    }
    report.still_stored = c.Find(id) != nullptr;
    c.Unpin(entry);
  }
  if (report.dram_copy_dropped || report.ssd_copy_dropped) {
    spdlog::error("quarantined after a reader's report: {} (DRAM copy {}, SSD copy {})", id.ToString(),
                  report.dram_copy_dropped ? "wrong" : "kept", report.ssd_copy_dropped ? "wrong" : "kept");
  }
  if (report.ssd_copy_dropped) {
    const SsdStored wrong{id, *record};
    const absl::Status removed = c.ssd->Remove({&wrong, 1});
    if (!removed.ok()) spdlog::warn("quarantine: {}", std::string(removed.message()));
  }
  return report;
}

absl::StatusOr<ListPage> Store::List(absl::string_view page_token, size_t limit, absl::string_view tenant) {
  Core& c = *core_;
  limit = limit == 0 ? 1000 : std::min<size_t>(limit, 10000);
  // The token is the last plane listed: key and kind.
  std::optional<PlaneId> after;
  if (!page_token.empty()) {
    const absl::StatusOr<pod::BlockKey> key = pod::BlockKeyFromBytes(page_token.substr(0, page_token.size() - 1));
    const uint8_t kind = static_cast<uint8_t>(page_token.back());
    if (!key.ok() || kind < 1 || kind > 3) {
      return absl::InvalidArgumentError("the page token is not one that List gave; begin with an empty one");
    }
    after = PlaneId{*key, static_cast<pod::PlaneKind>(kind)};
  }
  ListPage page;
  absl::MutexLock lock(&c.mu);
  size_t looked_at = 0;
  PlaneId last{};
  for (auto it = after ? c.index.upper_bound(*after) : c.index.begin(); it != c.index.end(); ++it) {
    // Also bounds what a filter may pass over in one call; such a page is short and has a token.
    if (page.planes.size() == limit || looked_at == 100000) {
      page.next_page_token = EncodeIndexKey(last);
      break;
    }
    const Entry& entry = *it->second;
    last = entry.id;
    ++looked_at;
    if (!tenant.empty() && entry.meta.tenant != tenant) continue;
    page.planes.push_back({.id = entry.id,
                           .meta = entry.meta,
                           .tier = entry.extent && !entry.loading ? Tier::kDram : Tier::kSsd,
                           .on_ssd = entry.ssd.has_value(),
                           .last_used_unix_us = entry.last_used_unix_us});
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
  if (c.ssd) {
    s.ssd = c.ssd->Stats();
    s.ssd_capacity_bytes = c.ssd->options().capacity_bytes;
  }
  for (const auto& [id, entry] : c.index) {
    const auto count = [&, kind = id.kind](Tier tier) {
      TierCount& t = s.counts[static_cast<size_t>(tier) - 1][static_cast<size_t>(kind) - 1];
      ++t.planes;
      t.payload_bytes += entry->meta.payload_bytes;
    };
    if (entry->extent && !entry->loading) count(Tier::kDram);
    if (entry->ssd) count(Tier::kSsd);
  }
  s.reservations = c.reservations.size();
  s.leases = c.leases.size();
  s.dram_bytes_per_s = c.dram_rate.bytes_per_s();
  s.ssd_bytes_per_s = c.ssd_rate.bytes_per_s();
  return s;
}

}  // namespace perigee::kvstore
