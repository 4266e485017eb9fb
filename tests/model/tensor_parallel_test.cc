// A forward pass over two or four ranks gives one rank's logits, for every peculiarity that a split could get wrong:
// grouped heads, biases before and after the sum, QK-norm.
#include "model/tensor_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "model/transformer.h"
#include "random_checkpoint.h"

namespace perigee::model {
namespace {

using ::testing::HasSubstr;
using testing::RandomModel;
using testing::TempFolder;

// The ranks of one process, as threads: sums in rank order, so that every rank gets the same bits.
class ThreadGroup {
 public:
  explicit ThreadGroup(int size) : parts_(static_cast<size_t>(size)) {}

  TensorParallel Rank(int rank) {
    return {rank, static_cast<int>(parts_.size()), [this, rank](std::span<float> values) { return Sum(rank, values); }};
  }
  int sums() const { return sums_; }

 private:
  absl::Status Sum(int rank, std::span<float> values) {
    parts_[static_cast<size_t>(rank)].assign(values.begin(), values.end());
    if (!Meet()) return absl::DeadlineExceededError("the other ranks did not come");
    if (rank == 0) ++sums_;
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = 0;
      for (const std::vector<float>& part : parts_) values[i] += part[i];
    }
    if (!Meet()) return absl::DeadlineExceededError("the other ranks did not come");
    return absl::OkStatus();
  }
  bool Meet() {
    absl::MutexLock lock(&mu_);
    const int64_t round = arrived_++ / static_cast<int64_t>(parts_.size());
    const auto complete = [this, round] { return arrived_ >= (round + 1) * static_cast<int64_t>(parts_.size()); };
    return mu_.AwaitWithTimeout(absl::Condition(&complete), absl::Seconds(20));
  }

  std::vector<std::vector<float>> parts_;
  absl::Mutex mu_;
  int64_t arrived_ = 0;
  int sums_ = 0;
};

// Full attention over unrounded keys and values, so that what differs between degrees is the order of sums alone.
class FloatCache : public KvCache {
 public:
  explicit FloatCache(const ModelConfig& rank) : rank_(rank), layers_(static_cast<size_t>(rank.layers)) {}

  int64_t tokens() const override { return tokens_; }
  bool KeepsQueriesOf(int) const override { return false; }
  absl::Status Append(int layer, std::span<const int64_t> positions, const float* keys, const float* values) override {
    Layer& to = layers_[static_cast<size_t>(layer)];
    const int elements = static_cast<int>(positions.size()) * rank_.kv_heads * rank_.head_dim;
    to.keys.insert(to.keys.end(), keys, keys + elements);
    to.values.insert(to.values.end(), values, values + elements);
    return absl::OkStatus();
  }
  absl::Status Attend(int layer, std::span<const int64_t> positions, std::span<const float* const> queries,
                      float* out) override {
    const Layer& from = layers_[static_cast<size_t>(layer)];
    const size_t dim = static_cast<size_t>(rank_.head_dim), kv_heads = static_cast<size_t>(rank_.kv_heads),
                 q_heads = static_cast<size_t>(rank_.q_heads);
    for (size_t t = 0; t < positions.size(); ++t) {
      for (size_t h = 0; h < q_heads; ++h) {
        const float* query = queries[static_cast<size_t>(layer)] + (t * q_heads + h) * dim;
        const size_t seen = static_cast<size_t>(tokens_) + t + 1, kv = h / (q_heads / kv_heads);
        std::vector<double> sum(dim, 0);
        double total = 0;
        for (size_t j = 0; j < seen; ++j) {
          double score = 0;
          for (size_t d = 0; d < dim; ++d) score += double{query[d]} * from.keys[(j * kv_heads + kv) * dim + d];
          const double p = std::exp(score / std::sqrt(static_cast<double>(dim)));
          total += p;
          for (size_t d = 0; d < dim; ++d) sum[d] += p * from.values[(j * kv_heads + kv) * dim + d];
        }
        for (size_t d = 0; d < dim; ++d) out[(t * q_heads + h) * dim + d] = static_cast<float>(sum[d] / total);
      }
    }
    return absl::OkStatus();
  }
  void Advance(std::span<const int64_t> positions) override { tokens_ += static_cast<int64_t>(positions.size()); }

