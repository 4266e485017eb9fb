#include "model/fingerprint.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <functional>

#include "checkpoint_builder.h"

namespace perigee::model {
namespace {

using testing::RawTensors;
using testing::TempFolder;
using testing::TinyConfig;
using testing::TinyTensors;

ModelConfig Config(const nlohmann::json& json = TinyConfig()) { return ModelConfig::FromJson(json.dump()).value(); }

Digest Of(const ModelConfig& config, const RawTensors& tensors, bool sharded = false) {
  TempFolder folder;
  if (sharded) {
    WriteSharded(folder, tensors);
  } else {
    folder.Write("model.safetensors", testing::SafetensorsFile(tensors));
  }
  return ComputeFingerprint(config, Checkpoint::Open(folder.path()).value());
}

TEST(Fingerprint, ShardingAndPlaceDoNotEnter) {
  EXPECT_EQ(Of(Config(), TinyTensors()), Of(Config(), TinyTensors(), true));
}

// The encoding is identity across versions of this program: a change of this value orphans every stored block.
TEST(Fingerprint, TheTinyModelsValueIsFixed) {
  EXPECT_EQ(ToHex(Of(Config(), TinyTensors())), "deb3ea518d63f7a56e986828b081170ee1e6e7c7c69f6177bed0f3209cccb79b");
}

TEST(Fingerprint, EverythingThatChangesTheModelChangesIt) {
  const Digest base = Of(Config(), TinyTensors());
  RawTensors one_bit = TinyTensors();
  one_bit["model.layers.1.mlp.down_proj.weight"].bytes[17] ^= 1;
  EXPECT_NE(Of(Config(), one_bit), base);

  RawTensors renamed = TinyTensors();
  renamed["other"] = renamed["lm_head.weight"];
  renamed.erase("lm_head.weight");
  EXPECT_NE(Of(Config(), renamed), base);

  RawTensors reshaped = TinyTensors();
  reshaped["lm_head.weight"].shape = {8, 16};
  EXPECT_NE(Of(Config(), reshaped), base);

  RawTensors retyped = TinyTensors();
  retyped["lm_head.weight"].dtype = "BF16";
  retyped["lm_head.weight"].shape = {16, 16};
  RawTensors retyped_f16 = retyped;
  retyped_f16["lm_head.weight"].dtype = "F16";
  EXPECT_NE(Of(Config(), retyped), Of(Config(), retyped_f16));

  const std::function<void(ModelConfig&)> changes[] = {[](ModelConfig& c) { c.family = Family::kMistral; },
                                                       [](ModelConfig& c) { c.layers += 1; },
                                                       [](ModelConfig& c) { c.ffn += 1; },
                                                       [](ModelConfig& c) { c.kv_heads = 2; },
                                                       [](ModelConfig& c) { c.head_dim = 8; },
                                                       [](ModelConfig& c) { c.rms_norm_eps = 2e-5; },
                                                       [](ModelConfig& c) { c.rope.theta = 5e5; },
                                                       [](ModelConfig& c) { c.qkv_bias = true; },
                                                       [](ModelConfig& c) { c.o_bias = true; },
                                                       [](ModelConfig& c) { c.qk_norm = true; },
                                                       [](ModelConfig& c) { c.tied_embeddings = true; },
                                                       [](ModelConfig& c) {
                                                         c.rope.scaling = RopeScaling::kLinear;
                                                         c.rope.factor = 2;
                                                       }};
  for (const auto& change : changes) {
    ModelConfig config = Config();
    change(config);
    EXPECT_NE(Of(config, TinyTensors()), base);
  }
}

TEST(Fingerprint, WhatDoesNotChangeTheModelDoesNotEnter) {
  ModelConfig config = Config();
  config.max_positions *= 2;
  config.eos_ids = {5};
  config.bos_id.reset();
  config.torch_dtype = "bfloat16";
  EXPECT_EQ(Of(config, TinyTensors()), Of(Config(), TinyTensors()));
}

class RememberedFingerprint : public ::testing::Test {
 protected:
  RememberedFingerprint() { folder_.Write("model.safetensors", testing::SafetensorsFile(TinyTensors())); }
  FingerprintResult Get(const ModelConfig& config = Config()) {
    return FingerprintOf(config, Checkpoint::Open(folder_.path()).value()).value();
  }
  std::string file() const { return folder_.path() + "/" + kFingerprintFile; }
  TempFolder folder_;
};

TEST_F(RememberedFingerprint, IsUsedBySecondStart) {
  const FingerprintResult first = Get();
  EXPECT_FALSE(first.remembered);
  EXPECT_EQ(first.fingerprint, Of(Config(), TinyTensors()));
  const FingerprintResult second = Get();
  EXPECT_TRUE(second.remembered);
  EXPECT_EQ(second.fingerprint, first.fingerprint);
}

TEST_F(RememberedFingerprint, IsForgottenWhenWeightsOrConfigChange) {
  const FingerprintResult first = Get();
  RawTensors changed = TinyTensors();
  changed["lm_head.weight"].bytes[0] ^= 1;
  folder_.Write("model.safetensors", testing::SafetensorsFile(changed));  // same size
  // Coarse clocks could give both writes one time stamp; move it on by hand.
  const timespec times[2] = {{1, 0}, {1, 5}};
  ASSERT_EQ(::utimensat(AT_FDCWD, (folder_.path() + "/model.safetensors").c_str(), times, 0), 0);
  const FingerprintResult second = Get();
  EXPECT_FALSE(second.remembered);
  EXPECT_NE(second.fingerprint, first.fingerprint);
  EXPECT_TRUE(Get().remembered);

  ModelConfig other = Config();
  other.rope.theta = 2e4;
  EXPECT_FALSE(Get(other).remembered);
  EXPECT_FALSE(Get().remembered);  // the other config's took its place
}

TEST_F(RememberedFingerprint, DamagedFilesAreIgnoredAtEveryLength) {
  const Digest expected = Get().fingerprint;
  std::ifstream in(file());
  const std::string good((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  ASSERT_GT(good.size(), 100U);
  for (size_t n = 0; n + 2 < good.size(); ++n) {
    folder_.Write(kFingerprintFile, good.substr(0, n));
    const FingerprintResult result = Get();
    EXPECT_FALSE(result.remembered) << n;
    EXPECT_EQ(result.fingerprint, expected);
  }
}

TEST_F(RememberedFingerprint, AFolderThatCannotBeWrittenIsNoError) {
  // A folder in the temporary file's place stops even root, whom permissions do not.
  ASSERT_EQ(::mkdir((file() + ".tmp").c_str(), 0755), 0);
  const FingerprintResult result = Get();
  EXPECT_FALSE(result.remembered);
  EXPECT_EQ(result.fingerprint, Of(Config(), TinyTensors()));
  EXPECT_FALSE(std::filesystem::exists(file()));
}

}  // namespace
}  // namespace perigee::model
