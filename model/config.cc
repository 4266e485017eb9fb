#include "model/config.h"

#include <cmath>

#include "base/file.h"
#include "base/status.h"
#include "model/json_reader.h"

namespace perigee::model {
namespace {

constexpr size_t kMaxConfigBytes = size_t{1} << 20;

// Upper limits: several times the largest published model, and small enough that no product of two overflows int64.
constexpr int kMaxLayers = 1024;
constexpr int kMaxHidden = 1 << 17;
constexpr int kMaxFfn = 1 << 20;
constexpr int kMaxHeads = 4096;
constexpr int kMaxHeadDim = 1024;
constexpr int kMaxVocab = 1 << 22;
constexpr int kMaxPositions = 1 << 27;

absl::Status CheckRange(absl::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("config: \"", field, "\" is ", value, "; it must be in [", low, ", ", high, "]"));
}

absl::StatusOr<int> Dimension(const Json& json, const char* key, int high, int64_t fallback = -1) {
  PERIGEE_ASSIGN_OR_RETURN(const int64_t value, IntOr(json, key, fallback));
  if (value == -1 && FindValue(json, key) == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat("config: \"", key, "\" is missing"));
  }
  PERIGEE_RETURN_IF_ERROR(CheckRange(key, value, 1, high));
  return static_cast<int>(value);
}

absl::StatusOr<Family> FamilyOf(const Json& json) {
  struct Known {
    const char* model_type;
    const char* architecture;
    Family family;
  };
  static constexpr Known kKnown[] = {
      {"llama", "LlamaForCausalLM", Family::kLlama},
      {"mistral", "MistralForCausalLM", Family::kMistral},
      {"qwen2", "Qwen2ForCausalLM", Family::kQwen2},
      {"qwen3", "Qwen3ForCausalLM", Family::kQwen3},
  };
  constexpr absl::string_view kWanted =
      "; supported are LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM and Qwen3ForCausalLM";
  PERIGEE_ASSIGN_OR_RETURN(const std::string model_type, StringOr(json, "model_type", ""));
  std::optional<Family> by_type, by_architecture;
  for (const Known& known : kKnown) {
    if (model_type == known.model_type) by_type = known.family;
  }
  if (!model_type.empty() && !by_type) {
    return absl::UnimplementedError(absl::StrCat("config: \"model_type\" is \"", model_type, "\"", kWanted));
  }
  if (const Json* architectures = FindValue(json, "architectures")) {
    if (!architectures->is_array() || architectures->size() != 1 || !(*architectures)[0].is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat("config: \"architectures\" is ", Shown(*architectures), "; a list of one name is needed"));
    }
    const std::string& name = (*architectures)[0].get_ref<const std::string&>();
    for (const Known& known : kKnown) {
      if (name == known.architecture) by_architecture = known.family;
    }
    if (!by_architecture) {
      return absl::UnimplementedError(absl::StrCat("config: \"architectures\" names \"", name, "\"", kWanted));
    }
  }
  if (!by_type && !by_architecture) {
    return absl::InvalidArgumentError(
        absl::StrCat("config: neither \"model_type\" nor \"architectures\" is given", kWanted));
  }
  if (by_type && by_architecture && *by_type != *by_architecture) {
    return absl::InvalidArgumentError(absl::StrCat("config: \"model_type\" says ", model_type,
                                                   ", \"architectures\" says ", FamilyName(*by_architecture)));
  }
  return by_type ? *by_type : *by_architecture;
}

