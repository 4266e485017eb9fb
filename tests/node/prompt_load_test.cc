// How a prompt's cache comes together: what is fetched, found in the node's own memory, or computed, and what happens
// when planes are late, wrong or gone.
#include "node/prompt_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "absl/synchronization/notification.h"
#include "nodes.h"
#include "prefill_node/prefill_node.h"

namespace perigee {
namespace {

using pod::PlaneKind;
using ::testing::HasSubstr;

TEST(ChooseLoadModeTest, FetchesWhereThatTakesNextToNothingOfComputing) {
  using node::ChooseLoadMode;
  using node::LoadMode;
  EXPECT_EQ(ChooseLoadMode(absl::Seconds(100), std::nullopt), LoadMode::kFetch);
  EXPECT_EQ(ChooseLoadMode(absl::Milliseconds(20), absl::Seconds(1)), LoadMode::kFetch);
  EXPECT_EQ(ChooseLoadMode(absl::Milliseconds(30), absl::Seconds(1)), LoadMode::kBothEnds);
  EXPECT_EQ(ChooseLoadMode(absl::Seconds(2), absl::Seconds(1)), LoadMode::kBothEnds);
  EXPECT_EQ(ChooseLoadMode(absl::Milliseconds(5), absl::Milliseconds(1)), LoadMode::kFetch);  // Too little to bother.
}

// Holds fetches back, by their number in the order in which they land.
class Gate {
 public:
  explicit Gate(std::function<bool(int n)> held) : held_(std::move(held)) {}
  kvstore::ClientOptions options() {
    kvstore::ClientOptions client;
    client.on_fetch_landed = [this](size_t) {
      if (held_(landed_++) && !open_.WaitForNotificationWithTimeout(absl::Seconds(20))) waited_for_ = true;
      return absl::OkStatus();
    };
    return client;
  }
  void Open() { open_.Notify(); }
  // Somebody needed what was held back.
  bool waited_for() const { return waited_for_; }

 private:
  const std::function<bool(int n)> held_;
  std::atomic<int> landed_{0};
  std::atomic<bool> waited_for_{false};
  absl::Notification open_;
};

class PromptLoadTest : public ::testing::TestWithParam<std::string> {
 protected:
  node::NodeOptions Options() const { return NodeOptionsFor(GetParam(), store_->address()); }
  absl::StatusOr<v1::PrefillResponse> Prefill(const node::Node& node, const std::vector<int32_t>& prompt) const {
    v1::PrefillResponse response;
    const prefill_node::PrefillNode prefill(&node, {.chunk_tokens = 256});
    const absl::Status status = prefill.Prefill(SegmentsOf({prompt}), absl::Now() + absl::Seconds(60), &response);
    if (!status.ok()) return status;
    return response;
  }
  // What a node that fetches everything answers.
  Answer Reference(const std::vector<int32_t>& prompt, uint32_t max_tokens = 12) {
    const auto prefilled = Prefill(*writer_, prompt);
    EXPECT_TRUE(prefilled.ok()) << prefilled.status();
    const Answer answer = Generate(decode_node::DecodeNode(writer_.get()), AskFor(prompt, max_tokens));
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    return answer;
  }
  bool NothingIsHeld(const node::Node& node) const {
    return Becomes([&] {
      const kvstore::StoreStats stats = store_->store().Stats();
      return node.abandoned().waiting() == 0 && stats.leases == 0 && stats.reservations == 0;
    });
  }
  std::vector<pod::BlockKey> KeysOf(const std::vector<int32_t>& prompt) const {
    return pod::DeriveChain(writer_->model().IdentityFor("", ""), std::span(prompt).first(prompt.size() - 1));
  }

