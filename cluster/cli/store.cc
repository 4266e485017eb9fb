// perigee store ls|stat|why|rm: what is in a store, how it fares, why something is not there, and taking things out.
#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "cluster/cli/command.h"
#include "cluster/client.h"
#include "kvstore/client.h"
#include "kvstore/sessions.h"

namespace perigee::cli {
namespace {

using Json = nlohmann::ordered_json;
using kvstore::Tier;

struct Options {
  std::string address;
  std::string cluster_file = DefaultStateFolder() + "/cluster.json";
  std::string secret_file;
  std::string tenant;
  uint64_t limit = 0;
  std::vector<std::string> keys;
  bool all = false;
  bool json = false;
};

struct Session {
  std::unique_ptr<transport::Context> engine;
  std::unique_ptr<kvstore::StoreClient> client;
};

absl::StatusOr<Session> Connect(const Options& o) {
  std::string address = o.address, secret_file = o.secret_file;
  if (address.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(const cluster::ClusterAddresses addresses,
                             cluster::ClusterAddresses::Read(o.cluster_file));
    address = addresses.store;
    if (secret_file.empty()) secret_file = addresses.store_secret_file;
  }
  kvstore::ClientOptions options;
  if (!secret_file.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(options.secret, kvstore::ReadSecret(secret_file));
  }
  Session session;
  PERIGEE_ASSIGN_OR_RETURN(session.engine, transport::Context::Create({}));
  PERIGEE_ASSIGN_OR_RETURN(session.client, kvstore::StoreClient::Connect(address, session.engine.get(), options));
  return session;
}

constexpr Tier kTiers[] = {Tier::kDram, Tier::kSsd, Tier::kRemote};
const char* TierName(Tier tier) { return tier == Tier::kDram ? "dram" : tier == Tier::kSsd ? "ssd" : "remote"; }
const char* PinName(kvstore::PinMode pin) {
  return pin == kvstore::PinMode::kHard ? "hard" : pin == kvstore::PinMode::kSoft ? "soft" : "none";
}

// Calls `visit` for every plane; stops early when it returns false.
absl::Status ForEachPlane(kvstore::StoreClient& client, const std::string& tenant,
                          const std::function<bool(const kvstore::ListedPlane&)>& visit) {
  std::string token;
  do {
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::ListPage page, client.List(token, 1000, tenant));
    for (const kvstore::ListedPlane& plane : page.planes) {
      if (!visit(plane)) return absl::OkStatus();
    }
    token = page.next_page_token;
  } while (!token.empty());
  return absl::OkStatus();
}

absl::Status List(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const Session session, Connect(o));
  Json rows = Json::array();
  uint64_t count = 0;
  if (!o.json)
    std::printf("%-64s %-8s %-6s %6s %9s %10s %s\n", "BLOCK KEY", "PLANE", "TIER", "TOKENS", "POSITION", "BYTES",
                "TENANT");
  PERIGEE_RETURN_IF_ERROR(ForEachPlane(*session.client, o.tenant, [&](const kvstore::ListedPlane& p) {
    if (o.limit > 0 && count >= o.limit) return false;
    ++count;
    if (o.json) {
      rows.push_back({{"key", p.id.key.ToString()},
                      {"plane", pod::PlaneKindName(p.id.kind)},
                      {"tier", TierName(p.tier)},
                      {"on_ssd", p.on_ssd},
                      {"on_remote", p.on_remote},
                      {"pin", PinName(p.pin)},
                      {"ttl_s", p.meta.ttl_s},
                      {"tokens", p.meta.tokens},
                      {"base_position", p.meta.base_position},
                      {"payload_bytes", p.meta.payload_bytes},
                      {"tenant", p.meta.tenant}});
    } else {
      std::printf("%-64s %-8s %-6s %6d %9lld %10llu %s\n", p.id.key.ToString().c_str(), pod::PlaneKindName(p.id.kind),
                  TierName(p.tier), p.meta.tokens, static_cast<long long>(p.meta.base_position),
                  static_cast<unsigned long long>(p.meta.payload_bytes), p.meta.tenant.c_str());
    }
    return true;
  }));
  if (o.json) std::printf("%s\n", rows.dump(2).c_str());
  return absl::OkStatus();
}

