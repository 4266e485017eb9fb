// What a prefill node and a decode node are both made of: a model under a plan, an engine, a pool of registered planes, and a client of
// the store.
#ifndef PERIGEE_NODE_NODE_H_
#define PERIGEE_NODE_NODE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/client.h"
#include "kvstore/registered_pool.h"
#include "model/plane_cache.h"
#include "model/served_model.h"
#include "perigee/v1/node.pb.h"
#include "transport/engine.h"

namespace perigee::node {

struct NodeOptions {
  model::ServedModelOptions model;
  std::string store_address;   // host:port
  std::string transports;      // UCX_TLS; "": UCX chooses.
  size_t pool_bytes = size_t{256} << 20;
  absl::Duration store_timeout = absl::Seconds(20);  // For one batch of control calls or transfers.
};

// Immutable after Create; any thread.
class Node {
 public:
  // The store need not be there yet: requests answer UNAVAILABLE until it is.
  static absl::StatusOr<std::unique_ptr<Node>> Create(const NodeOptions& options);

  const model::ServedModel& model() const { return *model_; }
  kvstore::StoreClient& store() const { return *store_; }

  // An empty cache whose planes lie in registered memory.
  model::PlaneCache NewCache() const;
  absl::StatusOr<model::PlaneBuffer> AllocatePlane(size_t bytes) const { return pool_->Allocate(bytes); }

  v1::NodeInfo Info() const;

 private:
  Node() = default;
  NodeOptions options_;
  std::unique_ptr<model::ServedModel> model_;
  std::unique_ptr<transport::Engine> engine_;
  std::unique_ptr<kvstore::RegisteredPool> pool_;
  std::unique_ptr<kvstore::StoreClient> store_;
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_NODE_H_
