// The forward pass of Llama-family models: embedding, pre-norm attention with RoPE and GQA, SwiGLU, logits.
//
// Float arithmetic throughout. Immutable after Load; Forward may be called from several threads at once, each with its
// own cache, except on a rank of a tensor-parallel group (model/tensor_parallel.h: one pass at a time). Architecture as
// in Hugging Face's LlamaModel, MistralModel, Qwen2Model and Qwen3Model.
#ifndef PERIGEE_MODEL_TRANSFORMER_H_
#define PERIGEE_MODEL_TRANSFORMER_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/rope.h"
#include "model/config.h"
#include "model/kv_cache.h"
#include "model/tensor_parallel.h"
#include "model/weights.h"
#include "pod/plan.h"

namespace perigee::model {

enum class Logits {
  kNone,  // A prefill that only fills the cache.
  kLast,  // [vocab] of the last token.
  kAll,   // [token][vocab].
};

// One sequence's part of a batch: `tokens` at `positions`, or else at cache->tokens() and up.
struct BatchItem {
  std::span<const int32_t> tokens;
  std::span<const int64_t> positions = {};  // Ascending, as many as tokens; empty: the next ones.
  KvCache* cache = nullptr;
  Logits which = Logits::kNone;
  std::vector<float>* logits = nullptr;  // May be null with kNone.
  // Where given, called when a layer's keys and values are in the cache; its error ends the item.
  std::function<absl::Status(int layer)> after_layer = nullptr;
  absl::Status status = absl::OkStatus();  // Out. After an error the cache may hold part of the chunk: do not use it.
};

class Transformer {
 public:
  // Reads config.json and the weights (a rank's part of them) from a Hugging Face folder.
  static absl::StatusOr<std::unique_ptr<Transformer>> Load(const std::string& folder, TensorParallel group = {});

  // `weights` are those that LoadWeights gives this rank.
  Transformer(ModelConfig config, LlamaWeights weights, TensorParallel group = {});

  // Of the whole model.
  const ModelConfig& config() const { return config_; }
  // What this rank computes: config() with the rank's q_heads, kv_heads and ffn. Caches are made for these heads.
  const ModelConfig& rank_config() const { return rank_config_; }
  const kernels::Rope& rope() const { return rope_; }
  // Of the whole model.
  pod::KvShape kv_shape() const { return {config_.layers, config_.kv_heads, config_.head_dim}; }

  // INVALID_ARGUMENT for no tokens, token ids outside the vocabulary and positions that do not ascend within the
  // model's context.
  absl::Status Check(std::span<const int32_t> tokens, std::span<const int64_t> positions) const;

  // Runs all items through all layers together, so that each weight is read once for all of them; every item has a
  // cache of its own. An item that fails (Check, its cache, its after_layer) does not disturb the others. The Status is
  // that of the group of ranks, where there is one: then all items have failed.
  absl::Status ForwardBatch(std::span<BatchItem> items) const;

  // A batch of one.
  absl::Status Forward(std::span<const int32_t> tokens, KvCache& cache, Logits which, std::vector<float>* logits,
                       const std::function<absl::Status(int layer)>& after_layer = nullptr) const;

  // The second layer's values [token][kv_heads][head_dim] of tokens that the cache holds already, as they would be had
  // these tokens been computed with all that the cache holds before them: they go through the first layer, and nothing
  // is appended. FAILED_PRECONDITION for a model of one layer.
  absl::Status SecondLayerValues(std::span<const int32_t> tokens, std::span<const int64_t> positions, KvCache& cache,
                                 std::vector<float>* values) const;

 private:
  class Pass;
  const ModelConfig config_;
  const TensorParallel group_;
  const ModelConfig rank_config_;
  const LlamaWeights weights_;
  const kernels::Rope rope_;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_TRANSFORMER_H_
