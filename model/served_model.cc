#include "model/served_model.h"

#include <filesystem>

#include "base/file.h"
#include "base/status.h"
#include "model/fingerprint.h"
#include "model/safetensors.h"

namespace perigee::model {

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Load(const ServedModelOptions& options) {
  namespace fs = std::filesystem;
  std::error_code error;
  if (!fs::is_directory(options.folder, error)) {
    return absl::NotFoundError(absl::StrCat("model folder '", options.folder, "' is not a folder"));
  }
  PERIGEE_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::Load(options.folder));
  PERIGEE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(options.folder));
  PERIGEE_ASSIGN_OR_RETURN(const FingerprintResult fingerprint, FingerprintOf(config, checkpoint));
  PERIGEE_ASSIGN_OR_RETURN(LlamaWeights weights, LoadWeights(config, checkpoint, options.group));
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<Tokenizer> tokenizer, LoadTokenizer(options.folder));
  auto transformer = std::make_unique<Transformer>(std::move(config), std::move(weights), options.group);

  std::string plan_file = options.plan_file;
  if (plan_file.empty()) {
    const fs::path beside = fs::path(options.folder) / "plan.json";
    plan_file = fs::exists(beside, error) ? beside.string() : "identity";
  }
  const pod::KvShape shape = transformer->kv_shape();
  absl::StatusOr<pod::Plan> plan = pod::Plan::Identity(shape, pod::Window{}, fingerprint.fingerprint);
  if (plan_file != "identity") {
    PERIGEE_ASSIGN_OR_RETURN(const std::string text, ReadFile(plan_file));
    plan = pod::Plan::Parse(text);
    if (!plan.ok()) return Annotate(plan.status(), plan_file);
    PERIGEE_RETURN_IF_ERROR(Annotate(plan->CheckModel(shape, fingerprint.fingerprint), plan_file));
  }
  PERIGEE_RETURN_IF_ERROR(plan.status());
  return Create(fs::weakly_canonical(options.folder, error).filename().string(), std::move(transformer),
                std::move(tokenizer), *plan, options.block_tokens, options.group);
}

absl::StatusOr<std::unique_ptr<ServedModel>> ServedModel::Create(std::string name,
                                                                 std::unique_ptr<Transformer> transformer,
                                                                 std::unique_ptr<Tokenizer> tokenizer,
                                                                 const pod::Plan& plan, int block_tokens,
                                                                 const TensorParallel& group) {
  PERIGEE_RETURN_IF_ERROR(plan.CheckModel(transformer->kv_shape(), plan.model_fingerprint()));
  PERIGEE_ASSIGN_OR_RETURN(const pod::Layout layout, pod::Layout::Create(plan, block_tokens));
  PERIGEE_ASSIGN_OR_RETURN(pod::HeadShard shard, pod::HeadShard::Create(layout, group.rank, group.size));
  std::unique_ptr<ServedModel> served(new ServedModel(std::move(shard)));
  served->name_ = std::move(name);
  served->transformer_ = std::move(transformer);
  served->tokenizer_ = std::move(tokenizer);
  return served;
}

pod::Identity ServedModel::IdentityFor(const std::string& tenant, const std::string& salt) const {
  pod::Identity identity;
  identity.tenant = tenant;
  identity.salt = salt;
  identity.model_fingerprint = fingerprint();
  identity.plan_id = plan().id();
  identity.block_tokens = layout().block_tokens();
  return identity;
}

}  // namespace perigee::model
