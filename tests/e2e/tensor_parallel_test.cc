// Prefill and decode of different tensor-parallel degrees, every rank a process of its own, over one store.
//
// What p ranks have written, d ranks read: each takes its heads' sections of planes that are the whole model's. The
// answers are those of one rank on both sides, and that one's are those of a single process without a store.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <random>

#include "base/file.h"
#include "kvstore/server.h"
#include "model/plane_cache.h"
#include "model/served_model.h"
#include "program.h"
#include "random_checkpoint.h"

namespace perigee {
namespace {

constexpr int kBlockTokens = 16;  // As in tensor_parallel_main.cc.
constexpr int kAnswerTokens = 24;
constexpr int kDiesAt = 128;  // Where a rank that is to die does so: in the third chunk of 64 tokens.
// Sums in another order give other last bits, which now and then round to another bf16 key or value.
constexpr float kLogitTolerance = 0.02F;
// Prompts are such that no greedy choice is as close as that.
constexpr float kClearLead = 3 * kLogitTolerance;

struct Answer {
  std::vector<int32_t> tokens;
  std::vector<std::vector<float>> logits;
  uint64_t fetched_bytes = 0;  // Of all ranks.
};

struct Prefilled {
  int64_t reused = 0, computed = 0;
  uint64_t written_bytes = 0;
  uint64_t put_bytes = 0;  // Of all ranks.
};

// 4 layers, 8 query heads over 4 kv heads.
const model::testing::RandomModel kShape{
    .layers = 4, .hidden = 64, .ffn = 96, .head_dim = 16, .vocab = 1024, .max_positions = 2048, .seed = 5};

// Every kv head has leads, followers or near-only slots of its own; some far codecs are not the near one. A far part
// begins after 64 tokens.
std::vector<pod::Slot> SharedSlots() {
  const pod::Slot lead{pod::Role::kLead, {}, pod::Codec::kBf16}, near_only{pod::Role::kNearOnly, {}, {}};
  const pod::Slot fp16{pod::Role::kLead, {}, pod::Codec::kFp16};
  const auto follows = [](int layer, int head) {
    return pod::Slot{pod::Role::kFollower, {layer, head}, pod::Codec::kBf16};
  };
  return {lead,          lead,          near_only,     fp16,           //
          follows(0, 0), lead,          lead,          follows(0, 3),  //
          follows(0, 0), follows(1, 1), follows(1, 2), near_only,      //
          follows(0, 0), follows(1, 1), near_only,     lead};
}

std::vector<int32_t> Ids(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % static_cast<uint32_t>(kShape.vocab));
  return ids;
}

class TensorParallelTest : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const std::string tokenizer = *ReadFile(PERIGEE_SOURCE_DIR "/models/podling/tokenizer.json");
    model::testing::WriteModel(folder_, kShape);
    folder_.Write("tokenizer.json", tokenizer);
    const auto whole = model::ServedModel::Load({.folder = folder_.path(), .plan_file = "identity"});
    ASSERT_TRUE(whole.ok()) << whole.status();
    const pod::KvShape shape = (*whole)->plan().shape();
    const pod::Window window{16, 64};
    const Digest& fingerprint = (*whole)->fingerprint();
    const auto plan =
        GetParam() == "identity"
            ? pod::Plan::Identity(shape, window, fingerprint)
            : pod::Plan::Create(shape, window, GetParam() == "scores" ? pod::Sharing::kScore : pod::Sharing::kKey,
                                pod::Codec::kBf16, SharedSlots(), fingerprint);
    ASSERT_TRUE(plan.ok()) << plan.status();
    folder_.Write("plan.json", plan->ToJson());
    auto served = model::ServedModel::Load({.folder = folder_.path(), .plan_file = "", .block_tokens = kBlockTokens});
    ASSERT_TRUE(served.ok()) << served.status();
    served_ = *std::move(served);

    kvstore::ServerOptions options;
    options.port = 0;
    options.slab_bytes = 64 << 20;
    options.credentials = {{"a secret of the tests", "", true}};
    auto store = kvstore::StoreServer::Start(options);
    ASSERT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  // Starts `size` ranks on one job. Empty, with failures noted, when rank 0 does not get to its rendezvous.
  std::vector<std::unique_ptr<Program>> StartRanks(const std::string& role, int size, const std::string& tenant,
                                                   const std::vector<int32_t>& ids, int dying_rank = -1) {
    nlohmann::json job = {{"role", role},
                          {"size", size},
                          {"port", 0},
                          {"store", store_->address()},
                          {"plan", ""},
                          {"model", folder_.path()},
                          {"tenant", tenant},
                          {"ids", ids},
                          {"max_tokens", kAnswerTokens}};
    std::vector<std::unique_ptr<Program>> ranks;
    for (int rank = 0; rank < size; ++rank) {
      job["rank"] = rank;
      job["dies_at"] = rank == dying_rank ? kDiesAt : -1;
      const std::string name = absl::StrCat(role, jobs_++, ".json");
      folder_.Write(name, job.dump());
      ranks.push_back(std::make_unique<Program>(std::vector<std::string>{folder_.path() + "/" + name}, home_.path()));
      if (rank > 0) continue;
      const bool ready = WaitFor([&] { return absl::StrContains(ranks[0]->out(), "\n"); });
      EXPECT_TRUE(ready) << ranks[0]->err();
      if (!ready) return {};
      job["port"] = std::stoi(ranks[0]->out().substr(5));
    }
    return ranks;
  }

