// A Llama-family checkpoint's weights as row-major f32 vectors, checked against the config.
//
// Matrices are as in the checkpoint, [out][in]: y[o] = sum_i w[o][i] * x[i]. Owned by the struct; read-only use from
// any thread. A tensor-parallel rank holds its heads and its share of the MLP: q_heads, kv_heads and ffn below are then
// the rank's (RankConfig); everything else is whole.
#ifndef PERIGEE_MODEL_WEIGHTS_H_
#define PERIGEE_MODEL_WEIGHTS_H_

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/config.h"
#include "model/safetensors.h"
#include "model/tensor_parallel.h"

namespace perigee::model {

struct LayerWeights {
  std::vector<float> input_norm;              // [hidden]
  std::vector<float> q;                       // [q_heads * head_dim][hidden]
  std::vector<float> k, v;                    // [kv_heads * head_dim][hidden]
  std::vector<float> o;                       // [hidden][q_heads * head_dim]
  std::vector<float> q_bias, k_bias, v_bias;  // [rows of q, k, v]; empty without config.qkv_bias
  std::vector<float> o_bias;                  // [hidden]; empty without config.o_bias
  std::vector<float> q_norm, k_norm;          // [head_dim]; empty without config.qk_norm
  std::vector<float> post_norm;               // [hidden]: before the MLP
  std::vector<float> gate, up;                // [ffn][hidden]
  std::vector<float> down;                    // [hidden][ffn]
};

struct LlamaWeights {
  std::vector<float> embed;  // [vocab][hidden]
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;  // [hidden]
  std::vector<float> lm_head;     // [vocab][hidden]; empty where tied to embed: use head()
  std::span<const float> head() const { return lm_head.empty() ? embed : lm_head; }
};

// INVALID_ARGUMENT naming every missing tensor (up to 8), a tensor of another shape, a tensor that the config does not
// know (the model would compute something else than its authors'), or a NaN or infinite weight among those that the
// rank loads; and as Validate does. `config` is the whole model's. Uses all cores.
absl::StatusOr<LlamaWeights> LoadWeights(const ModelConfig& config, const Checkpoint& checkpoint,
                                         const TensorParallel& group = {});

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_WEIGHTS_H_