  const std::unique_ptr<kvstore::StoreServer> store_ = StartStore(uint64_t{128} << 20);
  const std::unique_ptr<node::Node> writer_ = StartNode(Options());
};

INSTANTIATE_TEST_SUITE_P(Plans, PromptLoadTest, ::testing::Values("identity", ""),
                         [](const auto& info) { return info.param.empty() ? "PodlingsPlan" : "IdentityPlan"; });

TEST_P(PromptLoadTest, ASecondRequestAtTheSameNodeFetchesOnlyThePartialBlock) {
  const auto prompt = Ids(660, 1);  // 10 full blocks and one of 19 tokens.
  const Answer reference = Reference(prompt);
  node::NodeOptions options = Options();
  options.keep_planes = true;
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  const Answer first = Generate(decode, AskFor(prompt, 12));
  ASSERT_TRUE(first.status.ok()) << first.status;
  EXPECT_EQ(first.started.bytes_fetched(), reference.started.bytes_fetched());
  const Answer second = Generate(decode, AskFor(prompt, 12));
  ASSERT_TRUE(second.status.ok()) << second.status;
  EXPECT_EQ(second.started.fetched_tokens(), 659u);
  EXPECT_LE(second.started.planes_fetched(), 2u);
  EXPECT_EQ(first.tokens, reference.tokens);
  EXPECT_EQ(second.tokens, reference.tokens);
  EXPECT_GT(node->planes().stats().hits, 0u);

  // A prompt that ends on a block's border needs nothing of the store.
  const std::vector<int32_t> whole(prompt.begin(), prompt.begin() + 641);
  const uint64_t fetched = node->Info().payload_bytes();
  const Answer third = Generate(decode, AskFor(whole, 4));
  ASSERT_TRUE(third.status.ok()) << third.status;
  EXPECT_EQ(third.started.planes_fetched(), 0u);
  EXPECT_EQ(third.started.computed_tokens(), 1u);
  EXPECT_EQ(node->Info().payload_bytes(), fetched);
}

TEST_P(PromptLoadTest, PlanesOfEarlierRequestsMakeRoomInASmallPool) {
  node::NodeOptions options = Options();
  options.keep_planes = true;
  options.pool_bytes = size_t{3} << 20;
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  for (uint32_t i = 0; i < 6; ++i) {
    const auto prompt = Ids(641, 10 + i);
    const Answer reference = Reference(prompt);
    const Answer answer = Generate(decode, AskFor(prompt, 12));
    ASSERT_TRUE(answer.status.ok()) << i << ": " << answer.status;
    EXPECT_EQ(answer.tokens, reference.tokens) << i;
    EXPECT_GT(node->Load().pool_available_bytes(), node->Info().pool_bytes() / 10 * 9) << i;
  }
  EXPECT_GT(node->planes().stats().evictions, 0u);
}

TEST_P(PromptLoadTest, APoolTooSmallIsResourceExhaustedAndRecovers) {
  const auto big = Ids(2000, 1), small = Ids(200, 2);
  Reference(big);
  const Answer reference = Reference(small);
  node::NodeOptions options = Options();
  options.keep_planes = options.recompute = true;
  options.pool_bytes = size_t{1} << 20;
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  for (int i = 0; i < 2; ++i) {
    const Answer refused = Generate(decode, AskFor(big, 12));
    EXPECT_TRUE(absl::IsResourceExhausted(refused.status)) << refused.status;
    EXPECT_EQ(refused.starts, 0);
    const Answer answer = Generate(decode, AskFor(small, 12));
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.tokens, reference.tokens);
  }
  EXPECT_EQ(decode.running(), 0);
  EXPECT_TRUE(NothingIsHeld(*node));
}

TEST_P(PromptLoadTest, ADecodeNodeComputesAMissingTailItselfAndSaysNotFoundBeyond) {
  const auto context = Ids(640, 1);
  ASSERT_TRUE(Prefill(*writer_, Joined(context, {7})).ok());
  const auto prompt = Joined(context, Ids(100, 2));
  decode_node::DecodeNode decode(writer_.get());
  v1::GenerateRequest ask = AskFor(prompt, 12);
  for (const uint32_t too_few : {0u, 98u}) {
    ask.set_max_compute_tokens(too_few);
    const Answer refused = Generate(decode, ask);
    EXPECT_TRUE(absl::IsNotFound(refused.status)) << refused.status;
    EXPECT_THAT(std::string(refused.status.message()), HasSubstr("block 10"));
    EXPECT_EQ(refused.starts, 0);
  }
  ask.set_max_compute_tokens(99);
  const Answer answer = Generate(decode, ask);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.started.fetched_tokens(), 640u);
  EXPECT_EQ(answer.started.computed_tokens(), 100u);
  EXPECT_EQ(answer.tokens, Reference(prompt).tokens);
  EXPECT_TRUE(NothingIsHeld(*writer_));
}

