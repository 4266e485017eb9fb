// Prefill and decode against a real store, in one process: what is computed, stored, fetched and refused, to the byte.
#include "node/node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "nodes.h"
#include "prefill_node/prefill_node.h"

namespace perigee {
namespace {

using pod::PlaneKind;
using ::testing::HasSubstr;

// One store and one node of each kind for all tests of a plan: a test's own tenant keeps them apart.
struct Bench {
  std::unique_ptr<kvstore::StoreServer> store;
  std::unique_ptr<node::Node> prefill_side, decode_side;
};

class Benches : public ::testing::Environment {
 public:
  std::map<std::string, Bench> of_plan;
  void TearDown() override { of_plan.clear(); }
};
Benches* const benches = static_cast<Benches*>(::testing::AddGlobalTestEnvironment(new Benches));

Bench& BenchFor(const std::string& plan) {
  Bench& bench = benches->of_plan[plan];
  if (bench.store == nullptr) {
    bench.store = StartStore(uint64_t{192} << 20);
    bench.prefill_side = StartNode(plan, bench.store->address());
    bench.decode_side = StartNode(plan, bench.store->address());
  }
  return bench;
}

class NodeTest : public ::testing::TestWithParam<std::string> {
 protected:
  NodeTest()
      : bench_(BenchFor(GetParam())),
        prefill_(bench_.prefill_side.get(), {.chunk_tokens = 256}),
        decode_(bench_.decode_side.get()),
        layout_(bench_.prefill_side->model().layout()),
        tenant_(::testing::UnitTest::GetInstance()->current_test_info()->name()) {}

  v1::PrefillRequest Request(const std::vector<std::vector<int32_t>>& segments) const {
    v1::PrefillRequest request;
    request.mutable_scope()->set_tenant(tenant_);
    for (const auto& ids : segments)
      request.add_segments()->mutable_tokens()->mutable_ids()->Assign(ids.begin(), ids.end());
    return request;
  }
  absl::StatusOr<v1::PrefillResponse> Prefill(const v1::PrefillRequest& request) const {
    v1::PrefillResponse response;
    const absl::Status status = prefill_.Prefill(request, absl::Now() + absl::Seconds(60), &response);
    if (!status.ok()) return status;
    return response;
  }
  absl::StatusOr<v1::PrefillResponse> Prefill(const std::vector<std::vector<int32_t>>& segments) const {
    return Prefill(Request(segments));
  }

  v1::GenerateRequest Ask(const std::vector<int32_t>& ids, uint32_t max_tokens = 8) const {
    v1::GenerateRequest request;
    request.mutable_scope()->set_tenant(tenant_);
    request.mutable_token_ids()->Assign(ids.begin(), ids.end());
    request.set_max_tokens(max_tokens);
    request.set_ignore_eos(true);
    return request;
  }
  Answer Generate(const v1::GenerateRequest& request) { return perigee::Generate(decode_, request); }

  std::vector<pod::BlockKey> KeysOf(const std::vector<int32_t>& prompt) const {
    const auto identity = bench_.prefill_side->model().IdentityFor(tenant_, "");
    return pod::DeriveChain(identity, std::span(prompt).first(prompt.size() - 1));
  }

  // What the store says that it has of this test's tenant, by kind: the planes and their payload.
  std::map<PlaneKind, kvstore::TierCount> Stored() const {
    std::map<PlaneKind, kvstore::TierCount> out;
    std::string token;
    do {
      const auto page = bench_.store->store().List(token, 7, tenant_);
      EXPECT_TRUE(page.ok()) << page.status();
      if (!page.ok()) break;
      for (const auto& plane : page->planes) {
        ++out[plane.id.kind].planes;
        out[plane.id.kind].payload_bytes += plane.meta.payload_bytes;
      }
      token = page->next_page_token;
    } while (!token.empty());
    return out;
  }
  uint64_t Bytes(PlaneKind kind) const { return layout_.plane_bytes(kind); }
  bool has_proximal() const { return Bytes(PlaneKind::kProximal) > 0; }

  // Blocks that a query at `position` is near to, of those before it.
  uint64_t NearBlocks(int64_t position) const {
    uint64_t count = 0;
    for (int64_t begin = 0; begin < position; begin += kBlockTokens) {
      count += pod::IsNear(layout_.plan().window(), kBlockTokens, begin, position) ? 1 : 0;
    }
    return count;
  }

