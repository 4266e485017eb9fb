// perigee trace: where one request's time went, over all processes of the cluster.
#include "base/trace.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/cluster_access.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "cluster/trace_file.h"

namespace perigee::cli {
namespace {

struct Options {
  std::string request_id;
  std::string output;
  ClusterFlags cluster;
  double timeout_s = 5;
};

absl::Status Trace(const Options& o) {
  if (!IsRequestId(o.request_id)) {
    return UsageError(absl::StrCat("'", o.request_id, "' is no request id: those are 1 to 128 of A-Z a-z 0-9 . _ : -"));
  }
  PERIGEE_ASSIGN_OR_RETURN(const ClusterAccess access, ClusterAccess::Open(o.cluster));
  const std::vector<cluster::NodeRecord>& nodes = access.view.cluster.nodes;
  const std::vector<cluster::NodeTrace> traces =
      cluster::CollectTrace(nodes, access.secret, o.request_id, absl::Seconds(o.timeout_s));
  int spans = 0, processes = 0;
  for (const cluster::NodeTrace& node : traces) {
    if (!node.status.ok()) {
      std::fprintf(stderr, "perigee: %s did not answer: %s\n", node.node.id.c_str(), node.status.ToString().c_str());
    }
    spans += node.trace.spans_size();
    processes += node.trace.spans_size() > 0 ? 1 : 0;
  }
  if (spans == 0) {
    return WithExitCode(
        absl::NotFoundError(absl::StrCat("none of the ", nodes.size(), " processes asked remembers request ",
                                         o.request_id, ": it is too long ago, or went elsewhere")),
        ExitCode::kNotFound);
  }
  const std::string json = cluster::TraceToJson(o.request_id, traces);
  if (o.output == "-") {
    std::fputs(json.c_str(), stdout);
    return absl::OkStatus();
  }
  const std::string path = o.output.empty() ? absl::StrCat("trace-", o.request_id, ".json") : o.output;
  PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(path, json));
  if (o.cluster.json) {
    PrintJson({{"file", path}, {"spans", spans}, {"processes", processes}});
  } else {
    std::printf("%s: %d spans of %d processes; open it at https://ui.perfetto.dev\n", path.c_str(), spans, processes);
  }
  return absl::OkStatus();
}

}  // namespace

void AddTrace(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("trace", "Write where a request's time went as a Chrome/Perfetto trace file");
  auto o = std::make_shared<Options>();
  verb->add_option("request_id", o->request_id, "As in the answer's X-Request-Id and in the logs")->required();
  verb->add_option("-o,--output", o->output, "File to write, - for standard output (default: trace-REQUEST_ID.json)");
  o->cluster.Add(*verb);
  verb->add_option("--timeout-s", o->timeout_s, "For all answers")->capture_default_str()->check(kTimeoutSeconds);
  verb->callback([o, &action] { action = [o] { return Trace(*o); }; });
}

}  // namespace perigee::cli
