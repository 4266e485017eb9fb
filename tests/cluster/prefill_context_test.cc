// Contexts computed ahead by prefill nodes that fail, hang and are not there.
#include "cluster/scheduler/prefill_context.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/membership/static_membership.h"
#include "fake_nodes.h"

namespace perigee::cluster {
namespace {

class PrefillContextTest : public ::testing::Test {
 protected:
  void Start(size_t nodes) {
    prefill_ = std::vector<FakeMember<FakePrefill>>(nodes);
    for (size_t i = 0; i < nodes; ++i) prefill_[i].Start(*membership_, absl::StrCat("p", i), Role::kPrefill);
    nodes_ = std::make_unique<NodeSet>(
        membership_.get(), NodeSetOptions{.ask_every = absl::Milliseconds(20), .gone_after = absl::Milliseconds(400)});
    ASSERT_TRUE(Becomes([&] { return nodes_->Usable(Role::kPrefill).size() == nodes; }));
  }
  absl::Status Prefill(const std::function<bool()>& cancelled = [] { return false; }) {
    return PrefillContextTokens(*nodes_, "ann", {5, 6, 7}, cancelled);
  }

  const std::unique_ptr<StaticMembership> membership_ = StaticMembership::InMemory();
  std::vector<FakeMember<FakePrefill>> prefill_;
  std::unique_ptr<NodeSet> nodes_;
};

TEST_F(PrefillContextTest, ItIsAskedForInTheBackgroundForItsTenant) {
  Start(1);
  EXPECT_EQ(Prefill(), absl::OkStatus());
  const auto calls = prefill_[0].service.calls();
  ASSERT_EQ(calls.size(), 1u);
  EXPECT_TRUE(calls[0].background());
  EXPECT_EQ(calls[0].scope().tenant(), "ann");
  ASSERT_EQ(calls[0].segments_size(), 1);
  EXPECT_THAT(calls[0].segments(0).tokens().ids(), ::testing::ElementsAre(5, 6, 7));
}

TEST_F(PrefillContextTest, TheNodeThatHasLeastToDoIsAsked) {
  Start(2);
  nodes_->Usable(Role::kPrefill)[0]->prefill_tokens += 1000;
  EXPECT_EQ(Prefill(), absl::OkStatus());
  EXPECT_EQ(prefill_[0].service.calls().size() + prefill_[1].service.calls().size(), 1u);
  EXPECT_EQ(prefill_[1].service.calls().size(), 1u);
}

TEST_F(PrefillContextTest, ANodeThatIsNotThereHangsOrGivesUpMeansLater) {
  Start(0);
  EXPECT_TRUE(absl::IsUnavailable(Prefill()));
  Start(1);
  prefill_[0].service.fate = [](int call, const auto&) {
    return call == 0 ? absl::CancelledError("stopping") : absl::ResourceExhaustedError("no room");
  };
  EXPECT_TRUE(absl::IsUnavailable(Prefill()));
  EXPECT_TRUE(absl::IsResourceExhausted(Prefill()));
  prefill_[0].service.silent = true;
  EXPECT_TRUE(absl::IsUnavailable(Prefill()));
}

TEST_F(PrefillContextTest, WhatNobodyWantsIsGivenUpAtTheNodeToo) {
  Start(1);
  FakePrefill& node = prefill_[0].service;
  node.silent = true;
  EXPECT_TRUE(absl::IsCancelled(Prefill([&] { return !node.calls().empty(); })));
  EXPECT_TRUE(Becomes([&] { return node.cancelled > 0; }));
}

}  // namespace
}  // namespace perigee::cluster
