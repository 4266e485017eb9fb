#include "node/node.h"

#include "base/status.h"

namespace perigee::node {

absl::StatusOr<std::unique_ptr<Node>> Node::Create(const NodeOptions& options) {
  if (options.model.group.size != 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("a node serves a whole model, this is one of ", options.model.group.size,
                     " tensor-parallel ranks: use node/tensor_parallel.h, which reads and writes a rank's heads"));
  }
  PERIGEE_ASSIGN_OR_RETURN(std::shared_ptr<const model::ServedModel> model, model::ServedModel::Load(options.model));
  return Create(options, std::move(model));
}

absl::StatusOr<std::unique_ptr<Node>> Node::Create(const NodeOptions& options,
                                                   std::shared_ptr<const model::ServedModel> model) {
  std::unique_ptr<Node> node(new Node);
  node->options_ = options;
  node->model_ = std::move(model);
  PERIGEE_ASSIGN_OR_RETURN(
      node->engine_,
      transport::Context::Create({.transports = options.transports, .devices = options.devices, .guarded = true}));
  PERIGEE_ASSIGN_OR_RETURN(node->pool_, kvstore::RegisteredPool::Create(node->engine_.get(), options.pool_bytes));
  kvstore::ClientOptions client = options.store;
  client.call_deadline = client.transfer_deadline = options.store_timeout;
  PERIGEE_ASSIGN_OR_RETURN(node->store_,
                           kvstore::StoreClient::Connect(options.store_address, node->engine_.get(), client));
  return node;
}

model::PlaneCache Node::NewCache() const {
  const model::Transformer& transformer = model_->transformer();
  return model::PlaneCache(&model_->shard().local(), &transformer.rope(), transformer.rank_config().q_heads,
                           [this](size_t bytes) { return pool_->Allocate(bytes); });
}

absl::Status Node::CheckPrompt(std::span<const int32_t> tokens, int64_t more) const {
  const model::ModelConfig& config = model_->transformer().config();
  const int64_t count = static_cast<int64_t>(tokens.size());
  if (count == 0) return absl::InvalidArgumentError("the prompt is empty");
  if (count + more > config.max_positions) {
    return absl::InvalidArgumentError(
        absl::StrCat("the prompt has ", count, " tokens", more > 0 ? " and the answer may have " : "",
                     more > 0 ? absl::StrCat(more) : "", "; the model's context is ", config.max_positions, " tokens"));
  }
  for (int32_t id : tokens) {
    if (id < 0 || id >= config.vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", id, " is not in the model's vocabulary of ", config.vocab));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<pod::Identity> Node::IdentityFor(const v1::Scope& scope) const {
  const pod::Identity identity = model_->IdentityFor(scope.tenant(), scope.salt());
  PERIGEE_RETURN_IF_ERROR(pod::ValidateIdentity(identity));
  return identity;
}

v1::NodeInfo Node::Info() const {
  v1::NodeInfo info;
  info.set_model_name(model_->name());
  info.set_model_fingerprint(std::string(AsView(model_->fingerprint())));
  info.set_plan_id(std::string(AsView(model_->plan().id())));
  info.set_plan_json(model_->plan().ToJson());
  info.set_block_tokens(static_cast<uint32_t>(model_->layout().block_tokens()));
  info.set_max_positions(static_cast<uint32_t>(model_->transformer().config().max_positions));
  info.set_store_address(options_.store_address);
  info.set_pool_bytes(pool_->capacity_bytes());
  info.set_pool_used_bytes(pool_->used_bytes());
  info.set_control_bytes(store_->stats().grpc_bytes);
  const transport::ContextStats stats = engine_->Stats();
  info.set_payload_bytes(stats.put_bytes + stats.get_bytes);
  return info;
}

}  // namespace perigee::node
