// One model as a node serves it: weights, tokenizer, plan, layout, and the identity of the blocks that it writes and
// reads.
//
// Immutable after Load; any thread may use it.
#ifndef PERIGEE_MODEL_SERVED_MODEL_H_
#define PERIGEE_MODEL_SERVED_MODEL_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"
#include "model/transformer.h"
#include "pod/block_key.h"
#include "pod/head_shard.h"
#include "pod/layout.h"

namespace perigee::model {

struct ServedModelOptions {
  std::string folder;     // Hugging Face files.
  std::string plan_file;  // "": plan.json in the folder where there is one, else the identity plan. "identity": the
                          // identity plan.
  int block_tokens = 64;
  TensorParallel group = {};  // Which rank of how many this process is.
};

class ServedModel {
 public:
  // FAILED_PRECONDITION when the plan is another model's; INVALID_ARGUMENT when model or plan cannot be split over the
  // group.
  static absl::StatusOr<std::unique_ptr<ServedModel>> Load(const ServedModelOptions& options);

  // Of parts made in memory (benchmarks). The plan's fingerprint stands for the weights: the caller answers for it.
  // FAILED_PRECONDITION when the plan is of another shape.
  static absl::StatusOr<std::unique_ptr<ServedModel>> Create(std::string name, std::unique_ptr<Transformer> transformer,
                                                             std::unique_ptr<Tokenizer> tokenizer,
                                                             const pod::Plan& plan, int block_tokens,
                                                             const TensorParallel& group = {});

  const Transformer& transformer() const { return *transformer_; }
  const Tokenizer& tokenizer() const { return *tokenizer_; }
  // Plan and layout of the whole model: what blocks are named by, and what is stored.
  const pod::Layout& layout() const { return shard_.full(); }
  const pod::Plan& plan() const { return layout().plan(); }
  // This rank's heads; shard().local() is the layout of its caches. The whole model in a group of one.
  const pod::HeadShard& shard() const { return shard_; }
  const Digest& fingerprint() const { return plan().model_fingerprint(); }
  const std::string& name() const { return name_; }

  pod::Identity IdentityFor(const std::string& tenant, const std::string& salt) const;

 private:
  explicit ServedModel(pod::HeadShard shard) : shard_(std::move(shard)) {}
  std::string name_;
  std::unique_ptr<Transformer> transformer_;
  std::unique_ptr<Tokenizer> tokenizer_;
  pod::HeadShard shard_;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_SERVED_MODEL_H_
