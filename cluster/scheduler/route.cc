#include "cluster/scheduler/route.h"

#include <algorithm>

namespace perigee::cluster {
namespace {

double ComputeSeconds(const NodeFigures& node, int64_t begin, int64_t end) {
  return absl::ToDoubleSeconds(node.compute.Of(begin, end));
}

// Until a decode node begins with the request, and what the answers that it generates meanwhile take from it.
double DecodeWait(const NodeFigures& node, const RouteOptions& options) {
  double wait = node.running > 0 ? node.answer_token_s : 0;
  if (node.max_running > 0) {
    const int over = node.running + node.queued + 1 - node.max_running;
    if (over > 0) {
      wait += static_cast<double>(over) / node.max_running * options.answer_tokens * node.answer_token_s;
      wait += 1e-6;  // Even where nothing was measured a full node is worse than one with room.
    }
  }
  return wait + 1e-7 * (node.running + node.queued);  // Equal otherwise: the emptier one.
}

// What of the stored prefix still has to be fetched.
double FetchSeconds(const PromptFigures& prompt, const NodeFigures& node, int64_t tokens) {
  const double all = prompt.stored_tokens == 0
                         ? prompt.fetch_token_s * static_cast<double>(tokens)
                         : absl::ToDoubleSeconds(prompt.fetch) +
                               prompt.fetch_token_s * static_cast<double>(tokens - prompt.stored_tokens);
  if (tokens == 0) return 0;
  return all * static_cast<double>(std::max<int64_t>(tokens - node.local_tokens, 0)) / static_cast<double>(tokens);
}

}  // namespace

std::optional<Route> ChooseRoute(const PromptFigures& prompt, const std::vector<NodeFigures>& prefill_nodes,
                                 const std::vector<NodeFigures>& decode_nodes, const RouteOptions& options) {
  std::optional<Route> best;
  const auto consider = [&](const Route& route) {
    if (!best.has_value() || route.time_to_first_token < best->time_to_first_token) best = route;
  };
  for (size_t d = 0; d < decode_nodes.size(); ++d) {
    const NodeFigures& decode = decode_nodes[d];
    const double wait = DecodeWait(decode, options);
    const int64_t known = std::min(std::max(prompt.stored_tokens, decode.local_tokens), prompt.tokens);
    if (prefill_nodes.empty() || prompt.tokens - known <= options.max_direct_tokens) {
      // Computing there also delays the answers that are under way: that counts as if this request waited.
      const double compute = ComputeSeconds(decode, known, prompt.tokens) * (decode.running > 0 ? 2 : 1);
      consider(
          {.decode = d,
           .prefill = std::nullopt,
           .time_to_first_token = absl::Seconds(wait + FetchSeconds(prompt, decode, prompt.stored_tokens) + compute)});
    }
    if (known >= prompt.tokens) continue;
    for (size_t p = 0; p < prefill_nodes.size(); ++p) {
      const NodeFigures& prefill = prefill_nodes[p];
      const int prompts = std::max(prefill.running, 1);
      const double ahead =
          prompts * ComputeSeconds(prefill, 0, prefill.tokens_ahead / prompts) + 1e-7 * prefill.running;
      const double compute = FetchSeconds(prompt, prefill, prompt.stored_tokens) +
                             ComputeSeconds(prefill, prompt.stored_tokens, prompt.tokens);
      consider({.decode = d,
                .prefill = p,
                .time_to_first_token =
                    options.hop + absl::Seconds(ahead + compute + wait + FetchSeconds(prompt, decode, prompt.tokens))});
    }
  }
  return best;
}

}  // namespace perigee::cluster
