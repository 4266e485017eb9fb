// Several prompts at one prefill node: what two begin with alike is computed once, whoever fails or leaves.
#include "prefill_node/prefill_node.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "../node/faulty_control.h"
#include "../node/nodes.h"
#include "absl/synchronization/notification.h"

namespace perigee {
namespace {

class PrefillNodeTest : public ::testing::Test {
 protected:
  bool NothingIsHeld() const {
    return Becomes([&] {
      const kvstore::StoreStats stats = store_->store().Stats();
      return stats.leases == 0 && stats.reservations == 0 && node_->Info().pool_used_bytes() == 0 &&
             prefill_.running() == 0;
    });
  }
  Answer Ask(const std::vector<int32_t>& prompt) const {
    return Generate(decode_node::DecodeNode(node_.get()), AskFor(prompt, 8));
  }

  const std::unique_ptr<kvstore::StoreServer> store_ = StartStore(uint64_t{128} << 20);
  // Commits go through a hand that can hold them.
  FaultyControl control_{store_->address()};
  const std::unique_ptr<node::Node> node_ = StartNode("identity", control_.address());
  const prefill_node::PrefillNode prefill_{node_.get(), {.chunk_tokens = 256}};
};

struct Result {
  absl::Status status;
  v1::PrefillResponse response;
};

TEST_F(PrefillNodeTest, IdenticalPromptsAtOnceAreComputedOnce) {
  const auto prompt = Ids(1001, 1);
  constexpr int kRequests = 6;
  // The first commit waits until all requests are there.
  control_.on_commit = [&](int n, v1::CommitRequest*) {
    EXPECT_TRUE(n != 0 || Becomes([&] { return prefill_.tokens_ahead() == kRequests * 1000; }));
    return grpc::Status::OK;
  };
  std::vector<Result> results(kRequests);
  std::vector<std::thread> threads;
  for (Result& result : results) {
    threads.emplace_back([&] {
      result.status = prefill_.Prefill(SegmentsOf({prompt}), absl::Now() + absl::Seconds(60), &result.response);
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t computed = 0, written = 0;
  for (const Result& result : results) {
    EXPECT_TRUE(result.status.ok()) << result.status;
    computed += result.response.prefilled_tokens();
    written += result.response.bytes_written();
    EXPECT_EQ(result.response.token_ids_size(), 1001);
  }
  EXPECT_EQ(computed, 1000u);
  EXPECT_EQ(written, results[0].response.bytes_stored());
  EXPECT_TRUE(Ask(prompt).status.ok());
  EXPECT_TRUE(NothingIsHeld());
}

TEST_F(PrefillNodeTest, QuestionsAboutOneContextComputeItOnce) {
  const auto context = Ids(640, 1);
  constexpr int kRequests = 4;
  control_.on_commit = [&](int n, v1::CommitRequest*) {
    if (n == 0) Becomes([&] { return prefill_.running() == kRequests; });
    return grpc::Status::OK;
  };
  std::vector<Result> results(kRequests);
  std::vector<std::thread> threads;
  for (uint32_t i = 0; i < kRequests; ++i) {
    threads.emplace_back([&, i] {
      results[i].status = prefill_.Prefill(SegmentsOf({context, Ids(31, 10 + i)}), absl::Now() + absl::Seconds(60),
                                           &results[i].response);
    });
  }
  for (std::thread& thread : threads) thread.join();
  uint64_t computed = 0;
  for (const Result& result : results) {
    EXPECT_TRUE(result.status.ok()) << result.status;
    computed += result.response.prefilled_tokens();
  }
  EXPECT_EQ(computed, 640u + kRequests * 30u);
  EXPECT_TRUE(NothingIsHeld());
}

// With a plan that shares: near planes are stored only where somebody may go on.
class BranchTest : public ::testing::Test {
 protected:
  // What is reused of a text of so many tokens and, without a border that anybody names, others behind it.
  uint32_t Reused(int64_t text_tokens, uint32_t other) {
    std::vector<int32_t> prompt = Ids(1280, 1);
    prompt.resize(static_cast<size_t>(text_tokens));
    const std::vector<int32_t> rest = Ids(1311 - prompt.size(), other);
    prompt.insert(prompt.end(), rest.begin(), rest.end());
    v1::PrefillResponse response;
    const absl::Status status = prefill_.Prefill(SegmentsOf({prompt}), absl::Now() + absl::Seconds(60), &response);
    EXPECT_TRUE(status.ok()) << status;
    return response.reused_tokens();
  }
  const std::unique_ptr<kvstore::StoreServer> store_ = StartStore(uint64_t{128} << 20);
  const std::unique_ptr<node::Node> node_ = StartNode("", store_->address());
  const prefill_node::PrefillNode prefill_{node_.get(), {.branch_tokens = 128}};
};

TEST_F(BranchTest, AnotherQuestionGoesOnWhereTheTextEnds) {
  EXPECT_EQ(Reused(1280, 10), 0u);
  EXPECT_EQ(Reused(1280, 11), 1280u);
  EXPECT_EQ(Reused(1216, 12), 1216u);
}

TEST_F(BranchTest, WhereOnePromptLeftTheTextTheNextGoesOn) {
  EXPECT_EQ(Reused(1280, 10), 0u);
  EXPECT_LT(Reused(640, 11), 640u) << "nobody has gone on from there";
  EXPECT_EQ(Reused(640, 12), 640u);
}

TEST_F(PrefillNodeTest, WhenTheOneWhoComputesFailsAnotherTakesOver) {
  const auto prompt = Ids(1001, 1);
  control_.on_commit = [&](int n, v1::CommitRequest*) {
    if (n > 0) return grpc::Status::OK;
    Becomes([&] { return prefill_.running() == 3; });
    return grpc::Status(grpc::StatusCode::INTERNAL, "the disk is on fire");
  };
  std::vector<Result> results(3);
  std::vector<std::thread> threads;
  for (Result& result : results) {
    threads.emplace_back([&] {
      result.status = prefill_.Prefill(SegmentsOf({prompt}), absl::Now() + absl::Seconds(60), &result.response);
    });
  }
  for (std::thread& thread : threads) thread.join();
  int failed = 0;
  uint64_t computed = 0;
  for (const Result& result : results) {
    failed += result.status.ok() ? 0 : 1;
    if (result.status.ok()) computed += result.response.prefilled_tokens();
  }
  EXPECT_EQ(failed, 1);
  EXPECT_EQ(computed, 1000u);
  EXPECT_TRUE(Ask(prompt).status.ok());
  EXPECT_TRUE(NothingIsHeld());
}

TEST_F(PrefillNodeTest, ACallerWhoIsGoneLeavesNothingBehindWhateverItWasDoing) {
  const auto prompt = Ids(2001, 1);
  // At every point where it is asked.
  for (int after = 0; after < 40; ++after) {
    int asked = 0;
    v1::PrefillResponse response;
    const absl::Status status = prefill_.Prefill(SegmentsOf({prompt}, absl::StrCat("tenant ", after)),
                                                 absl::InfiniteFuture(), &response, [&] { return asked++ >= after; });
    if (status.ok()) {
      EXPECT_GT(after, 8);
      break;
    }
    EXPECT_TRUE(absl::IsCancelled(status)) << status;
    EXPECT_EQ(asked, after + 1);
  }
  EXPECT_TRUE(NothingIsHeld());
}

TEST_F(PrefillNodeTest, WhoWaitsForAnothersPrefillMayLeaveOrRunOutOfTime) {
  const auto prompt = Ids(600, 1);
  absl::Notification others_ended;
  control_.on_commit = [&](int n, v1::CommitRequest*) {
    if (n == 0) others_ended.WaitForNotificationWithTimeout(absl::Seconds(20));
    return grpc::Status::OK;
  };
  Result owner;
  std::thread thread(
      [&] { owner.status = prefill_.Prefill(SegmentsOf({prompt}), absl::Now() + absl::Seconds(60), &owner.response); });
  ASSERT_TRUE(Becomes([&] { return control_.commits > 0; }));
  v1::PrefillResponse response;
  absl::Status status = prefill_.Prefill(SegmentsOf({prompt}), absl::Now() + absl::Milliseconds(100), &response);
  EXPECT_TRUE(absl::IsDeadlineExceeded(status)) << status;
  int asked = 0;
  status = prefill_.Prefill(SegmentsOf({prompt}), absl::InfiniteFuture(), &response, [&] { return ++asked > 2; });
  EXPECT_TRUE(absl::IsCancelled(status)) << status;
  EXPECT_FALSE(others_ended.HasBeenNotified());
  others_ended.Notify();
  thread.join();
  EXPECT_TRUE(owner.status.ok()) << owner.status;
  EXPECT_TRUE(NothingIsHeld());
}

}  // namespace
}  // namespace perigee
