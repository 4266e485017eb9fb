// Small checkpoints made by the tests themselves.
#ifndef PERIGEE_TESTS_MODEL_CHECKPOINT_BUILDER_H_
#define PERIGEE_TESTS_MODEL_CHECKPOINT_BUILDER_H_

#include <unistd.h>

#include <bit>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "base/bytes.h"
#include "nlohmann/json.hpp"

namespace perigee::model::testing {

// A folder that goes away with the object.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "perigee_model_XXXXXX").string();
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::permissions(path_, std::filesystem::perms::owner_all, ignored);
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }
  void Write(const std::string& name, const std::string& bytes) const {
    std::ofstream(path_ + "/" + name, std::ios::binary) << bytes;
  }

 private:
  std::string path_;
};

struct RawTensor {
  std::string dtype;
  std::vector<int64_t> shape;
  std::string bytes;
};
using RawTensors = std::map<std::string, RawTensor>;

inline std::string SafetensorsFile(const std::string& header, const std::string& data) {
  ByteWriter out;
  out.U64(header.size());
  out.Raw(header);
  out.Raw(data);
  return out.Take();
}

inline std::string SafetensorsFile(const RawTensors& tensors) {
  nlohmann::json header = {{"__metadata__", {{"format", "pt"}}}};
  std::string data;
  for (const auto& [name, tensor] : tensors) {
    header[name] = {{"dtype", tensor.dtype},
                    {"shape", tensor.shape},
                    {"data_offsets", {data.size(), data.size() + tensor.bytes.size()}}};
    data += tensor.bytes;
  }
  return SafetensorsFile(header.dump(), data);
}

// Element i is (i % 7 - 3) / 8 + salt: exact in every dtype.
inline RawTensor MakeF32(std::vector<int64_t> shape, float salt = 0) {
  int64_t n = 1;
  for (const int64_t size : shape) n *= size;
  ByteWriter out;
  for (int64_t i = 0; i < n; ++i) out.U32(std::bit_cast<uint32_t>(static_cast<float>(i % 7 - 3) / 8 + salt));
  return {"F32", std::move(shape), out.Take()};
}

// A two-layer model: hidden 8, ffn 12, 2/1 heads of 4, vocab 16.
inline nlohmann::json TinyConfig() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"model_type", "llama"},
          {"num_hidden_layers", 2},
          {"hidden_size", 8},
          {"intermediate_size", 12},
          {"num_attention_heads", 2},
          {"num_key_value_heads", 1},
          {"head_dim", 4},
          {"vocab_size", 16},
          {"max_position_embeddings", 64},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"tie_word_embeddings", false},
          {"bos_token_id", 1},
          {"eos_token_id", 2},
          {"torch_dtype", "float32"}};
}

inline RawTensors TinyTensors() {
  RawTensors t;
  t["model.embed_tokens.weight"] = MakeF32({16, 8});
  t["model.norm.weight"] = MakeF32({8}, 1);
  t["lm_head.weight"] = MakeF32({16, 8}, 0.5F);
  for (int l = 0; l < 2; ++l) {
    const std::string p = "model.layers." + std::to_string(l) + ".";
    t[p + "input_layernorm.weight"] = MakeF32({8}, 1);
    t[p + "post_attention_layernorm.weight"] = MakeF32({8}, 1);
    t[p + "self_attn.q_proj.weight"] = MakeF32({8, 8});
    t[p + "self_attn.k_proj.weight"] = MakeF32({4, 8}, static_cast<float>(l));
    t[p + "self_attn.v_proj.weight"] = MakeF32({4, 8}, 2);
    t[p + "self_attn.o_proj.weight"] = MakeF32({8, 8});
    t[p + "mlp.gate_proj.weight"] = MakeF32({12, 8});
    t[p + "mlp.up_proj.weight"] = MakeF32({12, 8});
    t[p + "mlp.down_proj.weight"] = MakeF32({8, 12});
  }
  return t;
}

// Writes `tensors` as two shards and their index.
inline void WriteSharded(const TempFolder& folder, const RawTensors& tensors) {
  RawTensors shards[2];
  nlohmann::json weight_map;
  int i = 0;
  for (const auto& [name, tensor] : tensors) {
    const int shard = i++ % 2;
    shards[shard][name] = tensor;
    weight_map[name] = shard == 0 ? "model-00001-of-00002.safetensors" : "model-00002-of-00002.safetensors";
  }
  folder.Write("model-00001-of-00002.safetensors", SafetensorsFile(shards[0]));
  folder.Write("model-00002-of-00002.safetensors", SafetensorsFile(shards[1]));
  folder.Write("model.safetensors.index.json",
               nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", weight_map}}.dump());
}

inline std::span<const std::byte> Bytes(const std::string& text) { return AsBytes(text); }

}  // namespace perigee::model::testing

#endif  // PERIGEE_TESTS_MODEL_CHECKPOINT_BUILDER_H_
