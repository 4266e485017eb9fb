// What a prefill node and a decode node are both made of: a model under a plan, an engine, a pool of registered planes,
// and a client of the store.
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
#include "model/plane_cache.h"
#include "model/served_model.h"
#include "perigee/v1/node.pb.h"
#include "transport/context.h"

namespace perigee::node {

struct NodeOptions {
  model::ServedModelOptions model;
  std::string store_address;  // host:port
  std::string store_secret;   // What the store's operator gave; "": none.
  std::string transports;     // UCX_TLS; "": UCX chooses.
  size_t pool_bytes = size_t{256} << 20;
  absl::Duration store_timeout = absl::Seconds(20);  // For one batch of control calls or transfers.
};

// For the measurements that nodes put into their answers.
inline uint64_t MicrosecondsSince(absl::Time start) {
  return static_cast<uint64_t>(absl::ToInt64Microseconds(absl::Now() - start));
}

// A plane brought into this node's memory, checked against its header and checksums.
struct FetchedPlane {
  absl::Status status;  // NOT_FOUND with the store's reason; DATA_LOSS for wrong bytes; else bytes are here.
  model::PlaneBuffer bytes;
  size_t size_bytes = 0;
  int64_t base_position = 0;
  kvstore::Tier from = kvstore::Tier::kDram;
};

// Immutable after Create; any thread.
class Node {
 public:
  // UNAVAILABLE when no store answers at the address. A store that goes away later and comes back is found again.
  static absl::StatusOr<std::unique_ptr<Node>> Create(const NodeOptions& options);

  const model::ServedModel& model() const { return *model_; }
  kvstore::StoreClient& store() const { return *store_; }

  // An empty cache whose planes lie in registered memory.
  model::PlaneCache NewCache() const;

  // Refuses what this model cannot run: nothing, foreign token ids, more than its context (with `more` tokens to come).
  absl::Status CheckPrompt(std::span<const int32_t> tokens, int64_t more) const;
  absl::StatusOr<pod::Identity> IdentityFor(const v1::Scope& scope) const;

  // One lease, one batch of one-sided reads. The Status is the whole batch's: UNAVAILABLE, RESOURCE_EXHAUSTED,
  // DEADLINE_EXCEEDED.
  absl::StatusOr<std::vector<FetchedPlane>> FetchPlanes(const pod::Identity& identity,
                                                        std::span<const kvstore::PlaneId> planes) const;

  v1::NodeInfo Info() const;

 private:
  Node() = default;
  NodeOptions options_;
  std::unique_ptr<model::ServedModel> model_;
  std::unique_ptr<transport::Context> engine_;
  std::unique_ptr<kvstore::RegisteredPool> pool_;
  std::unique_ptr<kvstore::StoreClient> store_;
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_NODE_H_