  // What each rank printed; empty, with failures noted, when one failed.
  std::vector<nlohmann::json> RunRanks(const std::string& role, int size, const std::string& tenant,
                                       const std::vector<int32_t>& ids) {
    SCOPED_TRACE(testing::Message() << role << " by " << size);
    const auto ranks = StartRanks(role, size, tenant, ids);
    if (ranks.empty()) return {};
    std::vector<nlohmann::json> out;
    for (int rank = 0; rank < size; ++rank) {
      const int exit_code = ranks[static_cast<size_t>(rank)]->Wait(absl::Seconds(120));
      EXPECT_EQ(exit_code, 0) << "rank " << rank << ": " << ranks[static_cast<size_t>(rank)]->err();
      if (exit_code != 0) return {};
      std::string text = ranks[static_cast<size_t>(rank)]->out();
      if (rank == 0) text.erase(0, text.find('\n') + 1);
      out.push_back(nlohmann::json::parse(text));
    }
    return out;
  }

  Prefilled Prefill(int size, const std::string& tenant, const std::vector<int32_t>& ids) {
    Prefilled result;
    const auto ranks = RunRanks("prefill", size, tenant, ids);
    for (const nlohmann::json& rank : ranks) {
      result.reused = rank["reused"];
      result.computed = rank["computed"];
      result.written_bytes = rank["written_bytes"];
      result.put_bytes += rank["put_bytes"].get<uint64_t>();
      EXPECT_EQ(rank["reused"], ranks[0]["reused"]);
      EXPECT_EQ(rank["written_bytes"], ranks[0]["written_bytes"]);
    }
    return result;
  }

  Answer Decode(int size, const std::string& tenant, const std::vector<int32_t>& ids) {
    Answer answer;
    const auto ranks = RunRanks("decode", size, tenant, ids);
    for (const nlohmann::json& rank : ranks) {
      answer.fetched_bytes += rank["fetched_bytes"].get<uint64_t>();
      // To the bit: what every rank adds up is the same.
      EXPECT_EQ(rank["tokens"], ranks[0]["tokens"]);
      EXPECT_EQ(rank["logits"], ranks[0]["logits"]);
    }
    if (ranks.empty()) return answer;
    answer.tokens = ranks[0]["tokens"].get<std::vector<int32_t>>();
    answer.logits = ranks[0]["logits"].get<std::vector<std::vector<float>>>();
    return answer;
  }

  // One process, one rank, no store.
  Answer Reference(const std::vector<int32_t>& ids) const {
    const model::Transformer& transformer = served_->transformer();
    model::PlaneCache cache(&served_->layout(), &transformer.rope(), transformer.config().q_heads, model::HeapPlanes());
    Answer answer;
    std::vector<int32_t> next = ids;
    while (answer.tokens.size() < kAnswerTokens) {
      std::vector<float> logits;
      EXPECT_TRUE(transformer.Forward(next, cache, model::Logits::kLast, &logits).ok());
      next = {static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin())};
      answer.tokens.push_back(next[0]);
      answer.logits.push_back(std::move(logits));
    }
    return answer;
  }

  // A random prompt whose answer's every token leads the second best clearly, so that "the same tokens" means
  // something on every machine.
  std::vector<int32_t> ClearPrompt(size_t count) const {
    for (uint32_t seed = 1; seed < 200; ++seed) {
      std::vector<int32_t> ids = Ids(count, seed);
      Answer answer = Reference(ids);
      const bool clear = std::all_of(answer.logits.begin(), answer.logits.end(), [](std::vector<float>& logits) {
        std::partial_sort(logits.begin(), logits.begin() + 2, logits.end(), std::greater<>());
        return logits[0] - logits[1] > kClearLead;
      });
      if (clear) return ids;
    }
    ADD_FAILURE() << "no prompt of this model has a clear answer";
    return Ids(count, 0);
  }

  static void ExpectSame(const std::string& name, const Answer& answer, const Answer& expected) {
    SCOPED_TRACE(name);
    EXPECT_EQ(answer.tokens, expected.tokens);
    ASSERT_EQ(answer.logits.size(), expected.logits.size());
    float worst = 0;
    for (size_t t = 0; t < expected.logits.size(); ++t) {
      ASSERT_EQ(answer.logits[t].size(), expected.logits[t].size());
      for (size_t v = 0; v < expected.logits[t].size(); ++v) {
        worst = std::max(worst, std::abs(answer.logits[t][v] - expected.logits[t][v]));
      }
    }
    EXPECT_LT(worst, kLogitTolerance);
    RecordProperty(absl::StrCat("largest_logit_difference_", name), std::to_string(worst));
  }

  const model::testing::TempFolder folder_;
  const TempFolder home_;
  std::unique_ptr<model::ServedModel> served_;
  std::unique_ptr<kvstore::StoreServer> store_;
  int jobs_ = 0;
};

