#include "cluster/metrics/store_metrics.h"

namespace perigee::cluster {
namespace {

using kvstore::StoreStats;

double Number(uint64_t value) { return static_cast<double>(value); }

constexpr const char* kTiers[] = {"dram", "ssd", "remote"};
// By kvstore::MissReason.
constexpr const char* kMisses[kvstore::kMissReasons] = {"",         "never_stored", "evicted",    "deleted",
                                                        "checksum", "other_tenant", "no_room",    "disk_lost",
                                                        "expired",  "unreachable",  "over_quota", "moved"};

void CollectReads(const StoreStats& s, MetricFamilies& out) {
  const uint64_t hits[] = {s.hits_dram, s.hits_ssd, s.hits_remote};
  for (size_t tier = 0; tier < 3; ++tier) {
    out.Counter("perigee_store_hits_total", "Planes that readers leased, by the tier that had them.",
                Number(hits[tier]), {{"tier", kTiers[tier]}});
  }
  const auto reasons = [&out](const char* name, const char* help, const uint64_t(&counts)[kvstore::kMissReasons]) {
    for (size_t reason = 1; reason < kvstore::kMissReasons; ++reason) {
      out.Counter(name, help, Number(counts[reason]), {{"reason", kMisses[reason]}});
    }
  };
  reasons("perigee_store_misses_total", "Planes that readers asked for and did not get, by reason.", s.misses_because);
  out.Counter("perigee_store_lookup_found_total", "Blocks that were looked up and are here.", Number(s.lookups_found));
  reasons("perigee_store_lookup_missed_total", "Blocks that were looked up and are not here, by reason.",
          s.lookups_missed);
  out.Counter("perigee_store_checksum_failures_total", "Copies whose bytes were wrong, and which were dropped.",
              Number(s.checksum_failures));
  out.Counter("perigee_store_over_quota_total", "Planes refused for a tenant's bandwidth.", Number(s.over_quota));
  out.Gauge("perigee_store_tenants_over_quota", "Tenants that use more room than they may.",
            Number(s.tenants_over_quota));
}

void CollectBytes(const StoreStats& s, MetricFamilies& out) {
  for (size_t tier = 0; tier < 3; ++tier) {
    for (size_t kind = 0; kind < 3; ++kind) {
      out.Gauge("perigee_store_stored_bytes", "Payload that is stored; a plane in two tiers counts in both.",
                Number(s.counts[tier][kind].payload_bytes),
                {{"tier", kTiers[tier]}, {"kind", pod::PlaneKindName(pod::kPlaneKinds[kind])}});
    }
  }
  for (size_t tier = 0; tier < 3; ++tier) {
    for (size_t kind = 0; kind < 3; ++kind) {
      out.Gauge("perigee_store_stored_planes", "Planes that are stored.", Number(s.counts[tier][kind].planes),
                {{"tier", kTiers[tier]}, {"kind", pod::PlaneKindName(pod::kPlaneKinds[kind])}});
    }
  }
  out.Counter("perigee_store_received_bytes_total", "Payload that writers committed.", Number(s.committed_bytes));
  out.Counter("perigee_store_leased_bytes_total", "Payload that readers' leases covered.",
              Number(s.leased_payload_bytes));
  out.Counter("perigee_store_sent_bytes_total", "Payload that readers say they fetched.", Number(s.fetched_bytes));
  const kvstore::SsdCounters& ssd = s.ssd.counters;
  out.Counter("perigee_store_ssd_written_bytes_total", "Written to disks, by what for. Of all starts.",
              Number(ssd.written_bytes), {{"by", "callers"}});
  out.Counter("perigee_store_ssd_written_bytes_total", "", Number(ssd.compacted_bytes), {{"by", "compaction"}});
  out.Counter("perigee_store_ssd_scrubbed_bytes_total", "Read again and checked. Of all starts.",
              Number(ssd.scrubbed_bytes));
  out.Counter("perigee_store_ssd_bad_records_total", "Records that disks spoiled. Of all starts.",
              Number(ssd.wrong_records), {{"what", "wrong"}});
  out.Counter("perigee_store_ssd_bad_records_total", "", Number(ssd.unreadable_records), {{"what", "unreadable"}});
  const double rates[] = {s.dram_bytes_per_s, s.ssd_bytes_per_s, s.remote_bytes_per_s};
  for (size_t tier = 0; tier < 3; ++tier) {
    out.Gauge("perigee_store_read_bytes_per_second", "How fast a tier is read, lately.", rates[tier],
              {{"tier", kTiers[tier]}});
  }
}

void CollectRoom(const StoreStats& s, MetricFamilies& out) {
  out.Gauge("perigee_store_dram_capacity_bytes", "The memory tier.", Number(s.slab_bytes));
  out.Gauge("perigee_store_dram_used_bytes", "Of it, in use.", Number(s.slab_used_bytes));
  out.Gauge("perigee_store_dram_reserved_bytes", "Of it, for planes on their way here.", Number(s.reserved_bytes));
  out.Gauge("perigee_store_dram_leased_bytes", "Of it, under lease.", Number(s.leased_bytes));
  out.Gauge("perigee_store_dram_pinned_bytes", "Of it, pinned hard.", Number(s.hard_pinned_bytes));
  out.Gauge("perigee_store_dram_fragmentation_ratio", "1 - largest free extent / free bytes.", s.slab_fragmentation);
  out.Gauge("perigee_store_index_bytes", "Memory of the bookkeeping.", Number(s.index_bytes));
  out.Gauge("perigee_store_ssd_capacity_bytes", "The disk tier; 0: what the file systems hold, or none.",
            Number(s.ssd_capacity_bytes));
  out.Gauge("perigee_store_ssd_used_bytes", "Segment files.", Number(s.ssd.used_bytes));
  out.Gauge("perigee_store_ssd_live_bytes", "Of them, records that are stored.", Number(s.ssd.live_bytes));
  for (const kvstore::SsdPathStats& path : s.ssd.paths) {
    out.Gauge("perigee_store_disk_health", "0 ok, 1 full, 2 slow, 3 read-only, 4 failing, 5 lost.",
              static_cast<double>(path.health), {{"path", path.path}});
  }
  for (const kvstore::SsdPathStats& path : s.ssd.paths) {
    out.Gauge("perigee_store_disk_used_bytes", "Segment files of a disk.", Number(path.used_bytes),
              {{"path", path.path}});
  }
  if (s.has_remote) {
    out.Gauge("perigee_store_remote_reachable", "1: the remote tier answers.", s.remote.reachable ? 1 : 0);
  }
  out.Gauge("perigee_store_reservations", "Writes that have begun.", Number(s.reservations));
  out.Gauge("perigee_store_leases", "Reads under way.", Number(s.leases));
  out.Counter("perigee_store_expired_total", "What ended by its time to live.", Number(s.expired_reservations),
              {{"what", "reservation"}});
  out.Counter("perigee_store_expired_total", "", Number(s.expired_leases), {{"what", "lease"}});
  out.Counter("perigee_store_expired_total", "", Number(s.expired_planes), {{"what", "plane"}});
  out.Counter("perigee_store_refused_commits_total", "Planes whose header or bytes were wrong when they came.",
              Number(s.refused_commits));
  out.Counter("perigee_store_evictions_total", "Copies that went for want of room.", Number(s.dram_evictions),
              {{"tier", "dram"}});
  out.Counter("perigee_store_evictions_total", "", Number(s.ssd_evictions), {{"tier", "ssd"}});
  out.Counter("perigee_store_lost_evictions_total", "Planes whose only copy went for want of room in memory.",
              Number(s.dram_only_evictions));
  out.Counter("perigee_store_demotions_total", "Planes that were moved to a slower tier.", Number(s.demoted_to_ssd),
              {{"tier", "ssd"}});
  out.Counter("perigee_store_demotions_total", "", Number(s.demoted_to_remote), {{"tier", "remote"}});
  out.Counter("perigee_store_promotions_total", "Planes that were brought into memory ahead of their readers.",
              Number(s.promoted_ahead));
}

void CollectRebalance(const kvstore::RebalanceStats& r, MetricFamilies& out) {
  out.Gauge("perigee_store_placement_epoch", "Of the map of stores by which it places planes.", Number(r.map_epoch));
  out.Gauge("perigee_store_draining", "1: it gives up everything.", r.draining ? 1 : 0);
  out.Gauge("perigee_store_planes_to_move", "Here, though they belong to other stores.", Number(r.planes_to_move));
  out.Gauge("perigee_store_bytes_to_move", "Their payload.", Number(r.bytes_to_move));
  out.Counter("perigee_store_moved_bytes_total", "Payload sent to other stores, by why.", Number(r.moved_bytes),
              {{"why", "placement"}});
  out.Counter("perigee_store_moved_bytes_total", "", Number(r.repaired_bytes), {{"why", "repair"}});
  out.Counter("perigee_store_move_failures_total", "Planes that could not be sent, and calls that were not answered.",
              Number(r.failures));
}

}  // namespace

void CollectStore(const StoreStats& stats, const std::optional<kvstore::RebalanceStats>& rebalance,
                  MetricFamilies& out) {
  CollectReads(stats, out);
  CollectBytes(stats, out);
  CollectRoom(stats, out);
  if (rebalance.has_value()) CollectRebalance(*rebalance, out);
}

}  // namespace perigee::cluster
