#include "cluster/trace_file.h"

#include <cstdlib>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "cluster/admin/admin_client.h"

namespace perigee::cluster {
namespace {

using Json = nlohmann::json;

// The first call connects, and says nothing about clocks.
constexpr int kAsked = 4;

void Ask(AdminClient admin, const std::string& request_id, NodeTrace& out) {
  int64_t best_us = INT64_MAX;
  for (int i = 0; i < kAsked; ++i) {
    const int64_t begin = absl::ToUnixMicros(SteadyNow());
    absl::StatusOr<v1::TraceResponse> response = admin.GetTrace(request_id);
    const int64_t took = absl::ToUnixMicros(SteadyNow()) - begin;
    if (!response.ok()) {
      if (i == 0) out.status = response.status();
      return;
    }
    if (took < best_us) {
      best_us = took;
      const int64_t ahead = response->now_unix_us() - (begin + took / 2);
      out.clock_ahead_us = std::abs(ahead) <= took / 2 + 1 ? 0 : ahead;
    }
    out.trace = *std::move(response);
  }
}

}  // namespace

std::vector<NodeTrace> CollectTrace(const std::vector<NodeRecord>& nodes, const std::string& secret,
                                    const std::string& request_id, absl::Duration timeout) {
  std::vector<NodeTrace> traces(nodes.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < nodes.size(); ++i) {
    traces[i].node = nodes[i];
    threads.emplace_back([&, i] { Ask(AdminClient(nodes[i].address, secret, timeout), request_id, traces[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  return traces;
}

std::string TraceToJson(const std::string& request_id, const std::vector<NodeTrace>& nodes) {
  Json events = Json::array();
  Json silent = Json::object();
  int pid = 0;
  for (const NodeTrace& node : nodes) {
    if (!node.status.ok()) silent[node.node.id] = node.status.ToString();
    if (!node.status.ok() || node.trace.spans().empty()) continue;
    ++pid;
    events.push_back({{"ph", "M"},
                      {"name", "process_name"},
                      {"pid", pid},
                      {"tid", 0},
                      {"args", {{"name", RoleName(node.node.role) + (" " + node.node.id)}}}});
    for (const v1::TraceSpan& span : node.trace.spans()) {
      Json event = {{"name", span.name()},
                    {"cat", "perigee"},
                    {"pid", pid},
                    {"tid", span.thread()},
                    {"ts", span.begin_unix_us() - node.clock_ahead_us},
                    {"args", Json::object()}};
      for (const auto& [key, value] : span.attributes()) event["args"][key] = value;
      if (span.end_unix_us() > span.begin_unix_us()) {
        event["ph"] = "X";
        event["dur"] = span.end_unix_us() - span.begin_unix_us();
      } else {
        event["ph"] = "i";
        event["s"] = "t";  // Of its thread.
      }
      events.push_back(std::move(event));
    }
  }
  const Json file = {{"traceEvents", std::move(events)},
                     {"displayTimeUnit", "ms"},
                     {"otherData", {{"request_id", request_id}, {"did_not_answer", std::move(silent)}}}};
  return file.dump(1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n";
}

}  // namespace perigee::cluster
