// perigee cluster status|nodes|join|placement: who is in the cluster, and where planes belong. The verbs that change
// what is served are in cluster_change.cc.
#include <cstdio>
#include <map>
#include <optional>
#include <thread>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/cli/store_keys.h"
#include "cluster/membership/record.h"

namespace perigee::cli {
namespace {

using cluster::NodeRecord;
using cluster::Role;

struct Options {
  ClusterFlags cluster;
  // join
  NodeRecord node;
  std::string role = "store";
  // placement
  std::string key;
  int group = -1;
  uint32_t replicas = 1;
};

struct Asked {
  NodeRecord node;
  absl::StatusOr<v1::VersionResponse> version = absl::UnknownError("not asked");
  absl::StatusOr<v1::ProgressResponse> progress = absl::UnknownError("not asked");
};

// All nodes, each asked on a thread of its own.
std::vector<Asked> AskAll(const ClusterAccess& cluster) {
  std::vector<Asked> asked(cluster.view.cluster.nodes.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < asked.size(); ++i) {
    asked[i].node = cluster.view.cluster.nodes[i];
    threads.emplace_back([&cluster, &a = asked[i]] {
      const auto admin = cluster.AdminOf(a.node);
      a.version = admin->GetVersion();
      if (a.version.ok()) a.progress = admin->GetProgress();
    });
  }
  for (std::thread& thread : threads) thread.join();
  return asked;
}

Json NodeJson(const Asked& asked) {
  const NodeRecord& n = asked.node;
  Json json = {{"id", n.id},           {"role", cluster::RoleName(n.role)},
               {"address", n.address}, {"state", cluster::StateName(n.state)},
               {"weight", n.weight},   {"answers", asked.version.ok()}};
  if (!n.http_address.empty()) json["http_address"] = n.http_address;
  if (!n.metrics_address.empty()) json["metrics_address"] = n.metrics_address;
  if (!n.model_fingerprint.empty()) json["model_fingerprint"] = n.model_fingerprint;
  if (!n.plan_id.empty()) json["plan_id"] = n.plan_id;
  json["capacity"] = {{"dram_bytes", n.capacity.dram_bytes},
                      {"ssd_bytes", n.capacity.ssd_bytes},
                      {"pool_bytes", n.capacity.pool_bytes},
                      {"max_sequences", n.capacity.max_sequences}};
  json["started_unix_us"] = n.started_unix_us;
  if (asked.version.ok()) json["version"] = asked.version->version();
  if (asked.progress.ok()) {
    const v1::ProgressResponse& p = *asked.progress;
    json["load"] = {{"running", p.running()},
                    {"queued", p.queued()},
                    {"dram_used_bytes", p.dram_used_bytes()},
                    {"ssd_used_bytes", p.ssd_used_bytes()},
                    {"pool_used_bytes", p.pool_used_bytes()}};
    if (p.has_rebalance()) {
      const auto& r = p.rebalance();
      json["rebalance"] = {{"map_epoch", r.map_epoch()},
                           {"in_map", r.in_map()},
                           {"draining", r.draining()},
                           {"complete", r.complete()},
                           {"planes_to_move", r.planes_to_move()},
                           {"bytes_to_move", r.bytes_to_move()},
                           {"moved_planes", r.moved_planes()},
                           {"repaired_planes", r.repaired_planes()},
                           {"failures", r.failures()},
                           {"last_failure", r.last_failure()}};
    }
  } else if (!asked.version.ok()) {
    json["error"] = std::string(asked.version.status().message());
  }
  return json;
}

std::string LoadText(const Asked& asked) {
  if (!asked.progress.ok()) return "";
  const v1::ProgressResponse& p = *asked.progress;
  const auto of = [](uint64_t used, uint64_t all) {
    return absl::StrCat(FormatBytes(static_cast<double>(used)), " of ", FormatBytes(static_cast<double>(all)));
  };
  switch (asked.node.role) {
    case Role::kStore: {
      std::string text = absl::StrCat("dram ", of(p.dram_used_bytes(), asked.node.capacity.dram_bytes));
      if (asked.node.capacity.ssd_bytes > 0 || p.ssd_used_bytes() > 0) {
        absl::StrAppend(&text, ", ssd ", of(p.ssd_used_bytes(), asked.node.capacity.ssd_bytes));
      }
      if (p.rebalance().planes_to_move() > 0) {
        absl::StrAppend(&text, ", ", p.rebalance().planes_to_move(), " planes to move");
      }
      return text;
    }
    case Role::kPrefill:
    case Role::kDecode:
      return absl::StrCat(p.running(), " running, ", p.queued(), " queued, pool ",
                          of(p.pool_used_bytes(), asked.node.capacity.pool_bytes));
    case Role::kGateway:
      return absl::StrCat(p.running(), " running, ", p.queued(), " queued");
  }
  return "";
}

absl::Status Nodes(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  const std::vector<Asked> asked = AskAll(cluster);
  if (o.cluster.json) {
    Json rows = Json::array();
    for (const Asked& a : asked) rows.push_back(NodeJson(a));
    PrintJson(rows);
    return absl::OkStatus();
  }
  Table table({"NODE", "ROLE", "ADDRESS", "HTTP", "STATE", "UP", "VERSION", "LOAD"});
  for (const Asked& a : asked) {
    const NodeRecord& n = a.node;
    const bool up = a.version.ok();
    table.Add({n.id, cluster::RoleName(n.role), n.address, n.http_address,
               up ? cluster::StateName(n.state) : "NO ANSWER",
               up ? FormatAge(absl::Now() - absl::FromUnixMicros(a.version->started_unix_us())) : "",
               up ? a.version->version() : "", LoadText(a)});
  }
  table.Print();
  return absl::OkStatus();
}

absl::Status Status(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  const std::vector<Asked> asked = AskAll(cluster);
  const cluster::ClusterView& view = cluster.view.cluster;
  struct Count {
    size_t nodes = 0, answering = 0, draining = 0;
  };
  std::map<Role, Count> counts;
  uint64_t dram = 0, dram_used = 0, ssd = 0, ssd_used = 0, to_move = 0, bytes_to_move = 0;
  uint32_t running = 0, queued = 0;
  bool balanced = true;
  for (const Asked& a : asked) {
    Count& count = counts[a.node.role];
    ++count.nodes;
    count.answering += a.version.ok();
    count.draining += a.node.state == cluster::NodeState::kDraining;
    if (!a.progress.ok()) continue;
    if (a.node.role == Role::kGateway) {
      running += a.progress->running();
      queued += a.progress->queued();
    }
    if (a.node.role != Role::kStore) continue;
    dram += a.node.capacity.dram_bytes;
    ssd += a.node.capacity.ssd_bytes;
    dram_used += a.progress->dram_used_bytes();
    ssd_used += a.progress->ssd_used_bytes();
    to_move += a.progress->rebalance().planes_to_move();
    bytes_to_move += a.progress->rebalance().bytes_to_move();
    balanced &= !a.progress->has_rebalance() || a.progress->rebalance().complete();
  }
  size_t silent = 0;
  for (const auto& [role, count] : counts) silent += count.nodes - count.answering;
  if (o.cluster.json) {
    Json json = {{"seen_by", cluster.view.self},
                 {"placement_epoch", view.placement_epoch},
                 {"heard_unix_us", absl::ToUnixMicros(view.as_of)},
                 {"member", !cluster.view.alone}};
    for (const auto& [role, count] : counts) {
      json["roles"][cluster::RoleName(role)] = {
          {"nodes", count.nodes}, {"answering", count.answering}, {"draining", count.draining}};
    }
    json["silent_nodes"] = silent;
    json["requests"] = {{"running", running}, {"queued", queued}};
    json["dram"] = {{"capacity_bytes", dram}, {"used_bytes", dram_used}};
    json["ssd"] = {{"capacity_bytes", ssd}, {"used_bytes", ssd_used}};
    json["rebalance"] = {{"complete", balanced}, {"planes_to_move", to_move}, {"bytes_to_move", bytes_to_move}};
    PrintJson(json);
  } else {
    for (const auto& [role, count] : counts) {
      std::printf("%-9s %zu node%s%s%s\n", cluster::RoleName(role), count.nodes, count.nodes == 1 ? "" : "s",
                  count.draining > 0 ? absl::StrCat(", ", count.draining, " draining").c_str() : "",
                  count.answering < count.nodes
                      ? absl::StrCat(", ", count.nodes - count.answering, " NOT ANSWERING").c_str()
                      : "");
    }
    std::printf("requests  %u running, %u queued\n", running, queued);
    std::printf("memory    %s of %s\n", FormatBytes(static_cast<double>(dram_used)).c_str(),
                FormatBytes(static_cast<double>(dram)).c_str());
    if (ssd > 0 || ssd_used > 0) {
      std::printf("disk      %s of %s\n", FormatBytes(static_cast<double>(ssd_used)).c_str(),
                  FormatBytes(static_cast<double>(ssd)).c_str());
    }
    std::printf(
        "placement epoch %llu, %s\n", static_cast<unsigned long long>(view.placement_epoch),
        to_move > 0
            ? absl::StrCat(to_move, " planes (", FormatBytes(static_cast<double>(bytes_to_move)), ") to move").c_str()
        : balanced ? "balanced"
                   : "looking for what has to move");
    std::printf("source    heard %s ago by %s\n", FormatAge(absl::Now() - view.as_of).c_str(),
                cluster.view.self.c_str());
  }
  // For scripts that watch.
  return silent > 0 ? Outcome(ExitCode::kFailed) : absl::OkStatus();
}

absl::Status Join(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  NodeRecord node = o.node;
  PERIGEE_ASSIGN_OR_RETURN(node.role, cluster::RoleFromName(o.role));
  PERIGEE_RETURN_IF_ERROR(cluster::CheckRecord(node));
  PERIGEE_RETURN_IF_ERROR(cluster.admin->Join(node));
  if (o.cluster.json) {
    PrintJson({{"joined", node.id}});
  } else {
    std::printf("%s is a member; start it with --join and --id %s\n", node.id.c_str(), node.id.c_str());
  }
  return absl::OkStatus();
}

absl::Status Placement(const Options& o) {
  if (o.key.empty() && o.group < 0) return UsageError("name a block key, or give --group");
  pod::BlockKey key;
  if (o.group < 0) {
    PERIGEE_ASSIGN_OR_RETURN(key, ParseKey(o.key));
  }
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  v1::PlacementRequest request;
  request.set_replicas(o.replicas);
  bool stored = false;
  if (o.group >= 0) {
    request.set_group(static_cast<uint32_t>(o.group));
  } else {
    PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Of(cluster, ""));
    if (const std::optional<pod::BlockKey> root = RootOf(*fleet, key)) {
      key = *root;
      stored = true;
    }
    request.set_root(key.digest.data(), key.digest.size());
  }
  PERIGEE_ASSIGN_OR_RETURN(const v1::PlacementResponse placement, cluster.admin->GetPlacement(request));
  const std::vector<std::string> owners(placement.owners().begin(), placement.owners().end());
  const std::vector<std::string> readers(placement.readers().begin(), placement.readers().end());
  if (o.cluster.json) {
    PrintJson({{"epoch", placement.epoch()},
               {"group", placement.group()},
               {"root", o.group >= 0 ? "" : absl::BytesToHexString(request.root())},
               {"stored", stored},
               {"owners", owners},
               {"readers", readers}});
    return absl::OkStatus();
  }
  if (o.group < 0) {
    std::printf("root     %s%s\n", absl::BytesToHexString(request.root()).c_str(),
                stored ? "" : " (the key itself: no store has it, so its chain is not known)");
  }
  std::printf("group    %u of placement epoch %llu\nowners   %s\nreaders  %s\n", placement.group(),
              static_cast<unsigned long long>(placement.epoch()), absl::StrJoin(owners, ", ").c_str(),
              absl::StrJoin(readers, ", ").c_str());
  return absl::OkStatus();
}

}  // namespace

