// perigee cluster drain|undrain|remove: taking nodes out of service without losing what they hold.
#include <algorithm>
#include <cstdio>
#include <optional>
#include <thread>

#include "absl/container/flat_hash_map.h"
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
using cluster::NodeState;
using cluster::Role;

constexpr absl::Duration kAskEvery = absl::Milliseconds(500);
// Gateways hear of a draining node within this; what they sent before has arrived.
constexpr absl::Duration kIdleFor = absl::Seconds(3);

struct Options {
  ClusterFlags cluster;
  std::vector<std::string> ids;
  bool no_wait = false;
  bool dry_run = false;
  bool yes = false;
  bool force = false;
  double timeout_s = 3600;
  double give_up_s = 60;
};

// What a store holds that others would have to take, and what cannot move.
struct Holding {
  uint64_t planes = 0, payload_bytes = 0;
  uint64_t unplaced_planes = 0;  // Their headers do not say where they belong.
};

absl::StatusOr<Holding> HoldingOf(const ClusterAccess& cluster, const std::string& id) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> fleet, StoreFleet::Of(cluster, id));
  PERIGEE_ASSIGN_OR_RETURN(const ListedByStore listed, ListAll(*fleet, ""));
  Holding holding;
  for (const auto& [store, planes] : listed) {
    for (const kvstore::ListedPlane& plane : planes) {
      if (plane.tier == kvstore::Tier::kRemote) continue;  // Stays there, for whoever is next.
      ++holding.planes;
      holding.payload_bytes += plane.meta.payload_bytes;
      holding.unplaced_planes += !plane.meta.group.has_value();
    }
  }
  return holding;
}

absl::StatusOr<std::vector<NodeRecord>> Named(const ClusterAccess& cluster, const std::vector<std::string>& ids) {
  std::vector<NodeRecord> nodes;
  for (const std::string& id : ids) {
    PERIGEE_ASSIGN_OR_RETURN(NodeRecord node, cluster.Node(id));
    nodes.push_back(std::move(node));
  }
  return nodes;
}

absl::Status CheckDrain(const ClusterAccess& cluster, const std::vector<NodeRecord>& nodes) {
  size_t stores_left = 0;
  for (const NodeRecord& node : cluster.view.cluster.nodes) {
    const bool goes = std::any_of(nodes.begin(), nodes.end(), [&](const NodeRecord& n) { return n.id == node.id; });
    stores_left += node.role == Role::kStore && node.state == NodeState::kServing && !goes;
  }
  for (const NodeRecord& node : nodes) {
    if (node.role == Role::kGateway) {
      return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                              node.id, " is a gateway: stop it with SIGTERM, it finishes what it has under way")),
                          ExitCode::kRefused);
    }
    if (node.role == Role::kStore && stores_left == 0) {
      return WithExitCode(absl::FailedPreconditionError(absl::StrCat(
                              "without ", node.id, " no serving store is left for its planes: add one first")),
                          ExitCode::kRefused);
    }
  }
  return absl::OkStatus();
}

absl::Status DryRun(const ClusterAccess& cluster, const std::vector<NodeRecord>& nodes, bool as_json) {
  Json rows = Json::array();
  for (const NodeRecord& node : nodes) {
    Json row = {{"id", node.id}, {"role", cluster::RoleName(node.role)}};
    if (node.role == Role::kStore) {
      PERIGEE_ASSIGN_OR_RETURN(const Holding holding, HoldingOf(cluster, node.id));
      row["planes"] = holding.planes;
      row["payload_bytes"] = holding.payload_bytes;
      row["unplaced_planes"] = holding.unplaced_planes;
    } else {
      PERIGEE_ASSIGN_OR_RETURN(const v1::ProgressResponse progress, cluster.AdminOf(node)->GetProgress());
      row["running"] = progress.running();
      row["queued"] = progress.queued();
    }
    rows.push_back(row);
  }
  if (as_json) {
    PrintJson(rows);
    return absl::OkStatus();
  }
  for (const Json& row : rows) {
    const auto id = row["id"].get<std::string>();
    if (row.contains("planes")) {
      std::printf("%s: at most %llu planes (%s) would move to other stores", id.c_str(),
                  static_cast<unsigned long long>(row["planes"].get<uint64_t>()),
                  FormatBytes(static_cast<double>(row["payload_bytes"].get<uint64_t>())).c_str());
      if (row["unplaced_planes"] > 0) {
        std::printf("; %llu of an older format would stay",
                    static_cast<unsigned long long>(row["unplaced_planes"].get<uint64_t>()));
      }
      std::printf("\n");
    } else {
      std::printf("%s: %u requests running and %u queued would be finished\n", id.c_str(),
                  row["running"].get<uint32_t>(), row["queued"].get<uint32_t>());
    }
  }
  return absl::OkStatus();
}

// One node that is waited for.
struct Drained {
  NodeRecord node;
  bool done = false;
  uint64_t first_planes = 0;  // To move, when that was first known.
  absl::Time idle_since = absl::InfiniteFuture();

