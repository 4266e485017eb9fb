// Reserve, Commit, Abort.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <numeric>
#include <tuple>

#include "base/parallel.h"
#include "base/status.h"
#include "kvstore/remote/batch.h"
#include "kvstore/store_core.h"

namespace perigee::kvstore {
namespace {

// One item on its way through Commit.
struct Pending {
  uint64_t reservation_id = 0;
  PlaneId id;
  Extent extent;
  uint64_t payload_bytes = 0;
  pod::PlaneHeader header;
  bool known = false;                      // The reservation is marked as committing.
  bool claimed = false;                    // The plane is in `busy`.
  bool present = false;                    // Somebody else committed the plane meanwhile.
  bool to_ssd = false, to_remote = false;  // What is still to be done for the durability asked for.
  bool own_fault = false;                  // The store failed, not the writer: the reservation stays.
  absl::Status status;
  std::optional<SsdRecord> record;  // Stored on the SSD.
  bool on_remote = false;
};

absl::Status CheckHeader(const Pending& p, absl::string_view encoded, pod::PlaneHeader* out) {
  if (encoded.size() > kMaxHeaderBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("plane header of ", encoded.size(), " bytes; at most ", kMaxHeaderBytes, " are allowed"));
  }
  size_t used = 0;
  PERIGEE_ASSIGN_OR_RETURN(*out, pod::DecodePlaneHeader(encoded, &used));
  if (used != encoded.size()) {
    return absl::InvalidArgumentError(absl::StrCat(encoded.size() - used, " bytes follow the plane header"));
  }
  if (out->key != p.id.key || out->kind != p.id.kind) {
    return absl::InvalidArgumentError(absl::StrCat("the header is of plane ", PlaneId{out->key, out->kind}.ToString(),
                                                   ", the reservation of ", p.id.ToString()));
  }
  if (out->payload_bytes != p.payload_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the header of ", p.id.ToString(), " says ", out->payload_bytes,
                                                   " payload bytes, the reservation ", p.payload_bytes));
  }
  return absl::OkStatus();
}

uint8_t ReplicasOf(const CommitItem& item) { return static_cast<uint8_t>(std::max(item.replicas, 1u)); }

absl::Status OverBandwidth(absl::string_view tenant, absl::Duration wait) {
  return absl::ResourceExhaustedError(
      absl::StrCat("tenant '", tenant, "' is over its bandwidth; try again in ", absl::FormatDuration(wait)));
}

}  // namespace

