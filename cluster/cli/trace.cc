// perigee trace: where one request's time went, over all processes of the cluster.
#include "base/trace.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/command.h"
#include "cluster/client.h"
#include "cluster/membership/open_membership.h"
#include "cluster/trace_file.h"

namespace perigee::cli {
namespace {

struct Options {
  std::string request_id;
  std::string output;
  std::string join;
  std::string cluster_file;
  std::vector<std::string> nodes;
  cluster::EtcdOptions etcd;
  double timeout_s = 5;
};

absl::StatusOr<std::vector<cluster::TracedNode>> Nodes(const Options& o) {
  std::vector<cluster::TracedNode> nodes;
  for (const std::string& address : o.nodes) nodes.push_back({.name = address, .address = address});
  if (!o.join.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::Membership> membership,
                             cluster::OpenMembership(o.join, o.etcd));
    for (const cluster::NodeRecord& node : membership->View()->nodes) {
      nodes.push_back({.name = node.id, .address = node.address});
    }
  } else if (nodes.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(const cluster::ClusterAddresses addresses,
                             cluster::ClusterAddresses::Read(o.cluster_file));
    nodes = {{.name = "store", .address = addresses.store},
             {.name = "prefill", .address = addresses.prefill},
             {.name = "decode", .address = addresses.decode}};
  }
  if (nodes.empty()) return absl::NotFoundError(absl::StrCat("the cluster of ", o.join, " has no nodes"));
  return nodes;
}

absl::Status Trace(const Options& o) {
  if (!IsRequestId(o.request_id)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", o.request_id, "' is no request id: those are 1 to 128 of A-Z a-z 0-9 . _ : -"));
  }
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<cluster::TracedNode> nodes, Nodes(o));
  const std::vector<cluster::NodeTrace> traces = cluster::CollectTrace(nodes, o.request_id, absl::Seconds(o.timeout_s));
  int spans = 0, processes = 0;
  for (const cluster::NodeTrace& node : traces) {
    if (!node.status.ok()) {
      std::fprintf(stderr, "perigee: %s (%s) did not answer: %s\n", node.node.name.c_str(), node.node.address.c_str(),
                   node.status.ToString().c_str());
    }
    spans += node.trace.spans_size();
    processes += node.trace.spans_size() > 0 ? 1 : 0;
  }
  if (spans == 0) {
    return absl::NotFoundError(absl::StrCat("none of the ", nodes.size(), " processes asked remembers request ",
                                            o.request_id, ": it is too long ago, or went elsewhere"));
  }
  const std::string json = cluster::TraceToJson(o.request_id, traces);
  if (o.output == "-") {
    std::fputs(json.c_str(), stdout);
    return absl::OkStatus();
  }
  const std::string path = o.output.empty() ? absl::StrCat("trace-", o.request_id, ".json") : o.output;
  PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(path, json));
  std::printf("%s: %d spans of %d processes; open it at https://ui.perfetto.dev\n", path.c_str(), spans, processes);
  return absl::OkStatus();
}

}  // namespace

void AddTrace(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("trace", "Write where a request's time went as a Chrome/Perfetto trace file");
  auto o = std::make_shared<Options>();
  o->cluster_file = DefaultStateFolder() + "/cluster.json";
  verb->add_option("request_id", o->request_id, "As in the answer's X-Request-Id and in the logs")->required();
  verb->add_option("-o,--output", o->output, "File to write, - for standard output (default: trace-REQUEST_ID.json)");
  verb->add_option("--join", o->join, "The cluster: static:FILE, or etcd:HOST:PORT[,HOST:PORT...][/NAME]");
  verb->add_option("--node", o->nodes, "host:port of a process to ask (besides those of --join); repeatable")
      ->allow_extra_args(false);
  verb->add_option("--cluster", o->cluster_file, "Without --join and --node: the addresses that `up` wrote")
      ->capture_default_str();
  verb->add_option("--timeout-s", o->timeout_s, "For all answers")->capture_default_str()->check(kTimeoutSeconds);
  verb->add_option("--etcd-ca", o->etcd.ca_path, "CA certificate of etcd (PEM): TLS");
  verb->add_option("--etcd-cert", o->etcd.certificate_path, "This process's certificate for etcd");
  verb->add_option("--etcd-key", o->etcd.key_path, "And its key");
  verb->callback([o, &action] { action = [o] { return Trace(*o); }; });
}

}  // namespace perigee::cli