absl::StatusOr<RopeConfig> RopeOf(const Json& json, int max_positions) {
  RopeConfig rope;
  // transformers 5 moved theta and the scaling into one object, "rope_parameters".
  const Json* scaling = FindValue(json, "rope_scaling");
  const Json* parameters = FindValue(json, "rope_parameters");
  if (scaling != nullptr && parameters != nullptr) {
    return absl::InvalidArgumentError("config: both \"rope_scaling\" and \"rope_parameters\" are given; keep one");
  }
  PERIGEE_ASSIGN_OR_RETURN(rope.theta, NumberOr(json, "rope_theta", rope.theta));
  PERIGEE_ASSIGN_OR_RETURN(const double partial, NumberOr(json, "partial_rotary_factor", 1.0));
  if (partial != 1.0) {
    return absl::UnimplementedError(
        absl::StrCat("config: \"partial_rotary_factor\" is ", partial, "; only 1 is supported"));
  }
  if (parameters != nullptr) scaling = parameters;
  if (scaling == nullptr) return rope;
  if (!scaling->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat("config: \"rope_scaling\" is ", Shown(*scaling), "; an object or null is needed"));
  }
  PERIGEE_ASSIGN_OR_RETURN(rope.theta, NumberOr(*scaling, "rope_theta", rope.theta));
  PERIGEE_ASSIGN_OR_RETURN(std::string type, StringOr(*scaling, "rope_type", ""));
  if (type.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(type, StringOr(*scaling, "type", ""));  // the older spelling
  }
  if (type == "default" || (type.empty() && parameters != nullptr)) return rope;
  PERIGEE_ASSIGN_OR_RETURN(rope.factor, NumberOr(*scaling, "factor", 0.0));
  if (type == "linear") {
    rope.scaling = RopeScaling::kLinear;
    return rope;
  }
  if (type == "llama3") {
    rope.scaling = RopeScaling::kLlama3;
    PERIGEE_ASSIGN_OR_RETURN(rope.low_freq_factor, NumberOr(*scaling, "low_freq_factor", 0.0));
    PERIGEE_ASSIGN_OR_RETURN(rope.high_freq_factor, NumberOr(*scaling, "high_freq_factor", 0.0));
    PERIGEE_ASSIGN_OR_RETURN(rope.original_max_positions,
                             Dimension(*scaling, "original_max_position_embeddings", kMaxPositions));
    return rope;
  }
  return absl::UnimplementedError(absl::StrCat("config: rope scaling ", Shown(*scaling),
                                               " is not supported; supported are none, linear and llama3"));
}

