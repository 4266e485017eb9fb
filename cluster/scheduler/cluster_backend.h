// The cluster as one backend: admits requests, sends each to the nodes where its first token comes earliest, and sees
// it through when nodes fail.
//
// What a failed node had answered already is not lost and not said again: another node goes on from there (greedy and
// seeded sampling give the same tokens as the first node would have).
#ifndef PERIGEE_CLUSTER_SCHEDULER_CLUSTER_BACKEND_H_
#define PERIGEE_CLUSTER_SCHEDULER_CLUSTER_BACKEND_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "cluster/gateway/backend.h"
#include "cluster/scheduler/fair_queue.h"
#include "cluster/scheduler/local_chains.h"
#include "cluster/scheduler/node_set.h"
#include "cluster/scheduler/route.h"
#include "kvstore/sharded_store.h"
#include "model/measured_repair.h"
#include "model/repair.h"
#include "pod/layout.h"

namespace perigee::cluster {

struct ClusterBackendOptions {
  FairQueueOptions queue;
  RouteOptions route;
  int max_attempts = 10;      // Of one request, over all nodes.
  bool store_answers = true;  // For the next turns of conversations.
  absl::Duration longest_request = absl::Minutes(60);
  std::string tokenizer_digest;  // Of those who encode prompts; nodes that decode with another get none. "": not known.
  std::vector<int32_t> context_opening = {};  // Ids in front of every context's own (node/composed_load.h).
  // Of contexts, where a request does not say: what the operator says, or else what was measured with the model and
  // plan that are served, or else "full".
  std::optional<model::Repair> context_repair = std::nullopt;
  std::optional<model::MeasuredRepair> measured_repair = std::nullopt;
};

// The one model that the cluster serves, as its nodes tell it.
struct ClusterModel {
  std::string name;
  Digest fingerprint{};
  pod::Layout layout;
  int64_t max_positions = 0;
};

struct ClusterBackendStats {
  uint64_t requests = 0, retries = 0, refused = 0;
  uint64_t prefilled = 0, direct = 0;  // Attempts with and without a prefill node.
  uint64_t resumed = 0;                // Answers that another node went on with.
  uint64_t contexts = 0;               // Attempts with contexts, and
  uint64_t contexts_prefilled = 0;     // contexts that prefill nodes were asked for.
  size_t waiting = 0, serving = 0;
};

// Any thread may call.
class ClusterBackend : public Backend {
 public:
  // store: to look where prompts are; null: nodes find out for themselves. Both outlive this object.
  ClusterBackend(const NodeSet* nodes, kvstore::ShardedStore* store, const ClusterBackendOptions& options);

  absl::StatusOr<BackendUsage> Complete(const BackendRequest& request,
                                        absl::FunctionRef<bool(const BackendEvent&)> emit,
                                        absl::FunctionRef<bool()> cancelled) override;
  absl::Status Ready() override;

  // Has a context's planes computed and stored, behind all requests. UNAVAILABLE where no prefill node answers:
  // requests with the context compute it then.
  absl::Status PrefillAhead(const std::string& tenant, const std::vector<int32_t>& token_ids,
                            const std::function<bool()>& cancelled);
  // UNAVAILABLE until a decode node has answered.
  absl::StatusOr<std::shared_ptr<const ClusterModel>> Model();

  ClusterBackendStats stats() const;

 private:
  friend class RequestRun;
  struct ContextWork {
    std::string tenant, salt, request_id;
    std::vector<std::vector<int32_t>> contexts;  // Ids of each, opening included.
    bool background = false;
    absl::Time deadline = absl::InfiniteFuture();
  };
  // Spreads them over the prefill nodes. What had to be computed, in tokens.
  absl::StatusOr<uint64_t> PrefillContexts(const ClusterModel& model, const ContextWork& work,
                                           absl::FunctionRef<bool()> cancelled);
  std::vector<std::shared_ptr<NodeHandle>> Nodes(Role role, const ClusterModel& model) const;
  bool Fits(const v1::NodeInfo& info) const;
  // Seconds to fetch a token's planes, lately.
  void RecordFetch(uint32_t tokens, uint64_t us);

  const NodeSet* const nodes_;
  kvstore::ShardedStore* const store_;
  const ClusterBackendOptions options_;
  FairQueue queue_;
  LocalChains chains_;
  std::atomic<double> fetch_token_s_{2e-6};
  absl::Mutex route_mu_;  // From looking at how busy nodes are to adding to it.
  mutable absl::Mutex mu_;
  std::shared_ptr<const ClusterModel> model_ ABSL_GUARDED_BY(mu_);
  ClusterBackendStats stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_CLUSTER_BACKEND_H_
