// What three processes answer over stored, compressed planes is what one process answers.
//
// Under the identity plan the other side is full attention over a dense cache; under a real plan it is the in-process
// reference of the near/far attention. Both references run the plain double-precision attention; both caches hold
// 16-bit keys and values.
#include <gtest/gtest.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "cluster/client.h"
#include "cluster/local_cluster.h"
#include "model/dense_cache.h"
#include "model/served_model.h"

namespace perigee {
namespace {

constexpr uint32_t kAnswerTokens = 64;
constexpr int kBlockTokens = 64;
// Float against double attention, and another order of sums: far inside what bf16 keys and values themselves leave
// open.
constexpr float kLogitTolerance = 0.02f;

const std::string kModel = std::string(PERIGEE_SOURCE_DIR) + "/models/podling";

class EquivalenceTest : public ::testing::TestWithParam<std::string> {};

std::vector<std::vector<int32_t>> Prompts() {
  const std::string path = std::string(PERIGEE_SOURCE_DIR) + "/tests/model/testdata/podling_needle.json";
  const auto ids = nlohmann::json::parse(*ReadFile(path))["prompt_ids"].get<std::vector<int32_t>>();
  std::vector<std::vector<int32_t>> prompts;
  // One token, block borders -1, 0, +1 (of the prompt and of its cached part), around the window, and far beyond it.
  for (size_t n : {1,   2,   16,  17,  63,  64,  65,  66,  127, 128, 129, 130,
                   191, 192, 193, 256, 257, 258, 320, 511, 512, 513, 777, 1019}) {
    // Different beginnings, so that prompts are not each other's prefixes, and some that are (reuse must not change an
    // answer).
    const size_t begin = n % 3 == 0 ? 0 : std::min(ids.size() - n, n % 41);
    prompts.emplace_back(ids.begin() + static_cast<ptrdiff_t>(begin), ids.begin() + static_cast<ptrdiff_t>(begin + n));
  }
  return prompts;
}

// podling's own plan ("plan"), or one made from it: under score sharing, or with followers of layers 5 and up
// near-only.
std::string PlanFile(const std::string& name) {
  if (name == "identity") return name;
  const auto plan = *pod::Plan::Parse(*ReadFile(kModel + "/plan.json"));
  std::vector<pod::Slot> slots;
  for (int l = 0; l < plan.shape().layers; ++l) {
    for (int h = 0; h < plan.shape().kv_heads; ++h) {
      slots.push_back(plan.slot(l, h));
      if (name == "near_only" && l >= 5) slots.back().role = pod::Role::kNearOnly;
    }
  }
  const auto made =
      *pod::Plan::Create(plan.shape(), plan.window(), name == "score_sharing" ? pod::Sharing::kScore : plan.sharing(),
                         plan.near_codec(), slots, plan.model_fingerprint());
  const std::string path = testing::TempDir() + "/perigee_equivalence_" + name + ".json";
  EXPECT_TRUE(WriteFileAtomically(path, made.ToJson()).ok());
  return path;
}

TEST_P(EquivalenceTest, DisaggregatedGreedyTokensAndLogitsEqualTheSingleProcess) {
  const auto served =
      model::ServedModel::Load({.folder = kModel, .plan_file = PlanFile(GetParam()), .block_tokens = kBlockTokens});
  ASSERT_TRUE(served.ok()) << served.status();
  const model::Transformer& transformer = (*served)->transformer();

  cluster::LocalClusterOptions options;
  options.keep_planes = false;
  options.executable = PERIGEE_PROGRAM;
  options.model_folder = kModel;
  options.plan_file = PlanFile(GetParam());
  options.block_tokens = kBlockTokens;
  options.chunk_tokens = 128;  // Several chunks even in short prompts.
  options.state_folder = testing::TempDir() + "/perigee_equivalence_" + GetParam();
  const auto cluster = cluster::LocalCluster::Start(options);
  ASSERT_TRUE(cluster.ok()) << cluster.status();
  cluster::ClusterClient client((*cluster)->addresses());

  const std::vector<std::vector<int32_t>> prompts = Prompts();
  ASSERT_GE(prompts.size(), 20u);
  for (const std::vector<int32_t>& prompt : prompts) {
    SCOPED_TRACE(testing::Message() << "prompt of " << prompt.size() << " tokens");
    cluster::GenerateOptions request;
    request.token_ids = prompt;
    request.max_tokens = kAnswerTokens;
    request.ignore_eos = true;
    request.return_logits = true;
    const auto answer = client.Generate(request);
    ASSERT_TRUE(answer.ok()) << answer.status();

    model::DenseCache cache((*served)->plan(), kBlockTokens, transformer.config().q_heads);
    std::vector<int32_t> expected;
    std::vector<float> logits;
    std::vector<int32_t> next = prompt;
    float worst = 0;
    for (uint32_t step = 0; step < kAnswerTokens; ++step) {
      ASSERT_TRUE(transformer.Forward(next, cache, model::Logits::kLast, &logits).ok());
      const auto token = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      expected.push_back(token);
      next = {token};
      ASSERT_EQ(answer->logits.size(), kAnswerTokens);
      // Past a difference in tokens the logits are of different texts.
      if (step == 0 || expected[step - 1] == answer->token_ids[step - 1]) {
        for (size_t v = 0; v < logits.size(); ++v)
          worst = std::max(worst, std::abs(logits[v] - answer->logits[step][v]));
      }
    }
    EXPECT_EQ(answer->token_ids, expected);
    EXPECT_LT(worst, kLogitTolerance);
  }
  EXPECT_TRUE((*cluster)->Stop().ok());
}

INSTANTIATE_TEST_SUITE_P(Plans, EquivalenceTest, ::testing::Values("identity", "plan", "score_sharing", "near_only"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace perigee
