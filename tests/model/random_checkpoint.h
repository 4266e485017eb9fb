// Seeded random models of any shape and family, small enough to write in a test, with logits far enough apart that
// greedy decoding does not hang on the last bit.
#ifndef PERIGEE_TESTS_MODEL_RANDOM_CHECKPOINT_H_
#define PERIGEE_TESTS_MODEL_RANDOM_CHECKPOINT_H_

#include <cmath>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint_builder.h"

namespace perigee::model::testing {

struct RandomModel {
  std::string architecture = "LlamaForCausalLM";  // Or Qwen2ForCausalLM, Qwen3ForCausalLM.
  std::string model_type = "llama";
  bool attention_bias = false;  // Llama's own switch: biases of q, k, v and o. Qwen2 always has those of q, k and v.
  int layers = 3, hidden = 48, ffn = 72, q_heads = 8, kv_heads = 4, head_dim = 8, vocab = 64, max_positions = 512;
  uint32_t seed = 1;
};

inline nlohmann::json ConfigOf(const RandomModel& m) {
  return {{"architectures", {m.architecture}},
          {"model_type", m.model_type},
          {"attention_bias", m.attention_bias},
          {"num_hidden_layers", m.layers},
          {"hidden_size", m.hidden},
          {"intermediate_size", m.ffn},
          {"num_attention_heads", m.q_heads},
          {"num_key_value_heads", m.kv_heads},
          {"head_dim", m.head_dim},
          {"vocab_size", m.vocab},
          {"max_position_embeddings", m.max_positions},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", false},
          {"bos_token_id", 0},
          {"eos_token_id", 1},
          {"torch_dtype", "float32"}};
}

inline RawTensors TensorsOf(const RandomModel& m) {
  std::mt19937 rng(m.seed);
  std::normal_distribution<float> normal;
  RawTensors tensors;
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, float mean, float deviation) {
    int64_t n = 1;
    for (const int64_t extent : shape) n *= extent;
    ByteWriter out;
    for (int64_t i = 0; i < n; ++i) out.U32(std::bit_cast<uint32_t>(mean + deviation * normal(rng)));
    tensors[name] = {"F32", std::move(shape), out.Take()};
  };
  // Keeps the scale of what goes through it.
  const auto matrix = [&](const std::string& name, int rows, int columns, float gain) {
    add(name, {rows, columns}, 0, gain / std::sqrt(static_cast<float>(columns)));
  };
  const int q_rows = m.q_heads * m.head_dim, kv_rows = m.kv_heads * m.head_dim;
  add("model.embed_tokens.weight", {m.vocab, m.hidden}, 0, 1);
  add("model.norm.weight", {m.hidden}, 1, 0.1F);
  matrix("lm_head.weight", m.vocab, m.hidden, 3);
  for (int l = 0; l < m.layers; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    add(p + "input_layernorm.weight", {m.hidden}, 1, 0.1F);
    add(p + "post_attention_layernorm.weight", {m.hidden}, 1, 0.1F);
    matrix(p + "self_attn.q_proj.weight", q_rows, m.hidden, 1.5F);
    matrix(p + "self_attn.k_proj.weight", kv_rows, m.hidden, 1.5F);
    matrix(p + "self_attn.v_proj.weight", kv_rows, m.hidden, 1);
    matrix(p + "self_attn.o_proj.weight", m.hidden, q_rows, 2);
    if (m.attention_bias || m.model_type == "qwen2") {
      add(p + "self_attn.q_proj.bias", {q_rows}, 0, 0.5F);
      add(p + "self_attn.k_proj.bias", {kv_rows}, 0, 0.5F);
      add(p + "self_attn.v_proj.bias", {kv_rows}, 0, 0.5F);
    }
    if (m.attention_bias) add(p + "self_attn.o_proj.bias", {m.hidden}, 0, 0.5F);
    if (m.model_type == "qwen3") {
      add(p + "self_attn.q_norm.weight", {m.head_dim}, 1, 0.3F);
      add(p + "self_attn.k_norm.weight", {m.head_dim}, 1, 0.3F);
    }
    matrix(p + "mlp.gate_proj.weight", m.ffn, m.hidden, 1.5F);
    matrix(p + "mlp.up_proj.weight", m.ffn, m.hidden, 1);
    matrix(p + "mlp.down_proj.weight", m.hidden, m.ffn, 1.5F);
  }
  return tensors;
}

inline void WriteModel(const TempFolder& folder, const RandomModel& m) {
  folder.Write("config.json", ConfigOf(m).dump());
  folder.Write("model.safetensors", SafetensorsFile(TensorsOf(m)));
}

}  // namespace perigee::model::testing

#endif  // PERIGEE_TESTS_MODEL_RANDOM_CHECKPOINT_H_
