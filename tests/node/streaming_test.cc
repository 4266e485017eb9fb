// Both nodes while planes are on their way: what overlaps with what, and what is left when something breaks in between.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"
#include "faulty_control.h"
#include "node/prompt_fetch.h"
#include "nodes.h"
#include "prefill_node/prefill_node.h"

namespace perigee {
namespace {

using pod::PlaneKind;
using ::testing::HasSubstr;

bool PollUntil(const std::function<bool()>& true_at_last, absl::Duration within = absl::Seconds(20)) {
  for (const absl::Time end = absl::Now() + within; absl::Now() < end; absl::SleepFor(absl::Milliseconds(1))) {
    if (true_at_last()) return true;
  }
  return false;
}

v1::PrefillRequest PrefillOf(const std::vector<int32_t>& prompt) {
  v1::PrefillRequest request;
  request.add_segments()->mutable_tokens()->mutable_ids()->Assign(prompt.begin(), prompt.end());
  return request;
}
absl::StatusOr<v1::PrefillResponse> Prefill(const prefill_node::PrefillNode& node, const std::vector<int32_t>& prompt) {
  v1::PrefillResponse response;
  const absl::Status status = node.Prefill(PrefillOf(prompt), absl::Now() + absl::Seconds(60), &response);
  if (!status.ok()) return status;
  return response;
}
v1::GenerateRequest Ask(const std::vector<int32_t>& prompt, uint32_t max_tokens = 8) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->Assign(prompt.begin(), prompt.end());
  request.set_max_tokens(max_tokens);
  request.set_ignore_eos(true);
  return request;
}

class StreamingTest : public ::testing::TestWithParam<std::string> {
 protected:
  // A test's own store.
  const std::unique_ptr<kvstore::StoreServer> store_ = StartStore(uint64_t{64} << 20);
  std::unique_ptr<node::Node> StartNode(const kvstore::ClientOptions& client = {}) const {
    return StartNodeAt(store_->address(), client);
  }
  std::unique_ptr<node::Node> StartNodeAt(const std::string& store, const kvstore::ClientOptions& client = {}) const {
    return perigee::StartNode(GetParam(), store, size_t{64} << 20, client);
  }
  static std::vector<pod::BlockKey> KeysOf(const node::Node& node, const std::vector<int32_t>& prompt) {
    return pod::DeriveChain(node.model().IdentityFor("", ""), std::span(prompt).first(prompt.size() - 1));
  }
};

INSTANTIATE_TEST_SUITE_P(Plans, StreamingTest, ::testing::Values("identity", ""),
                         [](const auto& info) { return info.param.empty() ? "PodlingsPlan" : "IdentityPlan"; });

// Every group of sections is held back until the layer before the one that needs it has run, so each layer finds its
// bytes at the last moment, in memory that held something else before. A last block that is appended to is among them.
TEST_P(StreamingTest, EachLayerRunsAsSoonAsItsOwnSectionsAreHereAndReadsNoOthers) {
  const auto prompt = Ids(300, 1);
  const auto plain = StartNode();
  ASSERT_TRUE(Prefill(prefill_node::PrefillNode(plain.get(), {}), prompt).ok());

  absl::Mutex mu;
  int layers_run = 0;
  int batches = 0;
  bool late = false;
  kvstore::ClientOptions client;
  client.fetch_batch_bytes = 1;
  client.on_fetch_landed = [&](size_t group) {
    const auto ready = [&] { return layers_run >= static_cast<int>(group); };
    absl::MutexLock lock(&mu);
    ++batches;
    late |= !mu.AwaitWithTimeout(absl::Condition(&ready), absl::Seconds(20));
    return absl::OkStatus();
  };
  const auto held = StartNode(client);
  {
    const uint64_t all = held->planes().available_bytes();
    auto memory = held->planes().Allocate(all);
    ASSERT_TRUE(memory.ok()) << memory.status();
    std::memset(memory->get(), 0xFF, all);  // NaNs.
  }
  const auto run = [&](const node::Node& node, bool count_layers) {
    model::PlaneCache cache = node.NewCache();
    const auto keys = KeysOf(node, prompt);
    auto fetch = node::PromptFetch::Start(node, node.model().IdentityFor("", ""), keys, 299, cache);
    EXPECT_TRUE(fetch.ok()) << fetch.status();
    std::vector<float> all, logits;
    for (size_t step = 0; step < 3; ++step) {
      const int32_t token = prompt[299 - step];
      const absl::Status status = node.model().transformer().Forward(std::span(&token, 1), cache, model::Logits::kLast,
                                                                     &logits, [&](int layer) {
                                                                       absl::MutexLock lock(&mu);
                                                                       if (count_layers && step == 0)
                                                                         layers_run = layer + 1;
                                                                       return absl::OkStatus();
                                                                     });
      EXPECT_TRUE(status.ok()) << status;
      all.insert(all.end(), logits.begin(), logits.end());
    }
    return all;
  };
  const auto expected = run(*plain, false);
  EXPECT_EQ(run(*held, true), expected);
  EXPECT_FALSE(late);
  EXPECT_GT(batches, 1);
}

TEST_P(StreamingTest, StartedTellsTheTransferFromTheWaiting) {
  const auto prompt = Ids(400, 1);
  kvstore::ClientOptions client;
  client.on_fetch_landed = [](size_t) {
    absl::SleepFor(absl::Milliseconds(30));  // A slow wire.
    return absl::OkStatus();
  };
  const auto node = StartNode(client);
  ASSERT_TRUE(Prefill(prefill_node::PrefillNode(node.get(), {}), prompt).ok());
  const Answer answer = Generate(decode_node::DecodeNode(node.get()), Ask(prompt, 1));
  ASSERT_TRUE(answer.status.ok()) << answer.status;
  EXPECT_GE(answer.started.exposed_fetch_us(), 20000u);
  EXPECT_GE(answer.started.fetch_us(), 30000u);
  EXPECT_LT(answer.started.fetch_us(), answer.finished.first_token_us());
  EXPECT_GT(answer.started.acquire_us(), 0u);
}

TEST_P(StreamingTest, AWrongSectionInTheLastGroupGivesNoTokenAndTheStoreIsTold) {
  const auto prompt = Ids(400, 1);
  kvstore::ClientOptions client;
  client.fetch_batch_bytes = 1;
  const auto node = StartNode(client);
  const prefill_node::PrefillNode prefill(node.get(), {});
  decode_node::DecodeNode decode(node.get());
  ASSERT_TRUE(Prefill(prefill, prompt).ok());
  const auto expected = Generate(decode, Ask(prompt)).tokens;
  ASSERT_EQ(expected.size(), 8u);

  const kvstore::PlaneId broken{KeysOf(*node, prompt)[2], PlaneKind::kDistant};
  Corrupt(*store_, broken);
  const Answer answer = Generate(decode, Ask(prompt));
  EXPECT_TRUE(absl::IsNotFound(answer.status)) << answer.status;
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr("block 2 of 7"));
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr(broken.ToString()));
  EXPECT_THAT(std::string(answer.status.message()), HasSubstr("checksum"));
  EXPECT_EQ(answer.starts, 0);
  EXPECT_TRUE(answer.tokens.empty());
  EXPECT_EQ(store_->store().Stats().checksum_failures, 1u);
  EXPECT_EQ(node->Info().pool_used_bytes(), 0u);

  const auto again = Prefill(prefill, prompt);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_LE(again->reused_tokens(), 128u);
  EXPECT_EQ(Generate(decode, Ask(prompt)).tokens, expected);
}

