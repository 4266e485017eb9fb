// The decode node as a gRPC service.
#ifndef PERIGEE_DECODE_NODE_SERVICE_H_
#define PERIGEE_DECODE_NODE_SERVICE_H_

#include <atomic>

#include "decode_node/decode_node.h"
#include "perigee/v1/decode.grpc.pb.h"

namespace perigee::decode_node {

// Any thread. `node` outlives the service.
class DecodeService final : public v1::DecodeNode::Service {
 public:
  explicit DecodeService(const node::Node* node, const DecodeOptions& options = {})
      : node_(node), decode_(node, options) {}

  grpc::Status Info(grpc::ServerContext* context, const v1::NodeInfoRequest* request, v1::NodeInfo* response) override;
  grpc::Status Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                        grpc::ServerWriter<v1::GenerateEvent>* writer) override;

  // From now on it says that it should be given nothing new; it still takes everything.
  void SetDraining() { draining_ = true; }
  // For the cluster's members to see.
  v1::NodeLoad Load() const;
  bool draining() const { return draining_; }
  const DecodeNode& decode() const { return decode_; }
  // Waits until what answers left to be stored is, at most until `deadline`.
  void Finish(absl::Time deadline) { decode_.writer().Flush(deadline); }

 private:
  const node::Node* const node_;
  std::atomic<bool> draining_{false};
  DecodeNode decode_;
};

}  // namespace perigee::decode_node

#endif  // PERIGEE_DECODE_NODE_SERVICE_H_
