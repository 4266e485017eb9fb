// Requests in whose prompts contexts stand, through a cluster that may or may not have them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "scheduler_testing.h"

namespace perigee::cluster {
namespace {

using ::testing::HasSubstr;

class ContextSchedulingTest : public SchedulerTest {
 protected:
  ContextSchedulingTest() { options_.context_opening = {7}; }
  BackendRequest WithContexts(const std::string& repair = "prefix:8") const {
    BackendRequest request = Request(2000);
    for (size_t i = 0; i < request.token_ids.size(); ++i) request.token_ids[i] = static_cast<int32_t>(i % 900);
    request.contexts = {{100, 800}, {1000, 700}};
    request.repair = repair;
    return request;
  }
  std::vector<v1::PrefillRequest> PrefillCalls() {
    std::vector<v1::PrefillRequest> calls;
    for (auto& node : prefill_) {
      for (const v1::PrefillRequest& call : node.service.calls()) calls.push_back(call);
    }
    return calls;
  }
  // The first calls lack a context.
  void Lack(int calls) {
    SetFates([calls, called = std::make_shared<std::atomic<int>>(0)](int, int) {
      return (*called)++ < calls ? Fate{.tokens = -1, .status = absl::NotFoundError("context 0 of 2 is not stored")}
                                 : Fate();
    });
  }
};

TEST_F(ContextSchedulingTest, StoredContextsGoStraightToADecodeNodeHoweverLong) {
  Start(1, 1);
  decode_[0].service.running = 7;  // A prefill node would have time for it.
  ASSERT_TRUE(Becomes([&] { return nodes_->Usable(Role::kDecode)[0]->info()->load().running() == 7; }));
  const BackendRequest request = WithContexts();
  ExpectWhole(Run(request), request);
  EXPECT_TRUE(PrefillCalls().empty());
  ASSERT_EQ(decode_[0].service.calls().size(), 1u);
  const v1::GenerateRequest call = decode_[0].service.calls()[0];
  EXPECT_EQ(call.repair(), "prefix:8");
  EXPECT_EQ(call.token_ids_size(), 2000);
  ASSERT_EQ(call.contexts_size(), 2);
  EXPECT_EQ(call.contexts(0).begin(), 100u);
  EXPECT_EQ(call.contexts(0).tokens(), 800u);
  EXPECT_EQ(call.contexts(1).begin(), 1000u);
  EXPECT_EQ(call.contexts(1).tokens(), 700u);
  EXPECT_LT(call.max_compute_tokens(), 800u);
  EXPECT_EQ(backend_->stats().contexts, 1u);
}

TEST_F(ContextSchedulingTest, ContextsThatAreNotStoredArePrefilledAloneEachBehindTheOpening) {
  Start(1, 2);
  Lack(1);
  const BackendRequest request = WithContexts();
  const Got got = Run(request);
  ExpectWhole(got, request);
  EXPECT_EQ(DecodeCalls(), 2u);
  std::vector<v1::PrefillRequest> calls = PrefillCalls();
  ASSERT_EQ(calls.size(), 2u);
  std::sort(calls.begin(), calls.end(), [](const auto& a, const auto& b) {
    return a.segments(0).tokens().ids_size() > b.segments(0).tokens().ids_size();
  });
  for (size_t i = 0; i < 2; ++i) {
    ASSERT_EQ(calls[i].segments_size(), 1);
    const auto& ids = calls[i].segments(0).tokens().ids();
    const ContextSpan& span = request.contexts[i];
    ASSERT_EQ(ids.size(), span.tokens + 1);
    EXPECT_EQ(ids[0], 7);
    EXPECT_TRUE(std::equal(ids.begin() + 1, ids.end(), request.token_ids.begin() + span.begin));
    EXPECT_TRUE(calls[i].whole());
    EXPECT_TRUE(calls[i].no_bos());
    EXPECT_FALSE(calls[i].background());
    EXPECT_EQ(calls[i].scope().tenant(), "t");
  }
  EXPECT_EQ(backend_->stats().contexts_prefilled, 2u);
}

TEST_F(ContextSchedulingTest, OfASliceTheWholeSourceIsPrefilled) {
  Start(1, 1);
  Lack(1);
  BackendRequest request = WithContexts();
  request.contexts = {{100, 800, std::make_shared<const std::vector<int32_t>>(1500, 3), 40}};
  ExpectWhole(Run(request), request);
  ASSERT_EQ(PrefillCalls().size(), 1u);
  EXPECT_EQ(PrefillCalls()[0].segments(0).tokens().ids_size(), 1501);
  const v1::GenerateRequest call = decode_[0].service.calls()[1];
  EXPECT_EQ(call.contexts(0).source_size(), 1500);
  EXPECT_EQ(call.contexts(0).source_begin(), 40u);
}

TEST_F(ContextSchedulingTest, APrefillNodeThatDiesWithAContextIsReplaced) {
  Start(1, 2);
  Lack(1);
  std::atomic<bool> failed{false};
  for (auto& node : prefill_) {
    node.service.fate = [&](int, const auto&) {
      return failed.exchange(true) ? absl::OkStatus() : absl::UnavailableError("it is going down");
    };
  }
  const BackendRequest request = WithContexts();
  ExpectWhole(Run(request), request);
  EXPECT_EQ(PrefillCalls().size(), 3u);
}

TEST_F(ContextSchedulingTest, WithoutPrefillNodesADecodeNodeMayComputeTheContexts) {
  Start(1, 0);
  const BackendRequest request = WithContexts();
  ExpectWhole(Run(request), request);
  EXPECT_EQ(decode_[0].service.calls().back().max_compute_tokens(), static_cast<uint32_t>(INT32_MAX));
}

TEST_F(ContextSchedulingTest, ACallerWhoIsGoneEndsThePrefills) {
  Start(1, 1);
  Lack(1);
  std::atomic<bool> hung_up{false};
  prefill_[0].service.fate = [&](int, const auto&) {
    hung_up = true;
    return absl::OkStatus();
  };
  const Got got = Run(WithContexts(), [&] { return hung_up.load(); });
  EXPECT_EQ(got.usage.status().code(), absl::StatusCode::kCancelled) << got.usage.status();
}

TEST_F(ContextSchedulingTest, TheNextRequestGoesWhereTheContextsAre) {
  Start(3, 0);
  const BackendRequest request = WithContexts();
  ExpectWhole(Run(request), request);
  BackendRequest other = request;
  other.token_ids.resize(1900);  // Another question behind the same contexts.
  ExpectWhole(Run(other), other);
  for (auto& node : decode_) EXPECT_NE(node.service.calls().size(), 1u);
}

TEST_F(ContextSchedulingTest, SpansOutsideThePromptAreRefused) {
  Start(1, 0);
  for (const ContextSpan& span : {ContextSpan{-1, 5}, ContextSpan{5, 0}, ContextSpan{1990, 11}}) {
    BackendRequest request = WithContexts();
    request.contexts = {span};
    EXPECT_EQ(Run(request).usage.status().code(), absl::StatusCode::kInvalidArgument) << span.begin;
  }
  EXPECT_EQ(DecodeCalls(), 0u);
}

TEST_F(ContextSchedulingTest, PrefillAheadGoesToTheNodeThatHasLeastToDo) {
  Start(1, 2);
  nodes_->Usable(Role::kPrefill)[0]->prefill_tokens += 1000;
  EXPECT_TRUE(backend_->PrefillAhead("t", {1, 2, 3}, nullptr).ok());
  nodes_->Usable(Role::kPrefill)[0]->prefill_tokens -= 1000;
  EXPECT_EQ(prefill_[0].service.calls().size() + prefill_[1].service.calls().size(), 1u);
  EXPECT_EQ(prefill_[1].service.calls().size(), 1u);
}

TEST_F(ContextSchedulingTest, APrefillNodeThatStopsHangsOrHasNoRoomMeansLater) {
  Start(1, 1);
  prefill_[0].service.fate = [](int call, const auto&) {
    return call == 0 ? absl::CancelledError("stopping") : absl::ResourceExhaustedError("no room");
  };
  EXPECT_TRUE(absl::IsUnavailable(backend_->PrefillAhead("t", {1}, nullptr)));
  ASSERT_TRUE(Becomes([&] { return nodes_->Usable(Role::kPrefill).size() == 1; }));
  EXPECT_TRUE(absl::IsResourceExhausted(backend_->PrefillAhead("t", {1}, nullptr)));
  prefill_[0].service.silent = true;
  EXPECT_TRUE(absl::IsUnavailable(backend_->PrefillAhead("t", {1}, nullptr)));
}

TEST_F(ContextSchedulingTest, AContextThatNobodyWantsIsGivenUpAtTheNodeToo) {
  Start(1, 1);
  FakePrefill& node = prefill_[0].service;
  node.silent = true;
  EXPECT_TRUE(absl::IsCancelled(backend_->PrefillAhead("t", {1}, [&] { return !node.calls().empty(); })));
  EXPECT_TRUE(Becomes([&] { return node.cancelled > 0; }));
}

TEST_F(ContextSchedulingTest, PrefillAheadIsInTheBackgroundAndSaysWhyItCannot) {
  Start(1, 1);
  ASSERT_TRUE(backend_->PrefillAhead("t", {1, 2, 3}, nullptr).ok());
  ASSERT_EQ(PrefillCalls().size(), 1u);
  const v1::PrefillRequest call = PrefillCalls()[0];
  EXPECT_TRUE(call.background());
  EXPECT_TRUE(call.whole());
  EXPECT_EQ(call.segments(0).tokens().ids_size(), 4);
  prefill_[0].Die();
  ASSERT_TRUE(Becomes([&] { return nodes_->Usable(Role::kPrefill).empty(); }));
  const absl::Status status = backend_->PrefillAhead("t", {1, 2, 3}, nullptr);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("no prefill node"));
}

}  // namespace
}  // namespace perigee::cluster
