// A scheduler over fake nodes, and what a caller gets from it.
#ifndef PERIGEE_TESTS_CLUSTER_SCHEDULER_TESTING_H_
#define PERIGEE_TESTS_CLUSTER_SCHEDULER_TESTING_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cluster/membership/static_membership.h"
#include "cluster/scheduler/cluster_backend.h"
#include "fake_nodes.h"

namespace perigee::cluster {

inline constexpr absl::Duration kGoneAfter = absl::Milliseconds(400);

// What a caller got.
struct Got {
  absl::StatusOr<BackendUsage> usage = absl::UnknownError("not run");
  std::map<uint32_t, std::string> text;
  std::map<uint32_t, uint32_t> tokens;
  std::map<uint32_t, std::vector<std::string>> finished;
};

class SchedulerTest : public ::testing::Test {
 protected:
  // Nodes d0.. and p0..; then waits until they are known.
  void Start(int decode, int prefill) {
    decode_ = std::vector<FakeMember<FakeDecode>>(static_cast<size_t>(decode));
    prefill_ = std::vector<FakeMember<FakePrefill>>(static_cast<size_t>(prefill));
    for (size_t i = 0; i < decode_.size(); ++i) decode_[i].Start(*membership_, absl::StrCat("d", i), Role::kDecode);
    for (size_t i = 0; i < prefill_.size(); ++i) prefill_[i].Start(*membership_, absl::StrCat("p", i), Role::kPrefill);
    nodes_ = std::make_unique<NodeSet>(membership_.get(),
                                       NodeSetOptions{.ask_every = absl::Milliseconds(20), .gone_after = kGoneAfter});
    ASSERT_TRUE(Becomes([&] { return Usable() == decode_.size() + prefill_.size(); }));
    backend_ = std::make_unique<ClusterBackend>(nodes_.get(), nullptr, options_);
  }
  void TearDown() override {
    backend_ = nullptr;
    nodes_ = nullptr;
  }
  size_t Usable() const { return nodes_->Usable(Role::kDecode).size() + nodes_->Usable(Role::kPrefill).size(); }

  BackendRequest Request(size_t prompt_tokens = 100, uint32_t max_tokens = 20, uint32_t samples = 1) const {
    BackendRequest request{.request_id = "r",
                           .tenant = "t",
                           .salt = {},
                           .token_ids = std::vector<int32_t>(prompt_tokens, 3),
                           .branch_points = {},
                           .samples = samples,
                           .max_tokens = max_tokens,
                           .seed = 40,
                           .stop = {},
                           .deadline = absl::Now() + absl::Seconds(20)};
    return request;
  }
  Got Run(
      const BackendRequest& request, const std::function<bool()>& cancelled = [] { return false; },
      const std::function<bool()>& wants_more = [] { return true; }) {
    Got got;
    got.usage = backend_->Complete(
        request,
        [&](const BackendEvent& event) {
          got.text[event.sample] += event.text;
          got.tokens[event.sample] += event.tokens;
          if (!event.finish_reason.empty()) got.finished[event.sample].push_back(event.finish_reason);
          return wants_more();
        },
        cancelled);
    // Whatever happened, nothing of the request is left.
    EXPECT_EQ(backend_->stats().serving, 0u);
    EXPECT_EQ(backend_->stats().waiting, 0u);
    for (const Role role : {Role::kDecode, Role::kPrefill}) {
      for (const auto& node : nodes_->All(role)) {
        EXPECT_EQ(node->requests, 0) << node->id();
        EXPECT_EQ(node->prefill_tokens, 0) << node->id();
      }
    }
    return got;
  }
  // What all nodes together say to a request when nothing goes wrong.
  static void ExpectWhole(const Got& got, const BackendRequest& request) {
    ASSERT_TRUE(got.usage.ok()) << got.usage.status();
    for (uint32_t i = 0; i < request.samples; ++i) {
      std::vector<int32_t> ids = request.token_ids;
      std::string text;
      for (uint32_t n = 0; n < request.max_tokens; ++n) {
        ids.push_back(NextToken(ids, request.seed + i));
        text += TextOf(ids.back());
      }
      EXPECT_EQ(got.text.at(i), text) << i;
      EXPECT_EQ(got.tokens.at(i), request.max_tokens) << i;
      EXPECT_THAT(got.finished.at(i), ::testing::ElementsAre("length")) << i;
    }
    EXPECT_EQ(got.usage->prompt_tokens, request.token_ids.size());
    EXPECT_EQ(got.usage->completion_tokens, request.max_tokens * request.samples);
  }
  size_t DecodeCalls() {
    size_t calls = 0;
    for (auto& node : decode_) calls += node.service.calls().size();
    return calls;
  }
  void SetFates(const std::function<Fate(int node, int call)>& fate) {
    for (size_t i = 0; i < decode_.size(); ++i) {
      decode_[i].service.fate = [fate, i](int call, const auto&) { return fate(static_cast<int>(i), call); };
    }
  }

  ClusterBackendOptions options_;
  const std::unique_ptr<StaticMembership> membership_ = StaticMembership::InMemory();
  std::vector<FakeMember<FakeDecode>> decode_;
  std::vector<FakeMember<FakePrefill>> prefill_;
  std::unique_ptr<NodeSet> nodes_;
  std::unique_ptr<ClusterBackend> backend_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_TESTS_CLUSTER_SCHEDULER_TESTING_H_