absl::Status Stat(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const Session session, Connect(o));
  PERIGEE_ASSIGN_OR_RETURN(const kvstore::StoreClient::Stat stat, session.client->GetStat());
  const kvstore::StoreStats& s = stat.store;
  Json json = {{"address", session.client->address()},
               {"dram",
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
  Json planes;
  for (Tier tier : kTiers) {
    for (pod::PlaneKind kind : pod::kPlaneKinds) {
      const kvstore::TierCount& c = s.counts[static_cast<int>(tier) - 1][static_cast<int>(kind) - 1];
      planes[TierName(tier)][pod::PlaneKindName(kind)] = {{"planes", c.planes}, {"payload_bytes", c.payload_bytes}};
    }
  }
  json["planes"] = planes;
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
  if (o.json) {
    std::printf("%s\n", json.dump(2).c_str());
    return absl::OkStatus();
  }
  const auto mib = [](uint64_t bytes) { return static_cast<double>(bytes) / (1 << 20); };
  std::printf("store %s\n", session.client->address().c_str());
  std::printf("  memory   %.1f of %.1f MiB used, %.1f leased, %.1f reserved\n", mib(s.slab_used_bytes),
              mib(s.slab_bytes), mib(s.leased_bytes), mib(s.reserved_bytes));
  std::printf("  disk     %.1f of %.1f MiB used in %llu segments\n", mib(s.ssd.used_bytes), mib(s.ssd_capacity_bytes),
              static_cast<unsigned long long>(s.ssd.segments));
  for (const kvstore::SsdPathStats& path : s.ssd.paths) {
    if (path.health == kvstore::SsdHealth::kOk) continue;
    std::printf("  DISK %s IS %s: %s\n", path.path.c_str(), kvstore::SsdHealthName(path.health), path.message.c_str());
  }
  for (Tier tier : kTiers) {
    for (pod::PlaneKind kind : pod::kPlaneKinds) {
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
  return absl::OkStatus();
}

absl::Status Remove(const Options& o) {
  if (o.all == !o.keys.empty())
    return absl::InvalidArgumentError("name the block keys to remove (or unambiguous beginnings), or give --all");
  for (const std::string& prefix : o.keys) {
    if (prefix.empty())
      return absl::InvalidArgumentError("a block key to remove is empty");  // It would begin every key.
  }
  PERIGEE_ASSIGN_OR_RETURN(const Session session, Connect(o));
  std::vector<pod::BlockKey> found;
  PERIGEE_RETURN_IF_ERROR(ForEachPlane(*session.client, o.tenant, [&](const kvstore::ListedPlane& p) {
    found.push_back(p.id.key);
    return true;
  }));
  std::sort(found.begin(), found.end());
  found.erase(std::unique(found.begin(), found.end()), found.end());  // A block's planes are not listed together.
  std::vector<pod::BlockKey> chosen;
  if (o.all) chosen = found;
  for (const std::string& prefix : o.keys) {
    std::vector<pod::BlockKey> matches;
    for (const pod::BlockKey& key : found) {
      if (absl::StartsWith(key.ToString(), prefix)) matches.push_back(key);
    }
    if (matches.empty()) return absl::NotFoundError(absl::StrCat("no block key begins with '", prefix, "'"));
    if (matches.size() > 1) {
      return absl::InvalidArgumentError(
          absl::StrCat(matches.size(), " block keys begin with '", prefix, "'; give more digits"));
    }
    chosen.push_back(matches[0]);
  }
  uint32_t removed = 0;
  constexpr size_t kBatch = 4096;
  for (size_t i = 0; i < chosen.size(); i += kBatch) {
    PERIGEE_ASSIGN_OR_RETURN(const uint32_t n,
                             session.client->Delete(std::span(chosen).subspan(i, std::min(kBatch, chosen.size() - i))));
    removed += n;
  }
  if (o.json) {
    std::printf("%s\n", Json({{"blocks", chosen.size()}, {"planes", removed}}).dump().c_str());
  } else {
    std::printf("removed %zu blocks (%u planes)\n", chosen.size(), removed);
  }
  return absl::OkStatus();
}

absl::Status Why(const Options& o) {
  std::vector<pod::BlockKey> keys;
  for (const std::string& hex : o.keys) {
    pod::BlockKey key;
    const std::string bytes = absl::HexStringToBytes(hex);
    if (hex.size() != 2 * key.digest.size() || absl::BytesToHexString(bytes) != absl::AsciiStrToLower(hex)) {
      return absl::InvalidArgumentError(
          absl::StrCat("'", hex, "' is no block key: it has ", 2 * key.digest.size(), " hexadecimal digits"));
    }
    std::copy(bytes.begin(), bytes.end(), key.digest.begin());
    keys.push_back(key);
  }
  PERIGEE_ASSIGN_OR_RETURN(const Session session, Connect(o));
  PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult result, session.client->Lookup(keys));
  Json rows = Json::array();
  for (size_t i = 0; i < result.blocks.size(); ++i) {
    const std::string key = keys[i].ToString();
    for (const kvstore::FoundPlane& plane : result.blocks[i].planes) {
      rows.push_back({{"key", key},
                      {"plane", pod::PlaneKindName(plane.kind)},
                      {"stored", true},
                      {"tier", TierName(plane.tier)},
                      {"estimated_fetch_us", plane.estimated_fetch_us}});
    }
    for (const kvstore::MissedPlane& missed : result.blocks[i].misses) {
      rows.push_back({{"key", key},
                      {"plane", pod::PlaneKindName(missed.kind)},
                      {"stored", false},
                      {"reason", kvstore::MissReasonName(missed.miss.reason)},
                      {"when_unix_us", missed.miss.when_unix_us}});
    }
  }
  if (o.json) {
    std::printf("%s\n", rows.dump(2).c_str());
    return absl::OkStatus();
  }
  for (const Json& row : rows) {
    std::string what;
    if (row["stored"]) {
      what = absl::StrFormat("stored (%s), about %.1f ms to fetch", row["tier"].get<std::string>(),
                             row["estimated_fetch_us"].get<double>() / 1000);
    } else {
      what = row["reason"];
      if (const int64_t when = row["when_unix_us"]; when > 0) {
        absl::StrAppend(&what, " at ", absl::FormatTime(absl::FromUnixMicros(when)));
      }
    }
    std::printf("%s  %-8s  %s\n", row["key"].get<std::string>().c_str(), row["plane"].get<std::string>().c_str(),
                what.c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddStore(CLI::App& app, Action& action) {
  CLI::App* store = app.add_subcommand("store", "Look into a store, or take blocks out of it");
  store->require_subcommand(1);
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = store->add_subcommand(name, what);
    verb->add_option("--store", o->address, "The store's address (default: the one in the cluster file)");
    verb->add_option("--store-secret-file", o->secret_file, "File with the secret that the store asks for");
    verb->add_option("--cluster", o->cluster_file, "Address file written by 'perigee up'")->capture_default_str();
    verb->add_flag("--json", o->json, "Print JSON");
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  CLI::App* ls = add("ls", "List planes", List);
  ls->add_option("--tenant", o->tenant, "Of this tenant only");
  ls->add_option("--limit", o->limit, "At most so many; 0: all")->capture_default_str();
  add("stat", "Capacity, contents and counters", Stat);
  CLI::App* why = add("why", "Why blocks are not stored, or where they are", Why);
  why->add_option("keys", o->keys, "Block keys")->required();
  CLI::App* rm = add("rm", "Remove blocks", Remove);
  rm->add_option("keys", o->keys, "Block keys, or unambiguous beginnings of them");
  rm->add_flag("--all", o->all, "Remove every block");
  rm->add_option("--tenant", o->tenant, "Of this tenant only");
}

}  // namespace perigee::cli
