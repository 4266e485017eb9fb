// Answers of a decode node: many at once, several to one prompt, continued elsewhere, and stored for the next turn.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "../node/nodes.h"
#include "absl/synchronization/mutex.h"
#include "prefill_node/prefill_node.h"

namespace perigee {
namespace {

using decode_node::DecodeNode;
using ::testing::HasSubstr;

class AnswersTest : public ::testing::TestWithParam<std::string> {
 protected:
  AnswersTest() {
    node::NodeOptions options = NodeOptionsFor(GetParam(), store_->address());
    options.keep_planes = true;
    node_ = StartNode(options);
    other_ = StartNode(options);
  }
  absl::StatusOr<v1::PrefillResponse> Prefill(const node::Node& node, const std::vector<int32_t>& prompt) const {
    v1::PrefillResponse response;
    const absl::Status status =
        prefill_node::PrefillNode(&node, {}).Prefill(SegmentsOf({prompt}), absl::Now() + absl::Seconds(60), &response);
    if (!status.ok()) return status;
    return response;
  }
  void Prefill(const std::vector<int32_t>& prompt) const {
    const auto done = Prefill(*other_, prompt);
    ASSERT_TRUE(done.ok()) << done.status();
  }
  // What is neither kept for later requests nor free, nearly: some pages of a pool are lost between planes.
  uint64_t BytesInUse() const { return node_->Info().pool_bytes() - node_->Load().pool_available_bytes(); }
  // Then the whole pool can be had, for which all that was kept must go.
  bool NoPlaneIsHeld() const {
    return node_->planes().Allocate(node_->Info().pool_bytes(), kvstore::RegisteredPool::Contents::kUnspecified).ok();
  }
  bool NothingIsHeld() const {
    const bool nothing = Becomes([&] {
      const kvstore::StoreStats stats = store_->store().Stats();
      return stats.leases == 0 && stats.reservations == 0 && NoPlaneIsHeld() && node_->batches().idle();
    });
    const kvstore::StoreStats stats = store_->store().Stats();
    EXPECT_TRUE(nothing) << stats.leases << " leases, " << stats.reservations << " reservations, " << BytesInUse()
                         << " bytes of the pool, idle: " << node_->batches().idle();
    return nothing;
  }