  Bench& bench_;
  const prefill_node::PrefillNode prefill_;
  decode_node::DecodeNode decode_;
  const pod::Layout& layout_;
  const std::string tenant_;
};

INSTANTIATE_TEST_SUITE_P(Plans, NodeTest, ::testing::Values("identity", ""),
                         [](const auto& info) { return info.param.empty() ? "PodlingsPlan" : "IdentityPlan"; });

TEST_P(NodeTest, ASecondQuestionAboutAContextComputesOnlyItsTail) {
  const auto context = Ids(1000, 1);
  const auto first = Prefill({context, Ids(20, 2)});
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->prefilled_tokens(), 1019u);
  EXPECT_EQ(first->reused_tokens(), 0u);
  EXPECT_EQ(first->token_ids_size(), 1020);
  EXPECT_EQ(first->bytes_full(), 1019 * layout_.dense_bytes_per_token());
  EXPECT_THAT(first->reuse_ended_because(), HasSubstr("block 0"));
  EXPECT_THAT(first->reuse_ended_because(), HasSubstr("never stored"));

  const auto second = Prefill({context, Ids(20, 3)});
  ASSERT_TRUE(second.ok()) << second.status();
  EXPECT_EQ(second->reused_tokens(), 960u);  // Whole blocks only.
  EXPECT_EQ(second->prefilled_tokens(), 59u);
  EXPECT_THAT(second->reuse_ended_because(), HasSubstr("block 15"));
  // To continue, the prefill node reads what a query at the border reads, and no more.
  EXPECT_EQ(second->bytes_fetched(), 15 * Bytes(PlaneKind::kDistant) + NearBlocks(960) * Bytes(PlaneKind::kProximal));

  const auto again = Prefill({context, Ids(20, 3)});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->prefilled_tokens(), 0u);
  EXPECT_EQ(again->reused_tokens(), 1019u);
  EXPECT_EQ(again->bytes_written(), 0u);
  EXPECT_EQ(again->bytes_fetched(), 0u);
  EXPECT_EQ(again->reuse_ended_because(), "");
}

TEST_P(NodeTest, ReuseDoesNotChangeTheAnswer) {
  const auto context = Ids(700, 1), one = Ids(30, 2), two = Ids(30, 3);
  ASSERT_TRUE(Prefill({context, one}).ok());
  const auto prompt = Joined(context, two);
  const auto reused = Prefill({context, two});
  ASSERT_TRUE(reused.ok()) << reused.status();
  EXPECT_GT(reused->reused_tokens(), 0u);
  const Answer answer = Generate(Ask(prompt, 24));
  ASSERT_TRUE(answer.status.ok()) << answer.status;

  auto fresh = Request({prompt});
  fresh.mutable_scope()->set_salt("fresh");
  const auto computed = Prefill(fresh);
  ASSERT_TRUE(computed.ok()) << computed.status();
  EXPECT_EQ(computed->reused_tokens(), 0u);
  auto ask = Ask(prompt, 24);
  ask.mutable_scope()->set_salt("fresh");
  EXPECT_EQ(answer.tokens, Generate(ask).tokens);
}

TEST_P(NodeTest, StoredBytesEqualTheLayoutsToTheByte) {
  const auto prompt = Ids(1020, 1);  // 1019 cached tokens: 15 whole blocks and one of 59 tokens.
  const auto response = Prefill({prompt});
  ASSERT_TRUE(response.ok()) << response.status();
  const auto stored = Stored();
  constexpr uint64_t kBlocks = 16;
  ASSERT_GT(Bytes(PlaneKind::kDistant), 0u);
  EXPECT_EQ(stored.at(PlaneKind::kDistant).planes, kBlocks);
  EXPECT_EQ(stored.at(PlaneKind::kDistant).payload_bytes, kBlocks * layout_.plane_bytes(PlaneKind::kDistant));
  EXPECT_EQ(stored.at(PlaneKind::kSummary).planes, kBlocks);
  EXPECT_EQ(stored.at(PlaneKind::kSummary).payload_bytes, kBlocks * layout_.plane_bytes(PlaneKind::kSummary));
  uint64_t total = kBlocks * (Bytes(PlaneKind::kDistant) + Bytes(PlaneKind::kSummary));
  if (has_proximal()) {
    // The sink, and what is near to a continuation from the prompt's last block border (960), which the decoder's
    // window lies in, and from those in the last 256 tokens before its end (1019), the first at 768.
    const uint64_t near = NearBlocks(960) + 1 + (960 - 768) / 64;
    EXPECT_LT(near, kBlocks);
    EXPECT_EQ(stored.at(PlaneKind::kProximal).planes, near);
    EXPECT_EQ(stored.at(PlaneKind::kProximal).payload_bytes, near * Bytes(PlaneKind::kProximal));
    total += near * Bytes(PlaneKind::kProximal);
  } else {
    EXPECT_EQ(stored.count(PlaneKind::kProximal), 0u);
  }
  EXPECT_EQ(response->bytes_stored(), total);
  EXPECT_EQ(response->bytes_written(), total);
}

