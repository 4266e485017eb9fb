// The prefill node as a gRPC service.
#ifndef PERIGEE_PREFILL_NODE_SERVICE_H_
#define PERIGEE_PREFILL_NODE_SERVICE_H_

#include <atomic>

#include "perigee/v1/prefill.grpc.pb.h"
#include "prefill_node/prefill_node.h"

namespace perigee::prefill_node {

// Any thread. `node` outlives the service.
class PrefillService final : public v1::PrefillNode::Service {
 public:
  PrefillService(const node::Node* node, const PrefillOptions& options) : node_(node), prefill_(node, options) {}

  grpc::Status Info(grpc::ServerContext* context, const v1::NodeInfoRequest* request, v1::NodeInfo* response) override;
  grpc::Status Prefill(grpc::ServerContext* context, const v1::PrefillRequest* request,
                       v1::PrefillResponse* response) override;

  // From now on it says that it should be given nothing new; it still takes everything.
  void SetDraining() { draining_ = true; }
  // For the cluster's members to see.
  v1::NodeLoad Load() const;
  bool draining() const { return draining_; }
  void Finish(absl::Time) {}  // It has stored all when it answers.
  const PrefillNode& prefill() const { return prefill_; }

 private:
  const node::Node* const node_;
  std::atomic<bool> draining_{false};
  const PrefillNode prefill_;
};

}  // namespace perigee::prefill_node

#endif  // PERIGEE_PREFILL_NODE_SERVICE_H_
