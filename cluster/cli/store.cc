// perigee store: the verbs over all stores of a cluster, or one. Here: ls, stat, top. The others have files of their
// own.
#include <algorithm>
#include <cstdio>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/store_keys.h"
#include "cluster/process.h"

namespace perigee::cli {
namespace {

using kvstore::StoreClient;
using kvstore::StoreStats;
using kvstore::Tier;

struct Options {
  StoreVerbFlags flags;
  std::string tenant;
  uint64_t limit = 0;
  bool once = false;
  double interval_s = 2;
};

constexpr Tier kTiers[] = {Tier::kDram, Tier::kSsd, Tier::kRemote};

Json PlaneJson(const std::string& store, const kvstore::ListedPlane& p) {
  Json row = {{"key", p.id.key.ToString()},
              {"plane", pod::PlaneKindName(p.id.kind)},
              {"store", store},
              {"tier", TierName(p.tier)},
              {"on_ssd", p.on_ssd},
              {"on_remote", p.on_remote},
              {"pin", PinName(p.pin)},
              {"replicas", p.meta.replicas},
              {"ttl_s", p.meta.ttl_s},
              {"tokens", p.meta.tokens},
              {"base_position", p.meta.base_position},
              {"payload_bytes", p.meta.payload_bytes},
              {"created_unix_us", p.meta.created_unix_us},
              {"last_used_unix_us", p.last_used_unix_us},
              {"tenant", p.meta.tenant}};
  if (p.meta.group) row["group"] = *p.meta.group;
  return row;
}

absl::Status List(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  absl::Mutex mu;
  std::map<std::string, std::vector<kvstore::ListedPlane>> listed;
  uint64_t count = 0;
  PERIGEE_RETURN_IF_ERROR(fleet->ForEach([&](const std::string& id, StoreClient& client) {
    return ForEachPlane(client, o.tenant, {}, [&](const kvstore::ListedPlane& plane) {
      absl::MutexLock lock(&mu);
      if (o.limit > 0 && count >= o.limit) return false;
      ++count;
      listed[id].push_back(plane);
      return true;
    });
  }));
  if (o.flags.cluster.json) {
    Json rows = Json::array();
    for (const auto& [store, planes] : listed) {
      for (const kvstore::ListedPlane& plane : planes) rows.push_back(PlaneJson(store, plane));
    }
    PrintJson(rows);
    return absl::OkStatus();
  }
  Table table({"BLOCK KEY", "PLANE", "STORE", "TIER", "PIN", ">REPLICAS", ">TOKENS", ">POSITION", ">BYTES", "TENANT"});
  for (const auto& [store, planes] : listed) {
    for (const kvstore::ListedPlane& p : planes) {
      table.Add({p.id.key.ToString(), pod::PlaneKindName(p.id.kind), store, TierName(p.tier), PinName(p.pin),
                 absl::StrCat(p.meta.replicas), absl::StrCat(p.meta.tokens), absl::StrCat(p.meta.base_position),
                 absl::StrCat(p.meta.payload_bytes), p.meta.tenant});
    }
  }
  table.Print();
  return absl::OkStatus();
}

Json StatJson(const StoreClient::Stat& stat) {
  const StoreStats& s = stat.store;
  Json json = {{"dram",
                {{"capacity_bytes", s.slab_bytes},
                 {"used_bytes", s.slab_used_bytes},
                 {"reserved_bytes", s.reserved_bytes},
                 {"leased_bytes", s.leased_bytes},
                 {"hard_pinned_bytes", s.hard_pinned_bytes},
                 {"index_bytes", s.index_bytes},
                 {"fragmentation", s.slab_fragmentation}}},
               {"ssd",
                {{"capacity_bytes", s.ssd_capacity_bytes},
                 {"used_bytes", s.ssd.used_bytes},
                 {"live_bytes", s.ssd.live_bytes},
                 {"segments", s.ssd.segments},
                 {"lost_at_start", s.ssd.lost_at_start},
                 {"health", kvstore::SsdHealthName(s.ssd.health)},
                 {"written_bytes", s.ssd.counters.written_bytes},
                 {"compacted_bytes", s.ssd.counters.compacted_bytes},
                 {"scrubbed_bytes", s.ssd.counters.scrubbed_bytes},
                 {"scrub_passes", s.ssd.counters.scrub_passes},
                 {"wrong_records", s.ssd.counters.wrong_records},
                 {"unreadable_records", s.ssd.counters.unreadable_records}}}};
  json["ssd"]["paths"] = Json::array();
  for (const kvstore::SsdPathStats& path : s.ssd.paths) {
    json["ssd"]["paths"].push_back({{"path", path.path},
                                    {"health", kvstore::SsdHealthName(path.health)},
                                    {"message", path.message},
                                    {"used_bytes", path.used_bytes},
                                    {"live_bytes", path.live_bytes},
                                    {"segments", path.segments}});
  }
  for (const Tier tier : kTiers) {
    for (const pod::PlaneKind kind : pod::kPlaneKinds) {
      const kvstore::TierCount& c = s.counts[static_cast<int>(tier) - 1][static_cast<int>(kind) - 1];
      json["planes"][TierName(tier)][pod::PlaneKindName(kind)] = {{"planes", c.planes},
                                                                  {"payload_bytes", c.payload_bytes}};
    }
  }
  json["remote"] = {{"present", s.has_remote}, {"reachable", s.remote.reachable}, {"message", s.remote.message}};
  json["hits"] = {{"dram", s.hits_dram}, {"ssd", s.hits_ssd}, {"remote", s.hits_remote}};
  json["moved"] = {{"demoted_to_ssd", s.demoted_to_ssd},
                   {"demoted_to_remote", s.demoted_to_remote},
                   {"promoted_ahead", s.promoted_ahead},
                   {"cancelled_reads", s.cancelled_reads},
                   {"unadmitted_reads", s.unadmitted_reads}};
  json["expired_planes"] = s.expired_planes;
  json["over_quota"] = s.over_quota;
  json["misses"] = s.misses;
  json["evictions"] = {{"dram", s.dram_evictions}, {"dram_only", s.dram_only_evictions}, {"ssd", s.ssd_evictions}};
  json["checksum_failures"] = s.checksum_failures;
  json["refused_commits"] = s.refused_commits;
  json["reservations"] = {{"open", s.reservations}, {"expired", s.expired_reservations}};
  json["leases"] = {{"open", s.leases}, {"expired", s.expired_leases}};
  json["payload"] = {{"committed_bytes", s.committed_bytes},
                     {"leased_bytes", s.leased_payload_bytes},
                     {"fetched_bytes", s.fetched_bytes}};
  json["grpc_message_bytes"] = stat.grpc_message_bytes;
  return json;
}

// Numbers are added, of all else the first is kept.
void AddUp(const Json& from, Json* to) {
  for (const auto& [name, value] : from.items()) {
    if (name == "paths" || name == "fragmentation" || name == "health") continue;
    if (value.is_object()) {
      AddUp(value, &(*to)[name]);
    } else if (value.is_number_unsigned()) {
      (*to)[name] = to->value(name, uint64_t{0}) + value.get<uint64_t>();
    }
  }
}

struct StoreStat {
  std::string id, address;
  absl::StatusOr<StoreClient::Stat> stat = absl::UnknownError("not asked");
};

std::vector<StoreStat> StatAll(StoreFleet& fleet) {
  std::vector<StoreStat> all;
  for (const kvstore::StoreEntry& store : fleet.stores()) all.push_back({store.id, store.address});
  const auto visited = fleet.TryEach([&](const std::string& id, StoreClient& client) {
    const auto here = std::find_if(all.begin(), all.end(), [&](const StoreStat& s) { return s.id == id; });
    here->stat = client.GetStat();
    return here->stat.status();
  });
  for (size_t i = 0; i < visited.size(); ++i) {
    if (!visited[i].status.ok()) all[i].stat = visited[i].status;
  }
  return all;
}

absl::Status FirstError(const std::vector<StoreStat>& all) {
  for (const StoreStat& s : all) {
    if (!s.stat.ok()) return Annotate(s.stat.status(), absl::StrCat("store ", s.id));
  }
  return absl::OkStatus();
}

void PrintStat(const StoreStat& store) {
  const StoreStats& s = store.stat->store;
  const auto mib = [](uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  std::printf("store %s at %s\n", store.id.c_str(), store.address.c_str());
  std::printf("  memory   %.1f of %.1f MiB used, %.1f leased, %.1f reserved\n", mib(s.slab_used_bytes),
              mib(s.slab_bytes), mib(s.leased_bytes), mib(s.reserved_bytes));
  std::printf("  disk     %.1f of %.1f MiB used in %llu segments\n", mib(s.ssd.used_bytes), mib(s.ssd_capacity_bytes),
              static_cast<unsigned long long>(s.ssd.segments));
  for (const kvstore::SsdPathStats& path : s.ssd.paths) {
    if (path.health == kvstore::SsdHealth::kOk) continue;
    std::printf("  DISK %s IS %s: %s\n", path.path.c_str(), kvstore::SsdHealthName(path.health), path.message.c_str());
  }
  for (const Tier tier : kTiers) {
    for (const pod::PlaneKind kind : pod::kPlaneKinds) {
      const kvstore::TierCount& c = s.counts[static_cast<int>(tier) - 1][static_cast<int>(kind) - 1];
      std::printf("  %-6s   %8llu %-8s planes, %.1f MiB of payload\n", TierName(tier),
                  static_cast<unsigned long long>(c.planes), pod::PlaneKindName(kind), mib(c.payload_bytes));
    }
  }
  if (s.has_remote && !s.remote.message.empty()) std::printf("  REMOTE TIER: %s\n", s.remote.message.c_str());
  std::printf("  reads    %llu from memory, %llu from disk, %llu remote, %llu misses\n",
              static_cast<unsigned long long>(s.hits_dram), static_cast<unsigned long long>(s.hits_ssd),
              static_cast<unsigned long long>(s.hits_remote), static_cast<unsigned long long>(s.misses));
  std::printf("  health   %llu checksum failures, %llu refused commits, %llu records lost at start\n",
              static_cast<unsigned long long>(s.checksum_failures), static_cast<unsigned long long>(s.refused_commits),
              static_cast<unsigned long long>(s.ssd.lost_at_start));
}

absl::Status Stat(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  const std::vector<StoreStat> all = StatAll(*fleet);
  const bool any = std::any_of(all.begin(), all.end(), [](const StoreStat& s) { return s.stat.ok(); });
  if (!any) return FirstError(all);
  if (o.flags.cluster.json) {
    Json sum = Json::object(), stores = Json::array();
    for (const StoreStat& s : all) {
      Json row = {{"id", s.id}, {"address", s.address}, {"answers", s.stat.ok()}};
      if (s.stat.ok()) {
        const Json one = StatJson(*s.stat);
        if (sum.empty()) {
          sum = one;
        } else {
          AddUp(one, &sum);
        }
        row.update(one);
      }
      stores.push_back(row);
    }
    sum["stores"] = stores;
    PrintJson(sum);
  } else {
    uint64_t used = 0, capacity = 0, hits = 0, asked = 0;
    for (const StoreStat& s : all) {
      if (!s.stat.ok()) continue;
      PrintStat(s);
      const StoreStats& stats = s.stat->store;
      used += stats.slab_used_bytes;
      capacity += stats.slab_bytes;
      hits += stats.hits_dram + stats.hits_ssd + stats.hits_remote;
      asked += stats.hits_dram + stats.hits_ssd + stats.hits_remote + stats.misses;
    }
    if (all.size() > 1) {
      std::printf("all %zu stores: %s of %s memory used, hit rate %s\n", all.size(),
                  FormatBytes(static_cast<double>(used)).c_str(), FormatBytes(static_cast<double>(capacity)).c_str(),
                  FormatPercent(hits, asked).c_str());
    }
  }
  return FirstError(all);
}

struct Rates {
  double read = 0, written = 0;  // Bytes per second.
  uint64_t hits = 0, asked = 0;  // Meanwhile.
};

Rates RatesOf(const StoreStats& before, const StoreStats& now, double seconds) {
  const auto hits = [](const StoreStats& s) { return s.hits_dram + s.hits_ssd + s.hits_remote; };
  Rates rates;
  rates.read = static_cast<double>(now.leased_payload_bytes - before.leased_payload_bytes) / seconds;
  rates.written = static_cast<double>(now.committed_bytes - before.committed_bytes) / seconds;
  rates.hits = hits(now) - hits(before);
  rates.asked = rates.hits + now.misses - before.misses;
  return rates;
}

// The screen's content for one moment.
std::string TopTable(const std::vector<StoreStat>& before, const std::vector<StoreStat>& now, double seconds,
                     Json* json) {
  Table table({"STORE", ">HITS", ">HITS NOW", ">DRAM", ">SSD", ">PLANES", ">LEASES", ">READ/S", ">WRITTEN/S",
               ">EVICTED", ">WRONG"});
  for (size_t i = 0; i < now.size(); ++i) {
    if (!now[i].stat.ok() || !before[i].stat.ok()) {
      table.Add({now[i].id, "no answer"});
      json->push_back({{"id", now[i].id}, {"answers", false}});
      continue;
    }
    const StoreStats& s = now[i].stat->store;
    const Rates rates = RatesOf(before[i].stat->store, s, seconds);
    const uint64_t hits = s.hits_dram + s.hits_ssd + s.hits_remote;
    uint64_t planes = 0;
    for (const Tier tier : kTiers) {
      for (const pod::PlaneKind kind : pod::kPlaneKinds) {
        planes += s.counts[static_cast<int>(tier) - 1][static_cast<int>(kind) - 1].planes;
      }
    }
    table.Add({now[i].id, FormatPercent(hits, hits + s.misses), FormatPercent(rates.hits, rates.asked),
               FormatPercent(s.slab_used_bytes, s.slab_bytes), FormatPercent(s.ssd.used_bytes, s.ssd_capacity_bytes),
               absl::StrCat(planes), absl::StrCat(s.leases), FormatBytes(rates.read), FormatBytes(rates.written),
               absl::StrCat(s.dram_evictions), absl::StrCat(s.checksum_failures + s.ssd.counters.wrong_records)});
    json->push_back({{"id", now[i].id},
                     {"answers", true},
                     {"hits", hits},
                     {"misses", s.misses},
                     {"hits_in_interval", rates.hits},
                     {"lookups_in_interval", rates.asked},
                     {"read_bytes_per_s", rates.read},
                     {"written_bytes_per_s", rates.written},
                     {"dram_used_bytes", s.slab_used_bytes},
                     {"ssd_used_bytes", s.ssd.used_bytes},
                     {"planes", planes},
                     {"leases", s.leases}});
  }
  return table.ToString();
}

absl::Status Top(const Options& o) {
  cluster::BlockTerminationSignals();
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Open(o.flags));
  std::vector<StoreStat> before = StatAll(*fleet);
  absl::Time then = absl::Now();
  for (;;) {
    if (cluster::WaitForTermination(absl::Now() + absl::Seconds(o.interval_s))) return absl::OkStatus();
    std::vector<StoreStat> now = StatAll(*fleet);
    const absl::Time time = absl::Now();
    Json rows = Json::array();
    const std::string text = TopTable(before, now, absl::ToDoubleSeconds(time - then), &rows);
    if (o.flags.cluster.json) {
      PrintJson(rows);
    } else {
      std::printf("%s%s", o.once ? "" : "\x1b[H\x1b[2J", text.c_str());
      std::fflush(stdout);
    }
    if (o.once) return FirstError(now);
    before = std::move(now);
    then = time;
  }
}

}  // namespace

void AddStore(CLI::App& app, Action& action) {
  CLI::App* store = app.add_subcommand("store", "What the stores hold: look, take out, bring in, check");
  store->require_subcommand(1);
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = store->add_subcommand(name, what);
    o->flags.Add(*verb);
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  CLI::App* ls = add("ls", "List planes", List);
  ls->add_option("--tenant", o->tenant, "Of this tenant only");
  ls->add_option("--limit", o->limit, "At most so many; 0: all")->capture_default_str();
  add("stat", "Capacity, contents and counters", Stat);
  CLI::App* top = add("top", "Hit rates, tiers and bandwidth, again and again", Top);
  top->add_flag("--once", o->once, "One time only");
  top->add_option("--interval-s", o->interval_s, "Between two looks")->capture_default_str()->check(kTimeoutSeconds);
  AddStoreChange(*store, action);
  AddStorePlanes(*store, action);
  AddStoreCheck(*store, action);
  AddStoreArchive(*store, action);
}

}  // namespace perigee::cli