  // Of a store's moves, since we look.
  struct Moves {
    std::optional<uint64_t> failures_before;
    uint64_t failures = 0, done = 0, left = 0;
    std::string last_failure;
    // Failures since one went well. A batch of planes takes its time: only what fails again and again is stuck.
    absl::Time first_failed = absl::InfiniteFuture(), last_failed = absl::InfinitePast();

    void Look(const v1::StatResponse::Rebalance& r) {
      if (!failures_before) failures_before = r.failures();
      const uint64_t failures_now = r.failures() - std::min(r.failures(), *failures_before);
      const uint64_t done_now = r.moved_planes() + r.given_up_planes();
      if (done_now != done) first_failed = absl::InfiniteFuture();
      if (failures_now > failures) {
        last_failed = absl::Now();
        first_failed = std::min(first_failed, last_failed);
      }
      if (failures_now > 0) last_failure = r.last_failure();
      failures = failures_now;
      done = done_now;
      left = r.planes_to_move();
    }
    bool OnlyFailedFor(absl::Duration time) const { return last_failed - first_failed >= time; }
  };
  Moves moves = {};

  // How much there was and is left to do.
  void Look(const v1::ProgressResponse& progress, uint64_t* whole, uint64_t* left) {
    if (node.role == Role::kStore) {
      const auto& r = progress.rebalance();
      moves.Look(r);
      first_planes = std::max(first_planes, r.planes_to_move());
      done = r.draining() && r.complete() && r.planes_to_move() == 0;
      *whole += first_planes + 1;
      *left += done ? 0 : r.planes_to_move() + 1;
      return;
    }
    const bool idle = progress.running() == 0 && progress.queued() == 0;
    if (!idle) idle_since = absl::InfiniteFuture();
    if (idle && idle_since == absl::InfiniteFuture()) idle_since = absl::Now();
    done = idle && absl::Now() - idle_since >= kIdleFor;
    *whole += 1;
    *left += !done;
  }
};

absl::Status AwaitDrained(const ClusterAccess& cluster, const Options& o, std::vector<Drained>& all) {
  const absl::Time deadline = absl::Now() + absl::Seconds(o.timeout_s);
  ProgressBar bar("draining");
  for (;;) {
    uint64_t whole = 0, left = 0;
    std::vector<std::string> waiting;
    for (Drained& drained : all) {
      const absl::StatusOr<v1::ProgressResponse> progress = cluster.AdminOf(drained.node)->GetProgress();
      if (!progress.ok()) return progress.status();
      drained.Look(*progress, &whole, &left);
      if (drained.done) continue;
      const Drained::Moves& moves = drained.moves;
      if (moves.OnlyFailedFor(absl::Seconds(o.give_up_s))) {
        return absl::UnavailableError(
            absl::StrCat(drained.node.id, " cannot give up its planes: ", moves.left, " are left, and moves have only ",
                         "failed for ", absl::FormatDuration(absl::Seconds(o.give_up_s)),
                         "; last: ", moves.last_failure, ". It goes on trying; 'cluster undrain' lets it serve again"));
      }
      // As much as fits beside a progress bar; --json has all.
      waiting.push_back(moves.failures == 0 ? drained.node.id
                                            : absl::StrCat(drained.node.id, " (", moves.failures,
                                                           " failures, last: ", moves.last_failure.substr(0, 60), ")"));
    }
    bar.Set(whole - left, whole, absl::StrJoin(waiting, ", "));
    if (waiting.empty()) return absl::OkStatus();
    if (absl::Now() > deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("not drained yet: ", absl::StrJoin(waiting, ", "), "; they go on: look with 'cluster nodes'"));
    }
    absl::SleepFor(kAskEvery);
  }
}

absl::Status Drain(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<NodeRecord> nodes, Named(cluster, o.ids));
  PERIGEE_RETURN_IF_ERROR(CheckDrain(cluster, nodes));
  if (o.dry_run) return DryRun(cluster, nodes, o.cluster.json);
  for (const NodeRecord& node : nodes) PERIGEE_RETURN_IF_ERROR(cluster.admin->SetState(node.id, NodeState::kDraining));
  std::vector<Drained> all;
  for (const NodeRecord& node : nodes) all.push_back({.node = node});
  const absl::Status status = o.no_wait ? absl::OkStatus() : AwaitDrained(cluster, o, all);
  if (o.cluster.json) {
    Json json = {{"draining", o.ids}, {"drained", !o.no_wait && status.ok()}};
    for (const Drained& drained : all) {
      if (drained.node.role != Role::kStore || o.no_wait) continue;
      json["stores"].push_back({{"id", drained.node.id},
                                {"planes_to_move", drained.moves.left},
                                {"failures", drained.moves.failures},
                                {"last_failure", drained.moves.last_failure}});
    }
    PrintJson(json);
  } else if (status.ok()) {
    std::printf("%s: %s\n", absl::StrJoin(o.ids, ", ").c_str(), o.no_wait ? "draining" : "drained");
  }
  return status;
}

