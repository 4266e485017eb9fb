// What a prefill node and a decode node are both made of: a model under a plan, the thread that runs its passes, a pool
// of registered planes with what is left there of earlier requests, and a client of the store.
#ifndef PERIGEE_NODE_NODE_H_
#define PERIGEE_NODE_NODE_H_

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "kvstore/client.h"
#include "kvstore/registered_pool.h"
#include "kvstore/sharded_store.h"
#include "model/plane_cache.h"
#include "model/served_model.h"
#include "node/abandoned.h"
#include "node/batch_engine.h"
#include "node/local_planes.h"
#include "perigee/v1/node.pb.h"
#include "transport/context.h"

namespace perigee::node {

struct NodeOptions {
  model::ServedModelOptions model;
  std::string store_address;                             // host:port, of a single store; or
  std::shared_ptr<kvstore::StoreDirectory> stores = {};  // those of a cluster.
  int replicas = 1;                       // Stores that are to have what is written here, where a request does not say.
  std::string transports;                 // UCX_TLS; "": UCX chooses.
  std::vector<std::string> devices = {};  // One rail each; empty: UCX chooses.
  size_t pool_bytes = size_t{256} << 20;
  int max_batch_tokens = 512;  // Of one forward pass, over all sequences.
  bool keep_planes = true;     // Of earlier requests, while there is room in the pool.
  bool recompute = true;       // Also what is stored, where that is faster than fetching it (node/prompt_load.h).
  absl::Duration store_timeout = absl::Seconds(20);  // For one batch of control calls or transfers.
  kvstore::ClientOptions store = {};                 // But for its deadlines, which are store_timeout.
};

// For the measurements that nodes put into their answers.
inline uint64_t MicrosecondsSince(absl::Time start) {
  return static_cast<uint64_t>(absl::ToInt64Microseconds(absl::Now() - start));
}

// Immutable after Create; any thread.
class Node {
 public:
  // UNAVAILABLE when no store answers at store_address. Stores of a directory need not answer yet; those that come, go
  // and come back are found.
  static absl::StatusOr<std::unique_ptr<Node>> Create(const NodeOptions& options);
  // With a model that is there already; options.model is not read.
  static absl::StatusOr<std::unique_ptr<Node>> Create(const NodeOptions& options,
                                                      std::shared_ptr<const model::ServedModel> model);

  const model::ServedModel& model() const { return *model_; }
  kvstore::ShardedStore& store() const { return *store_; }
  LocalPlanes& planes() const { return *planes_; }
  BatchEngine& batches() const { return *batches_; }
  // For transfers that nobody waits for any more.
  Abandoned& abandoned() const { return *abandoned_; }
  const NodeOptions& options() const { return options_; }

  // An empty cache whose planes lie in registered memory. node/prompt_fetch.h fills it from the store.
  model::PlaneCache NewCache() const;

  // Leaves a sequence's full blocks in this node's memory, for the next request that begins alike.
  void KeepBlocks(std::span<const pod::BlockKey> keys, const model::PlaneCache& cache) const;

  // Refuses what this model cannot run: nothing, foreign token ids, more than its context (with `more` tokens to come).
  absl::Status CheckPrompt(std::span<const int32_t> tokens, int64_t more) const;
  absl::StatusOr<pod::Identity> IdentityFor(const v1::Scope& scope) const;

  v1::NodeInfo Info() const;
  // What a node knows of its load; its service knows the requests.
  v1::NodeLoad Load() const;

 private:
  Node() = default;
  absl::Status MeasureComputing();
  NodeOptions options_;
  std::shared_ptr<const model::ServedModel> model_;
  std::unique_ptr<transport::Context> engine_;
  std::unique_ptr<kvstore::RegisteredPool> pool_;
  std::unique_ptr<LocalPlanes> planes_;
  std::unique_ptr<kvstore::ShardedStore> store_;
  std::unique_ptr<Abandoned> abandoned_;  // After what those transfers use.
  std::unique_ptr<BatchEngine> batches_;
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_NODE_H_
