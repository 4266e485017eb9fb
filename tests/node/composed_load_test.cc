// Prompts in which contexts stand, end to end in one process: a prefill node stores the contexts, decode nodes read
// them wherever they stand.
#include "node/composed_load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "nodes.h"
#include "prefill_node/prefill_node.h"

namespace perigee {
namespace {

using pod::PlaneKind;
using ::testing::HasSubstr;

class ComposedLoadTest : public ::testing::TestWithParam<std::string> {
 protected:
  ComposedLoadTest()
      : store_(StartStore(uint64_t{96} << 20)),
        prefill_side_(StartNode(GetParam(), store_->address())),
        decode_side_(StartNode(GetParam(), store_->address())),
        prefill_(prefill_side_.get(), {.chunk_tokens = 256}),
        decode_(decode_side_.get()) {
    const std::vector<int32_t> parts[] = {Ids(10, 1), first_, Ids(20, 2), second_, Ids(31, 3)};
    for (const auto& part : parts) prompt_ = Joined(prompt_, part);
  }

  // As a gateway has a context stored.
  v1::PrefillResponse StoreContext(const std::vector<int32_t>& tokens) {
    v1::PrefillRequest request = SegmentsOf({Joined(opening(), tokens)});
    request.set_whole(true);
    request.set_no_bos(true);
    v1::PrefillResponse response;
    const absl::Status status = prefill_.Prefill(request, absl::Now() + absl::Seconds(60), &response);
    EXPECT_TRUE(status.ok()) << status;
    return response;
  }
  v1::GenerateRequest Ask(const std::string& repair, uint32_t max_tokens = 8) const {
    v1::GenerateRequest request = AskFor(prompt_, max_tokens);
    for (const auto& [begin, tokens] : {std::pair(10, 150), std::pair(180, 401)}) {
      v1::ContextSpan* span = request.add_contexts();
      span->set_begin(static_cast<uint32_t>(begin));
      span->set_tokens(static_cast<uint32_t>(tokens));
    }
    request.set_repair(repair);
    return request;
  }
  std::vector<int32_t> PlainAnswer(uint32_t max_tokens = 8) {
    v1::GenerateRequest request = AskFor(prompt_, max_tokens, "plain");
    request.set_max_compute_tokens(1000);
    const Answer answer = Generate(decode_, request);
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    return answer.tokens;
  }
  std::vector<pod::BlockKey> KeysOf(const std::vector<int32_t>& context) const {
    return pod::DeriveChain(prefill_side_->model().IdentityFor("", ""), Joined(opening(), context));
  }
  std::vector<int32_t> opening() const { return node::ContextOpening(prefill_side_->model().tokenizer()); }
  bool has_proximal() const { return prefill_side_->model().layout().plane_bytes(PlaneKind::kProximal) > 0; }

  const std::vector<int32_t> first_ = Ids(150, 11), second_ = Ids(401, 12);
  std::vector<int32_t> prompt_;
  std::unique_ptr<kvstore::StoreServer> store_;
  std::unique_ptr<node::Node> prefill_side_, decode_side_;
  prefill_node::PrefillNode prefill_;
  decode_node::DecodeNode decode_;
};

INSTANTIATE_TEST_SUITE_P(Plans, ComposedLoadTest, ::testing::Values("identity", ""),
                         [](const auto& info) { return info.param.empty() ? "Shared" : info.param; });

TEST_P(ComposedLoadTest, AContextsLastTokenAndAllItsNearPlanesAreStored) {
  const v1::PrefillResponse stored = StoreContext(second_);
  EXPECT_EQ(stored.prefilled_tokens(), 401u + opening().size());
  const auto keys = KeysOf(second_);
  ASSERT_EQ(keys.size(), 7u);
  const auto found = prefill_side_->store().Lookup(keys[0], keys);
  ASSERT_TRUE(found.ok()) << found.status();
  for (const kvstore::BlockInfo& block : found->blocks) EXPECT_EQ(block.planes.size(), has_proximal() ? 3u : 2u);
  EXPECT_EQ(StoreContext(second_).prefilled_tokens(), 0u);
}

TEST_P(ComposedLoadTest, ContextsAreReadWhereTheyStandAndOnlyTheRestIsComputed) {
  StoreContext(first_);
  StoreContext(second_);
  const Answer answer = Generate(decode_, Ask("prefix:16"));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.started.context_tokens(), 551u - 32);
  EXPECT_EQ(answer.started.repaired_tokens(), 32u);
  EXPECT_EQ(answer.started.fetched_tokens(), 551u - 32);
  EXPECT_EQ(answer.started.computed_tokens(), 61u + 32);
  EXPECT_EQ(answer.started.far_only_blocks(), 0u);
  EXPECT_GT(answer.started.bytes_fetched(), 0u);
  EXPECT_EQ(answer.tokens.size(), 8u);
}

TEST_P(ComposedLoadTest, WithEverythingComputedAgainTheAnswerIsThePlainPrompts) {
  if (GetParam().empty()) GTEST_SKIP() << "under a sharing plan windows are rounded to other borders";
  StoreContext(first_);
  StoreContext(second_);
  for (const char* repair : {"prefix:4096", "deviation:1"}) {
    const Answer answer = Generate(decode_, Ask(repair, 24));
    ASSERT_TRUE(answer.status.ok()) << answer.status;
    EXPECT_EQ(answer.tokens, PlainAnswer(24)) << repair;
  }
}

TEST_P(ComposedLoadTest, AContextThatIsNotStoredIsNotFoundOrComputedWhereThatIsAllowed) {
  StoreContext(first_);
  v1::GenerateRequest request = Ask("none");
  const Answer refused = Generate(decode_, request);
  EXPECT_TRUE(absl::IsNotFound(refused.status)) << refused.status;
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("context 1 of 2"));
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("never stored"));
  EXPECT_EQ(refused.starts, 0);

  request.set_max_compute_tokens(500);
  const Answer computed = Generate(decode_, request);
  ASSERT_TRUE(computed.status.ok()) << computed.status;
  EXPECT_EQ(computed.started.computed_tokens(), 61u + 401);
  ASSERT_TRUE(decode_.writer().Flush(absl::Now() + absl::Seconds(20)));
  const Answer again = Generate(decode_, Ask("none"));  // It is stored now.
  ASSERT_TRUE(again.status.ok()) << again.status;
  EXPECT_EQ(again.tokens, computed.tokens);
  EXPECT_EQ(again.started.computed_tokens(), 61u);
}

