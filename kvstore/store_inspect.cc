// List, Evict, Scrub, Stats: what operators and their tools ask for.
#include <algorithm>
#include <cstring>

#include "absl/time/clock.h"
#include "base/status.h"
#include "kvstore/store_core.h"

namespace perigee::kvstore {

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
  std::vector<std::string> headers;              // Of the page's planes, where they are in DRAM and parents are asked
  std::vector<std::optional<SsdRecord>> on_ssd;  // for; else where the SSD has them.
  absl::ReleasableMutexLock lock(&c.mu);
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
    if (!filter.parents) continue;
    headers.emplace_back(c.Resident(id) ? c.headers.Get(entry.header) : absl::string_view());
    on_ssd.push_back(c.table.SsdRecordOf(id));
  }
  lock.Release();
  for (size_t i = 0; i < headers.size(); ++i) c.FindParent(headers[i], on_ssd[i], &page.planes[i]);
  return page;
}

void Store::Core::FindParent(const std::string& header, const std::optional<SsdRecord>& on_ssd,
                             ListedPlane* plane) const {
  if (!header.empty()) {
    const absl::StatusOr<pod::PlaneHeader> decoded = pod::DecodePlaneHeader(header);
    if (!decoded.ok()) return;
    plane->parent_known = true;
    if (decoded->has_parent) plane->meta.parent = decoded->parent;
  } else if (on_ssd) {
    // Its index does not know the parents of records of before they were noted there: what is at a position has one.
    const absl::StatusOr<PlaneMeta> meta = ssd->MetaOf({plane->id, *on_ssd});
    if (!meta.ok()) return;
    plane->parent_known = meta->parent.has_value() || meta->base_position == 0;
    plane->meta.parent = meta->parent;
  }
}

absl::StatusOr<Evicted> Store::Evict(const EvictFilter& filter) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(filter.keys.size()));
  const int64_t used_before_us = c.WallUs() - absl::ToInt64Microseconds(filter.idle);
  Evicted evicted;
  const auto consider = [&](EntryId id) ABSL_NO_THREAD_SAFETY_ANALYSIS {
    if (c.EvictableBytes(id) == 0 || c.LastCopy(id) || c.table[id].Is(kSoftPinned)) return;
    if (c.IsOthers(id, filter.tenant) || c.table[id].last_used_unix_us() > used_before_us) return;
    ++evicted.planes;
    evicted.payload_bytes += c.table[id].payload_bytes;
    if (!filter.dry_run) c.EvictFromDram(id);
  };
  if (!filter.keys.empty()) {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    for (const pod::BlockKey& key : filter.keys) {
      for (const pod::PlaneKind kind : pod::kPlaneKinds) {
        if (const EntryId id = c.table.Find({key, kind}); id != kNoEntry) consider(id);
      }
    }
    return evicted;
  }
  // In pieces, so that others get the lock in between.
  constexpr int kPiece = 4096;
  for (EntryId next = 0; next != kNoEntry;) {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    EntryId id = c.table.NextFrom(next);
    for (int looked_at = 0; id != kNoEntry && looked_at < kPiece; ++looked_at) {
      consider(id);
      id = c.table.NextFrom(id + 1);
    }
    next = id;
  }
  return evicted;
}

absl::Status Store::Scrub() {
  if (!core_->ssd) return absl::FailedPreconditionError("the store has no disk tier: there is nothing to scrub");
  core_->ssd->Scrub();
  return absl::OkStatus();
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