 private:
  struct Layer {
    std::vector<float> keys, values;
  };
  const ModelConfig rank_;
  std::vector<Layer> layers_;
  int64_t tokens_ = 0;
};

std::vector<int32_t> Prompt(int vocab) {
  std::mt19937 rng(9);
  std::vector<int32_t> ids(60);
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % static_cast<unsigned>(vocab));
  return ids;
}

// All logits of every rank: in chunks of 20 tokens, then one by one.
std::vector<std::vector<float>> RunRanks(const std::string& folder, int size, int* sums) {
  ThreadGroup group(size);
  std::vector<std::vector<float>> out(static_cast<size_t>(size));
  std::vector<std::thread> threads;
  for (int rank = 0; rank < size; ++rank) {
    threads.emplace_back([&, rank] {
      const auto transformer = Transformer::Load(folder, group.Rank(rank));
      ASSERT_TRUE(transformer.ok()) << transformer.status();
      FloatCache cache((*transformer)->rank_config());
      const std::vector<int32_t> ids = Prompt((*transformer)->config().vocab);
      for (size_t begin = 0; begin < ids.size();) {
        const size_t n = begin < 40 ? 20 : 1;
        std::vector<float> logits;
        const absl::Status status =
            (*transformer)->Forward(std::span(ids).subspan(begin, n), cache, Logits::kAll, &logits);
        ASSERT_TRUE(status.ok()) << status;
        out[static_cast<size_t>(rank)].insert(out[static_cast<size_t>(rank)].end(), logits.begin(), logits.end());
        begin += n;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  *sums = group.sums();
  return out;
}

class TensorParallelTest : public ::testing::TestWithParam<RandomModel> {};

TEST_P(TensorParallelTest, LogitsOfTwoAndFourRanksAreThoseOfOne) {
  const TempFolder folder;
  testing::WriteModel(folder, GetParam());
  int sums = 0;
  const std::vector<float> expected = RunRanks(folder.path(), 1, &sums)[0];
  ASSERT_EQ(expected.size(), 60u * static_cast<size_t>(GetParam().vocab));
  EXPECT_EQ(sums, 0);
  float largest = 0;
  for (const float v : expected) largest = std::max(largest, std::abs(v));
  EXPECT_GT(largest, 1);  // Nothing here is small against the tolerance.
  for (const int size : {2, 4}) {
    SCOPED_TRACE(size);
    const auto ranks = RunRanks(folder.path(), size, &sums);
    EXPECT_EQ(sums, 22 * 2 * GetParam().layers);  // Two a layer and pass.
    float worst = 0;
    for (const std::vector<float>& logits : ranks) {
      EXPECT_EQ(logits, ranks[0]);  // To the bit: a rank's choice of token is every rank's.
      ASSERT_EQ(logits.size(), expected.size());
      for (size_t i = 0; i < expected.size(); ++i) worst = std::max(worst, std::abs(logits[i] - expected[i]));
    }
    EXPECT_LT(worst, 1e-4F);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Families, TensorParallelTest,
    ::testing::Values(RandomModel{}, RandomModel{.attention_bias = true},
                      RandomModel{.architecture = "Qwen2ForCausalLM", .model_type = "qwen2"},
                      RandomModel{.architecture = "Qwen3ForCausalLM", .model_type = "qwen3", .head_dim = 16}),
    [](const auto& info) { return info.param.model_type + (info.param.attention_bias ? "_bias" : ""); });

TEST(TensorParallel, RanksHoldTheirShareOfTheWeights) {
  const TempFolder folder;
  testing::WriteModel(folder, {});
  const auto config = ModelConfig::Load(folder.path());
  const auto checkpoint = Checkpoint::Open(folder.path());
  const auto whole = LoadWeights(*config, *checkpoint);
  ASSERT_TRUE(whole.ok()) << whole.status();
  ThreadGroup group(4);
  const auto third = LoadWeights(*config, *checkpoint, group.Rank(2));
  ASSERT_TRUE(third.ok()) << third.status();
  const LayerWeights &a = whole->layers[1], &b = third->layers[1];
  // k is [4 heads * 8][48]: rank 2 has head 2, rows 16 to 23.
  EXPECT_EQ(b.k, std::vector<float>(a.k.begin() + 16 * 48, a.k.begin() + 24 * 48));
  EXPECT_EQ(b.q, std::vector<float>(a.q.begin() + 32 * 48, a.q.begin() + 48 * 48));
  EXPECT_EQ(b.gate, std::vector<float>(a.gate.begin() + 36 * 48, a.gate.begin() + 54 * 48));
  // down is [48][72]: columns 36 to 53.
  ASSERT_EQ(b.down.size(), 48u * 18);
  for (size_t row = 0; row < 48; ++row) {
    for (size_t i = 0; i < 18; ++i) ASSERT_EQ(b.down[row * 18 + i], a.down[row * 72 + 36 + i]);
  }
  EXPECT_EQ(third->embed, whole->embed);
  EXPECT_EQ(third->lm_head, whole->lm_head);
}

TEST(TensorParallel, ABadWeightIsNamedByItsPlaceInTheWholeTensor) {
  const TempFolder folder;
  folder.Write("config.json", testing::ConfigOf({}).dump());
  auto tensors = testing::TensorsOf({});
  const size_t element = 5 * 72 + 40;  // Of down: row 5, a column of rank 2.
  ByteWriter nan;
  nan.U32(std::bit_cast<uint32_t>(std::numeric_limits<float>::quiet_NaN()));
  tensors["model.layers.0.mlp.down_proj.weight"].bytes.replace(element * 4, 4, nan.bytes());
  folder.Write("model.safetensors", testing::SafetensorsFile(tensors));
  ThreadGroup group(4);
  EXPECT_TRUE(Transformer::Load(folder.path(), group.Rank(1)).ok());
  const absl::Status refused = Transformer::Load(folder.path(), group.Rank(2)).status();
  EXPECT_TRUE(absl::IsInvalidArgument(refused));
  EXPECT_THAT(std::string(refused.message()), HasSubstr(absl::StrCat("at element ", element)));
}

TEST(TensorParallel, RefusesWhatDoesNotDivideAndRanksThatAreNone) {
  const ModelConfig config = *ModelConfig::FromJson(testing::ConfigOf({}).dump());
  const auto sum = [](std::span<float>) { return absl::OkStatus(); };
  EXPECT_TRUE(Validate(config, TensorParallel{}).ok());
  EXPECT_TRUE(Validate(config, {3, 4, sum}).ok());
  const absl::Status heads = Validate(config, {0, 3, sum});
  EXPECT_TRUE(absl::IsInvalidArgument(heads));
  EXPECT_THAT(std::string(heads.message()), HasSubstr("4 kv heads do not divide by 3"));
  ModelConfig odd = config;
  odd.ffn = 70;
  const absl::Status ffn = Validate(odd, {0, 4, sum});
  EXPECT_TRUE(absl::IsInvalidArgument(ffn));
  EXPECT_THAT(std::string(ffn.message()), HasSubstr("70 MLP channels do not divide by 4"));
  EXPECT_TRUE(Validate(odd, {0, 2, sum}).ok());
  for (const auto& [rank, size] : {std::pair{-1, 2}, {2, 2}, {0, 0}}) {
    EXPECT_TRUE(absl::IsInvalidArgument(Validate(config, {rank, size, sum}))) << rank << " of " << size;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Validate(config, {0, 2, nullptr})));
}

}  // namespace
}  // namespace perigee::model
