// Reserve, Commit, Abort, Delete.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "base/status.h"
#include "kvstore/store_core.h"

namespace perigee::kvstore {
namespace {

// One item on its way through Commit.
struct Pending {
  uint64_t reservation_id = 0;
  PlaneId id;
  uint64_t extent = 0;
  uint64_t payload_bytes = 0;
  pod::PlaneHeader header;
  bool known = false;      // The reservation is marked as committing.
  bool claimed = false;    // The plane is in `committing`.
  bool present = false;    // Somebody else committed the plane meanwhile.
  bool own_fault = false;  // The store failed, not the writer: the reservation stays.
  absl::Status status;
  std::optional<SsdRecord> record;  // Stored on the SSD.
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

}  // namespace

absl::StatusOr<std::vector<Reservation>> Store::Reserve(std::span<const PlaneRequest> planes, absl::Duration ttl) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(planes.size()));
  PERIGEE_ASSIGN_OR_RETURN(ttl, c.CheckTtl(ttl));
  const uint64_t capacity = c.slab_memory.size() / kPageBytes * kPageBytes;
  for (const PlaneRequest& p : planes) {
    if (p.payload_bytes == 0) {
      return absl::InvalidArgumentError(absl::StrCat(p.id.ToString(), " has 0 bytes: empty planes are not stored"));
    }
    if (p.payload_bytes > capacity) {
      return absl::ResourceExhaustedError(
          absl::StrCat(p.id.ToString(), " has ", p.payload_bytes, " bytes; the store's whole memory has ", capacity));
    }
  }
  absl::MutexLock lock(&c.mu);
  c.Reap();
  const uint64_t tick = ++c.ticks;
  const absl::Time expiry = c.options.now() + ttl;
  uint64_t need = 0;
  std::vector<Reservation> out(planes.size());
  // Planes of this batch that are stored already are held, so that making room for the others does not throw them out.
  std::vector<EntryPtr> held;
  for (size_t i = 0; i < planes.size(); ++i) {
    if (const EntryPtr entry = c.Find(planes[i].id)) {
      c.Touch(entry, tick, i);
      c.Pin(entry);
      held.push_back(entry);
      out[i].already_committed = true;
    } else {
      need += RoundUpToPage(planes[i].payload_bytes);
    }
  }
  bool enough = need <= c.slab.free_bytes() + c.evictable_bytes;
  std::vector<uint64_t> made;
  for (size_t i = 0; enough && i < planes.size(); ++i) {
    if (out[i].already_committed) continue;
    const std::optional<uint64_t> extent = c.AllocateExtent(planes[i].payload_bytes);
    if (!extent) {
      enough = false;
      break;
    }
    out[i].id = c.NewId();
    out[i].address = c.Address(*extent);
    c.reservations.emplace(
        out[i].id,
        ReservationState{
            .id = planes[i].id, .payload_bytes = planes[i].payload_bytes, .extent = *extent, .expiry = expiry});
    c.reservation_ends.insert({expiry + c.options.reclaim_grace, out[i].id});
    c.stats.reserved_bytes += RoundUpToPage(planes[i].payload_bytes);
    made.push_back(out[i].id);
  }
  for (const EntryPtr& entry : held) c.Unpin(entry);
  if (!enough) {
    for (uint64_t id : made) c.EndReservation(id);
    return absl::ResourceExhaustedError(
        absl::StrCat("the store has no room for ", planes.size(), " planes of ", need, " bytes: ", c.slab.free_bytes(),
                     " free (largest piece ", c.slab.largest_free_bytes(), "), ", c.evictable_bytes, " evictable, ",
                     c.stats.leased_bytes, " leased, ", c.stats.reserved_bytes,
                     " reserved; try again when leases end, or give the store more memory"));
  }
  return out;
}

