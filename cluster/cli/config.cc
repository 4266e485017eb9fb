// perigee config show: the settings of running processes.
#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"

namespace perigee::cli {
namespace {

struct Options {
  ClusterFlags cluster;
  std::string node;  // "": all.
  bool given = false;
};

absl::Status Show(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess cluster, ClusterAccess::Open(o.cluster));
  std::vector<cluster::NodeRecord> nodes = cluster.view.cluster.nodes;
  if (!o.node.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(cluster::NodeRecord node, cluster.Node(o.node));
    nodes = {std::move(node)};
  }
  Json json = Json::object();
  Table table({"NODE", "SETTING", "VALUE", "FROM"});
  absl::Status failed;
  for (const cluster::NodeRecord& node : nodes) {
    const absl::StatusOr<v1::ConfigResponse> config = cluster.AdminOf(node)->GetConfig();
    if (!config.ok()) {
      failed.Update(config.status());
      continue;
    }
    Json settings = Json::object();
    for (const auto& setting : config->settings()) {
      if (o.given && !setting.given()) continue;
      settings[setting.name()] = {{"value", setting.value()}, {"given", setting.given()}};
      table.Add(
          {node.id, absl::StrCat("--", setting.name()), setting.value(), setting.given() ? "command line" : "default"});
    }
    json[node.id] = settings;
  }
  if (o.cluster.json) {
    PrintJson(json);
  } else {
    table.Print();
  }
  return failed;
}

}  // namespace

void AddConfig(CLI::App& app, Action& action) {
  CLI::App* group = app.add_subcommand("config", "Settings of running processes");
  group->require_subcommand(1);
  CLI::App* verb = group->add_subcommand("show", "What the processes were started with");
  auto o = std::make_shared<Options>();
  o->cluster.Add(*verb);
  verb->add_option("node", o->node, "One node (default: all)");
  verb->add_flag("--given", o->given, "Without defaults");
  verb->callback([o, &action] { action = [o] { return Show(*o); }; });
}

}  // namespace perigee::cli
