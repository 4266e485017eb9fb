// Where a request goes: the decode node, and the prefill node before it where one is worth its while, that make the
// first token earliest. Pure arithmetic on what is known of prompt and nodes.
#ifndef PERIGEE_CLUSTER_SCHEDULER_ROUTE_H_
#define PERIGEE_CLUSTER_SCHEDULER_ROUTE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "absl/time/time.h"
#include "node/compute_rate.h"

namespace perigee::cluster {

// What a node has to do before it comes to this request, and how fast it computes.
struct NodeFigures {
  int running = 0, queued = 0, max_running = 0;  // Requests; max_running 0: no limit.
  int64_t tokens_ahead = 0;                      // Prefill nodes: of the prompts before this one.
  node::ComputeCost compute;                     // Of prompts; all 0: nothing was measured.
  double answer_token_s = 0;
  int64_t local_tokens = 0;  // Of the prompt: leading ones whose planes the node has, as far as is known.
};

struct PromptFigures {
  int64_t tokens = 0;         // To be in the cache: all but the last.
  int64_t stored_tokens = 0;  // The stored prefix that computing can go on from.
  // Fetching the stored prefix, and, per token, what a prefill node will have stored.
  absl::Duration fetch;
  double fetch_token_s = 0;
};

struct RouteOptions {
  // A decode node computes so many missing tokens itself at most, where there are prefill nodes: longer stretches hold
  // up its other answers.
  int64_t max_direct_tokens = 256;
  absl::Duration hop = absl::Milliseconds(2);  // Calling one more node.
  double answer_tokens = 128;                  // Expected of a running answer, until its place is free.
};

struct Route {
  size_t decode = 0;              // Index.
  std::optional<size_t> prefill;  // Index.
  absl::Duration time_to_first_token;
};

// Nothing where there are no decode nodes.
std::optional<Route> ChooseRoute(const PromptFigures& prompt, const std::vector<NodeFigures>& prefill_nodes,
                                 const std::vector<NodeFigures>& decode_nodes, const RouteOptions& options);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_ROUTE_H_