TEST_P(StreamingTest, PrefillFallsBackToAShorterPrefixWhenAPlaneProvesWrongInMidPass) {
  const auto prompt = Ids(400, 1);
  const auto longer = Joined(prompt, Ids(100, 2));
  kvstore::ClientOptions client;
  client.fetch_batch_bytes = 1;
  const auto node = StartNode(client);
  const prefill_node::PrefillNode prefill(node.get(), {.chunk_tokens = 64});
  decode_node::DecodeNode decode(node.get());
  auto alone = PrefillOf(longer);
  alone.mutable_scope()->set_salt("alone");
  v1::PrefillResponse response;
  ASSERT_TRUE(prefill.Prefill(alone, absl::InfiniteFuture(), &response).ok());
  auto ask = Ask(longer);
  ask.mutable_scope()->set_salt("alone");
  const auto expected = Generate(decode, ask).tokens;
  ASSERT_EQ(expected.size(), 8u);

  ASSERT_TRUE(Prefill(prefill, prompt).ok());
  Corrupt(*store_, {KeysOf(*node, prompt)[1], PlaneKind::kDistant});
  const auto continued = Prefill(prefill, longer);
  ASSERT_TRUE(continued.ok()) << continued.status();
  EXPECT_LE(continued->reused_tokens(), 64u);
  EXPECT_THAT(continued->reuse_ended_because(), HasSubstr("block 1: "));
  EXPECT_THAT(continued->reuse_ended_because(), HasSubstr("checksum"));
  EXPECT_EQ(store_->store().Stats().checksum_failures, 1u);
  EXPECT_EQ(store_->store().Stats().reservations, 0u);
  EXPECT_EQ(Generate(decode, Ask(longer)).tokens, expected);
}