TEST_P(NodeTest, ProximalPlanesAreStoredForSinkWindowAndBranchBlocksOnly) {
  const auto context = Ids(640, 1), rest = Ids(900, 2);
  const auto prompt = Joined(context, rest);
  ASSERT_TRUE(Prefill({context, rest}).ok());
  // A query at a point with a window of 128 tokens reaches back into the block of (point - 127): 512 of 640, 1408 of
  // 1536. Others may also go on from the borders in the prompt's last 256 tokens, down to 1344 (1536 - 192).
  std::vector<size_t> expected = {0, 8, 9, 19, 20, 21, 22, 23, 24};
  if (!has_proximal()) expected.clear();
  std::vector<size_t> kept;
  const auto keys = KeysOf(prompt);
  const auto lookup = bench_.prefill_side->store().Lookup(keys[0], keys);
  ASSERT_TRUE(lookup.ok()) << lookup.status();
  for (size_t b = 0; b < keys.size(); ++b) {
    for (const auto& plane : lookup->blocks[b].planes) {
      if (plane.kind == PlaneKind::kProximal) kept.push_back(b);
    }
  }
  EXPECT_EQ(kept, expected);
}

TEST_P(NodeTest, DecodeFetchesDistantPlanesOfAllBlocksAndProximalOnesOfTheNear) {
  const auto prompt = Ids(1020, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  const uint64_t payload_before = bench_.decode_side->Info().payload_bytes();
  const Answer answer = Generate(Ask(prompt, 4));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  const uint64_t near = has_proximal() ? NearBlocks(1019) : 0;
  EXPECT_EQ(answer.started.fetched_tokens(), 1019u);
  EXPECT_EQ(answer.started.planes_fetched(), 16 + near);
  EXPECT_EQ(answer.started.planes_from_dram(), 16 + near);
  EXPECT_EQ(answer.started.bytes_fetched(), 16 * Bytes(PlaneKind::kDistant) + near * Bytes(PlaneKind::kProximal));
  EXPECT_EQ(bench_.decode_side->Info().payload_bytes() - payload_before, answer.started.bytes_fetched());
  EXPECT_EQ(answer.started.near_sink_end(),
            std::min<int64_t>(1020, pod::SinkEnd(layout_.plan().window(), kBlockTokens)));
  EXPECT_EQ(answer.started.near_recent_begin(), pod::RecentBegin(layout_.plan().window(), kBlockTokens, 1019));
  EXPECT_EQ(answer.starts, 1);
  EXPECT_EQ(answer.finishes, 1);
  EXPECT_EQ(answer.tokens.size(), 4u);
  EXPECT_EQ(answer.finished.tokens(), 4u);
  EXPECT_EQ(answer.finished.reason(), "length");
}

TEST_P(NodeTest, AMissingPlaneIsNotFoundWithItsBlockAndReason) {
  const auto prompt = Ids(600, 1);
  const Answer never = Generate(Ask(prompt));
  EXPECT_TRUE(absl::IsNotFound(never.status)) << never.status;
  EXPECT_THAT(std::string(never.status.message()), HasSubstr("block 0 of 10"));
  EXPECT_THAT(std::string(never.status.message()), HasSubstr("never stored"));
  EXPECT_EQ(never.starts, 0);

  ASSERT_TRUE(Prefill({prompt}).ok());
  const auto keys = KeysOf(prompt);
  ASSERT_GT(bench_.prefill_side->store().Delete(keys[0], {&keys[7], 1}).value_or(0), 0u);
  const Answer gone = Generate(Ask(prompt));
  EXPECT_TRUE(absl::IsNotFound(gone.status)) << gone.status;
  EXPECT_THAT(std::string(gone.status.message()), HasSubstr("block 7 of 10"));
  EXPECT_THAT(std::string(gone.status.message()), HasSubstr(keys[7].ToString()));
  EXPECT_THAT(std::string(gone.status.message()), HasSubstr("deleted"));
}

TEST_P(NodeTest, AfterABlockWentPrefillRecomputesFromThereAndTheAnswerIsTheSame) {
  const auto prompt = Ids(600, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  const Answer before = Generate(Ask(prompt, 16));
  ASSERT_TRUE(before.status.ok()) << before.status;
  const auto keys = KeysOf(prompt);
  ASSERT_TRUE(bench_.prefill_side->store().Delete(keys[0], {&keys[9], 1}).ok());
  auto again = Prefill({prompt});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->reused_tokens(), 576u);
  EXPECT_THAT(again->reuse_ended_because(), HasSubstr("block 9"));
  EXPECT_THAT(again->reuse_ended_because(), HasSubstr("deleted"));
  EXPECT_EQ(Generate(Ask(prompt, 16)).tokens, before.tokens);

  // In the far middle, there may be no proximal planes to continue from: then more is computed, but only the lost block
  // is written, and what a prompt needs that goes on there: the near planes of blocks 2 and 3.
  ASSERT_TRUE(bench_.prefill_side->store().Delete(keys[0], {&keys[4], 1}).ok());
  again = Prefill({prompt});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->reused_tokens(), has_proximal() ? 64u : 256u);
  EXPECT_EQ(again->bytes_written(), Bytes(PlaneKind::kDistant) + Bytes(PlaneKind::kSummary) +
                                        (has_proximal() ? 3 * Bytes(PlaneKind::kProximal) : 0));
  EXPECT_EQ(Generate(Ask(prompt, 16)).tokens, before.tokens);
}