TEST_P(ComposedLoadTest, AContextOfWhichABlockWentIsNotFoundAndItsStoredBeginningIsUsed) {
  StoreContext(first_);
  StoreContext(second_);
  const auto before = Generate(decode_, Ask("none"));
  ASSERT_TRUE(before.status.ok()) << before.status;
  const auto keys = KeysOf(second_);
  ASSERT_TRUE(prefill_side_->store().Delete(keys[0], {&keys[2], 1}).ok());
  v1::GenerateRequest request = Ask("none");
  const Answer refused = Generate(decode_, request);
  EXPECT_TRUE(absl::IsNotFound(refused.status)) << refused.status;
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("block 2 of 7"));
  EXPECT_THAT(std::string(refused.status.message()), HasSubstr("deleted"));
  request.set_max_compute_tokens(500);
  const Answer computed = Generate(decode_, request);
  ASSERT_TRUE(computed.status.ok()) << computed.status;
  EXPECT_EQ(computed.tokens, before.tokens);
}

TEST_P(ComposedLoadTest, WithoutItsNearPlanesAContextIsReadAsAFarOneAndTheAnswerSaysSo) {
  if (!has_proximal()) GTEST_SKIP() << "the plan has no proximal planes";
  StoreContext(first_);
  v1::PrefillRequest as_prompt =
      SegmentsOf({Joined(Joined(opening(), second_), {5})});  // No proximal planes in its middle.
  as_prompt.set_no_bos(true);
  v1::PrefillResponse response;
  ASSERT_TRUE(prefill_node::PrefillNode(prefill_side_.get(), {.chunk_tokens = 256, .branch_tokens = 0})
                  .Prefill(as_prompt, absl::Now() + absl::Seconds(60), &response)
                  .ok());
  const Answer answer = Generate(decode_, Ask("deviation:0.2"));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_GT(answer.started.far_only_blocks(), 0u);
}

TEST_P(ComposedLoadTest, WrongBytesAreAMissAndNeverAnAnswer) {
  StoreContext(first_);
  StoreContext(second_);
  const Answer before = Generate(decode_, Ask("prefix:8"));
  ASSERT_TRUE(before.status.ok()) << before.status;
  Corrupt(*store_, {KeysOf(second_)[1], PlaneKind::kDistant});
  const Answer wrong = Generate(decode_, Ask("prefix:8"));
  EXPECT_TRUE(absl::IsNotFound(wrong.status)) << wrong.status;
  EXPECT_EQ(wrong.tokens.size(), 0u);
  StoreContext(second_);
  const Answer after = Generate(decode_, Ask("prefix:8"));
  ASSERT_TRUE(after.status.ok()) << after.status;
  EXPECT_EQ(after.tokens, before.tokens);
}

TEST_P(ComposedLoadTest, AnotherTenantsContextIsAsOneThatWasNeverStored) {
  StoreContext(first_);
  StoreContext(second_);
  v1::GenerateRequest request = Ask("none");
  request.mutable_scope()->set_tenant("other");
  const Answer answer = Generate(decode_, request);
  EXPECT_TRUE(absl::IsNotFound(answer.status)) << answer.status;
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr("never stored"));
}

