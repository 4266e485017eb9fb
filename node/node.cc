#include "node/node.h"

#include <algorithm>

#include "base/status.h"

namespace perigee::node {
namespace {

constexpr absl::Duration kStoreAnswersWithin = absl::Seconds(2);

}  // namespace

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
  node->planes_ = std::make_unique<LocalPlanes>(node->pool_.get(), options.keep_planes);
  kvstore::ClientOptions client = options.store;
  client.call_deadline = client.transfer_deadline = options.store_timeout;
  std::shared_ptr<kvstore::StoreDirectory> stores = options.stores;
  if (stores != nullptr) {
    // Others may have what a store that hangs has, and else it can be computed.
    client.connect_deadline = client.answer_deadline = std::min(kStoreAnswersWithin, options.store_timeout);
  } else {
    stores = std::make_shared<kvstore::StoreDirectory>(
        kvstore::StoreMap{.epoch = 1, .stores = {{.id = options.store_address, .address = options.store_address}}});
  }
  node->store_ = std::make_unique<kvstore::ShardedStore>(
      stores, node->engine_.get(),
      kvstore::ShardedStoreOptions{.client = client,
                                   .read_stores = static_cast<size_t>(std::max(options.replicas, 1)) + 1,
                                   .replicas = options.replicas});
  if (options.stores == nullptr) {
    // An address that is wrong should not wait for the first request to be found out.
    for (const auto& visited : node->store_->ForEachStore(
             [](const kvstore::StoreEntry&, kvstore::StoreClient& one) { return one.GetStat().status(); })) {
      PERIGEE_RETURN_IF_ERROR(visited.status);
    }
  }
  node->abandoned_ = std::make_unique<Abandoned>();
  node->batches_ = std::make_unique<BatchEngine>(&node->model_->transformer(), options.max_batch_tokens);
  PERIGEE_RETURN_IF_ERROR(node->MeasureComputing());
  return node;
}

// A first idea of how long prompts take, so that the first request's choice between fetching and computing is not
// blind.
absl::Status Node::MeasureComputing() {
  const int64_t room = model_->transformer().config().max_positions;
  const std::vector<int32_t> tokens(static_cast<size_t>(std::min<int64_t>(room, 64)), 0);
  for (int pass = 0; pass < 2; ++pass) {  // The first one sets up what later ones reuse.
    model::PlaneCache cache = NewCache();
    PERIGEE_RETURN_IF_ERROR(batches_->Run({.tokens = tokens, .cache = &cache}));
  }
  return absl::OkStatus();
}

model::PlaneCache Node::NewCache() const {
  const model::Transformer& transformer = model_->transformer();
  return model::PlaneCache(&model_->shard().local(), &transformer.rope(), transformer.rank_config().q_heads,
                           [this](size_t bytes) { return planes_->Allocate(bytes); });
}

void Node::KeepBlocks(std::span<const pod::BlockKey> keys, const model::PlaneCache& cache) const {
  const pod::Layout& layout = model_->layout();
  for (size_t b = 0; b < std::min(keys.size(), cache.blocks().size()); ++b) {
    const model::CachedBlock& block = cache.blocks()[b];
    if (block.tokens < layout.block_tokens()) break;
    for (const auto& [kind, buffer] :
         {std::pair(pod::PlaneKind::kDistant, block.distant), std::pair(pod::PlaneKind::kProximal, block.proximal)}) {
      if (buffer != nullptr) planes_->Keep({keys[b], kind}, buffer, layout.plane_bytes(kind));
    }
  }
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
  info.set_control_bytes(store_->stats().clients.grpc_bytes);
  const transport::ContextStats stats = engine_->Stats();
  info.set_payload_bytes(stats.put_bytes + stats.get_bytes);
  if (const Digest& digest = model_->tokenizer().digest(); digest != Digest{}) {
    info.set_tokenizer_digest(std::string(AsView(digest)));
  }
  *info.mutable_load() = Load();
  return info;
}

v1::NodeLoad Node::Load() const {
  v1::NodeLoad load;
  load.set_pool_available_bytes(planes_->available_bytes());
  if (const std::optional<ComputeCost> cost = batches_->prefill_rate().Fit(); cost.has_value()) {
    load.set_prefill_pass_s(cost->pass_s);
    load.set_prefill_token_s(cost->token_s);
    load.set_prefill_position_s(cost->position_s);
  }
  load.set_answer_token_s(absl::ToDoubleSeconds(batches_->stats().answer_token));
  return load;
}

}  // namespace perigee::node
