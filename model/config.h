// What a Hugging Face config.json says about a Llama-family model (Llama, Mistral, Qwen2, Qwen3), checked.
//
// Plain values; copy freely, any thread. Whatever would make this room compute something else than the model's authors
// (an unknown architecture, an active sliding window, an unknown rope scaling) is refused: UNIMPLEMENTED for things
// that exist and are not supported here, INVALID_ARGUMENT for values that cannot be. Every message names the field and
// its value.
#ifndef PERIGEE_MODEL_CONFIG_H_
#define PERIGEE_MODEL_CONFIG_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::model {

enum class Family { kLlama, kMistral, kQwen2, kQwen3 };
absl::string_view FamilyName(Family family);  // "llama", "mistral", "qwen2", "qwen3"

// kLinear divides positions by `factor`; kLlama3 is the frequency-dependent form of Llama 3.1 (transformers: rope_type
// "llama3").
enum class RopeScaling { kNone, kLinear, kLlama3 };

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling = RopeScaling::kNone;
  double factor = 1.0;             // kLinear, kLlama3
  double low_freq_factor = 1.0;    // kLlama3
  double high_freq_factor = 4.0;   // kLlama3
  int original_max_positions = 0;  // kLlama3, tokens
};

struct ModelConfig {
  Family family = Family::kLlama;
  int layers = 0;
  int hidden = 0;
  int ffn = 0;
  int q_heads = 0;
  int kv_heads = 0;  // divides q_heads
  int head_dim = 0;  // even; q_heads * head_dim need not be hidden
  int vocab = 0;
  int max_positions = 0;  // tokens
  double rms_norm_eps = 1e-6;
  RopeConfig rope;
  bool qkv_bias = false;
  bool o_bias = false;
  bool qk_norm = false;  // Qwen3: RMS norm over head_dim on each query and key head, before rope
  bool tied_embeddings = false;
  std::optional<int32_t> bos_id;
  std::vector<int32_t> eos_ids;  // may be empty
  std::string torch_dtype;       // as written, "" where absent; says nothing about the tensors' own dtype

  static absl::StatusOr<ModelConfig> FromJson(absl::string_view text);
  // Reads `folder`/config.json.
  static absl::StatusOr<ModelConfig> Load(const std::string& folder);
};

// The limits and relations that FromJson also enforces, for configs made by hand (tests, tools).
absl::Status Validate(const ModelConfig& config);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_CONFIG_H_
