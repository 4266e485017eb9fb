// Contexts that are computed ahead of any request: behind every prompt that somebody waits for.
#include <gtest/gtest.h>

#include <thread>

#include "nodes.h"
#include "prefill_node/prefill_node.h"

namespace perigee {
namespace {

class BackgroundTest : public ::testing::Test {
 protected:
  BackgroundTest()
      : store_(StartStore(uint64_t{96} << 20)),
        node_(StartNode("", store_->address())),
        prefill_(node_.get(), {.chunk_tokens = 64}) {}

  struct Ended {
    absl::Status status;
    absl::Time at;
    v1::PrefillResponse response;
  };
  Ended Run(const std::vector<int32_t>& ids, bool background, const std::function<bool()>& cancelled = nullptr) {
    v1::PrefillRequest request = SegmentsOf({ids});
    request.set_background(background);
    request.set_whole(background);
    Ended ended;
    ended.status = prefill_.Prefill(request, absl::Now() + absl::Seconds(60), &ended.response, cancelled);
    ended.at = absl::Now();
    return ended;
  }

  std::unique_ptr<kvstore::StoreServer> store_;
  std::unique_ptr<node::Node> node_;
  prefill_node::PrefillNode prefill_;
};

TEST_F(BackgroundTest, APromptThatSomebodyWaitsForGoesFirst) {
  Ended awaited, background;
  std::thread waits([&] { awaited = Run(Ids(3000, 1), false); });
  ASSERT_TRUE(Becomes([&] { return prefill_.running() == 1; }));
  std::thread ahead([&] { background = Run(Ids(300, 2), true); });
  waits.join();
  ahead.join();
  ASSERT_TRUE(awaited.status.ok()) << awaited.status;
  ASSERT_TRUE(background.status.ok()) << background.status;
  EXPECT_GE(background.at, awaited.at) << "ten times shorter, and yet later";
  EXPECT_EQ(background.response.prefilled_tokens(), 300u);
}

TEST_F(BackgroundTest, WhoeverNeedsTheSameBlocksDoesNotWaitForWhatLetsOthersGoFirst) {
  const std::vector<int32_t> ids = Ids(1500, 3);
  Ended awaited, background;
  std::thread ahead([&] { background = Run(ids, true); });
  ASSERT_TRUE(Becomes([&] { return prefill_.running() == 1; }));
  std::thread waits([&] { awaited = Run(ids, false); });
  waits.join();
  ahead.join();
  EXPECT_TRUE(awaited.status.ok()) << awaited.status;
  EXPECT_TRUE(background.status.ok()) << background.status;
  EXPECT_EQ(Run(ids, true).response.prefilled_tokens(), 0u);
}

TEST_F(BackgroundTest, WhatNobodyWantsAnyMoreEndsWhileItWaits) {
  Ended awaited, background;
  std::thread waits([&] { awaited = Run(Ids(3000, 4), false); });
  ASSERT_TRUE(Becomes([&] { return prefill_.running() == 1; }));
  background = Run(Ids(300, 5), true, [] { return true; });
  EXPECT_TRUE(absl::IsCancelled(background.status)) << background.status;
  waits.join();
  EXPECT_TRUE(awaited.status.ok()) << awaited.status;
}

}  // namespace
}  // namespace perigee
