// One request through a cluster whose nodes fail, hang, lack planes, drain and come back.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "scheduler_testing.h"

namespace perigee::cluster {
namespace {

using ::testing::HasSubstr;

TEST_F(SchedulerTest, AShortPromptGoesStraightToADecodeNode) {
  Start(1, 1);
  BackendRequest request = Request();
  request.temperature = 0.5;
  request.top_p = 0.25;
  request.top_k = 9;
  request.stop = {"x"};
  request.ignore_eos = true;
  request.salt = "s";
  ExpectWhole(Run(request), request);
  EXPECT_TRUE(prefill_[0].service.calls().empty());
  ASSERT_EQ(decode_[0].service.calls().size(), 1u);
  const v1::GenerateRequest call = decode_[0].service.calls()[0];
  EXPECT_EQ(call.scope().tenant(), "t");
  EXPECT_EQ(call.scope().salt(), "s");
  EXPECT_EQ(call.token_ids_size(), 100);
  EXPECT_EQ(call.max_tokens(), 20u);
  EXPECT_EQ(call.seed(), 40u);
  EXPECT_FLOAT_EQ(call.temperature(), 0.5f);
  EXPECT_FLOAT_EQ(call.top_p(), 0.25f);
  EXPECT_EQ(call.top_k(), 9u);
  EXPECT_EQ(call.stop(0), "x");
  EXPECT_TRUE(call.ignore_eos());
  EXPECT_TRUE(call.store_answer());
  EXPECT_EQ(call.answered_tokens(), 0u);
  EXPECT_GE(call.max_compute_tokens(), 100u);
  EXPECT_EQ(backend_->stats().direct, 1u);
}

TEST_F(SchedulerTest, ALongPromptIsPrefilledFirstInItsSegments) {
  Start(1, 1);
  BackendRequest request = Request(2000);
  request.branch_points = {500, 400, 3000};  // In whatever order; what lies beyond the prompt is its end.
  ExpectWhole(Run(request), request);
  ASSERT_EQ(prefill_[0].service.calls().size(), 1u);
  const v1::PrefillRequest call = prefill_[0].service.calls()[0];
  ASSERT_EQ(call.segments_size(), 2);
  EXPECT_EQ(call.segments(0).tokens().ids_size(), 500);
  EXPECT_EQ(call.segments(1).tokens().ids_size(), 1500);
  EXPECT_EQ(backend_->stats().prefilled, 1u);
  // Its next turn goes to the node that has it.
  BackendRequest again = Request(2000);
  ExpectWhole(Run(again), again);
  EXPECT_EQ(prefill_[0].service.calls().size(), 1u);
}

TEST_F(SchedulerTest, AnAnswerThatBreaksOffIsContinuedElsewhereFromEveryPoint) {
  Start(2, 0);
  for (int cut = -1; cut <= 20; ++cut) {
    SCOPED_TRACE(cut);
    std::atomic<bool> broken{false};
    SetFates([&](int, int) {
      return broken.exchange(true) ? Fate() : Fate{.tokens = cut, .status = absl::UnavailableError("it is gone")};
    });
    ASSERT_TRUE(Becomes([&] { return Usable() == 2; }));
    const BackendRequest request = Request();
    ExpectWhole(Run(request), request);
  }
  const ClusterBackendStats stats = backend_->stats();
  EXPECT_EQ(stats.retries, 22u);
  EXPECT_EQ(stats.resumed, 20u);
}

TEST_F(SchedulerTest, AnAnswerSurvivesManyNodes) {
  Start(4, 0);
  SetFates([](int, int call) { return Fate{.tokens = call == 0 ? 5 : INT_MAX, .status = absl::InternalError("bug")}; });
  const BackendRequest request = Request();
  ExpectWhole(Run(request), request);
  EXPECT_EQ(DecodeCalls(), 5u);  // The last one only says that this is all.
}

TEST_F(SchedulerTest, AnAnswerThatIsWholeNeedsNoGoodEnd) {
  Start(1, 0);
  SetFates([](int, int) { return Fate{.tokens = 1000, .status = absl::UnavailableError("it is gone")}; });
  const BackendRequest request = Request();
  ExpectWhole(Run(request), request);
  EXPECT_EQ(DecodeCalls(), 1u);
}

TEST_F(SchedulerTest, SeveralSamplesAreResumedOneByOne) {
  Start(2, 0);
  std::atomic<bool> broken{false};
  SetFates([&](int, int) {
    return broken.exchange(true) ? Fate() : Fate{.tokens = 7, .status = absl::UnavailableError("it is gone")};
  });
  const BackendRequest request = Request(100, 10, 4);
  ExpectWhole(Run(request), request);
  std::vector<v1::GenerateRequest> calls = decode_[0].service.calls();
  const std::vector<v1::GenerateRequest> others = decode_[1].service.calls();
  calls.insert(calls.end(), others.begin(), others.end());
  ASSERT_EQ(calls.size(), 5u);
  std::map<uint64_t, uint32_t> answered;
  for (const v1::GenerateRequest& call : calls) {
    if (call.samples() == 4) continue;
    EXPECT_EQ(call.samples(), 1u);
    answered[call.seed()] = call.answered_tokens();
  }
  EXPECT_THAT(answered, ::testing::ElementsAre(::testing::Pair(40, 2), ::testing::Pair(41, 2), ::testing::Pair(42, 2),
                                               ::testing::Pair(43, 1)));
}

TEST_F(SchedulerTest, MissingPlanesArePrefilled) {
  Start(2, 1);
  std::atomic<bool> missed{false};
  SetFates([&](int, int) {
    return missed.exchange(true) ? Fate() : Fate{.tokens = -1, .status = absl::NotFoundError("block 1: evicted")};
  });
  const BackendRequest request = Request(200);
  ExpectWhole(Run(request), request);
  EXPECT_EQ(prefill_[0].service.calls().size(), 1u);
  EXPECT_EQ(DecodeCalls(), 2u);
}

TEST_F(SchedulerTest, APrefillNodeThatFailsIsReplaced) {
  Start(1, 2);
  for (auto& node : prefill_) {
    node.service.fate = [&](int call, const auto&) {
      const size_t calls = prefill_[0].service.calls().size() + prefill_[1].service.calls().size();
      return calls == 1 ? absl::ResourceExhaustedError("full") : absl::OkStatus();
    };
  }
  const BackendRequest request = Request(2000);
  ExpectWhole(Run(request), request);
  EXPECT_EQ(prefill_[0].service.calls().size(), 1u);
  EXPECT_EQ(prefill_[1].service.calls().size(), 1u);
}

TEST_F(SchedulerTest, WithoutPrefillNodesTheDecodeNodesDoItAll) {
  Start(1, 1);
  prefill_[0].Die();
  const BackendRequest request = Request(2000);
  ExpectWhole(Run(request), request);
  EXPECT_EQ(decode_[0].service.calls().back().max_compute_tokens(), static_cast<uint32_t>(INT32_MAX));
}

TEST_F(SchedulerTest, ANodeThatHangsIsGivenUp) {
  Start(2, 0);
  // The first one asked says some tokens, and then nothing more, nor to those who ask how it is.
  SetFates([&](int node, int call) {
    auto& me = decode_[static_cast<size_t>(node)].service;
    if (decode_[0].service.calls().size() + decode_[1].service.calls().size() > 1) return Fate();
    me.silent = true;
    return Fate{.tokens = 4, .status = absl::OkStatus(), .hangs = true};
  });
  const absl::Time start = absl::Now();
  const BackendRequest request = Request();
  ExpectWhole(Run(request), request);
  EXPECT_LT(absl::Now() - start, absl::Seconds(10));
  EXPECT_TRUE(Becomes([&] { return decode_[0].service.cancelled + decode_[1].service.cancelled > 0; }));
  EXPECT_EQ(DecodeCalls(), 2u);
}

TEST_F(SchedulerTest, APrefillNodeThatHangsIsGivenUp) {
  Start(1, 1);
  prefill_[0].service.silent = true;
  const BackendRequest request = Request(2000);
  ExpectWhole(Run(request), request);
}

TEST_F(SchedulerTest, ACallerWhoIsGoneEndsTheCallAtTheNode) {
  Start(1, 0);
  SetFates([](int, int) { return Fate{.tokens = 4, .status = absl::OkStatus(), .hangs = true}; });
  Got got = Run(Request(), [&] { return true; });
  EXPECT_TRUE(absl::IsCancelled(got.usage.status())) << got.usage.status();
  EXPECT_TRUE(Becomes([&] { return decode_[0].service.cancelled == 1; }));
  // Or who hangs up on an event.
  got = Run(
      Request(), [] { return false; }, [] { return false; });
  EXPECT_TRUE(absl::IsCancelled(got.usage.status())) << got.usage.status();
  EXPECT_EQ(got.tokens[0], 1u);
  EXPECT_TRUE(Becomes([&] { return decode_[0].service.cancelled == 2; }));
  EXPECT_EQ(DecodeCalls(), 2u);
  EXPECT_EQ(backend_->stats().retries, 0u);
}

TEST_F(SchedulerTest, ACallerWhoHangsUpOnTheLastEventIsGoneToo) {
  Start(1, 0);
  int events = 0;
  const Got got = Run(
      Request(100, 3), [] { return false; }, [&] { return ++events < 4; });
  EXPECT_TRUE(absl::IsCancelled(got.usage.status())) << got.usage.status();
}

TEST_F(SchedulerTest, ACallerWhoIsGoneEndsTheCallAtThePrefillNode) {
  Start(1, 1);
  prefill_[0].service.silent = true;  // Not gone yet: it answered a moment ago.
  const Got got = Run(Request(2000), [&] { return !prefill_[0].service.calls().empty(); });
  EXPECT_TRUE(absl::IsCancelled(got.usage.status())) << got.usage.status();
  EXPECT_TRUE(Becomes([&] { return prefill_[0].service.cancelled > 0; }));
  EXPECT_EQ(DecodeCalls(), 0u);
}

TEST_F(SchedulerTest, TheDeadlineHoldsForANodeThatIsWellAndSaysNothing) {
  Start(1, 0);
  SetFates([](int, int) { return Fate{.tokens = 0, .status = absl::OkStatus(), .hangs = true}; });
  BackendRequest request = Request();
  request.deadline = absl::Now() + absl::Milliseconds(300);
  const absl::Time start = absl::Now();
  const Got got = Run(request);
  EXPECT_TRUE(absl::IsDeadlineExceeded(got.usage.status())) << got.usage.status();
  EXPECT_LT(absl::Now() - start, absl::Seconds(5));
  EXPECT_TRUE(Becomes([&] { return decode_[0].service.cancelled == 1; }));
}

TEST_F(SchedulerTest, WhenAllNodesAreDownTheRequestIsUnavailableBeforeItsTime) {
  Start(2, 1);
  for (auto& node : decode_) node.Die();
  prefill_[0].Die();
  const absl::Time start = absl::Now();
  const Got got = Run(Request());
  EXPECT_TRUE(absl::IsUnavailable(got.usage.status())) << got.usage.status();
  EXPECT_LT(absl::Now() - start, absl::Seconds(15));
  EXPECT_TRUE(got.text.empty());
}

TEST_F(SchedulerTest, ANodeThatIsTheOnlyOneIsTriedAgain) {
  Start(1, 0);
  SetFates([](int, int call) {
    return call < 3 ? Fate{.tokens = 2 * call, .status = absl::UnavailableError("not now")} : Fate();
  });
  const BackendRequest request = Request();
  ExpectWhole(Run(request), request);
  EXPECT_EQ(DecodeCalls(), 4u);
}

TEST_F(SchedulerTest, WhatIsWrongWithTheRequestIsNotTriedAgain) {
  Start(2, 0);
  SetFates([](int, int) { return Fate{.tokens = -1, .status = absl::InvalidArgumentError("temperature is -1")}; });
  const Got got = Run(Request());
  EXPECT_TRUE(absl::IsInvalidArgument(got.usage.status())) << got.usage.status();
  EXPECT_THAT(std::string(got.usage.status().message()), HasSubstr("temperature is -1"));
  EXPECT_EQ(DecodeCalls(), 1u);
  EXPECT_EQ(Usable(), 2u);  // And is not the node's fault.

  // Nodes that a store lets not in are not the caller's fault.
  SetFates([](int, int) { return Fate{.tokens = -1, .status = absl::UnauthenticatedError("the store asks")}; });
  EXPECT_TRUE(absl::IsInternal(Run(Request()).usage.status()));
  EXPECT_EQ(DecodeCalls(), 2u);

  BackendRequest empty = Request(0);
  EXPECT_TRUE(absl::IsInvalidArgument(Run(empty).usage.status()));
  BackendRequest longer = Request(4000, 97);
  EXPECT_TRUE(absl::IsInvalidArgument(Run(longer).usage.status()));
  EXPECT_EQ(DecodeCalls(), 2u);
}

TEST_F(SchedulerTest, DrainingNodesGetNothingNew) {
  Start(3, 0);
  decode_[0].service.draining = true;                                   // It says so itself,
  ASSERT_TRUE(membership_->SetState("d1", NodeState::kDraining).ok());  // or the operator does.
  ASSERT_TRUE(Becomes([&] { return Usable() == 1; }));
  for (int i = 0; i < 5; ++i) {
    const BackendRequest request = Request();
    ExpectWhole(Run(request), request);
  }
  EXPECT_EQ(decode_[2].service.calls().size(), 5u);
  decode_[2].service.draining = true;
  ASSERT_TRUE(Becomes([&] { return Usable() == 0; }));
  EXPECT_TRUE(absl::IsUnavailable(Run(Request()).usage.status()));
  EXPECT_EQ(DecodeCalls(), 5u);
  decode_[0].service.draining = false;
  ASSERT_TRUE(Becomes([&] { return Usable() == 1; }));
  const BackendRequest request = Request();
  ExpectWhole(Run(request), request);
}

TEST_F(SchedulerTest, WithoutADecodeNodeNothingIsReady) {
  Start(0, 1);
  EXPECT_TRUE(absl::IsUnavailable(backend_->Ready()));
  EXPECT_TRUE(absl::IsUnavailable(Run(Request()).usage.status()));
  FakeMember<FakeDecode> late;
  late.Start(*membership_, "late", Role::kDecode);
  EXPECT_TRUE(Becomes([&] { return backend_->Ready().ok(); }));
  const BackendRequest request = Request();
  ExpectWhole(Run(request), request);
  late.Die();
  EXPECT_TRUE(Becomes([&] { return absl::IsUnavailable(backend_->Ready()); }));
  nodes_ = nullptr;  // Before the node goes.
  backend_ = nullptr;
}

TEST_F(SchedulerTest, ANodeWithAnotherTokenizerGetsNothing) {
  options_.tokenizer_digest = "another tokenizer";
  Start(1, 0);
  EXPECT_THAT(backend_->Ready().message(), HasSubstr("decode node d0 has another tokenizer"));
  EXPECT_TRUE(absl::IsUnavailable(Run(Request()).usage.status()));
  EXPECT_EQ(DecodeCalls(), 0u);
}

TEST_F(SchedulerTest, ANodeThatHasLeftFinishesItsAnswer) {
  Start(1, 0);
  SetFates([&](int, int) {
    EXPECT_TRUE(membership_->Remove("d0").ok());
    EXPECT_TRUE(Becomes([&] { return nodes_->All(Role::kDecode).empty(); }));
    const absl::Time left = absl::Now();
    EXPECT_TRUE(Becomes([&] { return absl::Now() - left > 2 * kGoneAfter; }));
    return Fate();
  });
  const BackendRequest request = Request();
  ExpectWhole(Run(request), request);
  EXPECT_EQ(DecodeCalls(), 1u);
}

TEST_F(SchedulerTest, ABurstIsSpreadOverTheDecodeNodes) {
  Start(2, 1);
  constexpr size_t kBurst = 8;
  // All are with the prefill node before the first comes to a decode node.
  prefill_[0].service.fate = [&](int, const auto&) {
    EXPECT_TRUE(Becomes([&] { return prefill_[0].service.calls().size() == kBurst; }));
    return absl::OkStatus();
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < kBurst; ++i) {
    threads.emplace_back([&] {
      const auto usage = backend_->Complete(
          Request(2000), [](const BackendEvent&) { return true; }, [] { return false; });
      EXPECT_TRUE(usage.ok()) << usage.status();
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(decode_[0].service.calls().size(), kBurst / 2);
  EXPECT_EQ(decode_[1].service.calls().size(), kBurst / 2);
}

TEST_F(SchedulerTest, RoomAtAPrefillNodeIsWaitedFor) {
  options_.max_attempts = 2;
  Start(2, 1);
  prefill_[0].service.fate = [&](int call, const auto&) {
    return call < 5 ? absl::ResourceExhaustedError("full") : absl::OkStatus();
  };
  const BackendRequest request = Request(2000);
  ExpectWhole(Run(request), request);
  EXPECT_EQ(prefill_[0].service.calls().size(), 6u);
  EXPECT_EQ(DecodeCalls(), 1u) << "its room is for answers";
}

TEST_F(SchedulerTest, WhenNoRoomComesTheClusterIsBusy) {
  options_.queue.max_wait = absl::Milliseconds(200);
  Start(2, 0);
  SetFates([](int, int) { return Fate{.tokens = -1, .status = absl::ResourceExhaustedError("the pool is full")}; });
  const Got got = Run(Request());
  EXPECT_TRUE(absl::IsResourceExhausted(got.usage.status())) << got.usage.status();
  EXPECT_THAT(got.usage.status().message(), HasSubstr("busy"));
  EXPECT_GT(DecodeCalls(), 2u);
}

TEST_F(SchedulerTest, ARequestThatWaitsTakesAPlaceOfANodeThatComes) {
  Start(1, 0);
  SetFates([](int, int) { return Fate{.tokens = 0, .status = absl::OkStatus(), .hangs = true}; });
  std::atomic<bool> gone{false};
  std::vector<std::thread> hanging;
  const auto complete = [&](const std::function<bool()>& cancelled) {
    return backend_
        ->Complete(
            Request(), [](const BackendEvent&) { return true; }, cancelled)
        .status();
  };
  for (int i = 0; i < 8; ++i) {  // The node's places.
    hanging.emplace_back([&] { EXPECT_TRUE(absl::IsCancelled(complete([&] { return gone.load(); }))); });
  }
  EXPECT_TRUE(Becomes([&] { return backend_->stats().serving == 8; }));
  absl::Status status = absl::UnknownError("waiting");
  std::thread waiting([&] { status = complete([] { return false; }); });
  EXPECT_TRUE(Becomes([&] { return backend_->stats().waiting == 1; }));
  FakeMember<FakeDecode> late;
  late.Start(*membership_, "late", Role::kDecode);
  waiting.join();
  EXPECT_TRUE(status.ok()) << status;
  gone = true;
  for (std::thread& thread : hanging) thread.join();
  nodes_ = nullptr;  // Before the node goes.
  backend_ = nullptr;
}

TEST_F(SchedulerTest, ManyRequestsWhileNodesBreakOffAreAllWhole) {
  options_.max_attempts = 100;
  Start(3, 1);
  std::atomic<int> calls{0};
  SetFates([&](int, int) {
    const int n = calls++;
    return n % 3 == 0 ? Fate{.tokens = n % 11, .status = absl::UnavailableError("it is gone")} : Fate();
  });
  std::vector<std::thread> threads;
  for (int t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 10; ++i) {
        BackendRequest request = Request(50 + static_cast<size_t>(t), 12, 1 + static_cast<uint32_t>(i % 2));
        request.tenant = absl::StrCat("t", t % 2);
        Got got;
        got.usage = backend_->Complete(
            request,
            [&](const BackendEvent& event) {
              got.text[event.sample] += event.text;
              got.tokens[event.sample] += event.tokens;
              if (!event.finish_reason.empty()) got.finished[event.sample].push_back(event.finish_reason);
              return true;
            },
            [] { return false; });
        ExpectWhole(got, request);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(backend_->stats().serving, 0u);
  for (const auto& node : nodes_->All(Role::kDecode)) EXPECT_EQ(node->requests, 0);
}

class ContextRepairTest : public SchedulerTest {
 protected:
  static model::MeasuredRepair Measured(absl::string_view repair) {
    const pod::Plan plan = *pod::Plan::Parse(*ReadFile(PERIGEE_SOURCE_DIR "/models/podling/plan.json"));
    model::MeasuredRepair measured;
    measured.model_fingerprint = plan.model_fingerprint();
    measured.plan_id = plan.id();
    measured.repair = *model::Repair::Parse(repair);
    return measured;
  }
  // As the decode node was asked: the repair, or "plain" where the prompt is text and nothing else.
  std::string Asked(const std::string& repair) {
    if (backend_ == nullptr) Start(1, 0);
    BackendRequest request = Request();
    request.contexts = {{10, 40}};
    request.repair = repair;
    ExpectWhole(Run(request), request);
    const v1::GenerateRequest call = decode_[0].service.calls().back();
    if (call.contexts_size() == 0) return call.repair().empty() ? "plain" : "a repair of nothing";
    EXPECT_EQ(call.contexts(0).begin(), 10u);
    EXPECT_EQ(call.contexts(0).tokens(), 40u);
    return call.repair();
  }
};

TEST_F(ContextRepairTest, WhatWasNotMeasuredIsComputedInFull) {
  EXPECT_EQ(Asked(""), "plain");
  EXPECT_EQ(Asked("prefix:8"), "prefix:8");
  EXPECT_EQ(Asked("full"), "plain");
}

TEST_F(ContextRepairTest, WhatWasMeasuredWithThisModelAndPlanIsTheDefault) {
  options_.measured_repair = Measured("prefix:16");
  EXPECT_EQ(Asked(""), "prefix:16");
  EXPECT_EQ(Asked("none"), "none");
  EXPECT_EQ(Asked("full"), "plain");
}

TEST_F(ContextRepairTest, WhatWasMeasuredWithAnotherModelDoesNotCount) {
  options_.measured_repair = Measured("none");
  options_.measured_repair->model_fingerprint[0] ^= 1;
  EXPECT_EQ(Asked(""), "plain");
}

TEST_F(ContextRepairTest, WhatWasMeasuredWithAnotherPlanDoesNotCount) {
  options_.measured_repair = Measured("none");
  options_.measured_repair->plan_id[0] ^= 1;
  EXPECT_EQ(Asked(""), "plain");
}

TEST_F(ContextRepairTest, TheOperatorsWordCountsBeforeWhatWasMeasured) {
  options_.measured_repair = Measured("prefix:16");
  options_.context_repair = *model::Repair::Parse("deviation:0.15");
  EXPECT_EQ(Asked(""), "deviation:0.15");
  EXPECT_EQ(Asked("none"), "none");
}

TEST_F(ContextRepairTest, ARepairThatIsNotUnderstoodIsRefusedBeforeAnyNodeIsAsked) {
  Start(1, 0);
  BackendRequest request = Request();
  request.contexts = {{10, 40}};
  request.repair = "perfect";
  EXPECT_EQ(Run(request).usage.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(decode_[0].service.calls().empty());
}

}  // namespace
}  // namespace perigee::cluster