absl::Status Undrain(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  PERIGEE_RETURN_IF_ERROR(Named(cluster, o.ids).status());
  for (const std::string& id : o.ids) PERIGEE_RETURN_IF_ERROR(cluster.admin->SetState(id, NodeState::kServing));
  if (o.cluster.json) {
    PrintJson({{"serving", o.ids}});
  } else {
    std::printf("%s: serving\n", absl::StrJoin(o.ids, ", ").c_str());
  }
  return absl::OkStatus();
}

// How many planes only this store has. Page by page, so that memory stays small.
absl::StatusOr<uint64_t> OnlyCopies(const ClusterAccess& cluster, const std::string& id) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> one, StoreFleet::Of(cluster, id));
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<StoreFleet> all, StoreFleet::Of(cluster, ""));
  std::vector<kvstore::PlaneId> page;
  uint64_t only = 0;
  const auto look = [&]() -> absl::Status {
    std::vector<pod::BlockKey> keys;
    for (const kvstore::PlaneId& plane : page) keys.push_back(plane.key);
    absl::Mutex mu;
    absl::flat_hash_map<kvstore::PlaneId, bool> elsewhere;
    // One that does not answer has nothing that could be counted on.
    all->TryEach([&](const std::string& store, kvstore::StoreClient& client) -> absl::Status {
      if (store == id) return absl::OkStatus();
      PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult found, client.Lookup(keys));
      absl::MutexLock lock(&mu);
      for (size_t i = 0; i < keys.size(); ++i) {
        for (const kvstore::FoundPlane& plane : found.blocks[i].planes) elsewhere[{keys[i], plane.kind}] = true;
      }
      return absl::OkStatus();
    });
    for (const kvstore::PlaneId& plane : page) only += !elsewhere.contains(plane);
    page.clear();
    return absl::OkStatus();
  };
  absl::Status looked;
  PERIGEE_RETURN_IF_ERROR(one->ForEach([&](const std::string&, kvstore::StoreClient& client) {
    return ForEachPlane(client, "", {}, [&](const kvstore::ListedPlane& plane) {
      if (!plane.on_remote) page.push_back(plane.id);
      if (page.size() == 4096) looked.Update(look());
      return true;
    });
  }));
  looked.Update(look());
  PERIGEE_RETURN_IF_ERROR(looked);
  return only;
}

absl::Status CheckRemoval(const ClusterAccess& cluster, const NodeRecord& node) {
  if (node.role != Role::kStore) return absl::OkStatus();
  const absl::StatusOr<uint64_t> only = OnlyCopies(cluster, node.id);
  if (!only.ok()) {
    return WithExitCode(
        absl::FailedPreconditionError(absl::StrCat("what only ", node.id, " has cannot be known (",
                                                   only.status().message(), "): say --force to give it up")),
        ExitCode::kRefused);
  }
  if (*only == 0) return absl::OkStatus();
  return WithExitCode(
      absl::FailedPreconditionError(absl::StrCat(node.id, " has the only copies of ", *only,
                                                 " planes: drain it first, or say --force to give them up")),
      ExitCode::kRefused);
}

absl::Status Remove(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<NodeRecord> nodes, Named(cluster, o.ids));
  if (!o.force) {
    for (const NodeRecord& node : nodes) PERIGEE_RETURN_IF_ERROR(CheckRemoval(cluster, node));
  }
  PERIGEE_RETURN_IF_ERROR(Confirm(absl::StrCat("Take ", absl::StrJoin(o.ids, ", "), " out of the cluster?"), o.yes));
  for (const NodeRecord& node : nodes) PERIGEE_RETURN_IF_ERROR(cluster.admin->Remove(node.id));
  if (o.cluster.json) {
    PrintJson({{"removed", o.ids}});
  } else {
    std::printf("%s: removed\n", absl::StrJoin(o.ids, ", ").c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddClusterChange(CLI::App& group, Action& action) {
  auto o = std::make_shared<Options>();
  const auto add = [&](const char* name, const char* what, absl::Status (*run)(const Options&)) {
    CLI::App* verb = group.add_subcommand(name, what);
    o->cluster.Add(*verb);
    verb->add_option("ids", o->ids, "Nodes, by their names")->required();
    verb->callback([o, run, &action] { action = [o, run] { return run(*o); }; });
    return verb;
  };
  CLI::App* drain =
      add("drain", "Give nodes nothing new, and wait until they have finished, and moved, what they have", Drain);
  drain->add_flag("--no-wait", o->no_wait, "Only begin");
  drain->add_flag("--dry-run", o->dry_run, "Only say how much would move");
  drain->add_option("--timeout-s", o->timeout_s, "How long to wait")->capture_default_str()->check(kTimeoutSeconds);
  drain
      ->add_option("--give-up-s", o->give_up_s,
                   "Wait no longer once a store's moves have only failed for so long; the store goes on trying")
      ->capture_default_str()
      ->check(kTimeoutSeconds);
  add("undrain", "Let draining nodes serve again", Undrain);
  CLI::App* remove = add("remove", "Take nodes out of the cluster, for good", Remove);
  remove->add_flag("--yes", o->yes, "Do not ask");
  remove->add_flag("--force", o->force, "Also stores that have planes which no other has");
}

}  // namespace perigee::cli