TEST_P(StreamingTest, AWireThatBreaksInMidFetchEndsTheRequestBeforeItsFirstToken) {
  const auto prompt = Ids(400, 1);
  std::atomic<bool> broken{false};
  kvstore::ClientOptions client;
  client.fetch_batch_bytes = 1;
  client.on_fetch_landed = [&](size_t group) {
    return broken && group > 0 ? absl::UnavailableError("the wire is cut") : absl::OkStatus();
  };
  const auto node = StartNode(client);
  const prefill_node::PrefillNode prefill(node.get(), {});
  decode_node::DecodeNode decode(node.get());
  ASSERT_TRUE(Prefill(prefill, prompt).ok());
  const auto expected = Generate(decode, Ask(prompt)).tokens;
  broken = true;
  const Answer answer = Generate(decode, Ask(prompt));
  EXPECT_TRUE(absl::IsUnavailable(answer.status)) << answer.status;
  EXPECT_EQ(answer.starts, 0);
  EXPECT_TRUE(answer.tokens.empty());
  EXPECT_TRUE(absl::IsUnavailable(Prefill(prefill, Joined(prompt, Ids(10, 2))).status()));
  EXPECT_EQ(node->Info().pool_used_bytes(), 0u);
  EXPECT_TRUE(PollUntil([&] { return store_->store().Stats().leases == 0; }));
  EXPECT_EQ(store_->store().Stats().reservations, 0u);
  broken = false;
  EXPECT_EQ(Generate(decode, Ask(prompt)).tokens, expected);
}

TEST_P(StreamingTest, AChunkIsComputedAndShippedWhileTheOneBeforeItIsCommitted) {
  const auto prompt = Ids(64 * 2 * 4 + 1, 1);  // Four chunks of two blocks.
  FaultyControl control(store_->address());
  const auto node = StartNodeAt(control.address());
  const pod::Layout& layout = node->model().layout();
  const uint64_t least = 2 * 2 * layout.plane_bytes(PlaneKind::kDistant);  // What two chunks put at least.
  bool overlapped = false;
  uint64_t reserved = 0;
  control.on_commit = [&](int n, v1::CommitRequest*) {
    if (n == 0) {
      overlapped = PollUntil([&] { return node->Info().payload_bytes() >= least; });
      reserved = store_->store().Stats().reservations;
    }
    return grpc::Status::OK;
  };
  const auto response = Prefill(prefill_node::PrefillNode(node.get(), {.chunk_tokens = 128}), prompt);
  ASSERT_TRUE(response.ok()) << response.status();
  EXPECT_TRUE(overlapped);
  const auto& counts = store_->store().Stats().counts[static_cast<size_t>(kvstore::Tier::kDram) - 1];
  const uint64_t stored = counts[0].planes + counts[1].planes + counts[2].planes;
  EXPECT_GE(reserved, 4u);
  EXPECT_LE(reserved, stored / 2 + 1) << "more chunks under way than are allowed";
  EXPECT_EQ(control.commits, 4);
  EXPECT_EQ(response->bytes_written(), response->bytes_stored());
  EXPECT_EQ(Generate(decode_node::DecodeNode(node.get()), Ask(prompt)).tokens.size(), 8u);
}

