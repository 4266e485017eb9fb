// The store's core: which planes exist, where their bytes are, who may count on them staying there. No gRPC, no UCX:
// memory that peers write to and read from one-sidedly is here just a span.
//
// A plane's life: Reserve (room in the slab) -> the writer's PUTs -> Commit (checked, then visible) -> in DRAM, on SSD
// or both -> evicted, deleted or quarantined. A plane in DRAM with an SSD copy may lose its DRAM copy at any time that
// it is not leased; Acquire brings it back. Planes are immutable.
//
// Any thread may call; only calls that need the SSD wait for it. Times to live run on options.now. Errors: of a whole
// call the Status, of single planes inside the result.
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
#include "kvstore/ssd/ssd_tier.h"

namespace perigee::kvstore {

struct StoreOptions {
  std::optional<SsdOptions> ssd;            // Without it planes live and die in DRAM.
  std::function<absl::Time()> now;          // Default: a steady clock.
  absl::Duration max_ttl = absl::Hours(1);  // Longer wishes are cut to this.
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

enum class Tier : uint8_t { kDram = 1, kSsd = 2 };
// kPrefix: the keys are a chain in its order, and the answer ends with the first block without a distant plane, whose
// misses say why; all blocks before it are the longest stored prefix.
enum class LookupMode : uint8_t { kAll = 0, kPrefix = 1 };
// kBest: kSynced where there is an SSD tier that takes writes, else kDram.
enum class Durability : uint8_t { kBest = 0, kSynced = 1, kDram = 2 };

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
};

struct FoundPlane {
  pod::PlaneKind kind{};
  Tier tier{};
  uint64_t payload_bytes = 0;
  uint64_t estimated_fetch_us = 0;
};
struct MissedPlane {
  pod::PlaneKind kind{};
  Miss miss;
};
struct BlockInfo {
  std::vector<FoundPlane> planes;
  std::vector<MissedPlane> misses;
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

struct CorruptReport {
  bool dram_copy_dropped = false;
  bool ssd_copy_dropped = false;
  bool still_stored = false;
};

struct ListedPlane {
  PlaneId id;
  PlaneMeta meta;
  Tier tier{};  // The fastest.
  bool on_ssd = false;
  int64_t last_used_unix_us = 0;
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
  uint64_t slab_bytes = 0, slab_used_bytes = 0, reserved_bytes = 0, leased_bytes = 0;
  double slab_fragmentation = 0;
  uint64_t ssd_capacity_bytes = 0;
  SsdStats ssd;
  TierCount counts[2][3];  // [tier - 1][plane kind - 1]
  uint64_t reservations = 0, leases = 0;
  // Since Open.
  uint64_t hits_dram = 0, hits_ssd = 0, misses = 0;
  uint64_t dram_evictions = 0;       // Of DRAM copies.
  uint64_t dram_only_evictions = 0;  // Of these, planes that were nowhere else by their writer's wish.
  uint64_t ssd_evictions = 0;
  uint64_t checksum_failures = 0;
  uint64_t refused_commits = 0;
  uint64_t expired_reservations = 0, expired_leases = 0;
  uint64_t committed_bytes = 0, leased_payload_bytes = 0, fetched_bytes = 0;
  double dram_bytes_per_s = 0, ssd_bytes_per_s = 0;
};

class Store {
 public:
  // slab: page-aligned; the caller keeps it alive longer than the store.
  static absl::StatusOr<std::unique_ptr<Store>> Open(StoreOptions options, std::span<std::byte> slab);
  ~Store();

  // All or nothing: RESOURCE_EXHAUSTED reserves none (and evicts none, if evicting could not have helped).
  absl::StatusOr<std::vector<Reservation>> Reserve(std::span<const PlaneRequest> planes, absl::Duration ttl);

  // One status per item. OK also when another writer committed the same plane first, with the durability that he asked
  // for. Not OK: the plane does not exist. A refused header or payload ends its reservation; a failure of the store's
  // own (RESOURCE_EXHAUSTED: disk full) keeps it, so that the same Commit can be tried again.
  absl::StatusOr<std::vector<absl::Status>> Commit(std::span<const CommitItem> items, Durability durability);

  // writes_may_arrive: the memory stays unused until the reservation's ttl and the grace have passed. Returns how many
  // were known.
  uint32_t Abort(std::span<const uint64_t> reservation_ids, bool writes_may_arrive);

  // tenant: a plane of another tenant is a miss; empty: not checked.
  absl::StatusOr<std::vector<BlockInfo>> Lookup(std::span<const pod::BlockKey> keys, absl::string_view tenant,
                                                LookupMode mode = LookupMode::kAll);
  // resident_only: for callers that cannot wait; UNIMPLEMENTED, and nothing is leased, when one of the planes would
  // have to come from the SSD.
  absl::StatusOr<Lease> Acquire(std::span<const PlaneId> planes, absl::Duration ttl, absl::string_view tenant,
                                bool resident_only = false);
  absl::Status Renew(uint64_t lease_id, absl::Duration ttl);
  // fetched_bytes, fetch_us: what the reader measured, 0 where nothing. NOT_FOUND for an unknown or expired lease.
  absl::Status Release(uint64_t lease_id, uint64_t fetched_bytes, uint64_t fetch_us);

  CorruptReport ReportCorrupt(const PlaneId& id);
  // All planes of the blocks; the number that existed. An error means that some may be back after a restart: try again.
  absl::StatusOr<uint32_t> Delete(std::span<const pod::BlockKey> keys);
  absl::StatusOr<ListPage> List(absl::string_view page_token, size_t limit, absl::string_view tenant);
  StoreStats Stats();

  // Ends what has outlived its ttl. Every call above does it too, so it only has to be called now and then; where there
  // is a before_reclaim, only this one ends reservations.
  void ReapExpired();
  // What was stored and removed since Open. Planes that Open found on the SSD are no events: list them first.
  EventLog& events();
  bool has_ssd() const;
  absl::Duration max_ttl() const;

 private:
  class Core;
  explicit Store(std::unique_ptr<Core> core);
  std::unique_ptr<Core> core_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_STORE_H_
