#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "checkpoint_builder.h"

namespace perigee::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TinyConfig;
using Json = nlohmann::json;

absl::StatusOr<ModelConfig> Parse(const Json& json) { return ModelConfig::FromJson(json.dump()); }

Json Changed(const Json& changes) {
  Json json = TinyConfig();
  json.update(changes);
  return json;
}

void ExpectRefused(const Json& changes, absl::StatusCode code, const std::string& field, const std::string& value) {
  const auto config = Parse(Changed(changes));
  ASSERT_FALSE(config.ok()) << changes;
  EXPECT_EQ(config.status().code(), code) << config.status();
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(field));
  EXPECT_THAT(std::string(config.status().message()), HasSubstr(value));
}

TEST(ModelConfig, PodlingLoads) {
  const auto config = ModelConfig::Load(PERIGEE_SOURCE_DIR "/models/podling");
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->layers, 8);
  EXPECT_EQ(config->q_heads, 4);
  EXPECT_EQ(config->kv_heads, 2);
  EXPECT_EQ(config->head_dim, 32);
  EXPECT_EQ(config->max_positions, 4096);
  EXPECT_EQ(config->rope.theta, 500000.0);
  EXPECT_EQ(config->rms_norm_eps, 1e-5);
  EXPECT_EQ(config->bos_id, 0);
  EXPECT_THAT(config->eos_ids, ElementsAre(0));
  EXPECT_EQ(config->torch_dtype, "bfloat16");
  EXPECT_FALSE(config->tied_embeddings);
}

TEST(ModelConfig, Llama31RopeScalingAndSeveralEosIdsAreRead) {
  const auto config = Parse(Changed({{"rope_scaling",
                                      {{"rope_type", "llama3"},
                                       {"factor", 8.0},
                                       {"low_freq_factor", 1.0},
                                       {"high_freq_factor", 4.0},
                                       {"original_max_position_embeddings", 8192}}},
                                     {"eos_token_id", {3, 5, 7}}}));
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(config->rope.factor, 8.0);
  EXPECT_EQ(config->rope.high_freq_factor, 4.0);
  EXPECT_EQ(config->rope.original_max_positions, 8192);
  EXPECT_THAT(config->eos_ids, ElementsAre(3, 5, 7));
}

TEST(ModelConfig, RopeSpellingsOldAndNewMeanTheSame) {
  const auto old_spelling = Parse(Changed({{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}}}));
  ASSERT_TRUE(old_spelling.ok()) << old_spelling.status();
  EXPECT_EQ(old_spelling->rope.scaling, RopeScaling::kLinear);
  EXPECT_EQ(old_spelling->rope.factor, 2.0);
  Json json = TinyConfig();
  json.erase("rope_theta");
  json["rope_parameters"] = {{"rope_type", "default"}, {"rope_theta", 500000.0}};
  const auto new_spelling = Parse(json);
  ASSERT_TRUE(new_spelling.ok()) << new_spelling.status();
  EXPECT_EQ(new_spelling->rope.theta, 500000.0);
  EXPECT_EQ(new_spelling->rope.scaling, RopeScaling::kNone);
}

TEST(ModelConfig, DefaultsAreTheFamilies) {
  Json json = TinyConfig();
  json.erase("num_key_value_heads");
  json.erase("head_dim");
  const auto llama = Parse(json);
  ASSERT_TRUE(llama.ok()) << llama.status();
  EXPECT_EQ(llama->kv_heads, 2);
  EXPECT_EQ(llama->head_dim, 4);
  EXPECT_FALSE(llama->qkv_bias || llama->o_bias || llama->qk_norm);

  const auto biased = Parse(Changed({{"attention_bias", true}}));
  ASSERT_TRUE(biased.ok());
  EXPECT_TRUE(biased->qkv_bias && biased->o_bias);

  const auto qwen2 = Parse(Changed({{"model_type", "qwen2"}, {"architectures", {"Qwen2ForCausalLM"}}}));
  ASSERT_TRUE(qwen2.ok()) << qwen2.status();
  EXPECT_TRUE(qwen2->qkv_bias);
  EXPECT_FALSE(qwen2->o_bias);

  Json qwen3_json = Changed({{"model_type", "qwen3"}, {"architectures", {"Qwen3ForCausalLM"}}, {"head_dim", 128}});
  const auto qwen3 = Parse(qwen3_json);
  ASSERT_TRUE(qwen3.ok()) << qwen3.status();
  EXPECT_TRUE(qwen3->qk_norm);
  EXPECT_FALSE(qwen3->qkv_bias);
  EXPECT_EQ(qwen3->head_dim, 128);  // 2 * 128 is not hidden 8, and need not be

  const auto mistral = Parse(
      Changed({{"model_type", "mistral"}, {"architectures", {"MistralForCausalLM"}}, {"sliding_window", nullptr}}));
  ASSERT_TRUE(mistral.ok()) << mistral.status();
  EXPECT_EQ(mistral->family, Family::kMistral);
}

