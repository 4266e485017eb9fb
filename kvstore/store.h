// The store's core: which planes exist, where their bytes are, who may count on them staying there. No gRPC, no UCX:
// memory that peers write to and read from one-sidedly is here just a span.
//
// A plane's life: Reserve (room in the slab) -> the writer's PUTs -> Commit (checked, then visible) -> in DRAM, on SSD,
// in the remote tier, or in several of them -> evicted, expired, deleted, quarantined or handed over. Acquire brings a
// plane into DRAM and keeps it there as long as the lease. Planes are immutable.
//
// What goes when a tier is full is the policy's choice (kvstore/policy); tenants over their quota give first. A thread
// of the store keeps some memory free ahead of demand: it drops DRAM copies of planes that a slower tier has, and moves
// others there that are worth it. Writers never wait for that: where it is late, planes are dropped.
//
// Any thread may call; only calls that need the SSD or the remote tier wait for them. Leases and reservations run on
// options.now, planes' times to live on options.wall. Errors: of a whole call the Status, of single planes inside the
// result.
#ifndef PERIGEE_KVSTORE_STORE_H_
#define PERIGEE_KVSTORE_STORE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "kvstore/event_log.h"
#include "kvstore/miss_history.h"
#include "kvstore/plane_id.h"
#include "kvstore/remote/remote_tier.h"
#include "kvstore/ssd/ssd_tier.h"

namespace perigee::kvstore {

// 0: no limit. Room is given back by eviction; over its bandwidth a tenant's writes are refused and its reads are
// misses that say so.
struct TenantQuota {
  std::string tenant;
  uint64_t dram_bytes = 0;
  uint64_t ssd_bytes = 0;
  uint64_t bytes_per_s = 0;  // Reserved and leased payload.
};

struct StoreOptions {
  std::optional<SsdOptions> ssd;  // Without it, and without a remote tier, planes live and die in DRAM.
  // What is stored under its prefix becomes known in the background after Open; what other stores put there later is
  // not known before the next Open.
  std::shared_ptr<RemoteTier> remote;
  std::string policy = "default";  // Of DRAM and SSD, see EvictionPolicyNames.
  std::vector<TenantQuota> quotas;
  uint32_t max_planes = 0;       // In all tiers; 0: by the tiers' sizes.
  double free_low = 0.03;        // When less of the slab is free, planes are moved out
  double free_high = 0.06;       // until this much is.
  double max_hard_pinned = 0.5;  // Of the slab.
  // How far ahead of a reader a chain of blocks is brought in from the SSD, while memory is free.
  uint64_t read_ahead_bytes = uint64_t{32} << 20;
  // What it costs to compute a plane again: per token at position p, this times (1 + p / 32768). Decides between planes
  // that are stored elsewhere and those that are not.
  double recompute_us_per_token = 100;
  absl::Duration remote_deadline = absl::Seconds(30);  // Of one operation.

