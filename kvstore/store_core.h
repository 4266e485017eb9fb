// Internal to the room: the store's state and the steps that its calls share. See store.h.
//
//   store_core.cc    opening; planes coming and going, pins, room
//   store_write.cc   Reserve, Commit, Abort
//   store_read.cc    Lookup, Acquire, Renew, Release
//   store_load.cc    planes on their way from a slower tier into DRAM: Promote, read-ahead, waiting
//   store_tidy.cc    the store's own thread: times to live, room ahead of demand, moving planes to slower tiers, claims
//   store_admin.cc   Pin, ReportCorrupt, Delete, HandOver
//   store_inspect.cc List, Evict, Scrub, Stats
#ifndef PERIGEE_KVSTORE_STORE_CORE_H_
#define PERIGEE_KVSTORE_STORE_CORE_H_

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/functional/function_ref.h"
#include "absl/random/random.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/dram/deadline_heap.h"
#include "kvstore/dram/extent_slab.h"
#include "kvstore/dram/header_arena.h"
#include "kvstore/dram/plane_table.h"
#include "kvstore/placement.h"
#include "kvstore/policy/bandwidth_quota.h"
#include "kvstore/policy/eviction_policy.h"
#include "kvstore/policy/tenant_quotas.h"
#include "kvstore/rate.h"
#include "kvstore/store.h"

namespace perigee::kvstore {

struct ReservationState {
  PlaneId id;
  uint64_t payload_bytes = 0;
  Extent extent;
  uint32_t account = 0;  // Of the DRAM quotas.
  bool charged = false;  // To its tenant's bandwidth.
  absl::Time expiry;
  DeadlineHeap::Handle end = DeadlineHeap::kNone;
  bool committing = false;  // A Commit works on it: nobody else may end it.
  bool ended = false;       // Expired or aborted, memory kept for PUTs that may still arrive.
};

struct LeaseState {
  std::vector<EntryId> planes;
  DeadlineHeap::Handle end = DeadlineHeap::kNone;
};

// A call that waits for planes on their way.
struct LoadWaiter {
  size_t left = 0;
};

// A plane on its way into DRAM, pinned meanwhile.
struct LoadState {
  bool begun = false;     // A tier has been asked for it: it can no longer be dropped.
  bool ahead = false;     // Nobody has asked for its bytes yet.
  bool past_ssd = false;  // The SSD could not read its copy: from the remote tier.
  std::vector<LoadWaiter*> waiters;
  RemoteTier::OperationId operation = 0;
};

// What one tier is asked for. No record: the remote tier is.
struct LoadJob {
  EntryId entry = kNoEntry;
  PlaneId id;
  uint64_t payload_bytes = 0;
  std::span<std::byte> padded;
  std::optional<SsdRecord> record;
  absl::Time deadline;  // Of the remote tier.
};
// Loads that wait for one tier, and how many it is asked for. Tiers do not wait for each other.
struct LoadQueue {
  std::deque<EntryId> wanted, ahead;  // Some have been dropped, or begun.
  size_t begun = 0;
  uint64_t bytes_begun = 0;
};
struct LoadEnd {
  LoadJob job;
  absl::Status status;
  std::string head;                  // Of an SSD record, not verified yet.
  std::optional<RecordHead> record;  // Of the remote tier, verified.
};

// Blocks before those that follow them, and of one block what others are worthless without first.
inline std::tuple<int64_t, int, pod::PlaneKind> PlaceInChain(const PlaneId& id, int64_t base_position) {
  return {base_position, id.kind == pod::PlaneKind::kSummary ? 0 : 1, id.kind};
}

absl::Status CheckReplicas(uint32_t replicas);

class Store::Core {
 public:
  Core(StoreOptions o, std::span<std::byte> memory, uint32_t max_planes, std::unique_ptr<EvictionPolicy> dram,
       std::unique_ptr<EvictionPolicy> ssd);
  ~Core();
  absl::Status SetQuotas();
  void Start();  // Threads, once everything is there.

