#include "cluster/metrics/gateway_metrics.h"

#include "absl/strings/str_cat.h"

namespace perigee::cluster {
namespace {

double Number(uint64_t value) { return static_cast<double>(value); }

}  // namespace

bool IsCompletion(const HttpRequestRecord& record) {
  return record.path == "/v1/completions" || record.path == "/v1/chat/completions";
}

void GatewayMetrics::Observe(const HttpRequestRecord& record) {
  if (!IsCompletion(record)) return;
  duration_.Record(record.took);
  if (record.first_token != absl::InfiniteDuration()) first_token_.Record(record.first_token);
  absl::MutexLock lock(&mu_);
  const bool known = tenants_.contains(record.tenant) || tenants_.size() < kMaxTenants;
  Tenant& tenant = tenants_[known ? record.tenant : "other"];
  ++tenant.requests[record.status];
  tenant.prompt_tokens += record.usage.prompt_tokens;
  tenant.cached_tokens += record.usage.cached_tokens;
  tenant.completion_tokens += record.usage.completion_tokens;
  tenant.context_tokens += record.usage.context_tokens;
  tenant.repaired_tokens += record.usage.repaired_tokens;
  if (record.status == 200 && !record.result.ok()) ++broken_;
}

void GatewayMetrics::Collect(const ClusterBackendStats& backend, const ChunkIndexStats& chunks,
                             MetricFamilies& out) const {
  {
    absl::MutexLock lock(&mu_);
    for (const auto& [name, tenant] : tenants_) {
      for (const auto& [status, count] : tenant.requests) {
        out.Counter("perigee_gateway_requests_total", "Completions, by HTTP status; 499: the client was gone.",
                    Number(count), {{"tenant", name}, {"status", absl::StrCat(status)}});
      }
    }
    for (const auto& [name, tenant] : tenants_) {
      const char* const help =
          "Tokens of prompts; of them those that were not computed, that were read from contexts wherever they stood, "
          "and that were computed again in contexts; and tokens of answers.";
      out.Counter("perigee_gateway_tokens_total", help, Number(tenant.prompt_tokens),
                  {{"tenant", name}, {"kind", "prompt"}});
      out.Counter("perigee_gateway_tokens_total", help, Number(tenant.cached_tokens),
                  {{"tenant", name}, {"kind", "cached"}});
      out.Counter("perigee_gateway_tokens_total", help, Number(tenant.completion_tokens),
                  {{"tenant", name}, {"kind", "completion"}});
      out.Counter("perigee_gateway_tokens_total", help, Number(tenant.context_tokens),
                  {{"tenant", name}, {"kind", "context"}});
      out.Counter("perigee_gateway_tokens_total", help, Number(tenant.repaired_tokens),
                  {{"tenant", name}, {"kind", "repaired"}});
    }
    out.Counter("perigee_gateway_broken_streams_total", "Streams that began with 200 and ended with an error.",
                Number(broken_));
  }
  out.Histogram("perigee_gateway_first_token_seconds", "From a request's arrival to its answer's first token.",
                first_token_.Snapshot());
  out.Histogram("perigee_gateway_request_seconds", "From a request's arrival to its answer's end.",
                duration_.Snapshot());
  out.Gauge("perigee_gateway_waiting", "Requests that wait for a place.", Number(backend.waiting));
  out.Gauge("perigee_gateway_serving", "Requests under way.", Number(backend.serving));
  out.Counter("perigee_gateway_admitted_total", "Prompts that got a place.", Number(backend.requests));
  out.Counter("perigee_gateway_refused_total", "Prompts that got none.", Number(backend.refused));
  out.Counter("perigee_gateway_attempts_total", "Attempts at nodes, with and without a prefill node.",
              Number(backend.prefilled), {{"way", "prefill"}});
  out.Counter("perigee_gateway_attempts_total", "", Number(backend.direct), {{"way", "direct"}});
  out.Counter("perigee_gateway_context_attempts_total", "Attempts in whose prompts contexts stand.",
              Number(backend.contexts));
  out.Counter("perigee_gateway_contexts_prefilled_total", "Contexts that prefill nodes were asked for.",
              Number(backend.contexts_prefilled));
  out.Counter("perigee_gateway_retries_total", "Attempts that failed and were made again.", Number(backend.retries));
  out.Counter("perigee_gateway_resumed_total", "Answers that another node went on with.", Number(backend.resumed));
  const char* const seen = "Chunks of requests with a context_separator: as contexts, and as text.";
  out.Counter("perigee_gateway_chunks_total", seen, Number(chunks.reused), {{"as", "context"}});
  out.Counter("perigee_gateway_chunks_total", seen, Number(chunks.seen - chunks.reused), {{"as", "text"}});
  out.Counter("perigee_gateway_chunks_admitted_total", "Chunks that were seen again, and became contexts.",
              Number(chunks.admitted));
  out.Gauge("perigee_gateway_chunks_remembered", "Chunks in the index: contexts, and those seen once.",
            Number(chunks.admitted_now), {{"as", "context"}});
  out.Gauge("perigee_gateway_chunks_remembered", "", Number(chunks.entries - chunks.admitted_now), {{"as", "text"}});
}

}  // namespace perigee::cluster