TEST_P(PromptLoadTest, WithoutAStoreADecodeNodeComputesWhatItMay) {
  const auto prompt = Ids(300, 1);
  const Answer reference = Reference(prompt);
  node::NodeOptions options = Options();
  options.stores = std::make_shared<kvstore::StoreDirectory>(
      kvstore::StoreMap{.epoch = 1, .stores = {{.id = "gone", .address = "127.0.0.1:1"}}});
  options.keep_planes = true;
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  v1::GenerateRequest ask = AskFor(prompt, 12);
  ask.set_max_compute_tokens(298);
  const Answer refused = Generate(decode, ask);
  EXPECT_TRUE(absl::IsUnavailable(refused.status)) << refused.status;
  ask.set_max_compute_tokens(299);
  const Answer answer = Generate(decode, ask);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.started.computed_tokens(), 300u);
  EXPECT_EQ(answer.tokens, reference.tokens);
  // What it has itself counts.
  ask.set_max_compute_tokens(43);
  const Answer again = Generate(decode, ask);
  ASSERT_TRUE(again.status.ok()) << again.status;
  EXPECT_EQ(again.started.computed_tokens(), 44u);
  EXPECT_EQ(again.tokens, reference.tokens);
}

TEST_P(PromptLoadTest, WhereTheFetchIsSlowBothEndsWork) {
  const auto prompt = Ids(3000, 1);
  const Answer reference = Reference(prompt);
  // The first fetch hangs; of those from the back only the first comes.
  Gate gate([](int n) { return n != 1; });
  node::NodeOptions options = Options();
  options.recompute = true;
  options.store = gate.options();
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  const absl::Duration compute = *node->batches().prefill_rate().Estimate(0, 2999);
  const absl::Time start = absl::Now();
  const Answer answer = Generate(decode, AskFor(prompt, 12));
  const absl::Duration took = absl::Now() - start;
  EXPECT_FALSE(gate.waited_for());
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.started.fetched_tokens(), 2999u);
  EXPECT_GT(answer.started.recomputed_tokens(), 0u);
  EXPECT_LT(answer.started.recomputed_tokens(), 2999u);
  EXPECT_GT(answer.started.bytes_fetched(), 0u);
  EXPECT_EQ(answer.tokens, reference.tokens);
  EXPECT_LT(took, 3 * compute + absl::Seconds(3));  // Slack for busy machines; a wait for the store would be 20 s.
  EXPECT_EQ(decode.running(), 0);
  gate.Open();
  EXPECT_TRUE(NothingIsHeld(*node));
  EXPECT_EQ(node->Info().pool_used_bytes(), 0u);
}

TEST_P(PromptLoadTest, AFetchThatHangsIsGivenUpAndEverythingComputed) {
  const auto prompt = Ids(1000, 1);
  const Answer reference = Reference(prompt);
  Gate gate([](int) { return true; });
  node::NodeOptions options = Options();
  options.recompute = true;
  options.store = gate.options();
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  const Answer answer = Generate(decode, AskFor(prompt, 12));
  EXPECT_FALSE(gate.waited_for());
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.started.recomputed_tokens(), 999u);
  EXPECT_EQ(answer.tokens, reference.tokens);
  // And a prefill node goes on from what it computed itself.
  const auto longer = Prefill(*node, Joined(prompt, Ids(100, 2)));
  ASSERT_TRUE(longer.ok()) << longer.status();
  EXPECT_FALSE(gate.waited_for());
  EXPECT_EQ(longer->reused_tokens(), 960u);
  EXPECT_EQ(longer->recomputed_tokens(), 960u);
  gate.Open();
  EXPECT_TRUE(NothingIsHeld(*node));
  EXPECT_EQ(node->Info().pool_used_bytes(), 0u);
}

