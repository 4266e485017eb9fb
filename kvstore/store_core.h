// Internal to the room: the store's state and the steps that its calls share. See store.h.
#ifndef PERIGEE_KVSTORE_STORE_CORE_H_
#define PERIGEE_KVSTORE_STORE_CORE_H_

#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/random/random.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/event_log.h"
#include "kvstore/slab.h"
#include "kvstore/store.h"

namespace perigee::kvstore {

// Who goes first: the longest unused; of one call's planes proximal before distant before summary, a prompt's end
// before its start.
using LruKey = std::tuple<uint64_t, int, uint64_t, uint64_t>;  // tick, kind's rank, -place in the batch, entry number

struct Entry {
  PlaneId id;
  PlaneMeta meta;
  uint64_t number = 0;
  std::optional<uint64_t> extent;  // Offset in the slab: in DRAM, or (loading) on its way there.
  std::string header;              // Encoded; while in DRAM.
  std::optional<SsdRecord> ssd;
  bool precious = false;  // Committed to DRAM only: no copy elsewhere.
  bool loading = false;   // One call is reading it from the SSD; others wait.
  bool dead = false;      // Out of the index; the extent is freed with the last pin.
  uint32_t pins = 0;      // Leases, and calls that look at its bytes. Pinned bytes do not move.
  bool in_lru = false;    // In DRAM, alive and not pinned.
  LruKey lru;
  int64_t last_used_unix_us = 0;
};
using EntryPtr = std::shared_ptr<Entry>;

struct ReservationState {
  PlaneId id;
  uint64_t payload_bytes = 0;
  uint64_t extent = 0;
  absl::Time expiry;
  bool committing = false;  // A Commit works on it: nobody else may end it.
  bool ended = false;       // Expired or aborted, memory kept for PUTs that may still arrive.
};

struct LeaseState {
  std::vector<EntryPtr> entries;
  absl::Time expiry;
};

// A moving average of bytes per second.
class Rate {
 public:
  explicit Rate(double initial) : bytes_per_s_(initial) {}
  void Add(uint64_t bytes, double seconds) {
    if (bytes < kPageBytes || seconds <= 0) return;  // Too small to say anything.
    bytes_per_s_ += 0.2 * (static_cast<double>(bytes) / seconds - bytes_per_s_);
  }
  double bytes_per_s() const { return bytes_per_s_; }
  uint64_t EstimateUs(uint64_t bytes) const {
    return static_cast<uint64_t>(1e6 * static_cast<double>(bytes) / bytes_per_s_);
  }

 private:
  double bytes_per_s_;
};

class Store::Core {
 public:
  Core(StoreOptions o, std::span<std::byte> memory)
      : options(std::move(o)),
        slab_memory(memory),
        events(options.event_log_events),
        slab(memory.size()),
        history(options.history_planes) {}

  absl::Status CheckBatch(size_t n) const;
  absl::StatusOr<absl::Duration> CheckTtl(absl::Duration ttl) const;
  std::span<std::byte> Memory(uint64_t extent, uint64_t bytes) { return slab_memory.subspan(extent, bytes); }
  uint64_t Address(uint64_t extent) const { return reinterpret_cast<uint64_t>(slab_memory.data()) + extent; }

  uint64_t NewId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  EntryPtr Find(const PlaneId& id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Evicts unpinned entries until `bytes` fit.
  std::optional<uint64_t> AllocateExtent(uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void EvictFromDram(const EntryPtr& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Takes it out of the index; its DRAM bytes are freed now or with the last pin.
  void Unlink(const EntryPtr& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // The plane is no longer stored: history and events say so.
  void Gone(const Entry& entry, MissReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Pin(const EntryPtr& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Unpin(const EntryPtr& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Touch(const EntryPtr& entry, uint64_t tick, size_t place) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void LruInsert(const EntryPtr& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void LruErase(const EntryPtr& entry) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void EndReservation(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Whose ttl and grace have passed.
  std::vector<uint64_t> OverdueReservations() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void EndReservations(std::span<const uint64_t> ids) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void EndLease(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Reap() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void NoteSsdDrops(std::span<const SsdDropped> dropped) ABSL_LOCKS_EXCLUDED(mu);

  StoreOptions options;  // Unchanged after Open.
  const std::span<std::byte> slab_memory;
  EventLog events;
  // Guards everything below. Held for memory operations only: never across disk I/O, checksums or waits (but absl's
  // Await, which lets go).
  absl::Mutex mu;
  Slab slab ABSL_GUARDED_BY(mu);
  absl::btree_map<PlaneId, EntryPtr> index ABSL_GUARDED_BY(mu);
  absl::btree_map<LruKey, EntryPtr> lru_copied ABSL_GUARDED_BY(mu);    // evictable; the SSD has them, or had
  absl::btree_map<LruKey, EntryPtr> lru_precious ABSL_GUARDED_BY(mu);  // evictable as a last resort
  uint64_t evictable_bytes ABSL_GUARDED_BY(mu) = 0;
  absl::flat_hash_map<uint64_t, ReservationState> reservations ABSL_GUARDED_BY(mu);
  absl::btree_set<std::pair<absl::Time, uint64_t>> reservation_ends ABSL_GUARDED_BY(mu);
  absl::flat_hash_map<uint64_t, LeaseState> leases ABSL_GUARDED_BY(mu);
  absl::btree_set<std::pair<absl::Time, uint64_t>> lease_ends ABSL_GUARDED_BY(mu);
  absl::flat_hash_set<PlaneId> committing ABSL_GUARDED_BY(mu);  // Planes that some Commit is about to make visible.
  MissHistory history ABSL_GUARDED_BY(mu);
  absl::BitGen random ABSL_GUARDED_BY(mu);
  uint64_t ticks ABSL_GUARDED_BY(mu) = 0;
  uint64_t next_entry ABSL_GUARDED_BY(mu) = 0;
  StoreStats stats ABSL_GUARDED_BY(mu);     // The counters; the rest is filled in by Stats().
  Rate dram_rate ABSL_GUARDED_BY(mu){1e9};  // Until the first measurement: a 10 Gbit/s link.
  Rate ssd_rate ABSL_GUARDED_BY(mu){5e8};   // A SATA disk.

  // Null without an SSD. Its blocking calls are never made with mu held; Touch and Stats may be. Last: it tells the
  // rest what it dropped, until it is gone.
  std::unique_ptr<SsdTier> ssd;
};

int64_t NowUnixUs();

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_STORE_CORE_H_