  std::function<absl::Time()> now;          // Default: a steady clock.
  std::function<absl::Time()> wall;         // Default: absl::Now.
  absl::Duration max_ttl = absl::Hours(1);  // Of leases and reservations: longer wishes are cut to this.
  // How much longer than its ttl an abandoned reservation's memory stays unused, for PUTs still on their way.
  absl::Duration reclaim_grace = absl::Seconds(2);
  // Then called, before others get the memory: to stop PUTs that have not arrived even now. False: not yet, ask again.
  struct Reclaimed {
    uint64_t reservation_id = 0;
    std::span<const std::byte> memory;
  };
  std::function<bool(std::span<const Reclaimed>)> before_reclaim;
  // CRC32C of reserved memory whose writers have finished. Default: Crc32c; a server has sums from the transport.
  std::function<uint32_t(std::span<const std::byte>)> sum_of_puts;
  size_t max_batch_planes = 65536;
  size_t history_planes = 65536;
  size_t event_log_events = 65536;
};

enum class Tier : uint8_t { kDram = 1, kSsd = 2, kRemote = 3 };
// kBest: kSynced where there is an SSD tier that takes writes, else kDram. kReplicated: in the remote tier (and on the
// SSD, where that takes writes).
enum class Durability : uint8_t { kBest = 0, kSynced = 1, kDram = 2, kReplicated = 3 };
// kSoft: goes after all others. kHard: stays in DRAM, and is brought there. kKeep: as it is.
enum class PinMode : uint8_t { kNone = 0, kSoft = 1, kHard = 2, kKeep = 3 };

struct PlaneRequest {
  PlaneId id;
  uint64_t payload_bytes = 0;
};
struct Reservation {
  bool already_committed = false;  // The rest is 0 then.
  uint64_t id = 0;
  uint64_t address = 0;  // In this process.
};

struct CommitItem {
  uint64_t reservation_id = 0;
  std::string header;  // Encoded pod::PlaneHeader.
  uint32_t ttl_s = 0;  // The plane is gone after so many seconds; 0: never. At most kMaxTtlSeconds.
  // How many stores are to have it, at most kMaxReplicas; 0: 1. Of a plane that is there already, the higher number.
  uint32_t replicas = 0;
};

// kPrefix: keys is a chain of blocks; the answer ends with the first block whose distant plane is not stored (that
// block's misses say why).
enum class LookupMode : uint8_t { kAll, kPrefix };

struct FoundPlane {
  pod::PlaneKind kind{};
  Tier tier{};
  uint64_t payload_bytes = 0;
  uint64_t estimated_fetch_us = 0;
  uint32_t replicas = 1;
};
struct MissedPlane {
  pod::PlaneKind kind{};
  Miss miss;
};
struct BlockInfo {
  std::vector<FoundPlane> planes;
  std::vector<MissedPlane> misses;
};

struct AcquireOptions {
  absl::string_view tenant{};  // A plane of another tenant is a miss; empty: not checked.
  bool background = false;     // No use of the planes: policies, counters and quotas do not hear of it.
  // For callers that cannot wait: UNIMPLEMENTED, and nothing is leased, when one of the planes is not in DRAM.
  bool resident_only = false;
  // Asked every few milliseconds while planes are on their way; once true the call ends with CANCELLED, and what nobody
  // else waits for and no disk has begun to read is not read.
  std::function<bool()> cancelled{};
};
struct LeasedPlane {
  bool found = false;
  Miss miss;  // Where not found.
  uint64_t address = 0;
  uint64_t payload_bytes = 0;
  std::string header;
  Tier tier = Tier::kDram;  // Where it was before.
  uint64_t estimated_fetch_us = 0;
};
struct Lease {
  uint64_t id = 0;  // 0: nothing was found, nothing is leased.
  std::vector<LeasedPlane> planes;
};

// Which DRAM copies go, of planes that a slower tier has.
struct EvictFilter {
  std::span<const pod::BlockKey> keys{};  // None: all blocks.
  absl::string_view tenant{};             // Empty: not checked.
  absl::Duration idle{};                  // Not used for at least so long.
  bool dry_run = false;                   // Only counts.
};
struct Evicted {
  uint64_t planes = 0;
  uint64_t payload_bytes = 0;
};

struct CorruptReport {
  bool dram_copy_dropped = false;
  bool ssd_copy_dropped = false;
  bool still_stored = false;
};

struct ListedPlane {
  PlaneId id;
  PlaneMeta meta;             // Without the block before, unless it was asked for.
  bool parent_known = false;  // meta.parent says which block is before, or that none is.
  Tier tier{};                // The fastest.
  bool on_ssd = false;
  bool on_remote = false;
  PinMode pin{};
  int64_t last_used_unix_us = 0;
};
// Which planes are listed, of those whose tenant is asked for.
struct ListFilter {
  std::optional<PlacementGroup> group{};
  uint32_t least_replicas = 0;
  // Whose group is known and for whom this says so. Called with the store's lock held: short, and no call back.
  std::function<bool(PlacementGroup group, uint32_t replicas)> placed{};
  bool parents = false;  // Says which block is before each; may read the SSD's index.
};
struct ListPage {
  std::vector<ListedPlane> planes;
  std::string next_page_token;  // Empty on the last page.
};

struct TierCount {
  uint64_t planes = 0;
  uint64_t payload_bytes = 0;
};

struct StoreStats {
  uint64_t slab_bytes = 0, slab_used_bytes = 0, reserved_bytes = 0, leased_bytes = 0, hard_pinned_bytes = 0;
  double slab_fragmentation = 0;
  uint64_t index_bytes = 0;  // Memory of the bookkeeping: planes, headers, policies.
  uint64_t ssd_capacity_bytes = 0;
  SsdStats ssd;
  bool has_remote = false;
  RemoteHealth remote;
  TierCount counts[3][3];  // [tier - 1][plane kind - 1]
  uint64_t reservations = 0, leases = 0;
  // Since Open.
  uint64_t hits_dram = 0, hits_ssd = 0, hits_remote = 0, misses = 0;
  uint64_t misses_because[kMissReasons] = {};  // [reason]; of these misses.
  // Of blocks that were looked up: whose distant plane is here, and why the others' are not.
  uint64_t lookups_found = 0, lookups_missed[kMissReasons] = {};
  uint64_t dram_evictions = 0;       // Of DRAM copies.
  uint64_t dram_only_evictions = 0;  // Of these, planes that were nowhere else.
  uint64_t ssd_evictions = 0;
  uint64_t demoted_to_ssd = 0, demoted_to_remote = 0;  // Planes moved out, rather than dropped.
  uint64_t promoted_ahead = 0;                         // Brought in before somebody asked for their bytes.
  uint64_t cancelled_reads = 0;                        // Planes that were about to be read.
  uint64_t unadmitted_reads = 0;                       // Read for one lease only, and not kept.
  uint64_t expired_planes = 0, over_quota = 0;
  uint64_t tenants_over_quota = 0;  // Now, of one tier or the other, and until planes of theirs have gone.
  uint64_t checksum_failures = 0;
  uint64_t refused_commits = 0;
  uint64_t expired_reservations = 0, expired_leases = 0;
  uint64_t committed_bytes = 0, leased_payload_bytes = 0, fetched_bytes = 0;
  double dram_bytes_per_s = 0, ssd_bytes_per_s = 0, remote_bytes_per_s = 0;
};

class Store {
 public:
  // slab: page-aligned; the caller keeps it alive longer than the store.
  static absl::StatusOr<std::unique_ptr<Store>> Open(StoreOptions options, std::span<std::byte> slab);
  ~Store();