TEST_P(PromptLoadTest, AFetchThatHangsEndsWithTheRequestsTime) {
  const auto prompt = Ids(1000, 1);
  Reference(prompt);
  Gate gate([](int) { return true; });
  node::NodeOptions options = Options();  // Does not compute what is stored.
  options.store = gate.options();
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  const absl::Status status = decode.Generate(
      AskFor(prompt, 12), [](const v1::GenerateEvent&) { return true; }, absl::Now() + absl::Milliseconds(100));
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  EXPECT_FALSE(gate.waited_for());
  EXPECT_EQ(decode.running(), 0);
  gate.Open();
  EXPECT_TRUE(NothingIsHeld(*node));
  EXPECT_EQ(node->Info().pool_used_bytes(), 0u);
}

TEST_P(PromptLoadTest, AStoreThatGoesWhilePlanesArriveIsMadeUpForWhereThatIsAllowed) {
  const auto prompt = Ids(1000, 1);
  const Answer reference = Reference(prompt);
  std::atomic<int> landed{0};
  node::NodeOptions options = Options();
  options.recompute = true;
  options.store.on_fetch_landed = [&](size_t) {
    return landed++ % 2 == 0 ? absl::UnavailableError("the store is gone") : absl::OkStatus();
  };
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  v1::GenerateRequest ask = AskFor(prompt, 12);
  const Answer refused = Generate(decode, ask);
  EXPECT_TRUE(absl::IsUnavailable(refused.status)) << refused.status;
  EXPECT_EQ(refused.starts, 0);
  landed = 0;
  ask.set_max_compute_tokens(999);
  const Answer answer = Generate(decode, ask);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.tokens, reference.tokens);
  EXPECT_TRUE(NothingIsHeld(*node));
  EXPECT_EQ(node->Info().pool_used_bytes(), 0u);
}

TEST_P(PromptLoadTest, WrongBytesFromTheBackAreComputedInstead) {
  const auto prompt = Ids(2500, 1);
  const Answer reference = Reference(prompt);
  const auto keys = KeysOf(prompt);
  Corrupt(*store_, {keys[30], PlaneKind::kDistant});
  Gate gate([](int n) { return n == 0; });  // So that it comes from both ends.
  node::NodeOptions options = Options();
  options.recompute = true;
  options.store = gate.options();
  const auto node = StartNode(options);
  decode_node::DecodeNode decode(node.get());
  const Answer answer = Generate(decode, AskFor(prompt, 12));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_GE(answer.started.recomputed_tokens(), 31 * 64u);
  EXPECT_EQ(answer.tokens, reference.tokens);
  gate.Open();
  EXPECT_TRUE(NothingIsHeld(*node));
  EXPECT_GE(node->store().stats().clients.checksum_failures, 1u);
}

TEST_P(PromptLoadTest, ACallerWhoIsGoneEndsTheLoading) {
  const auto prompt = Ids(3000, 1);
  decode_node::DecodeNode decode(writer_.get());
  v1::GenerateRequest ask = AskFor(prompt, 12);
  ask.set_max_compute_tokens(3000);
  int asked = 0;
  const absl::Status status = decode.Generate(
      ask, [](const v1::GenerateEvent&) { return true; }, absl::InfiniteFuture(), [&] { return ++asked > 3; });
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_EQ(asked, 4);
  EXPECT_EQ(decode.running(), 0);
  EXPECT_EQ(writer_->Info().pool_used_bytes(), 0u);
}

}  // namespace
}  // namespace perigee
