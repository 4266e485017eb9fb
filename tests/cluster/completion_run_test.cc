#include "cluster/gateway/completion_run.h"

#include <gtest/gtest.h>
#include <poll.h>

#include "fake_backend.h"

namespace perigee::cluster {
namespace {

BackendRequest Request(const std::string& salt, uint32_t max_tokens) {
  BackendRequest request;
  request.salt = salt;
  request.max_tokens = max_tokens;
  request.token_ids = {1, 2, 3, 4};
  return request;
}

// The next event, waited for.
std::optional<CompletionRun::Item> Next(CompletionRun& run) {
  for (;;) {
    auto item = run.Take();
    if (item || run.Result()) return item;
    pollfd fd = {run.event_fd(), POLLIN, 0};
    EXPECT_EQ(::poll(&fd, 1, 20'000), 1);
  }
}

std::unique_ptr<CompletionRun> Start(FakeBackend& backend, std::vector<BackendRequest> requests,
                                     const CompletionRun::Options& options = {}) {
  auto run = CompletionRun::Start(&backend, std::move(requests), options);
  EXPECT_TRUE(run.ok()) << run.status();
  return *std::move(run);
}

TEST(CompletionRunTest, ABackendWaitsForItsReader) {
  FakeBackend backend;
  const auto run = Start(backend, {Request("endless", 20'000)}, {.parallel_prompts = 1, .max_queued_bytes = 1000});
  int64_t taken = 0;
  for (; Next(*run); ++taken) {
    // An event weighs at least 64 bytes; one more may be on its way.
    ASSERT_LE(backend.words_said(), taken + 1000 / 64 + 3);
  }
  EXPECT_EQ(taken, 20'000);
  EXPECT_EQ((*run->Result())->completion_tokens, 20'000u);
}

TEST(CompletionRunTest, UsageIsTheSumOverPrompts) {
  FakeBackend backend;
  const auto run = Start(backend, {Request("", 2), Request("", 3), Request("", 4)}, {.parallel_prompts = 2});
  std::vector<int> words(3);
  while (const auto item = Next(*run)) ++words[item->prompt];
  EXPECT_EQ(words, (std::vector<int>{2, 3, 4}));
  const auto result = *run->Result();
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->prompt_tokens, 12u);
  EXPECT_EQ(result->cached_tokens, 6u);
  EXPECT_EQ(result->completion_tokens, 9u);
}

TEST(CompletionRunTest, TheFirstFailureEndsAllPrompts) {
  FakeBackend backend;
  const auto run = Start(backend, {Request("hang", 9), Request("down", 9), Request("", 9)}, {.parallel_prompts = 2});
  while (Next(*run)) {
  }
  EXPECT_TRUE(absl::IsUnavailable(run->Result()->status()));
  EXPECT_EQ(backend.cancelled(), 1);
  EXPECT_EQ(backend.seen().size(), 2u);  // The third was not begun.
}

TEST(CompletionRunTest, CancellingGivesTheReason) {
  FakeBackend backend;
  const auto run = Start(backend, {Request("hang", 9)});
  run->Cancel(absl::DeadlineExceededError("too late"));
  run->Cancel(absl::InternalError("later"));
  EXPECT_FALSE(Next(*run).has_value());
  EXPECT_TRUE(absl::IsDeadlineExceeded(run->Result()->status()));
}

TEST(CompletionRunTest, GoingAwayCancelsAndWaits) {
  FakeBackend backend;
  Start(backend, {Request("hang", 9), Request("endless", 2'000'000)}).reset();
  EXPECT_TRUE(backend.WaitRunning(0, absl::ZeroDuration()));
}

}  // namespace
}  // namespace perigee::cluster