INSTANTIATE_TEST_SUITE_P(Plans, TensorParallelTest, ::testing::Values("identity", "keys", "scores"),
                         [](const auto& info) { return info.param; });

TEST_P(TensorParallelTest, PrefillAndDecodeOfDifferentDegreesGiveTheAnswerOfOneRankOnBothSides) {
  const std::vector<int32_t> ids = ClearPrompt(301);  // 18 whole blocks and one of 12 tokens.
  const Prefilled one = Prefill(1, "1_to_1", ids);
  const Answer expected = Decode(1, "1_to_1", ids);
  ExpectSame("of_1_to_1_from_no_store", expected, Reference(ids));
  const std::pair<int, int> degrees[] = {{1, 2}, {2, 1}, {4, 2}};
  for (const auto& [prefill, decode] : degrees) {
    const std::string tenant = absl::StrCat(prefill, "_to_", decode);
    SCOPED_TRACE(tenant);
    const Prefilled prefilled = Prefill(prefill, tenant, ids);
    EXPECT_EQ(prefilled.reused, 0);
    EXPECT_EQ(prefilled.computed, 300);
    // Together the ranks store what one stores, each byte once.
    EXPECT_EQ(prefilled.written_bytes, one.written_bytes);
    EXPECT_EQ(prefilled.put_bytes, one.put_bytes);
    const Answer answer = Decode(decode, tenant, ids);
    ExpectSame("of_" + tenant + "_from_1_to_1", answer, expected);
    EXPECT_EQ(answer.fetched_bytes, expected.fetched_bytes);  // Each byte is fetched by one rank.
  }
}

TEST_P(TensorParallelTest, WhatOneDegreeStoredAnotherFinds) {
  const std::vector<int32_t> longer = ClearPrompt(351);
  const std::vector<int32_t> ids(longer.begin(), longer.begin() + 301);
  EXPECT_EQ(Prefill(2, "shared", ids).computed, 300);
  for (const int size : {1, 4}) {
    const Prefilled again = Prefill(size, "shared", ids);
    EXPECT_EQ(again.computed, 0);
    EXPECT_EQ(again.reused, 300);
    EXPECT_EQ(again.put_bytes, 0u);
  }
  // A longer prompt stands on the other degree's whole blocks and computes the rest.
  const Prefilled continued = Prefill(4, "shared", longer);
  EXPECT_EQ(continued.reused, 288);
  EXPECT_EQ(continued.computed, 350 - 288);
  ExpectSame("of_2_and_4_to_2_from_no_store", Decode(2, "shared", longer), Reference(longer));
}

// The others end with an error, long before their timeouts; what was committed is good, the rest is not there, and a
// new group goes on from it.
TEST_P(TensorParallelTest, ARankThatDiesEndsTheOthersAndLeavesNothingHalfWritten) {
  const std::vector<int32_t> ids = ClearPrompt(301);
  const auto ranks = StartRanks("prefill", 4, "shaken", ids, /*dying_rank=*/2);
  ASSERT_EQ(ranks.size(), 4u);
  EXPECT_EQ(ranks[2]->Wait(absl::Seconds(60)), 128 + SIGKILL);
  const absl::Time death = absl::Now();
  for (const size_t rank : {0, 1, 3}) {
    EXPECT_EQ(ranks[rank]->Wait(absl::Seconds(60)), 1) << "rank " << rank;
    EXPECT_TRUE(absl::StrContains(ranks[rank]->err(), "UNAVAILABLE")) << ranks[rank]->err();
  }
  EXPECT_LT(absl::Now() - death, absl::Seconds(20));
  const Prefilled again = Prefill(2, "shaken", ids);
  // Two chunks were committed. A plan with near-only slots or followers cannot go on from there, because proximal
  // planes in the middle of a prompt are not kept, but does not write again what is there.
  const pod::Layout& layout = served_->layout();
  const bool has_proximal = layout.plane_bytes(pod::PlaneKind::kProximal) > 0;
  EXPECT_EQ(again.reused, has_proximal ? kBlockTokens : kDiesAt);
  const uint64_t committed =
      kDiesAt / kBlockTokens *
          (layout.plane_bytes(pod::PlaneKind::kDistant) + layout.plane_bytes(pod::PlaneKind::kSummary)) +
      layout.plane_bytes(pod::PlaneKind::kProximal);  // Of the sink block.
  EXPECT_EQ(again.written_bytes, Prefill(1, "whole", ids).written_bytes - committed);
  EXPECT_EQ(again.put_bytes, again.written_bytes);
  ExpectSame("of_2_to_4_after_a_death_from_no_store", Decode(4, "shaken", ids), Reference(ids));
}

}  // namespace
}  // namespace perigee
