#include "model/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint_builder.h"

namespace perigee::model {
namespace {

using ::testing::HasSubstr;
using testing::MakeF32;
using testing::RawTensors;
using testing::TempFolder;
using testing::TinyConfig;
using testing::TinyTensors;

absl::StatusOr<LlamaWeights> LoadFrom(const nlohmann::json& config_json, const RawTensors& tensors) {
  TempFolder folder;
  folder.Write("model.safetensors", testing::SafetensorsFile(tensors));
  auto checkpoint = Checkpoint::Open(folder.path());
  if (!checkpoint.ok()) return checkpoint.status();
  auto config = ModelConfig::FromJson(config_json.dump());
  if (!config.ok()) return config.status();
  return LoadWeights(*config, *checkpoint);
}

void ExpectRefused(const nlohmann::json& config, const RawTensors& tensors, const std::string& tensor,
                   const std::string& why) {
  const auto weights = LoadFrom(config, tensors);
  ASSERT_FALSE(weights.ok()) << tensor;
  EXPECT_TRUE(absl::IsInvalidArgument(weights.status()));
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr(tensor));
  EXPECT_THAT(std::string(weights.status().message()), HasSubstr(why));
}

TEST(Weights, EveryTensorArrivesInItsPlace) {
  const auto weights = LoadFrom(TinyConfig(), TinyTensors());
  ASSERT_TRUE(weights.ok()) << weights.status();
  ASSERT_EQ(weights->layers.size(), 2U);
  EXPECT_EQ(weights->embed.size(), 128U);
  EXPECT_EQ(weights->embed[4], 0.125F);
  EXPECT_EQ(weights->layers[0].k[3], 0.0F);
  EXPECT_EQ(weights->layers[1].k[3], 1.0F);
  EXPECT_EQ(weights->layers[1].v.size(), 32U);
  EXPECT_EQ(weights->layers[1].down.size(), 96U);
  EXPECT_EQ(weights->head()[3], 0.5F);
  EXPECT_TRUE(weights->layers[0].q_bias.empty() && weights->layers[0].q_norm.empty());
}

TEST(Weights, PodlingLoads) {
  const std::string folder = PERIGEE_SOURCE_DIR "/models/podling";
  const auto checkpoint = Checkpoint::Open(folder);
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const auto config = ModelConfig::Load(folder);
  ASSERT_TRUE(config.ok()) << config.status();
  const auto weights = LoadWeights(*config, *checkpoint);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(checkpoint->Find("lm_head.weight")->dtype, Dtype::kBf16);
  EXPECT_EQ(weights->layers.size(), 8U);
}

TEST(Weights, TiedEmbeddingsUseTheEmbedding) {
  nlohmann::json config = TinyConfig();
  config["tie_word_embeddings"] = true;
  RawTensors tensors = TinyTensors();
  for (const bool head_in_file : {true, false}) {
    if (!head_in_file) tensors.erase("lm_head.weight");
    const auto weights = LoadFrom(config, tensors);
    ASSERT_TRUE(weights.ok()) << weights.status();
    EXPECT_EQ(weights->head().data(), weights->embed.data());
  }
}

TEST(Weights, BiasesAndNormsAreLoadedWhereTheConfigHasThem) {
  RawTensors tensors = TinyTensors();
  for (const std::string l : {"0", "1"}) {
    const std::string p = "model.layers." + l + ".self_attn.";
    tensors[p + "q_proj.bias"] = MakeF32({8});
    tensors[p + "k_proj.bias"] = MakeF32({4});
    tensors[p + "v_proj.bias"] = MakeF32({4});
  }
  nlohmann::json config = TinyConfig();
  config["model_type"] = "qwen2";
  config["architectures"] = {"Qwen2ForCausalLM"};
  auto weights = LoadFrom(config, tensors);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[1].v_bias.size(), 4U);
  EXPECT_TRUE(weights->layers[1].o_bias.empty());

  ExpectRefused(TinyConfig(), tensors, "k_proj.bias", "no place");  // a Llama without attention_bias

  RawTensors normed = TinyTensors();
  for (const std::string l : {"0", "1"}) {
    normed["model.layers." + l + ".self_attn.q_norm.weight"] = MakeF32({4});
    normed["model.layers." + l + ".self_attn.k_norm.weight"] = MakeF32({4}, 1);
  }
  config["model_type"] = "qwen3";
  config["architectures"] = {"Qwen3ForCausalLM"};
  weights = LoadFrom(config, normed);
  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(weights->layers[0].k_norm[3], 1.0F);
}

TEST(Weights, EachMissingOrMisshapenOrNonFiniteTensorIsNamed) {
  for (const auto& [name, tensor] : TinyTensors()) {
    RawTensors tensors = TinyTensors();
    tensors.erase(name);
    ExpectRefused(TinyConfig(), tensors, name, "lacks 1 tensor");
    tensors[name] = MakeF32({3, 5});
    ExpectRefused(TinyConfig(), tensors, name, "[3, 5]");
    tensors[name] = tensor;
    tensors[name].bytes.replace(4, 4, std::string("\x00\x00\xC0\x7F", 4));
    ExpectRefused(TinyConfig(), tensors, name, "nan at element 1");
    tensors[name].bytes.replace(4, 4, std::string("\x00\x00\x80\xFF", 4));
    ExpectRefused(TinyConfig(), tensors, name, "-inf at element 1");
  }
}

TEST(Weights, AConfigThatPromisesMoreThanTheFileHoldsCostsNothing) {
  nlohmann::json config = TinyConfig();
  config["vocab_size"] = 1 << 22;
  config["hidden_size"] = 1 << 17;
  config["num_hidden_layers"] = 1024;
  ExpectRefused(config, TinyTensors(), "model.embed_tokens.weight", "shape");
}

TEST(Weights, TensorsThatTheConfigDoesNotKnowAreRefused) {
  RawTensors tensors = TinyTensors();
  tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = MakeF32({2});
  EXPECT_TRUE(LoadFrom(TinyConfig(), tensors).ok());
  tensors["model.layers.2.input_layernorm.weight"] = MakeF32({8});
  ExpectRefused(TinyConfig(), tensors, "model.layers.2.input_layernorm.weight", "no place");
}

}  // namespace
}  // namespace perigee::model