  // All or nothing: RESOURCE_EXHAUSTED reserves none (and evicts none, if evicting could not have helped). tenant:
  // whose quotas count.
  absl::StatusOr<std::vector<Reservation>> Reserve(std::span<const PlaneRequest> planes, absl::Duration ttl,
                                                   absl::string_view tenant = {});

  // One status per item. OK also when another writer committed the same plane first; it then gets the durability asked
  // for here, where it had less. (What Reserve said is stored already keeps its own.) Not OK: the plane does not exist.
  // A refused header or payload ends its reservation; a failure of the store's own (RESOURCE_EXHAUSTED: disk full;
  // UNAVAILABLE: no remote tier) keeps it, so that the same Commit can be tried again.
  absl::StatusOr<std::vector<absl::Status>> Commit(std::span<const CommitItem> items, Durability durability);

  // writes_may_arrive: the memory stays unused until the reservation's ttl and the grace have passed. Returns how many
  // were known.
  uint32_t Abort(std::span<const uint64_t> reservation_ids, bool writes_may_arrive);

  // tenant: a plane of another tenant is a miss; empty: not checked.
  absl::StatusOr<std::vector<BlockInfo>> Lookup(std::span<const pod::BlockKey> keys, absl::string_view tenant,
                                                LookupMode mode = LookupMode::kAll);
  // Planes that another call brings in already are waited for, not read again.
  absl::StatusOr<Lease> Acquire(std::span<const PlaneId> planes, absl::Duration ttl,
                                const AcquireOptions& options = {});
  absl::Status Renew(uint64_t lease_id, absl::Duration ttl);
  // fetched_bytes, fetch_us: what the reader measured, 0 where nothing. NOT_FOUND for an unknown or expired lease.
  absl::Status Release(uint64_t lease_id, uint64_t fetched_bytes, uint64_t fetch_us);

  // Begins to bring planes into DRAM, in this order, behind what leases wait for, and as far as memory is free; returns
  // at once. The number of planes now on their way. Drop: forgets those of these planes that no disk has begun to read
  // and nobody waits for.
  absl::StatusOr<uint32_t> Promote(std::span<const PlaneId> planes, absl::string_view tenant);
  uint32_t DropPromotions(std::span<const PlaneId> planes, absl::string_view tenant);

  // All stored planes of the blocks; the number of planes. Pins are of this start of the store; a number of replicas
  // (0: as it is) stays with what the SSD has. RESOURCE_EXHAUSTED, and nothing changes, when more than max_hard_pinned
  // of the slab would be pinned hard.
  absl::StatusOr<uint32_t> Pin(std::span<const pod::BlockKey> keys, PinMode mode, absl::string_view tenant,
                               uint32_t replicas = 0);

  // tenant, of both: another's planes are left alone; empty: not checked.
  CorruptReport ReportCorrupt(const PlaneId& id, absl::string_view tenant = {});
  // All planes of the blocks; the number that existed. An error means that some may be back after a restart: try again.
  // (What the remote tier still has is also tried again in the background.)
  absl::StatusOr<uint32_t> Delete(std::span<const pod::BlockKey> keys, absl::string_view tenant = {});
  // What other stores have taken over: the copies in DRAM and on the SSD go, as by Delete, those of the remote tier
  // stay there. The number that existed.
  absl::StatusOr<uint32_t> HandOver(std::span<const PlaneId> planes);
  // Empty or short pages may have a next one.
  absl::StatusOr<ListPage> List(absl::string_view page_token, size_t limit, absl::string_view tenant,
                                const ListFilter& filter = {});
  // Pinned and leased planes stay.
  absl::StatusOr<Evicted> Evict(const EvictFilter& filter);
  // Begins to check all records of the SSD tier; stats().ssd says how far that is. FAILED_PRECONDITION without one.
  absl::Status Scrub();
  StoreStats Stats();
  EventLog& events();  // Lives as long as the store.

  // Ends leases and reservations that have outlived their ttl. Every call above does it too, so it only has to be
  // called now and then; where there is a before_reclaim, only this one ends reservations.
  void ReapExpired();
  // What the store's own thread does every now and then, done at once: planes whose time has passed, room ahead of
  // demand.
  void Tidy();
  bool has_ssd() const;
  bool has_remote() const;
  absl::Duration max_ttl() const;

 private:
  class Core;
  explicit Store(std::unique_ptr<Core> core);
  std::unique_ptr<Core> core_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_STORE_H_