TEST_P(NodeTest, PromptsAtTheBlockBorders) {
  for (size_t n : {1, 2, 64, 65, 66, 128, 129}) {
    SCOPED_TRACE(n);
    const auto prompt = Ids(n, 100 + static_cast<uint32_t>(n));
    const auto response = Prefill({prompt});
    ASSERT_TRUE(response.ok()) << response.status();
    EXPECT_EQ(response->prefilled_tokens(), n - 1);
    EXPECT_EQ(response->token_ids_size(), static_cast<int>(n));
    EXPECT_EQ(KeysOf(prompt).size(), (n - 1 + 63) / 64);
    const Answer answer = Generate(Ask(prompt, 70));  // Over the next border while decoding.
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.tokens.size(), 70u);
    EXPECT_EQ(answer.started.fetched_tokens(), n - 1);
    EXPECT_EQ(Prefill({prompt})->prefilled_tokens(), 0u);
    EXPECT_EQ(Generate(Ask(prompt, 70)).tokens, answer.tokens);
  }
}

TEST_P(NodeTest, PrefillRefusesWhatTheModelCannotRun) {
  const auto refused = [&](const v1::PrefillRequest& request, const char* why) {
    const absl::Status status = Prefill(request).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(why));
  };
  refused(Request({}), "empty");
  refused(Request({{}, {}}), "empty");
  refused(Request({Ids(4097, 1)}), "4096");
  refused(Request({{5, 6, 1024}}), "1024");
  refused(Request({{5, -1, 7}}), "-1");
  refused(Request({{INT32_MAX}}), "2147483647");
  auto scope = Request({{5, 6, 7}});
  scope.mutable_scope()->set_tenant(std::string(257, 't'));
  refused(scope, "tenant");
  EXPECT_TRUE(Stored().empty());
}