TEST_P(StreamingTest, AFailedCommitReachesTheCallerAndLeavesAUsablePrefix) {
  const auto prompt = Ids(64 * 2 * 4 + 1, 1);
  const auto good = StartNode();
  auto alone = PrefillOf(prompt);
  alone.mutable_scope()->set_salt("alone");
  v1::PrefillResponse ignored;
  ASSERT_TRUE(prefill_node::PrefillNode(good.get(), {}).Prefill(alone, absl::InfiniteFuture(), &ignored).ok());
  auto ask = Ask(prompt);
  ask.mutable_scope()->set_salt("alone");
  const auto expected = Generate(decode_node::DecodeNode(good.get()), ask).tokens;
  ASSERT_EQ(expected.size(), 8u);

  enum class Fault { kWholeCall, kOnePlane };
  for (const Fault fault : {Fault::kWholeCall, Fault::kOnePlane}) {
    SCOPED_TRACE(static_cast<int>(fault));
    const auto keys = KeysOf(*good, prompt);
    ASSERT_TRUE(good->store().Delete(keys[0], keys).ok());
    FaultyControl control(store_->address());
    control.on_commit = [&](int n, v1::CommitRequest* request) {
      if (n != 1) return grpc::Status::OK;
      if (fault == Fault::kWholeCall) return grpc::Status(grpc::StatusCode::INTERNAL, "the disk is on fire");
      request->mutable_planes()->DeleteSubrange(0, 1);  // Of the chunk's first block.
      return grpc::Status::OK;
    };
    control.after_commit = [&](int n, v1::CommitResponse* response) {
      if (n != 1) return;
      v1::PlaneStatus* added = response->add_planes();
      added->set_code(static_cast<int>(absl::StatusCode::kInternal));
      added->set_message("the disk is on fire");
      std::rotate(response->mutable_planes()->pointer_begin(), response->mutable_planes()->pointer_end() - 1,
                  response->mutable_planes()->pointer_end());
    };
    const auto node = StartNodeAt(control.address());
    const auto failed = Prefill(prefill_node::PrefillNode(node.get(), {.chunk_tokens = 128}), prompt);
    EXPECT_EQ(failed.status().code(), absl::StatusCode::kInternal) << failed.status();
    EXPECT_THAT(std::string(failed.status().message()), HasSubstr("on fire"));
    EXPECT_EQ(control.commits, 2) << "a chunk after the failed one was committed";
    EXPECT_EQ(store_->store().Stats().reservations, 0u);
    EXPECT_EQ(node->Info().pool_used_bytes(), 0u);
    const auto lookup = good->store().Lookup(keys[0], keys);
    ASSERT_TRUE(lookup.ok());
    for (size_t b = 4; b < keys.size(); ++b) EXPECT_TRUE(lookup->blocks[b].planes.empty()) << b;

    const auto again = Prefill(prefill_node::PrefillNode(good.get(), {}), prompt);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_GE(again->reused_tokens(), 64u);
    EXPECT_LE(again->reused_tokens(), 128u);
    EXPECT_EQ(Generate(decode_node::DecodeNode(good.get()), Ask(prompt)).tokens, expected);
  }
}

// With room for one chunk's reservations and not for two, a later chunk waits for the one before it instead of failing.
TEST(StreamingLimitsTest, AStoreWithRoomForOneChunkTakesALongPrompt) {
  const auto roomy = StartStore(uint64_t{64} << 20);
  const auto probe = StartNode("identity", roomy->address());
  const pod::Layout& layout = probe->model().layout();
  uint64_t block_bytes = 0;
  for (const PlaneKind kind : pod::kPlaneKinds) block_bytes += (layout.plane_bytes(kind) + 4095) / 4096 * 4096;
  const auto store = StartStore(block_bytes * 4 * 3 / 2);  // One and a half chunks of four blocks.
  const auto node = StartNode("identity", store->address());
  const auto response = Prefill(prefill_node::PrefillNode(node.get(), {.chunk_tokens = 256}), Ids(64 * 12 + 1, 1));
  EXPECT_TRUE(response.ok()) << response.status();
}

}  // namespace
}  // namespace perigee