void AddCluster(CLI::App& app, Action& action) {
  CLI::App* group = app.add_subcommand("cluster", "The cluster's nodes, and changes of them");
  group->require_subcommand(1);
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = group->add_subcommand(name, what);
    o->cluster.Add(*verb);
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  add("status", "The whole at a glance; exit code 1 when a node does not answer", Status);
  add("nodes", "All nodes: role, address, state, load", Nodes);
  CLI::App* join = add("join", "Enter a node into a cluster whose members stand in a file", Join);
  join->add_option("id", o->node.id, "The node's name")->required();
  join->add_option("--role", o->role, "store, prefill, decode or gateway")
      ->capture_default_str()
      ->check(CLI::IsMember({"store", "prefill", "decode", "gateway"}));
  join->add_option("--address", o->node.address, "host:port of its gRPC services")->required();
  join->add_option("--http-address", o->node.http_address, "host:port of a gateway's HTTP API");
  join->add_option("--weight", o->node.weight, "Of a store: its share, beside the others' weights")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  CLI::App* placement = add("placement", "Which stores a block belongs to, and where it is looked for", Placement);
  placement->add_option("key", o->key, "Block key");
  placement->add_option("--group", o->group, "A placement group instead")->check(CLI::Range(0, 65535));
  placement->add_option("--replicas", o->replicas, "Stores that are to have it")
      ->capture_default_str()
      ->check(CLI::Range(1u, kvstore::kMaxReplicas));
  AddClusterChange(*group, action);
}

}  // namespace perigee::cli