absl::StatusOr<std::vector<absl::Status>> Store::Commit(std::span<const CommitItem> items, Durability durability) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(items.size()));
  if (durability == Durability::kSynced && !c.ssd) {
    return absl::FailedPreconditionError(
        "this store has no SSD tier: commit with DRAM durability, or give it a data folder");
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

  // 3. One Commit at a time per plane. All at once or none, so that two Commits cannot wait for each other.
  {
    absl::MutexLock lock(&c.mu);
    const auto free = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(c.mu) {
      return std::none_of(pending.begin(), pending.end(), [&](const Pending& p) ABSL_EXCLUSIVE_LOCKS_REQUIRED(c.mu) {
        return p.known && p.status.ok() && c.committing.contains(p.id);
      });
    };
    c.mu.Await(absl::Condition(&free));
    for (Pending& p : pending) {
      if (!p.known || !p.status.ok()) continue;
      p.present = c.Find(p.id) != nullptr;
      p.claimed = !p.present && c.committing.insert(p.id).second;
    }
  }

  // 4. To the SSD: all of the batch under one sync.
  const int64_t created = NowUnixUs();
  if (to_ssd) {
    std::vector<SsdWrite> writes;
    std::vector<Pending*> written;
    for (size_t i = 0; i < pending.size(); ++i) {
      Pending& p = pending[i];
      if (!p.known || !p.status.ok() || p.present) continue;
      writes.push_back({.id = p.id,
                        .meta = MetaOf(p.header, created),
                        .head = EncodeRecordHead(p.id, items[i].header, p.payload_bytes, created),
                        .padded_payload = c.Memory(p.extent, RoundUpToPage(p.payload_bytes))});
      written.push_back(&p);
    }
    if (!writes.empty()) {
      const absl::StatusOr<std::vector<SsdRecord>> records = c.ssd->Append(writes);
      for (size_t i = 0; i < written.size(); ++i) {
        if (records.ok()) {
          written[i]->record = (*records)[i];
        } else if (durability == Durability::kSynced) {
          written[i]->status = records.status();
          written[i]->own_fault = true;
        }  // Else a disk that takes no writes is no outage: memory takes the plane.
      }
      if (!records.ok()) {
        spdlog::warn("commit of {} planes: {}", writes.size(), std::string(records.status().message()));
      }
    }
  }

  // 5. Make visible.
  std::vector<absl::Status> out;
  absl::MutexLock lock(&c.mu);
  const uint64_t tick = ++c.ticks;
  for (size_t i = 0; i < pending.size(); ++i) {
    Pending& p = pending[i];
    out.push_back(p.status);
    if (!p.known) {
      ++c.stats.refused_commits;
      continue;
    }
    ReservationState& r = c.reservations.at(p.reservation_id);
    r.committing = false;
    if (p.claimed) c.committing.erase(p.id);
    if (!p.status.ok()) {
      ++c.stats.refused_commits;
      if (!p.own_fault) c.EndReservation(p.reservation_id);
      continue;
    }
    if (p.present) {
      c.EndReservation(p.reservation_id);
      continue;
    }
    // The extent passes from the reservation to the entry.
    c.stats.reserved_bytes -= RoundUpToPage(r.payload_bytes);
    c.reservation_ends.erase({r.expiry + c.options.reclaim_grace, p.reservation_id});
    c.reservations.erase(p.reservation_id);
    auto entry = std::make_shared<Entry>();
    entry->id = p.id;
    entry->meta = MetaOf(p.header, created);
    entry->number = ++c.next_entry;
    entry->extent = p.extent;
    entry->header = items[i].header;
    entry->ssd = p.record;
    entry->precious = !p.record;
    c.Touch(entry, tick, i);
    c.index[p.id] = entry;
    c.LruInsert(entry);
    c.stats.committed_bytes += p.payload_bytes;
    c.events.Stored(p.id, p.payload_bytes, entry->meta.tenant, created);
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

absl::StatusOr<uint32_t> Store::Delete(std::span<const pod::BlockKey> keys) {
  Core& c = *core_;
  PERIGEE_RETURN_IF_ERROR(c.CheckBatch(keys.size()));
  if (c.ssd) PERIGEE_RETURN_IF_ERROR(Annotate(c.ssd->NoteDeletion(), "delete"));
  std::vector<SsdStored> stored;
  uint32_t deleted = 0;
  {
    absl::MutexLock lock(&c.mu);
    c.Reap();
    for (const pod::BlockKey& key : keys) {
      for (const pod::PlaneKind kind : pod::kPlaneKinds) {
        const EntryPtr entry = c.Find({key, kind});
        if (entry == nullptr) continue;
        if (entry->ssd) stored.push_back({entry->id, *entry->ssd});
        c.Unlink(entry);
        c.Gone(*entry, MissReason::kDeleted);
        ++deleted;
      }
    }
  }
  if (!stored.empty()) PERIGEE_RETURN_IF_ERROR(Annotate(c.ssd->Remove(stored), "delete"));
  return deleted;
}

}  // namespace perigee::kvstore