absl::StatusOr<std::vector<Reservation>> Store::Reserve(std::span<const PlaneRequest> planes, absl::Duration ttl,
                                                        absl::string_view tenant) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(planes.size()));
  PERIGEE_ASSIGN_OR_RETURN(ttl, c.CheckTtl(ttl));
  const uint64_t capacity = c.slab_memory.size() / kPageBytes * kPageBytes;
  std::vector<PlaneId> names;
  for (const PlaneRequest& p : planes) {
    names.push_back(p.id);
    if (p.payload_bytes == 0) {
      return absl::InvalidArgumentError(absl::StrCat(p.id.ToString(), " has 0 bytes: empty planes are not stored"));
    }
    if (p.payload_bytes > capacity) {
      return absl::ResourceExhaustedError(
          absl::StrCat(p.id.ToString(), " has ", p.payload_bytes, " bytes; the store's whole memory has ", capacity));
    }
  }
  const int64_t now_us = c.WallUs();
  absl::MutexLock lock(&c.mu);
  c.Reap();
  const absl::Time now = c.options.now();
  if (const absl::Duration wait = c.bandwidth.Wait(tenant, now); wait > absl::ZeroDuration()) {
    c.stats.over_quota += planes.size();
    return OverBandwidth(tenant, wait);
  }
  const uint32_t account = c.dram_quotas.NumberOf(tenant);
  uint64_t need = 0, payload = 0;
  std::vector<Reservation> out(planes.size());
  // Planes of this batch that are stored already are held, so that making room for the others does not throw them out.
  std::vector<EntryId> held(planes.size());
  c.table.FindAll(names, held);
  for (size_t i = 0; i < planes.size(); ++i) {
    if (held[i] == kNoEntry) {
      need += RoundUpToPage(planes[i].payload_bytes);
      payload += planes[i].payload_bytes;
      continue;
    }
    c.Touch(held[i], now_us);
    c.Pin(held[i]);
    out[i].already_committed = true;
  }
  bool enough = need <= c.slab.free_bytes() + c.evictable_bytes && need <= c.dram_quotas.QuotaBytes(account);
  std::vector<uint64_t> made;
  for (size_t i = 0; enough && i < planes.size(); ++i) {
    if (out[i].already_committed) continue;
    const std::optional<Extent> extent = c.AllocateExtent(planes[i].payload_bytes, account);
    if (!extent) {
      enough = false;
      break;
    }
    out[i].id = c.NewId();
    out[i].address = c.Address(*extent);
    const absl::Time expiry = now + ttl;
    const auto end = c.reservation_ends.Add(absl::ToUnixNanos(expiry + c.options.reclaim_grace), out[i].id);
    c.reservations.emplace(out[i].id, ReservationState{.id = planes[i].id,
                                                       .payload_bytes = planes[i].payload_bytes,
                                                       .extent = *extent,
                                                       .account = account,
                                                       .charged = !tenant.empty(),
                                                       .expiry = expiry,
                                                       .end = end});
    c.stats.reserved_bytes += RoundUpToPage(planes[i].payload_bytes);
    c.dram_quotas.Add(account, RoundUpToPage(planes[i].payload_bytes));
    made.push_back(out[i].id);
  }
  for (const EntryId id : held) {
    if (id != kNoEntry) c.Unpin(id);
  }
  if (!enough) {
    for (uint64_t id : made) c.EndReservation(id);
    return absl::ResourceExhaustedError(absl::StrCat(
        "the store has no room for ", planes.size(), " planes of ", need, " bytes: ", c.slab.free_bytes(),
        " free (largest piece ", c.slab.largest_free_bytes(), "), ", c.evictable_bytes, " evictable, ",
        c.stats.leased_bytes, " leased, ", c.stats.hard_pinned_bytes, " pinned, ", c.stats.reserved_bytes, " reserved",
        account == 0 ? std::string()
                     : absl::StrCat("; tenant '", tenant, "' has ", c.dram_quotas.UsedBytes(account),
                                    " of its quota of ", c.dram_quotas.QuotaBytes(account)),
        "; try again when leases end, or give the store more memory"));
  }
  c.bandwidth.Use(tenant, payload);
  return out;
}