TEST_P(NodeTest, DecodeRefusesWhatTheModelCannotRun) {
  const auto prompt = Ids(10, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  const auto refused = [&](const v1::GenerateRequest& request, const char* why) {
    const Answer answer = Generate(request);
    EXPECT_TRUE(absl::IsInvalidArgument(answer.status)) << answer.status;
    EXPECT_THAT(std::string(answer.status.message()), HasSubstr(why));
    EXPECT_EQ(answer.starts, 0);
  };
  refused(Ask({}), "empty");
  refused(Ask(prompt, 0), "max_tokens");
  refused(Ask(prompt, 4087), "4096");
  refused(Ask(prompt, UINT32_MAX), "4096");
  refused(Ask({5, 2000, 7}), "2000");
  auto request = Ask(prompt);
  request.set_temperature(-1);
  refused(request, "temperature");
  request.set_temperature(std::nanf(""));
  refused(request, "temperature");
  request.set_temperature(1);
  request.set_top_p(1.5);
  refused(request, "top_p");
  request.set_top_p(-0.5);
  refused(request, "top_p");
}

TEST_P(NodeTest, TheWholeContextMayBeUsed) {
  const auto prompt = Ids(4096, 1);
  auto response = Prefill({prompt});
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE(absl::IsInvalidArgument(Generate(Ask(prompt, 1)).status));
  const std::vector<int32_t> shorter(prompt.begin(), prompt.end() - 1);
  response = Prefill({shorter});
  ASSERT_TRUE(response.ok()) << response.status();
  const Answer answer = Generate(Ask(shorter, 1));
  EXPECT_TRUE(answer.status.ok()) << answer.status;
}

TEST_P(NodeTest, AnotherModelOrPlanIsRefused) {
  const auto prompt = Ids(10, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  auto request = Ask(prompt);
  request.set_model_fingerprint(bench_.decode_side->Info().model_fingerprint());
  request.set_plan_id(bench_.decode_side->Info().plan_id());
  EXPECT_TRUE(Generate(request).status.ok());
  request.set_plan_id(std::string(32, 'x'));
  EXPECT_TRUE(absl::IsFailedPrecondition(Generate(request).status));
  request.clear_plan_id();
  request.set_model_fingerprint("short");
  const absl::Status status = Generate(request).status;
  EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("model"));
}

TEST_P(NodeTest, OtherTenantsAndSaltsFindNothing) {
  const auto prompt = Ids(300, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  auto salted = Request({prompt});
  salted.mutable_scope()->set_salt("pepper");
  auto ask = Ask(prompt);
  ask.mutable_scope()->set_salt("pepper");
  EXPECT_TRUE(absl::IsNotFound(Generate(ask).status));
  EXPECT_EQ(Prefill(salted)->reused_tokens(), 0u);
  EXPECT_TRUE(Generate(ask).status.ok());

  auto other = Request({prompt});
  other.mutable_scope()->set_tenant("somebody else than " + tenant_);
  ask = Ask(prompt);
  ask.mutable_scope()->set_tenant(other.scope().tenant());
  EXPECT_TRUE(absl::IsNotFound(Generate(ask).status));
  EXPECT_EQ(Prefill(other)->reused_tokens(), 0u);
  EXPECT_EQ(Prefill({prompt})->prefilled_tokens(), 0u);
}

TEST_P(NodeTest, ConcurrentRequestsAnswerAsAlone) {
  const auto context = Ids(500, 1);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<int32_t>> alone;
  for (uint32_t i = 0; i < 4; ++i) {
    // Two share a context, two are the same prompt: writers meet at the same keys.
    prompts.push_back(Joined(context, Ids(20, i == 3 ? 2 : i)));
    auto request = Request({prompts.back()});
    request.mutable_scope()->set_salt(absl::StrCat("alone ", i));
    ASSERT_TRUE(Prefill(request).ok());
    auto ask = Ask(prompts.back(), 16);
    ask.mutable_scope()->set_salt(request.scope().salt());
    alone.push_back(Generate(ask).tokens);
    ASSERT_EQ(alone.back().size(), 16u);
  }
  std::vector<Answer> together(4);
  {
    std::vector<std::thread> threads;
    for (size_t i = 0; i < 4; ++i) {
      threads.emplace_back([&, i] {
        const absl::Status status =
            Prefill({context, std::vector<int32_t>(prompts[i].begin() + 500, prompts[i].end())}).status();
        if (status.ok()) together[i] = Generate(Ask(prompts[i], 16));
        together[i].status.Update(status);
      });
    }
    for (std::thread& t : threads) t.join();
  }
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(together[i].status.ok()) << together[i].status;
    EXPECT_EQ(together[i].tokens, alone[i]) << i;
  }
}

TEST_P(NodeTest, AReaderWhoIsGoneEndsTheGeneration) {
  const auto prompt = Ids(20, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  int tokens = 0;
  const absl::Status status = decode_.Generate(
      Ask(prompt, 1000), [&](const v1::GenerateEvent& event) { return !event.has_token() || ++tokens < 3; });
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(tokens, 3);
}

TEST_P(NodeTest, APrefillWhoseTimeIsOverStopsAndLeavesNothingHalf) {
  const auto prompt = Ids(600, 1);
  v1::PrefillResponse response;
  const absl::Status status = prefill_.Prefill(Request({prompt}), absl::Now() - absl::Seconds(1), &response);
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_TRUE(Stored().empty());
  EXPECT_EQ(bench_.prefill_side->Info().pool_used_bytes(), 0u);
  EXPECT_EQ(Prefill({prompt})->prefilled_tokens(), 599u);
}

TEST_P(NodeTest, SamplingFollowsItsSeed) {
  const auto prompt = Ids(40, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  auto request = Ask(prompt, 20);
  request.set_temperature(1.5);
  request.set_seed(5);
  const auto one = Generate(request).tokens;
  EXPECT_EQ(Generate(request).tokens, one);
  request.set_seed(6);
  EXPECT_NE(Generate(request).tokens, one);
}

TEST_P(NodeTest, AStopTextThatNeverComesLeavesTheTextAsItIs) {
  const auto prompt = Ids(40, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  // An answer whose last token is an incomplete character, so that both the stop text and the decoder hold something
  // back at the end.
  for (uint64_t seed = 1; seed < 400; ++seed) {
    auto request = Ask(prompt, 3);
    request.set_temperature(100);
    request.set_seed(seed);
    const Answer plain = Generate(request);
    ASSERT_TRUE(plain.status.ok()) << plain.status;
    const std::string& last = plain.finished.text();
    const std::string shown = plain.text.substr(0, plain.text.size() - last.size());
    if (last.empty() || shown.empty() || static_cast<unsigned char>(shown.back()) >= 0x80) continue;
    request.add_stop(shown.substr(shown.size() - 1) + "no model says this");
    const Answer held = Generate(request);
    EXPECT_EQ(held.text, plain.text);
    EXPECT_EQ(held.finished.reason(), "length");
    return;
  }
  FAIL() << "no answer ended inside a character";
}

TEST_P(NodeTest, AStopTextEndsTheAnswerBeforeIt) {
  const auto prompt = Ids(40, 1);
  ASSERT_TRUE(Prefill({prompt}).ok());
  const Answer plain = Generate(Ask(prompt, 30));
  ASSERT_GT(plain.text.size(), 8u);
  auto request = Ask(prompt, 30);
  const std::string stop = plain.text.substr(plain.text.size() / 2, 2);
  request.add_stop(stop);
  const Answer stopped = Generate(request);
  ASSERT_TRUE(stopped.status.ok()) << stopped.status;
  EXPECT_EQ(stopped.finished.reason(), "stop");
  EXPECT_EQ(stopped.text, plain.text.substr(0, plain.text.find(stop)));
  EXPECT_LT(stopped.tokens.size(), plain.tokens.size());
}

TEST_P(NodeTest, TextSegmentsGiveTheTokenizersIds) {
  v1::PrefillRequest request;
  request.mutable_scope()->set_tenant(tenant_);
  request.add_segments()->set_text("The pass key for Torvek is 48213.");
  request.add_segments()->set_text("");
  request.add_segments()->set_text(" What is it?");
  const auto response = Prefill(request);
  ASSERT_TRUE(response.ok()) << response.status();
  const model::Tokenizer& tokenizer = bench_.prefill_side->model().tokenizer();
  auto expected = *tokenizer.Encode("The pass key for Torvek is 48213.", tokenizer.adds_bos_by_default());
  expected = Joined(expected, *tokenizer.Encode(" What is it?", false));
  EXPECT_EQ(std::vector<int32_t>(response->token_ids().begin(), response->token_ids().end()), expected);
}

TEST(NodeLimitsTest, AFullPoolIsResourceExhaustedAndRecovers) {
  const auto store = StartStore(uint64_t{64} << 20);
  const auto big = StartNode("identity", store->address());
  const auto small =
      StartNode("identity", store->address(), size_t{1} << 20);  // 8 blocks of 128 KiB, but for the summaries.
  const auto request = [](size_t tokens) {
    v1::PrefillRequest r;
    const auto ids = Ids(tokens, static_cast<uint32_t>(tokens));
    r.add_segments()->mutable_tokens()->mutable_ids()->Assign(ids.begin(), ids.end());
    return r;
  };
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  v1::PrefillResponse response;
  const prefill_node::PrefillNode prefill(small.get(), {});
  absl::Status status = prefill.Prefill(request(1000), deadline, &response);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_THAT(std::string(status.message()), HasSubstr("--pool-mib"));
  EXPECT_EQ(small->Info().pool_used_bytes(), 0u);
  response.Clear();
  EXPECT_TRUE(prefill.Prefill(request(200), deadline, &response).ok());

  // And a decode node that cannot hold a prompt says so, and goes on with those that it can hold.
  response.Clear();
  ASSERT_TRUE(prefill_node::PrefillNode(big.get(), {}).Prefill(request(1000), deadline, &response).ok());
  decode_node::DecodeNode decode(small.get());
  const auto generate = [&](size_t tokens) {
    v1::GenerateRequest r;
    const auto ids = Ids(tokens, static_cast<uint32_t>(tokens));
    r.mutable_token_ids()->Assign(ids.begin(), ids.end());
    r.set_max_tokens(2);
    return decode.Generate(r, [](const v1::GenerateEvent&) { return true; });
  };
  status = generate(1000);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(small->Info().pool_used_bytes(), 0u);
  status = generate(200);
  EXPECT_TRUE(status.ok()) << status;
}

TEST(NodeLimitsTest, AStoreWithoutRoomIsResourceExhausted) {
  const auto store = StartStore(uint64_t{1} << 20);
  const auto node = StartNode("identity", store->address());
  const prefill_node::PrefillNode prefill(node.get(), {.chunk_tokens = 1024});
  v1::PrefillRequest request;
  const auto ids = Ids(1000, 1);
  request.add_segments()->mutable_tokens()->mutable_ids()->Assign(ids.begin(), ids.end());
  v1::PrefillResponse response;
  const absl::Status status = prefill.Prefill(request, absl::Now() + absl::Seconds(30), &response);
  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_EQ(node->Info().pool_used_bytes(), 0u);
}

TEST(NodeLimitsTest, AStoreThatIsNotThereIsUnavailableWithinItsDeadline) {
  auto store = StartStore(uint64_t{1} << 20);
  const std::string address = store->address();
  store.reset();
  const absl::Time start = absl::Now();
  node::NodeOptions options;
  options.model.folder = kModel;
  options.store_address = address;
  options.pool_bytes = size_t{1} << 20;
  const auto node = node::Node::Create(options);
  EXPECT_TRUE(absl::IsUnavailable(node.status())) << node.status();
  EXPECT_THAT(std::string(node.status().message()), HasSubstr(address));
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));
}

TEST(NodeLimitsTest, AStoreThatGoesAndComesBackIsFoundAgain) {
  auto store = StartStore(uint64_t{64} << 20);
  const std::string address = store->address();
  const auto node = StartNode("identity", address);
  const prefill_node::PrefillNode prefill(node.get(), {});
  v1::PrefillRequest request;
  const auto ids = Ids(200, 1);
  request.add_segments()->mutable_tokens()->mutable_ids()->Assign(ids.begin(), ids.end());
  v1::PrefillResponse response;
  ASSERT_TRUE(prefill.Prefill(request, absl::InfiniteFuture(), &response).ok());
  store.reset();
  response.Clear();
  const absl::Time start = absl::Now();
  const absl::Status down = prefill.Prefill(request, absl::InfiniteFuture(), &response);
  EXPECT_TRUE(absl::IsUnavailable(down)) << down;
  EXPECT_LT(absl::Now() - start, absl::Seconds(20));

  kvstore::ServerOptions options;
  options.port = static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1)));
  options.slab_bytes = uint64_t{64} << 20;
  auto again = kvstore::StoreServer::Start(options);
  ASSERT_TRUE(again.ok()) << again.status();
  response.Clear();
  const absl::Status up = prefill.Prefill(request, absl::InfiniteFuture(), &response);
  EXPECT_TRUE(up.ok()) << up;
  EXPECT_EQ(response.prefilled_tokens(), 199u);  // It was in memory only.
}

}  // namespace
}  // namespace perigee
