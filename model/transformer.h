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

  // Runs `tokens` at positions cache.tokens() and up, through all layers. *logits may be null with kNone. after_layer,
  // where given, is called when a layer's keys and values are in the cache and its output is computed; its error ends
  // the pass. INVALID_ARGUMENT for token ids outside the vocabulary and for positions past the model's context. After
  // an error the cache may hold part of the chunk and must not be used again.
  absl::Status Forward(std::span<const int32_t> tokens, KvCache& cache, Logits which, std::vector<float>* logits,
                       const std::function<absl::Status(int layer)>& after_layer = nullptr) const;

 private:
  const ModelConfig config_;
  const TensorParallel group_;
  const ModelConfig rank_config_;
  const LlamaWeights weights_;
  const kernels::Rope rope_;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_TRANSFORMER_H_