TEST_P(ComposedLoadTest, ASecondPromptAtTheSameNodeFetchesNothing) {
  StoreContext(first_);
  StoreContext(second_);
  node::NodeOptions options = NodeOptionsFor(GetParam(), store_->address());
  options.keep_planes = true;
  const auto keeping = StartNode(options);
  decode_node::DecodeNode decode(keeping.get());
  const Answer one = Generate(decode, Ask("none"));
  ASSERT_TRUE(one.status.ok()) << one.status;
  EXPECT_GT(one.started.planes_fetched(), 0u);
  const Answer two = Generate(decode, Ask("none"));
  ASSERT_TRUE(two.status.ok()) << two.status;
  EXPECT_EQ(two.started.planes_fetched(), 0u);
  EXPECT_EQ(two.tokens, one.tokens);
}

TEST_P(ComposedLoadTest, AnAnswerGoesOnWhereAnotherNodeStopped) {
  StoreContext(first_);
  StoreContext(second_);
  const Answer whole = Generate(decode_, Ask("prefix:8", 12));
  ASSERT_TRUE(whole.status.ok()) << whole.status;
  v1::GenerateRequest rest = Ask("prefix:8", 12);
  for (size_t i = 0; i < 5; ++i) rest.add_token_ids(whole.tokens[i]);
  rest.set_answered_tokens(5);
  const Answer resumed = Generate(decode_, rest);
  ASSERT_TRUE(resumed.status.ok()) << resumed.status;
  EXPECT_EQ(resumed.tokens, std::vector<int32_t>(whole.tokens.begin() + 5, whole.tokens.end()));
}

TEST_P(ComposedLoadTest, SeveralAnswersShareOnePrompt) {
  StoreContext(first_);
  StoreContext(second_);
  v1::GenerateRequest request = Ask("prefix:8", 6);
  request.set_samples(3);
  const Answer answers = Generate(decode_, request);
  ASSERT_TRUE(answers.status.ok()) << answers.status;
  EXPECT_EQ(answers.tokens.size(), 18u);
  EXPECT_EQ(answers.finishes, 3);
}

TEST_P(ComposedLoadTest, WhatAnEditHasLeftIsReadFromTheDocumentAsItWas) {
  StoreContext(second_);
  // 101 tokens of the middle are replaced by 20 others.
  const std::vector<int32_t> change = Ids(20, 77), question = Ids(31, 3);
  std::vector<int32_t> ids = opening();
  const size_t head = ids.size();
  ids.insert(ids.end(), second_.begin(), second_.begin() + 150);
  ids.insert(ids.end(), change.begin(), change.end());
  const size_t tail = ids.size();
  ids.insert(ids.end(), second_.begin() + 251, second_.end());
  ids.insert(ids.end(), question.begin(), question.end());
  v1::GenerateRequest request = AskFor(ids, 4);
  for (const auto& [begin, from, tokens] : {std::tuple(head, 0, 150), std::tuple(tail, 251, 150)}) {
    v1::ContextSpan* span = request.add_contexts();
    span->set_begin(static_cast<uint32_t>(begin));
    span->set_tokens(static_cast<uint32_t>(tokens));
    span->mutable_source()->Assign(second_.begin(), second_.end());
    span->set_source_begin(static_cast<uint32_t>(from));
  }
  request.set_repair("prefix:8");
  const Answer answer = Generate(decode_, request);
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_EQ(answer.started.computed_tokens(), 20u + 31u + 8u);
  EXPECT_EQ(answer.started.repaired_tokens(), 8u);
  EXPECT_LE(answer.started.planes_fetched(), 2u * (3 + 4)) << "blocks of which something is seen, and only those";
  request.mutable_contexts(1)->set_source_begin(250);
  EXPECT_TRUE(absl::IsInvalidArgument(Generate(decode_, request).status)) << "the slice is not there";
}

TEST_P(ComposedLoadTest, WhatCannotBeIsRefusedBeforeAnything) {
  StoreContext(first_);
  const auto refused = [&](const std::function<void(v1::GenerateRequest&)>& change) {
    v1::GenerateRequest request = Ask("none");
    change(request);
    return Generate(decode_, request).status;
  };
  EXPECT_TRUE(absl::IsInvalidArgument(refused([](auto& r) { r.set_repair("perfect"); })));
  EXPECT_TRUE(absl::IsInvalidArgument(refused([](auto& r) { r.mutable_contexts(1)->set_begin(100); }))) << "overlap";
  EXPECT_TRUE(absl::IsInvalidArgument(refused([](auto& r) { r.mutable_contexts(1)->set_tokens(0); })));
  EXPECT_TRUE(absl::IsInvalidArgument(refused([](auto& r) { r.mutable_contexts(1)->set_tokens(UINT32_MAX); })));
  EXPECT_TRUE(absl::IsInvalidArgument(refused([](auto& r) { r.mutable_contexts(1)->set_tokens(432); }))) << "the end";
}

}  // namespace
}  // namespace perigee