  absl::Status CheckBatch(size_t n) const;
  absl::StatusOr<absl::Duration> CheckTtl(absl::Duration ttl) const;
  std::span<std::byte> Memory(Extent extent, uint64_t bytes) { return slab_memory.subspan(extent.offset(), bytes); }
  uint64_t Address(Extent extent) const { return reinterpret_cast<uint64_t>(slab_memory.data()) + extent.offset(); }
  int64_t WallUs() const { return absl::ToUnixMicros(options.wall()); }

  // ---- Planes: store_core.cc ----

  uint64_t NewId() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  bool Resident(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return table[id].Is(kInDram) && !table[id].Is(kLoading);
  }
  bool IsOthers(EntryId id, absl::string_view tenant) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return !tenant.empty() && table.tenants().Name(table[id].tenant) != tenant;
  }
  Tier FastestTier(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  bool LastCopy(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    return table.details(id).ssd_number == 0 && !table[id].Is(kOnRemote);
  }
  // To bring it into DRAM from where it would be without its DRAM copy: read, or computed again.
  double CostUs(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  double RecomputeUs(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  PlaneFacts DramFacts(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  PlaneFacts SsdFacts(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // A new plane, in no tier yet; with its place in its chain and its time to live. kNoEntry: the table is full.
  EntryId Insert(const PlaneId& id, const PlaneMeta& meta) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Link(EntryId id, const std::optional<pod::BlockKey>& parent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // The distant plane of the block before, kNoEntry where it is not known.
  EntryId Previous(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  EntryId Next(EntryId distant) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  uint32_t TtlSeconds(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  void EnterDram(EntryId id, Extent extent) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // evicted: for want of room. Not pinned, or nobody has been told where its bytes are.
  void LeaveDram(EntryId id, bool evicted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void EnterSsd(EntryId id, SsdRecord record) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void LeaveSsd(EntryId id, bool evicted) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void SetOnRemote(EntryId id, bool on) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Stored nowhere any more: history and events say so. What is pinned keeps its bytes until its last pin goes; else
  // the number is free when this returns.
  void Drop(EntryId id, MissReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Drop, if no tier has it.
  void DropIfNowhere(EntryId id, MissReason reason) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Makes room; what no other tier has is gone then.
  void EvictFromDram(EntryId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Pin(EntryId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Unpin(EntryId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void SetPinMode(EntryId id, PinMode mode) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // What Acquire looks at, into the cache; kNoEntry among them is left out.
  void Prefetch(std::span<const EntryId> ids) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Touch(EntryId id, int64_t now_unix_us) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  uint64_t EvictableBytes(EntryId id) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);  // 0 or its room.

  // Who goes next from DRAM: of one tenant or all, soft-pinned ones last.
  std::optional<EntryId> DramVictim(std::optional<uint32_t> account) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Evicts until `bytes` fit, and the tenant's quota holds.
  std::optional<Extent> AllocateExtent(uint64_t bytes, uint32_t account) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  uint64_t LowBytes() const;
  uint64_t HighBytes() const;

  // A place in the index: a plane goes from everywhere but the remote tier. Its record is the caller's to remove.
  bool FreeEntry(std::vector<SsdStored>* stored) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  // Names that the caller works on without the lock (`busy`). All of them or none: no two wait for each other.
  void AwaitIdle(std::span<const PlaneId> names) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Claim(std::span<const PlaneId> names) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Unclaim(std::span<const PlaneId> names) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);

  void EndReservation(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Whose ttl and grace have passed.
  std::vector<uint64_t> OverdueReservations() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void EndReservations(std::span<const uint64_t> ids) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void EndLease(uint64_t id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Planes whose time has passed are gone; Tidy tells the tiers.
  void ExpireDue() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // What has ended by now: planes, leases and, where nobody has to be asked before, reservations.
  void Reap() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void NoteSsdDrops(std::span<const SsdDropped> dropped) ABSL_LOCKS_EXCLUDED(mu);

  // Of a plane of a List: from its header, where it has one, else from the SSD's index.
  void FindParent(const std::string& header, const std::optional<SsdRecord>& on_ssd, ListedPlane* plane) const
      ABSL_LOCKS_EXCLUDED(mu);

  // ---- Loads: store_load.cc ----

  // The plane is in a slower tier. It enters DRAM, loading; TakeLoads hands it out in turn.
  LoadQueue& QueueOf(EntryId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    const auto it = loads.find(id);
    const bool past_ssd = it != loads.end() && it->second.past_ssd;
    return table.details(id).ssd_number != 0 && !past_ssd ? from_ssd : from_remote;
  }
  void StartLoad(EntryId id, Extent extent, bool ahead) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Somebody waits for a plane that is loading.
  void WaitFor(EntryId id, LoadWaiter* waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // Nobody of this waiter waits any more; what nobody needs is not read.
  void GiveUp(std::span<const EntryId> ids, LoadWaiter* waiter) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // A plane that is pinned hard, from where it is; another time where there is no room now.
  void BringPinned(EntryId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  bool DropLoad(EntryId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);  // False: begun, or needed.
  // Only where memory is free.
  bool LoadAhead(EntryId id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void ReadAhead(EntryId distant) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  // What the tiers are to be asked for now: to be given to Begin, without the lock.
  std::vector<LoadJob> TakeLoads() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void Begin(std::vector<LoadJob> jobs) ABSL_LOCKS_EXCLUDED(mu);
  void FinishLoads();  // A thread's work.
  void Finish(LoadEnd end) ABSL_LOCKS_EXCLUDED(mu);

  // ---- Tidying: store_tidy.cc ----

  void Tidy() ABSL_LOCKS_EXCLUDED(mu);
  void TidyLoop();
  void ExpirePlanes() ABSL_LOCKS_EXCLUDED(mu);
  void RemoveUnremoved() ABSL_LOCKS_EXCLUDED(mu);
  bool RemoteAnswers() const { return options.remote && options.remote->health().reachable; }
  void FreeDram() ABSL_LOCKS_EXCLUDED(mu);
  std::optional<EntryId> SsdVictim(std::optional<uint32_t> account, bool soft_pinned) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  bool FreeSsd() ABSL_LOCKS_EXCLUDED(mu);  // One batch; true: there is more to do.
  // Pinned planes to a slower tier: SSD, else remote.
  void MoveOut(std::span<const EntryId> planes) ABSL_LOCKS_EXCLUDED(mu);
  // SSD planes to the remote tier, before they go from the SSD.
  void CopyToRemote(std::span<const EntryId> planes) ABSL_LOCKS_EXCLUDED(mu);
  void ScanRemote();  // A thread's work.
  absl::Status RemoveFromSsd(std::span<const SsdStored> planes);
  // The SSD is told too: what is returned is for TellReplicas, without the lock.
  void SetReplicas(EntryId id, uint32_t replicas, std::vector<SsdStored>* on_ssd) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu);
  void TellReplicas(std::span<const SsdStored> on_ssd, uint32_t replicas) ABSL_LOCKS_EXCLUDED(mu);
  absl::Status RemoveClaimedFromRemote(const std::vector<PlaneId>& names) ABSL_LOCKS_EXCLUDED(mu);  // And unclaims.

  StoreOptions options;  // Unchanged after Open.
  const std::span<std::byte> slab_memory;
  EventLog events;
  // Guards everything below. Held for memory operations only: never across disk I/O, checksums or waits (but absl's
  // Await, which lets go).
  absl::Mutex mu;
  PlaneTable table ABSL_GUARDED_BY(mu);
  ExtentSlab slab ABSL_GUARDED_BY(mu);
  HeaderArena headers ABSL_GUARDED_BY(mu);
  // All planes with kInDram that are not dead; all with an SSD record.
  std::unique_ptr<EvictionPolicy> dram_policy ABSL_GUARDED_BY(mu), ssd_policy ABSL_GUARDED_BY(mu);
  TenantQuotas dram_quotas ABSL_GUARDED_BY(mu), ssd_quotas ABSL_GUARDED_BY(mu);
  BandwidthQuota bandwidth ABSL_GUARDED_BY(mu);
  uint64_t evictable_bytes ABSL_GUARDED_BY(mu) = 0;
  uint64_t ssd_bytes ABSL_GUARDED_BY(mu) = 0;  // Records, about.

  absl::flat_hash_map<uint64_t, ReservationState> reservations ABSL_GUARDED_BY(mu);
  absl::flat_hash_map<uint64_t, LeaseState> leases ABSL_GUARDED_BY(mu);
  DeadlineHeap reservation_ends ABSL_GUARDED_BY(mu), lease_ends ABSL_GUARDED_BY(mu);  // Nanoseconds of options.now.
  DeadlineHeap plane_ends ABSL_GUARDED_BY(mu);                                        // Microseconds of options.wall.
  absl::flat_hash_map<EntryId, DeadlineHeap::Handle> plane_end_of ABSL_GUARDED_BY(mu);
  std::vector<SsdStored> expired_on_ssd ABSL_GUARDED_BY(mu);   // To be removed there.
  std::vector<PlaneId> expired_on_remote ABSL_GUARDED_BY(mu);  // Likewise, and claimed.
  // Not stored any more, and the remote tier may still have them: tried again now and then.
  absl::flat_hash_set<PlaneId> unremoved ABSL_GUARDED_BY(mu);
  bool remote_listed ABSL_GUARDED_BY(mu) = false;  // All that it held at the start is known.
  // Planes that some call is about to make visible, moves to a slower tier or removes there, without the lock.
  absl::flat_hash_set<PlaneId> busy ABSL_GUARDED_BY(mu);
  // While the remote tier is listed: what was removed from it since the page was asked for.
  std::optional<absl::flat_hash_set<PlaneId>> removed_since_listed ABSL_GUARDED_BY(mu);

  absl::flat_hash_map<EntryId, LoadState> loads ABSL_GUARDED_BY(mu);
  std::vector<EntryId> pinned_outside ABSL_GUARDED_BY(mu);  // BringPinned found no room for them.
  int pinned_passes ABSL_GUARDED_BY(mu) = 0, pinned_wait ABSL_GUARDED_BY(mu) = 0;  // Of Tidy, until it tries again.
  LoadQueue from_ssd ABSL_GUARDED_BY(mu), from_remote ABSL_GUARDED_BY(mu);

  MissHistory history ABSL_GUARDED_BY(mu);
  absl::BitGen random ABSL_GUARDED_BY(mu);
  StoreStats stats ABSL_GUARDED_BY(mu);     // The counters; the rest is filled in by Stats().
  Rate dram_rate ABSL_GUARDED_BY(mu){1e9};  // Until the first measurement: a 10 Gbit/s link.
  Rate ssd_rate ABSL_GUARDED_BY(mu){5e8};   // A SATA disk.
  Rate remote_rate ABSL_GUARDED_BY(mu){2e8};
  bool untidy ABSL_GUARDED_BY(mu) = false;  // The store's thread is asked to look.
  bool stopping ABSL_GUARDED_BY(mu) = false;

  absl::Mutex tidy_mu;  // One Tidy at a time. Before mu.
  absl::Mutex ends_mu;
  std::deque<LoadEnd> ends ABSL_GUARDED_BY(ends_mu);
  std::vector<LoadJob> refused ABSL_GUARDED_BY(ends_mu);  // The remote tier has no room for them: to be tried again.
  bool no_more_ends ABSL_GUARDED_BY(ends_mu) = false;
  std::vector<std::thread> threads;

  // Null without an SSD. Its blocking calls are never made with mu held; Touch and Stats may be. Last: it tells the
  // rest what it dropped, until it is gone.
  std::unique_ptr<SsdTier> ssd;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_STORE_CORE_H_