absl::Status RefuseSlidingWindow(const Json& json, Family family, int max_positions) {
  if (const Json* types = FindValue(json, "layer_types"); types != nullptr && types->is_array()) {
    for (const Json& type : *types) {
      if (type != "full_attention") {
        return absl::UnimplementedError(
            absl::StrCat("config: \"layer_types\" holds ", Shown(type), "; only full_attention is supported"));
      }
    }
  }
  if (family == Family::kMistral) {
    // transformers takes an absent value as 4096, and null as "no window".
    PERIGEE_ASSIGN_OR_RETURN(const int64_t window,
                             IntOr(json, "sliding_window", json.contains("sliding_window") ? -1 : 4096));
    if (window != -1 && window < max_positions) {
      return absl::UnimplementedError(
          absl::StrCat("config: \"sliding_window\" is ", window,
                       json.contains("sliding_window") ? "" : " (the default where it is absent)",
                       ", less than max_position_embeddings ", max_positions,
                       "; sliding-window attention is not supported (null means none)"));
    }
    return absl::OkStatus();
  }
  PERIGEE_ASSIGN_OR_RETURN(const bool use_window, BoolOr(json, "use_sliding_window", false));
  if (use_window) {
    return absl::UnimplementedError(
        "config: \"use_sliding_window\" is true; sliding-window attention is not supported");
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int32_t>> TokenIds(const Json& json, const char* key, int vocab) {
  std::vector<int32_t> ids;
  const Json* value = FindValue(json, key);
  if (value == nullptr) return ids;
  const Json list = value->is_array() ? *value : Json::array({*value});
  if (list.size() > 64)
    return absl::InvalidArgumentError(absl::StrCat("config: \"", key, "\" lists ", list.size(), " ids"));
  for (const Json& id : list) {
    if (!id.is_number_integer() || id < 0 || id >= vocab) {
      return absl::InvalidArgumentError(
          absl::StrCat("config: \"", key, "\" holds ", Shown(id), "; token ids are whole numbers in [0, ", vocab, ")"));
    }
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

}  // namespace

absl::string_view FamilyName(Family family) {
  switch (family) {
    case Family::kLlama:
      return "llama";
    case Family::kMistral:
      return "mistral";
    case Family::kQwen2:
      return "qwen2";
    case Family::kQwen3:
      return "qwen3";
  }
  return "unknown";
}

absl::StatusOr<ModelConfig> ModelConfig::FromJson(absl::string_view text) {
  PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseJsonObject(text, "config", 16));
  ModelConfig config;
  PERIGEE_ASSIGN_OR_RETURN(config.family, FamilyOf(json));
  if (const Json* quantization = FindValue(json, "quantization_config")) {
    return absl::UnimplementedError(
        absl::StrCat("config: \"quantization_config\" is ", Shown(*quantization), "; use an unquantised checkpoint"));
  }
  PERIGEE_ASSIGN_OR_RETURN(config.layers, Dimension(json, "num_hidden_layers", kMaxLayers));
  PERIGEE_ASSIGN_OR_RETURN(config.hidden, Dimension(json, "hidden_size", kMaxHidden));
  PERIGEE_ASSIGN_OR_RETURN(config.ffn, Dimension(json, "intermediate_size", kMaxFfn));
  PERIGEE_ASSIGN_OR_RETURN(config.q_heads, Dimension(json, "num_attention_heads", kMaxHeads));
  // Llama's default is one kv head per query head; the other families' defaults belong to one model size each, so they
  // must say.
  PERIGEE_ASSIGN_OR_RETURN(config.kv_heads, Dimension(json, "num_key_value_heads", kMaxHeads,
                                                      config.family == Family::kLlama ? config.q_heads : -1));
  int64_t default_head_dim = config.hidden / config.q_heads;
  if (config.family == Family::kQwen3) default_head_dim = 128;  // transformers' default for Qwen3
  if (FindValue(json, "head_dim") == nullptr && config.family != Family::kQwen3 &&
      config.hidden % config.q_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("config: \"head_dim\" is missing and \"hidden_size\" ",
                                                   config.hidden, " is not a multiple of \"num_attention_heads\" ",
                                                   config.q_heads));
  }
  PERIGEE_ASSIGN_OR_RETURN(config.head_dim, Dimension(json, "head_dim", kMaxHeadDim, default_head_dim));
  PERIGEE_ASSIGN_OR_RETURN(config.vocab, Dimension(json, "vocab_size", kMaxVocab));
  PERIGEE_ASSIGN_OR_RETURN(config.max_positions, Dimension(json, "max_position_embeddings", kMaxPositions));
  PERIGEE_ASSIGN_OR_RETURN(config.rms_norm_eps, NumberOr(json, "rms_norm_eps", config.rms_norm_eps));
  PERIGEE_ASSIGN_OR_RETURN(config.rope, RopeOf(json, config.max_positions));

  PERIGEE_ASSIGN_OR_RETURN(const std::string activation, StringOr(json, "hidden_act", "silu"));
  if (activation != "silu") {
    return absl::UnimplementedError(
        absl::StrCat("config: \"hidden_act\" is \"", activation, "\"; only silu is supported"));
  }
  PERIGEE_ASSIGN_OR_RETURN(const bool mlp_bias, BoolOr(json, "mlp_bias", false));
  if (mlp_bias) return absl::UnimplementedError("config: \"mlp_bias\" is true; MLP biases are not supported");
  PERIGEE_ASSIGN_OR_RETURN(const bool attention_bias, BoolOr(json, "attention_bias", false));
  // Qwen2 always has biases on q, k and v, never on o; Llama and Qwen3 have all four or none; Mistral has none.
  config.qkv_bias = config.family == Family::kQwen2 || attention_bias;
  config.o_bias = config.family != Family::kQwen2 && attention_bias;
  if (config.family == Family::kMistral && attention_bias) {
    return absl::UnimplementedError("config: \"attention_bias\" is true, which Mistral models do not have");
  }
  config.qk_norm = config.family == Family::kQwen3;
  PERIGEE_ASSIGN_OR_RETURN(config.tied_embeddings, BoolOr(json, "tie_word_embeddings", false));
  PERIGEE_RETURN_IF_ERROR(RefuseSlidingWindow(json, config.family, config.max_positions));

  PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> bos, TokenIds(json, "bos_token_id", config.vocab));
  if (bos.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("config: \"bos_token_id\" lists ", bos.size(), " ids; one is needed"));
  }
  if (!bos.empty()) config.bos_id = bos[0];
  PERIGEE_ASSIGN_OR_RETURN(config.eos_ids, TokenIds(json, "eos_token_id", config.vocab));
  PERIGEE_ASSIGN_OR_RETURN(config.torch_dtype, StringOr(json, "torch_dtype", ""));
  if (config.torch_dtype.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(config.torch_dtype, StringOr(json, "dtype", ""));
  }
  PERIGEE_RETURN_IF_ERROR(Validate(config));
  return config;
}

