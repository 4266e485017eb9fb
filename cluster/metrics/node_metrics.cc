#include "cluster/metrics/node_metrics.h"

#include <string>

namespace perigee::cluster {
namespace {

// A node has its role in every sample.
class Samples {
 public:
  Samples(Role role, MetricFamilies& out) : role_(RoleName(role)), out_(out) {}

  void Counter(const char* name, const char* help, double value, MetricLabels labels = {}) {
    out_.Counter(name, help, value, With(std::move(labels)));
  }
  void Gauge(const char* name, const char* help, double value, MetricLabels labels = {}) {
    out_.Gauge(name, help, value, With(std::move(labels)));
  }
  void Histogram(const char* name, const char* help, const DurationHistogram& durations) {
    out_.Histogram(name, help, durations.Snapshot(), With({}));
  }

 private:
  MetricLabels With(MetricLabels labels) const {
    labels.insert(labels.begin(), {"role", role_});
    return labels;
  }
  const std::string role_;
  MetricFamilies& out_;
};

double Number(uint64_t value) { return static_cast<double>(value); }

void CollectRequests(const node::RequestMetrics& r, bool decode, Samples& out) {
  for (size_t code = 0; code < node::kStatusCodes; ++code) {
    if (const uint64_t ended = r.ended[code]; ended > 0 || code == 0) {
      out.Counter("perigee_node_requests_total", "Requests that have ended, by their status.", Number(ended),
                  {{"status", absl::StatusCodeToString(static_cast<absl::StatusCode>(code))}});
    }
  }
  out.Histogram("perigee_node_request_seconds", "How long requests took.", r.duration);
  const char* const tokens =
      "Tokens of prompts: computed because they were not stored, computed though they were "
      "because that was faster, or reused.";
  out.Counter("perigee_node_prompt_tokens_total", tokens, Number(r.computed_tokens), {{"how", "computed"}});
  out.Counter("perigee_node_prompt_tokens_total", tokens, Number(r.recomputed_tokens), {{"how", "recomputed"}});
  out.Counter("perigee_node_prompt_tokens_total", tokens, Number(r.reused_tokens), {{"how", "reused"}});
  out.Counter("perigee_node_fetched_bytes_total", "Payload of prompts that came from stores.", Number(r.fetched_bytes));
  out.Counter("perigee_node_exposed_fetch_seconds_total", "How long passes stood still for planes.",
              1e-6 * Number(r.exposed_fetch_us));
  if (!decode) {
    out.Counter("perigee_node_written_bytes_total", "Payload of prompts that went to stores.", Number(r.written_bytes));
    return;
  }
  out.Histogram("perigee_node_queue_seconds", "Until there was a place for a request.", r.queued);
  out.Histogram("perigee_node_first_token_seconds", "From a request's arrival to its first token.", r.first_token);
  out.Histogram("perigee_node_between_tokens_seconds", "Between two tokens of an answer.", r.between_tokens);
  out.Counter("perigee_node_generated_tokens_total", "Tokens of answers.", Number(r.generated_tokens));
}

void CollectMachine(const node::Node& node, Samples& out) {
  const v1::NodeInfo info = node.Info();
  out.Gauge("perigee_node_pool_capacity_bytes", "Registered memory for planes.", Number(info.pool_bytes()));
  out.Gauge("perigee_node_pool_used_bytes", "Of it, in use.", Number(info.pool_used_bytes()));
  out.Gauge("perigee_node_pool_available_bytes", "Of it, free or only kept for later requests.",
            Number(info.load().pool_available_bytes()));
  const node::LocalPlanesStats local = node.planes().stats();
  out.Gauge("perigee_node_local_planes", "Planes of earlier requests that are kept here.", Number(local.planes));
  out.Gauge("perigee_node_local_bytes", "Their payload.", Number(local.bytes));
  out.Counter("perigee_node_local_hits_total", "Planes that were wanted and here.", Number(local.hits));
  out.Counter("perigee_node_local_evictions_total", "Planes that made room.", Number(local.evictions));
  const node::BatchEngineStats batches = node.batches().stats();
  out.Counter("perigee_node_passes_total", "Forward passes.", Number(batches.passes));
  out.Counter("perigee_node_pass_tokens_total", "Tokens of all passes.", Number(batches.tokens));
  out.Counter("perigee_node_pass_seconds_total", "Time that passes took.", absl::ToDoubleSeconds(batches.busy));
  out.Gauge("perigee_node_pass_largest_sequences", "Sequences in the largest pass yet.", Number(batches.largest_pass));
  out.Gauge("perigee_node_pass_waiting", "Items that wait for a pass.", Number(batches.waiting));
  const kvstore::ShardedStats stores = node.store().stats();
  out.Counter("perigee_node_store_failovers_total", "Calls that went on without a store that should have been in them.",
              Number(stores.failovers));
  out.Gauge("perigee_node_stores_avoided", "Stores that did not answer when last asked.",
            Number(stores.stores_avoided));
  out.Counter("perigee_node_store_connects_total", "Connections made to stores.", Number(stores.clients.connects));
  out.Counter("perigee_node_checksum_failures_total", "Planes whose bytes were wrong when they came.",
              Number(stores.clients.checksum_failures));
  out.Counter("perigee_node_store_transfer_bytes_total", "Payload to and from stores.",
              Number(stores.clients.fetched_bytes), {{"direction", "in"}});
  out.Counter("perigee_node_store_transfer_bytes_total", "", Number(stores.clients.put_bytes), {{"direction", "out"}});
}

}  // namespace

void CollectNode(Role role, const node::Node& node, const v1::NodeLoad& load, const node::RequestMetrics& requests,
                 const std::optional<StoredAnswers>& answers, MetricFamilies& out) {
  Samples samples(role, out);
  samples.Gauge("perigee_node_running", "Requests under way.", load.running());
  samples.Gauge("perigee_node_queued", "Requests that wait for a place.", load.queued());
  samples.Gauge("perigee_node_draining", "1: it takes nothing new.", load.draining() ? 1 : 0);
  CollectRequests(requests, role == Role::kDecode, samples);
  CollectMachine(node, samples);
  if (!answers.has_value()) return;
  samples.Counter("perigee_node_answers_stored_total", "Answers that went to stores.", Number(answers->stored),
                  {{"result", "stored"}});
  samples.Counter("perigee_node_answers_stored_total", "", Number(answers->failed), {{"result", "failed"}});
  samples.Counter("perigee_node_answers_stored_bytes_total", "Their payload.", Number(answers->bytes));
  samples.Gauge("perigee_node_answers_waiting", "Answers that wait to be stored.", Number(answers->waiting));
}

}  // namespace perigee::cluster