absl::StatusOr<std::vector<absl::Status>> Store::Commit(std::span<const CommitItem> items, Durability durability) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(items.size()));
  if (durability == Durability::kSynced && !c.ssd) {
    return absl::FailedPreconditionError(
        "this store has no SSD tier: commit with DRAM durability, or give it a data folder");
  }
  if (durability == Durability::kReplicated && !c.options.remote) {
    return absl::FailedPreconditionError(
        "this store has no remote tier: commit with another durability, or give it one");
  }
  for (const CommitItem& item : items) {
    if (item.ttl_s > kMaxTtlSeconds) {
      return absl::InvalidArgumentError(
          absl::StrCat("a time to live of ", item.ttl_s, " s; at most ", kMaxTtlSeconds, " are possible"));
    }
    PERIGEE_RETURN_IF_ERROR(CheckReplicas(item.replicas));
  }
  const bool to_ssd = c.ssd && durability != Durability::kDram;

  // 1. Claim the reservations.
  std::vector<Pending> pending(items.size());
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    const absl::Time now = c.options.now();
    absl::flat_hash_set<PlaneId> in_batch;
    for (size_t i = 0; i < items.size(); ++i) {
      Pending& p = pending[i];
      p.reservation_id = items[i].reservation_id;
      const auto it = c.reservations.find(p.reservation_id);
      if (it == c.reservations.end() || it->second.ended || it->second.expiry <= now) {
        p.status = absl::NotFoundError(
            absl::StrCat("reservation ", p.reservation_id, " is unknown or has expired; reserve again"));
        continue;
      }
      ReservationState& r = it->second;
      if (r.committing || !in_batch.insert(r.id).second) {
        p.status = absl::AbortedError(absl::StrCat(r.id.ToString(), " is being committed already"));
        continue;
      }
      r.committing = true;
      p.known = true;
      p.id = r.id;
      p.extent = r.extent;
      p.payload_bytes = r.payload_bytes;
    }
  }

  // 2. Check headers and payload.
  ParallelFor(pending.size(), [&](size_t i) {
    Pending& p = pending[i];
    if (!p.known) return;
    p.status = CheckHeader(p, items[i].header, &p.header);
    if (p.status.ok())
      p.status = pod::VerifyPayload(p.header, c.Memory(p.extent, p.payload_bytes), c.options.sum_of_puts);
    if (!p.status.ok()) return;
    const uint64_t padded = RoundUpToPage(p.payload_bytes);
    std::memset(c.Memory(p.extent, padded).data() + p.payload_bytes, 0, padded - p.payload_bytes);
  });

  // 3. One call at a time per plane.
  std::vector<PlaneId> names;
  for (const Pending& p : pending) {
    if (p.known && p.status.ok()) names.push_back(p.id);
  }
  {
    absl::MutexLock lock(&c.mu);
    c.AwaitIdle(names);
    for (Pending& p : pending) {
      if (!p.known || !p.status.ok()) continue;
      ReservationState& r = c.reservations.at(p.reservation_id);
      if (!r.charged) {  // Whose it is was not known before.
        const absl::Duration wait = c.bandwidth.Wait(p.header.tenant, c.options.now());
        if (wait > absl::ZeroDuration()) {
          ++c.stats.over_quota;
          p.status = OverBandwidth(p.header.tenant, wait);
          p.own_fault = true;
          continue;
        }
        c.bandwidth.Use(p.header.tenant, p.payload_bytes);
        r.charged = true;
      }
      const EntryId there = c.table.Find(p.id);
      p.present = there != kNoEntry;
      p.to_ssd = to_ssd && !(p.present && c.table.SsdRecordOf(there));
      p.to_remote = durability == Durability::kReplicated && !(p.present && c.table[there].Is(kOnRemote));
      if (p.present && !p.to_ssd && !p.to_remote) continue;
      p.present = false;  // Or not durable enough: stored once more, in what it lacks.
      p.claimed = c.busy.insert(p.id).second;
    }
  }

  // 4. To slower tiers: all of the batch under one sync.
  const int64_t created = c.WallUs();
  const auto those = [&](auto wanted) {
    std::vector<size_t> out;
    for (size_t i = 0; i < pending.size(); ++i) {
      if (pending[i].known && pending[i].status.ok() && wanted(pending[i])) out.push_back(i);
    }
    return out;
  };
  if (const std::vector<size_t> moving = those([](const Pending& p) { return p.to_ssd; }); !moving.empty()) {
    std::vector<SsdWrite> writes;
    for (const size_t i : moving) {
      const Pending& p = pending[i];
      writes.push_back({.id = p.id,
                        .meta = MetaOf(p.header, created, items[i].ttl_s, ReplicasOf(items[i])),
                        .head = EncodeRecordHead(p.id, items[i].header, p.payload_bytes, created, items[i].ttl_s),
                        .padded_payload = c.Memory(p.extent, RoundUpToPage(p.payload_bytes))});
    }
    const absl::StatusOr<std::vector<SsdRecord>> records = c.ssd->Append(writes);
    for (size_t i = 0; i < moving.size(); ++i) {
      Pending& p = pending[moving[i]];
      if (records.ok()) {
        p.record = (*records)[i];
      } else if (durability == Durability::kSynced) {
        p.status = records.status();
        p.own_fault = true;
      }  // Else a disk that takes no writes is no outage: memory takes the plane.
    }
    if (!records.ok()) {
      spdlog::warn("commit of {} planes: {}", writes.size(), std::string(records.status().message()));
    }
  }
  if (const std::vector<size_t> moving = those([](const Pending& p) { return p.to_remote; }); !moving.empty()) {
    std::vector<RemotePut> puts;
    for (const size_t i : moving) {
      const Pending& p = pending[i];
      puts.push_back({.id = p.id,
                      .encoded_header = items[i].header,
                      .payload = c.Memory(p.extent, p.payload_bytes),
                      .created_unix_us = created,
                      .ttl_s = items[i].ttl_s});
    }
    const std::vector<absl::Status> put =
        PutAll(*c.options.remote, std::move(puts), absl::Now() + c.options.remote_deadline);
    std::vector<SsdStored> undone;
    for (size_t i = 0; i < moving.size(); ++i) {
      Pending& p = pending[moving[i]];
      p.on_remote = put[i].ok();
      if (p.on_remote) continue;
      p.status = put[i];
      p.own_fault = true;
      if (p.record) undone.push_back({p.id, *p.record});
    }
    if (!undone.empty()) {
      if (const absl::Status removed = c.RemoveFromSsd(undone); !removed.ok()) {
        spdlog::warn("an unfinished commit: {}", std::string(removed.message()));
      }
    }
  }

  // 5. Make visible, chains from their start.
  std::vector<absl::Status> out(pending.size());
  std::vector<size_t> order(pending.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const auto place = [&](size_t i) { return PlaceInChain(pending[i].id, pending[i].header.base_position); };
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return place(a) < place(b); });
  std::vector<SsdStored> homeless;
  std::array<std::vector<SsdStored>, kMaxReplicas + 1> raised;  // [replicas]
  {
    absl::MutexLock lock(&c.mu);
    for (const size_t i : order) {
      Pending& p = pending[i];
      if (!p.known) {
        out[i] = p.status;
        ++c.stats.refused_commits;
        continue;
      }
      ReservationState& r = c.reservations.at(p.reservation_id);
      r.committing = false;
      if (p.claimed) c.busy.erase(p.id);
      EntryId id = kNoEntry;
      bool is_new = false;
      if (p.status.ok() && !p.present) {
        id = c.table.Find(p.id);  // It was there already, or the background has heard of it from the remote tier.
        is_new = id == kNoEntry;
        const PlaneMeta meta = MetaOf(p.header, created, items[i].ttl_s, ReplicasOf(items[i]));
        if (id == kNoEntry) id = c.Insert(p.id, meta);
        while (id == kNoEntry && c.FreeEntry(&homeless)) id = c.Insert(p.id, meta);
        if (id == kNoEntry) {
          p.status = absl::ResourceExhaustedError("the store's index is full: evict planes, or allow more of them");
          p.own_fault = true;
          if (p.record) homeless.push_back({p.id, *p.record});
        }
      }
      out[i] = p.status;
      if (!p.status.ok()) {
        ++c.stats.refused_commits;
        if (!p.own_fault) c.EndReservation(p.reservation_id);
        continue;
      }
      if (!p.present && p.record) {
        c.LeaveSsd(id, /*evicted=*/false);  // The new record took the old one's place.
        c.EnterSsd(id, *p.record);
      }
      if (!p.present && p.on_remote) c.SetOnRemote(id, true);
      if (p.present) id = c.table.Find(p.id);
      if (id != kNoEntry && !is_new) {
        const uint32_t said = ReplicasOf(items[i]), most = std::max<uint32_t>(said, c.table.details(id).replicas);
        c.SetReplicas(id, most, &raised[most]);
        if (p.record && most != said) raised[most].push_back({p.id, *p.record});
      }
      if (p.present || c.table[id].Is(kInDram)) {
        c.EndReservation(p.reservation_id);
        continue;
      }
      // The extent passes from the reservation to the plane.
      c.stats.reserved_bytes -= RoundUpToPage(r.payload_bytes);
      c.dram_quotas.Subtract(r.account, RoundUpToPage(r.payload_bytes));
      c.reservation_ends.Cancel(r.end);
      c.reservations.erase(p.reservation_id);
      c.table[id].header = c.headers.Add(items[i].header);
      c.EnterDram(id, p.extent);
      c.stats.committed_bytes += p.payload_bytes;
      if (is_new) c.events.Stored(p.id, p.payload_bytes, p.header.tenant, created);
    }
  }
  for (uint32_t replicas = 1; replicas < raised.size(); ++replicas) c.TellReplicas(raised[replicas], replicas);
  if (!homeless.empty()) {
    if (const absl::Status removed = c.RemoveFromSsd(homeless); !removed.ok()) {
      spdlog::warn("planes that the index has no room for: {}", std::string(removed.message()));
    }
  }
  return out;
}

uint32_t Store::Abort(std::span<const uint64_t> reservation_ids, bool writes_may_arrive) {
  Core& c = *core_;
  absl::MutexLock lock(&c.mu);
  c.Reap();
  uint32_t aborted = 0;
  for (uint64_t id : reservation_ids) {
    const auto it = c.reservations.find(id);
    if (it == c.reservations.end() || it->second.ended || it->second.committing) continue;
    ++aborted;
    if (writes_may_arrive) {
      it->second.ended = true;
    } else {
      c.EndReservation(id);
    }
  }
  return aborted;
}

}  // namespace perigee::kvstore