  const std::unique_ptr<kvstore::StoreServer> store_ = StartStore(uint64_t{128} << 20);
  std::unique_ptr<node::Node> node_, other_;
};

INSTANTIATE_TEST_SUITE_P(Plans, AnswersTest, ::testing::Values("identity", ""),
                         [](const auto& info) { return info.param.empty() ? "PodlingsPlan" : "IdentityPlan"; });

TEST_P(AnswersTest, InFullContextsAreTextLikeAnyOther) {
  const auto prompt = Ids(200, 1);
  DecodeNode decode(node_.get()), reference(other_.get());
  v1::GenerateRequest ask = AskFor(prompt, 20);
  ask.set_max_compute_tokens(1000);
  const Answer plain = Generate(reference, ask);
  v1::ContextSpan* context = ask.add_contexts();
  context->set_begin(40);
  context->set_tokens(100);
  ask.set_repair("full");
  const Answer full = Generate(decode, ask);
  ASSERT_TRUE(full.status.ok()) << full.status;
  EXPECT_EQ(full.tokens, plain.tokens);
  EXPECT_EQ(full.started.context_tokens() + full.started.repaired_tokens(), 0u);
  EXPECT_EQ(full.started.computed_tokens(), prompt.size());
}

TEST_P(AnswersTest, EightAtOnceShareTheirPassesAndAnswerAsAlone) {
  constexpr size_t kRequests = 8;
  std::vector<v1::GenerateRequest> asks;
  std::vector<Answer> alone(kRequests), together(kRequests);
  DecodeNode decode(node_.get()), reference(other_.get());
  for (uint32_t i = 0; i < kRequests; ++i) {
    const auto prompt = Ids(100 + 70 * i, i);
    Prefill(prompt);
    asks.push_back(AskFor(prompt, 30 + 10 * (i % 3)));  // They end at different times.
    if (i % 2 == 1) asks.back().set_temperature(1);
    asks.back().set_seed(i);
    alone[i] = Generate(reference, asks.back());
    ASSERT_TRUE(alone[i].status.ok()) << alone[i].status;
  }
  std::vector<std::thread> threads;
  absl::Mutex mu;
  size_t started = 0;
  for (size_t i = 0; i < kRequests; ++i) {
    threads.emplace_back([&, i] {
      Answer& answer = together[i];
      answer.status = decode.Generate(asks[i], [&](const v1::GenerateEvent& event) {
        if (event.has_token()) answer.tokens.push_back(event.token().id());
        if (event.has_token()) answer.text += event.token().text();
        if (event.has_finished()) answer.text += event.finished().text();
        if (!event.has_started()) return true;
        // All begin to answer together.
        absl::MutexLock lock(&mu);
        ++started;
        const auto all = [&] { return started == kRequests; };
        return mu.AwaitWithTimeout(absl::Condition(&all), absl::Seconds(20));
      });
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < kRequests; ++i) {
    EXPECT_TRUE(together[i].status.ok()) << together[i].status;
    EXPECT_EQ(together[i].tokens, alone[i].tokens) << i;
    EXPECT_EQ(together[i].text, alone[i].text) << i;
  }
  const node::BatchEngineStats stats = node_->batches().stats();
  EXPECT_GE(stats.largest_pass, 6u);
  EXPECT_LT(stats.passes, stats.answers);
  EXPECT_GT(stats.answer_token, absl::ZeroDuration());
  EXPECT_TRUE(NothingIsHeld());
}

TEST_P(AnswersTest, ALongPromptHoldsAnswersUpByOneStretchAtATime) {
  const auto prompt = Ids(100, 1);
  Prefill(prompt);
  DecodeNode decode(node_.get(), {.chunk_tokens = 128});
  const auto longer = Ids(2000, 2);
  std::atomic<bool> loading{false}, loaded{false};
  std::atomic<int> answered_meanwhile{0};
  std::thread thread;
  const absl::Status status = decode.Generate(AskFor(prompt, 2000), [&](const v1::GenerateEvent& event) {
    if (event.has_token() && !thread.joinable()) {
      thread = std::thread([&] {
        v1::GenerateRequest ask = AskFor(longer, 1);
        ask.set_max_compute_tokens(2000);
        loading = true;
        const Answer answer = Generate(decode, ask);
        EXPECT_TRUE(answer.status.ok()) << answer.status;
        loaded = true;
      });
    }
    if (event.has_token() && loading && !loaded) ++answered_meanwhile;
    return !loaded;
  });
  thread.join();
  EXPECT_TRUE(absl::IsCancelled(status) || status.ok()) << status;
  // 16 stretches: about a token between any two. Much less would mean that the prompt went in one go.
  EXPECT_GE(answered_meanwhile, 8);
  EXPECT_TRUE(NothingIsHeld());
}

TEST_P(AnswersTest, SamplesAreSingleRequestsWithTheNextSeedsAndShareThePrompt) {
  const auto prompt = Ids(2000, 1);
  Prefill(prompt);
  v1::GenerateRequest ask = AskFor(prompt, 20);
  ask.set_temperature(1.5);
  ask.set_seed(40);
  DecodeNode reference(other_.get());
  std::vector<Answer> single;
  for (uint64_t i = 0; i < 4; ++i) {
    v1::GenerateRequest one = ask;
    one.set_seed(40 + i);
    single.push_back(Generate(reference, one));
    ASSERT_TRUE(single.back().status.ok()) << single.back().status;
  }
  EXPECT_NE(single[0].tokens, single[1].tokens);

  uint64_t used_by_one = 0, used_by_four = 0;
  DecodeNode decode(node_.get());
  ASSERT_TRUE(decode
                  .Generate(ask,
                            [&](const v1::GenerateEvent& event) {
                              used_by_one = std::max(used_by_one, BytesInUse());
                              return true;
                            })
                  .ok());
  ask.set_samples(4);
  std::vector<Answer> samples(4);
  const absl::Status status = decode.Generate(ask, [&](const v1::GenerateEvent& event) {
    used_by_four = std::max(used_by_four, BytesInUse());
    if (event.has_started()) return true;
    Answer& sample = samples.at(event.has_token() ? event.token().sample() : event.finished().sample());
    if (event.has_token()) sample.tokens.push_back(event.token().id());
    sample.text += event.has_token() ? event.token().text() : event.finished().text();
    if (event.has_finished()) ++sample.finishes;
    return true;
  });
  ASSERT_TRUE(status.ok()) << status;
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(samples[i].tokens, single[i].tokens) << i;
    EXPECT_EQ(samples[i].text, single[i].text) << i;
    EXPECT_EQ(samples[i].finishes, 1) << i;
  }
  // Of 32 blocks each has at most two of its own.
  EXPECT_LT(used_by_four, used_by_one + used_by_one / 2);
  EXPECT_TRUE(NothingIsHeld());
}

// What a whole answer is: its ids, its text, and how it ended.
struct Said {
  std::vector<int32_t> ids;
  std::vector<std::string> texts;  // By token.
  std::string rest, reason;
  uint32_t count = 0;
  absl::Status status;
};
Said Say(DecodeNode& decode, const v1::GenerateRequest& ask) {
  Said said;
  said.status = decode.Generate(ask, [&](const v1::GenerateEvent& event) {
    if (event.has_token()) {
      said.ids.push_back(event.token().id());
      said.texts.push_back(event.token().text());
    } else if (event.has_finished()) {
      said.rest = event.finished().text();
      said.reason = event.finished().reason();
      said.count = event.finished().tokens();
    }
    return true;
  });
  return said;
}

class CutAnswersTest : public AnswersTest {
 protected:
  // The answer, and what another node makes of it from every cut.
  void ExpectEveryCutGoesOnAlike(const std::vector<int32_t>& prompt, const v1::GenerateRequest& ask,
                                 const std::string& reason) {
    DecodeNode decode(node_.get()), other(other_.get());
    const Said whole = Say(decode, ask);
    ASSERT_TRUE(whole.status.ok()) << whole.status;
    EXPECT_EQ(whole.reason, reason);
    EXPECT_EQ(whole.count, whole.ids.size());
    for (size_t cut = 1; cut <= whole.ids.size(); ++cut) {
      SCOPED_TRACE(cut);
      v1::GenerateRequest rest = ask;
      rest.mutable_token_ids()->Add(whole.ids.begin(), whole.ids.begin() + static_cast<int64_t>(cut));
      rest.set_answered_tokens(static_cast<uint32_t>(cut));
      rest.set_max_compute_tokens(static_cast<uint32_t>(cut) + kBlockTokens);
      const Said continued = Say(other, rest);
      ASSERT_TRUE(continued.status.ok()) << continued.status;
      EXPECT_EQ(continued.ids, std::vector<int32_t>(whole.ids.begin() + static_cast<int64_t>(cut), whole.ids.end()));
      EXPECT_EQ(continued.texts,
                std::vector<std::string>(whole.texts.begin() + static_cast<int64_t>(cut), whole.texts.end()));
      EXPECT_EQ(continued.rest, whole.rest);
      EXPECT_EQ(continued.reason, whole.reason);
      EXPECT_EQ(continued.count, whole.count);
    }
  }
};

INSTANTIATE_TEST_SUITE_P(Plans, CutAnswersTest, ::testing::Values("identity", ""),
                         [](const auto& info) { return info.param.empty() ? "PodlingsPlan" : "IdentityPlan"; });

TEST_P(CutAnswersTest, GreedyAnswersGoOnFromEveryCut) {
  const auto prompt = Ids(120, 1);  // The answer crosses a block's border.
  Prefill(prompt);
  ExpectEveryCutGoesOnAlike(prompt, AskFor(prompt, 24), "length");
}

TEST_P(CutAnswersTest, SampledAnswersGoOnFromEveryCut) {
  const auto prompt = Ids(120, 1);
  Prefill(prompt);
  v1::GenerateRequest ask = AskFor(prompt, 24);
  ask.set_temperature(5);
  ask.set_top_k(50);
  ask.set_seed(17);
  ExpectEveryCutGoesOnAlike(prompt, ask, "length");
}

TEST_P(CutAnswersTest, AnswersThatAStopTextEndsGoOnFromEveryCut) {
  const auto prompt = Ids(120, 1);
  Prefill(prompt);
  v1::GenerateRequest ask = AskFor(prompt, 24);
  DecodeNode decode(node_.get());
  const Answer plain = Generate(decode, ask);
  ASSERT_GT(plain.text.size(), 12u);
  ask.add_stop(plain.text.substr(plain.text.size() / 2, 5));  // Over several tokens, so that some text is held back.
  ask.add_stop(plain.text.substr(plain.text.size() / 2 - 4, 3) + "no model says this");
  ExpectEveryCutGoesOnAlike(prompt, ask, "stop");
}

TEST_P(CutAnswersTest, AnswersThatTheModelEndsGoOnFromEveryCut) {
  const auto prompt = Ids(120, 1);
  Prefill(prompt);
  DecodeNode decode(node_.get());
  v1::GenerateRequest ask = AskFor(prompt, 400);
  ask.set_ignore_eos(false);
  ask.set_temperature(20);  // Any token may come, the end too.
  for (uint64_t seed = 1; seed < 200; ++seed) {
    ask.set_seed(seed);
    const Said said = Say(decode, ask);
    if (said.reason != "eos" || said.ids.size() > 40) continue;
    ExpectEveryCutGoesOnAlike(prompt, ask, "eos");
    return;
  }
  FAIL() << "no answer ended early";
}

TEST_P(CutAnswersTest, WhatCannotBeAnAnswersBeginningIsRefused) {
  const auto prompt = Ids(20, 1);
  Prefill(prompt);
  DecodeNode decode(node_.get());
  const auto refused = [&](uint32_t answered, uint32_t max_tokens, uint32_t samples) {
    v1::GenerateRequest ask = AskFor(prompt, max_tokens);
    ask.set_answered_tokens(answered);
    ask.set_samples(samples);
    ask.set_max_compute_tokens(100);
    const Answer answer = Generate(decode, ask);
    EXPECT_TRUE(absl::IsInvalidArgument(answer.status)) << answer.status;
    EXPECT_EQ(answer.starts, 0);
  };
  refused(20, 30, 1);  // No prompt.
  refused(5, 4, 1);    // More than was asked for.
  refused(5, 30, 2);
  // After the end there is nothing.
  v1::GenerateRequest ask = AskFor(prompt, 30);
  const auto& eos = node_->model().tokenizer().eos_ids();
  ASSERT_FALSE(eos.empty());
  ask.set_ignore_eos(false);
  ask.add_token_ids(eos[0]);
  ask.add_token_ids(5);
  ask.set_answered_tokens(2);
  const Answer answer = Generate(decode, ask);
  EXPECT_TRUE(absl::IsInvalidArgument(answer.status)) << answer.status;
}

TEST_P(AnswersTest, TheNextTurnFindsTheAnswerAtOtherNodes) {
  const auto prompt = Ids(500, 1);
  Prefill(prompt);
  DecodeNode decode(node_.get());
  v1::GenerateRequest ask = AskFor(prompt, 150);
  ask.set_store_answer(true);
  const Answer first = Generate(decode, ask);
  ASSERT_TRUE(first.status.ok()) << first.status;
  ASSERT_TRUE(decode.writer().Flush(absl::Now() + absl::Seconds(20)));
  EXPECT_EQ(decode.writer().stats().answers, 1u);
  EXPECT_GT(decode.writer().stats().bytes, 0u);

  const auto turn = Joined(Joined(prompt, first.tokens), Ids(40, 2));  // 690 tokens; 649 of them are stored.
  const auto fresh = StartNode(NodeOptionsFor(GetParam(), store_->address()));
  DecodeNode elsewhere(fresh.get());
  v1::GenerateRequest next = AskFor(turn, 20);
  next.set_max_compute_tokens(100);
  const Answer direct = Generate(elsewhere, next);
  ASSERT_TRUE(direct.status.ok()) << direct.status;
  EXPECT_EQ(direct.started.fetched_tokens(), 640u);
  EXPECT_EQ(direct.started.computed_tokens(), 50u);

  const auto prefilled = Prefill(*fresh, turn);
  ASSERT_TRUE(prefilled.ok()) << prefilled.status();
  EXPECT_EQ(prefilled->reused_tokens(), 640u);
  EXPECT_EQ(prefilled->prefilled_tokens(), 49u);

  // At the node that answered nothing is fetched but, where it is not full, the last block.
  const Answer here = Generate(decode, next);
  ASSERT_TRUE(here.status.ok()) << here.status;
  EXPECT_LE(here.started.planes_fetched(), 2u);

  v1::GenerateRequest salted = next;
  salted.mutable_scope()->set_salt("computed anew");
  salted.set_max_compute_tokens(700);
  const Answer recomputed = Generate(elsewhere, salted);
  ASSERT_TRUE(recomputed.status.ok()) << recomputed.status;
  EXPECT_EQ(recomputed.started.computed_tokens(), 690u);
  EXPECT_EQ(direct.tokens, recomputed.tokens);
  EXPECT_EQ(here.tokens, recomputed.tokens);
  EXPECT_TRUE(NothingIsHeld());
}

TEST_P(AnswersTest, AnAnswerBehindPlanesThatTheStoreHasLostIsStoredWithThem) {
  const auto prompt = Ids(500, 1);
  Prefill(prompt);
  DecodeNode decode(node_.get());
  const Answer first = Generate(decode, AskFor(prompt, 150));
  ASSERT_TRUE(first.status.ok()) << first.status;
  // The prompt is here, and no longer in the store.
  const auto keys = pod::DeriveChain(node_->model().IdentityFor("", ""), std::span(prompt).first(499));
  ASSERT_TRUE(node_->store().Delete(keys[0], keys).ok());
  v1::GenerateRequest ask = AskFor(prompt, 150);
  ask.set_store_answer(true);
  ask.set_max_compute_tokens(64);
  const Answer second = Generate(decode, ask);
  ASSERT_TRUE(second.status.ok()) << second.status;
  EXPECT_EQ(second.tokens, first.tokens);
  ASSERT_TRUE(decode.writer().Flush(absl::Now() + absl::Seconds(20)));

  const auto turn = Joined(Joined(prompt, first.tokens), Ids(40, 2));
  const auto found = Prefill(*StartNode(NodeOptionsFor(GetParam(), store_->address())), turn);
  ASSERT_TRUE(found.ok()) << found.status();
  EXPECT_EQ(found->reused_tokens(), 640u);
}

TEST_P(AnswersTest, AnAnswerThatIsNotToBeStoredIsNot) {
  const auto prompt = Ids(500, 1);
  Prefill(prompt);
  const uint64_t before = store_->store().Stats().committed_bytes;
  DecodeNode decode(node_.get());
  ASSERT_TRUE(Generate(decode, AskFor(prompt, 150)).status.ok());
  ASSERT_TRUE(decode.writer().Flush(absl::Now() + absl::Seconds(20)));
  EXPECT_EQ(store_->store().Stats().committed_bytes, before);
}

TEST_P(AnswersTest, AnswersThatCannotBeStoredHoldNoMemory) {
  const auto prompt = Ids(500, 1);
  Prefill(prompt);
  DecodeNode decode(node_.get());
  v1::GenerateRequest ask = AskFor(prompt, 20);
  ASSERT_TRUE(Generate(decode, ask).status.ok());
  store_->Shutdown();
  ask.set_store_answer(true);
  ask.set_max_compute_tokens(500);
  for (int i = 0; i < 3; ++i) {
    const Answer answer = Generate(decode, ask);
    EXPECT_TRUE(answer.status.ok()) << answer.status;
  }
  EXPECT_TRUE(decode.writer().Flush(absl::Now() + absl::Seconds(30)));
  EXPECT_EQ(decode.writer().stats().failed, 3u);
  EXPECT_TRUE(Becomes([&] { return NoPlaneIsHeld(); }));
}

TEST_P(AnswersTest, RequestsBeyondThePlacesWaitInTheirOrderAndMayLeave) {
  const auto prompt = Ids(30, 1);
  Prefill(prompt);
  DecodeNode decode(node_.get(), {.max_sequences = 2});
  absl::Mutex mu;
  bool go_on = false;
  std::vector<int> order;
  const auto request = [&](int number, uint32_t samples, absl::Status* status) {
    return std::thread([&, number, samples, status] {
      v1::GenerateRequest ask = AskFor(prompt, 2);
      ask.set_samples(samples);
      *status = decode.Generate(ask, [&](const v1::GenerateEvent& event) {
        absl::MutexLock lock(&mu);
        if (event.has_started()) order.push_back(number);
        return mu.AwaitWithTimeout(absl::Condition(&go_on), absl::Seconds(20));
      });
    });
  };
  std::vector<absl::Status> statuses(3);
  std::vector<std::thread> threads;
  threads.push_back(request(0, 1, &statuses[0]));
  ASSERT_TRUE(Becomes([&] { return decode.running() == 1; }));
  // Two samples need both places; who comes after them does not overtake.
  threads.push_back(request(1, 2, &statuses[1]));
  ASSERT_TRUE(Becomes([&] { return decode.queued() == 1; }));
  threads.push_back(request(2, 1, &statuses[2]));
  ASSERT_TRUE(Becomes([&] { return decode.queued() == 2; }));
  EXPECT_EQ(decode.running(), 1);

  const auto emit = [](const v1::GenerateEvent&) { return true; };
  absl::Status left = decode.Generate(AskFor(prompt, 2), emit, absl::Now() + absl::Milliseconds(80));
  EXPECT_TRUE(absl::IsDeadlineExceeded(left)) << left;
  left = decode.Generate(AskFor(prompt, 2), emit, absl::InfiniteFuture(), [] { return true; });
  EXPECT_TRUE(absl::IsCancelled(left)) << left;
  EXPECT_EQ(decode.queued(), 2);

  v1::GenerateRequest too_many = AskFor(prompt, 2);
  too_many.set_samples(3);
  EXPECT_TRUE(absl::IsInvalidArgument(decode.Generate(too_many, emit)));
  {
    absl::MutexLock lock(&mu);
    go_on = true;
  }
  for (std::thread& thread : threads) thread.join();
  for (const absl::Status& status : statuses) EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(order, ::testing::ElementsAre(0, 1, 2));
  EXPECT_EQ(decode.running() + decode.queued(), 0);
  EXPECT_TRUE(NothingIsHeld());
}

TEST_P(AnswersTest, WhoLeavesInTheMiddleOfSeveralSamplesLeavesNothing) {
  const auto prompt = Ids(200, 1);
  Prefill(prompt);
  DecodeNode decode(node_.get());
  for (const int events : {0, 1, 2, 9}) {
    v1::GenerateRequest ask = AskFor(prompt, 500);
    ask.set_samples(4);
    ask.set_store_answer(true);
    int seen = 0;
    const absl::Status status = decode.Generate(ask, [&](const v1::GenerateEvent&) { return seen++ < events; });
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
    EXPECT_EQ(decode.running(), 0);
  }
  v1::GenerateRequest ask = AskFor(prompt, 3000);
  ask.set_samples(2);
  const absl::Status late = decode.Generate(
      ask, [](const v1::GenerateEvent&) { return true; }, absl::Now() + absl::Milliseconds(150));
  EXPECT_TRUE(absl::IsDeadlineExceeded(late)) << late;
  EXPECT_EQ(decode.running(), 0);
  EXPECT_TRUE(NothingIsHeld());
}

TEST_P(AnswersTest, AnAnswerForWhichThePoolHasNoRoomFailsAndOthersGoOn) {
  node::NodeOptions options = NodeOptionsFor(GetParam(), store_->address());
  options.pool_bytes = size_t{1} << 20;
  const auto small = StartNode(options);
  const auto prompt = Ids(100, 1);
  Prefill(prompt);
  DecodeNode decode(small.get());
  const Answer full = Generate(decode, AskFor(prompt, 3000));
  EXPECT_TRUE(absl::IsResourceExhausted(full.status)) << full.status;
  EXPECT_GT(full.tokens.size(), 64u);  // What it said until then is right.
  EXPECT_EQ(full.finishes, 0);
  EXPECT_EQ(small->Info().pool_used_bytes(), 0u);
  EXPECT_TRUE(Generate(decode, AskFor(prompt, 30)).status.ok());
}

}  // namespace
}  // namespace perigee