absl::StatusOr<ModelConfig> ModelConfig::Load(const std::string& folder) {
  const std::string path = folder + "/config.json";
  PERIGEE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxConfigBytes));
  absl::StatusOr<ModelConfig> config = FromJson(text);
  if (!config.ok()) return Annotate(config.status(), path);
  return config;
}

absl::Status Validate(const ModelConfig& config) {
  PERIGEE_RETURN_IF_ERROR(CheckRange("num_hidden_layers", config.layers, 1, kMaxLayers));
  PERIGEE_RETURN_IF_ERROR(CheckRange("hidden_size", config.hidden, 1, kMaxHidden));
  PERIGEE_RETURN_IF_ERROR(CheckRange("intermediate_size", config.ffn, 1, kMaxFfn));
  PERIGEE_RETURN_IF_ERROR(CheckRange("num_attention_heads", config.q_heads, 1, kMaxHeads));
  PERIGEE_RETURN_IF_ERROR(CheckRange("num_key_value_heads", config.kv_heads, 1, kMaxHeads));
  PERIGEE_RETURN_IF_ERROR(CheckRange("head_dim", config.head_dim, 1, kMaxHeadDim));
  PERIGEE_RETURN_IF_ERROR(CheckRange("vocab_size", config.vocab, 1, kMaxVocab));
  PERIGEE_RETURN_IF_ERROR(CheckRange("max_position_embeddings", config.max_positions, 1, kMaxPositions));
  if (config.q_heads % config.kv_heads != 0) {
    return absl::InvalidArgumentError(absl::StrCat("config: \"num_attention_heads\" ", config.q_heads,
                                                   " is not a multiple of \"num_key_value_heads\" ", config.kv_heads));
  }
  if (config.head_dim % 2 != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("config: \"head_dim\" is ", config.head_dim, "; rotary embeddings need an even one"));
  }
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps < 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("config: \"rms_norm_eps\" is ", config.rms_norm_eps, "; it must be in (0, 1)"));
  }
  const RopeConfig& rope = config.rope;
  if (!(rope.theta >= 1 && rope.theta <= 1e12)) {
    return absl::InvalidArgumentError(
        absl::StrCat("config: \"rope_theta\" is ", rope.theta, "; it must be in [1, 1e12]"));
  }
  if (rope.scaling != RopeScaling::kNone && !(rope.factor >= 1 && rope.factor <= 1e6)) {
    return absl::InvalidArgumentError(
        absl::StrCat("config: rope scaling \"factor\" is ", rope.factor, "; it must be in [1, 1e6]"));
  }
  if (rope.scaling == RopeScaling::kLlama3) {
    if (!(rope.low_freq_factor > 0 && rope.high_freq_factor > rope.low_freq_factor &&
          std::isfinite(rope.high_freq_factor))) {
      return absl::InvalidArgumentError(absl::StrCat("config: rope scaling needs 0 < \"low_freq_factor\" ",
                                                     rope.low_freq_factor, " < \"high_freq_factor\" ",
                                                     rope.high_freq_factor));
    }
    PERIGEE_RETURN_IF_ERROR(
        CheckRange("original_max_position_embeddings", rope.original_max_positions, 1, kMaxPositions));
  }
  return absl::OkStatus();
}

}  // namespace perigee::model