TEST(ModelConfig, WhatWouldBeComputedWronglyIsRefused) {
  constexpr auto kNo = absl::StatusCode::kUnimplemented;
  ExpectRefused({{"model_type", "gemma2"}}, kNo, "model_type", "gemma2");
  ExpectRefused({{"architectures", {"MixtralForCausalLM"}}}, kNo, "architectures", "MixtralForCausalLM");
  ExpectRefused({{"architectures", {"Qwen2ForCausalLM"}}}, absl::StatusCode::kInvalidArgument, "architectures",
                "qwen2");
  ExpectRefused({{"rope_scaling", {{"rope_type", "yarn"}, {"factor", 4.0}}}}, kNo, "rope scaling", "yarn");
  ExpectRefused({{"rope_scaling", {{"type", "dynamic"}, {"factor", 4.0}}}}, kNo, "rope scaling", "dynamic");
  ExpectRefused({{"partial_rotary_factor", 0.5}}, kNo, "partial_rotary_factor", "0.5");
  ExpectRefused({{"hidden_act", "gelu"}}, kNo, "hidden_act", "gelu");
  ExpectRefused({{"mlp_bias", true}}, kNo, "mlp_bias", "true");
  ExpectRefused({{"quantization_config", {{"bits", 4}}}}, kNo, "quantization_config", "4");
  ExpectRefused({{"model_type", "mistral"}, {"architectures", {"MistralForCausalLM"}}, {"sliding_window", 32}}, kNo,
                "sliding_window", "32");
  ExpectRefused({{"model_type", "mistral"}, {"architectures", nullptr}, {"max_position_embeddings", 32768}}, kNo,
                "sliding_window", "4096");
  ExpectRefused({{"model_type", "qwen2"}, {"architectures", nullptr}, {"use_sliding_window", true}}, kNo,
                "use_sliding_window", "true");
  ExpectRefused({{"layer_types", {"full_attention", "sliding_attention"}}}, kNo, "layer_types", "sliding_attention");
}

TEST(ModelConfig, AnUnusedSlidingWindowIsAccepted) {
  EXPECT_TRUE(Parse(Changed({{"model_type", "mistral"}, {"architectures", nullptr}, {"sliding_window", 64}})).ok());
  EXPECT_TRUE(Parse(Changed({{"model_type", "qwen2"},
                             {"architectures", nullptr},
                             {"sliding_window", 8},
                             {"use_sliding_window", false}}))
                  .ok());
}

TEST(ModelConfig, ImpossibleValuesAreRefusedByFieldAndValue) {
  constexpr auto kBad = absl::StatusCode::kInvalidArgument;
  for (const char* field : {"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
                            "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings"}) {
    ExpectRefused({{field, 0}}, kBad, field, "0");
    ExpectRefused({{field, -4}}, kBad, field, "-4");
    ExpectRefused({{field, int64_t{1} << 40}}, kBad, field, "1099511627776");
    ExpectRefused({{field, uint64_t{18446744073709551615U}}}, kBad, field, "18446744073709551615");
    ExpectRefused({{field, 4.5}}, kBad, field, "4.5");
    ExpectRefused({{field, "four"}}, kBad, field, "four");
  }
  ExpectRefused({{"num_key_value_heads", 3}}, kBad, "num_key_value_heads", "3");
  ExpectRefused({{"head_dim", 5}}, kBad, "head_dim", "5");
  ExpectRefused({{"rms_norm_eps", 0}}, kBad, "rms_norm_eps", "0");
  ExpectRefused({{"rope_theta", -1}}, kBad, "rope_theta", "-1");
  ExpectRefused({{"rope_scaling", 3}}, kBad, "rope_scaling", "3");
  ExpectRefused({{"rope_scaling", {{"type", "linear"}}}}, kBad, "factor", "0");
  ExpectRefused({{"bos_token_id", 16}}, kBad, "bos_token_id", "16");
  ExpectRefused({{"eos_token_id", {1, -1}}}, kBad, "eos_token_id", "-1");
  ExpectRefused({{"eos_token_id", {1, 1e300}}}, kBad, "eos_token_id", "1e+300");
  ExpectRefused({{"tie_word_embeddings", "yes"}}, kBad, "tie_word_embeddings", "yes");
}

TEST(ModelConfig, MissingFieldsAreNamed) {
  for (const char* field : {"num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads",
                            "vocab_size", "max_position_embeddings"}) {
    Json json = TinyConfig();
    json.erase(field);
    const auto config = Parse(json);
    ASSERT_FALSE(config.ok());
    EXPECT_THAT(std::string(config.status().message()), HasSubstr(field));
  }
}

TEST(ModelConfig, EveryTruncationAndEveryBitFlipIsAnErrorOrAConfig) {
  const std::string text = TinyConfig().dump();
  for (size_t n = 0; n < text.size(); ++n) EXPECT_FALSE(ModelConfig::FromJson(text.substr(0, n)).ok()) << n;
  for (size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string flipped = text;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    if (const auto config = ModelConfig::FromJson(flipped); config.ok()) {
      EXPECT_TRUE(Validate(*config).ok());
    }
  }
  EXPECT_FALSE(ModelConfig::FromJson(std::string(100000, '[')).ok());
  EXPECT_FALSE(ModelConfig::FromJson("{\"a\":1,\"a\":2}").ok());
  EXPECT_FALSE(ModelConfig::FromJson("[1]").ok());
}

}  // namespace
}  // namespace perigee::model
