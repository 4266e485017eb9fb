// Prompts whose chunks are seen for the first time leave nothing in the stores that nobody will ask for.
#include "cluster/scheduler/passing_blocks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "../kvstore/store_cluster.h"
#include "scheduler_testing.h"

namespace perigee::cluster {
namespace {

constexpr int kBlock = 64;

class PassingBlocksTest : public SchedulerTest {
 protected:
  // Nodes, and a store into which a prefill node writes a small plane for each block.
  void StartWithStore() {
    Start(1, 1);
    backend_ = std::make_unique<ClusterBackend>(nodes_.get(), &sharded_, options_);
    const v1::NodeInfo info = *nodes_->Usable(Role::kPrefill)[0]->info();
    identity_ = {.tenant = "t",
                 .salt = {},
                 .model_fingerprint = ToDigest(info.model_fingerprint()),
                 .plan_id = ToDigest(info.plan_id()),
                 .block_tokens = kBlock};
    prefill_[0].service.fate = [this](int, const v1::PrefillRequest& request) {
      std::vector<int32_t> ids;
      for (const auto& segment : request.segments()) {
        ids.insert(ids.end(), segment.tokens().ids().begin(), segment.tokens().ids().end());
      }
      ids.pop_back();
      return Store(pod::DeriveChain(identity_, ids));
    };
  }
  static Digest ToDigest(const std::string& bytes) {
    Digest digest{};
    std::copy(bytes.begin(), bytes.end(), digest.begin());
    return digest;
  }
  absl::Status Store(const std::vector<pod::BlockKey>& keys) {
    std::vector<kvstore::TestPlane> planes;
    for (size_t i = 0; i < keys.size(); ++i) {
      kvstore::TestPlane plane = kvstore::MakePlane(i, 1000, pod::PlaneKind::kDistant, "t");
      plane.id.key = plane.header.key = keys[i];
      plane.header.root = keys[0];
      plane.header.has_parent = i > 0;
      if (i > 0) plane.header.parent = keys[i - 1];
      planes.push_back(std::move(plane));
    }
    return kvstore::Write(server_->store(), planes);
  }
  // Of each block of the request's prompt whether anything is stored.
  std::vector<bool> Stored(const BackendRequest& request) {
    const std::vector<pod::BlockKey> keys =
        pod::DeriveChain(identity_, std::span(request.token_ids).first(request.token_ids.size() - 1));
    const auto lookup = sharded_.Lookup(keys[0], keys);
    EXPECT_TRUE(lookup.ok()) << lookup.status();
    std::vector<bool> stored;
    for (const kvstore::BlockInfo& block : lookup->blocks) stored.push_back(!block.planes.empty());
    return stored;
  }
  BackendRequest WithChunks() const {
    BackendRequest request = Request(1000);
    for (size_t i = 0; i < request.token_ids.size(); ++i) request.token_ids[i] = static_cast<int32_t>(i % 900);
    request.chunks = {{.begin = 3 * kBlock + 10, .tokens = 300}, {.begin = 600, .tokens = 200}};
    return request;
  }

  const std::unique_ptr<kvstore::StoreServer> server_ = kvstore::StartServer();
  kvstore::ShardedStore sharded_{
      std::make_shared<kvstore::StoreDirectory>(kvstore::MapAt({server_->address()})), nullptr, {}};
  pod::Identity identity_;
};

TEST_F(PassingBlocksTest, WhatStandsBeforeTheFirstChunkStaysAndTheRestGoesWithTheRequest) {
  StartWithStore();
  const BackendRequest request = WithChunks();
  ExpectWhole(Run(request), request);
  ASSERT_EQ(prefill_[0].service.calls().size(), 1u);
  EXPECT_FALSE(decode_[0].service.calls().back().store_answer());
  const std::vector<bool> stored = Stored(request);
  ASSERT_EQ(stored.size(), 16u);
  for (size_t i = 0; i < stored.size(); ++i) EXPECT_EQ(stored[i], i < 3) << i;
}

TEST_F(PassingBlocksTest, SoItDoesWhereTheRequestFails) {
  StartWithStore();
  SetFates([](int, int) { return Fate{.tokens = 0, .status = absl::InvalidArgumentError("no")}; });
  const BackendRequest request = WithChunks();
  EXPECT_FALSE(Run(request).usage.ok());
  EXPECT_FALSE(Stored(request).at(3));
}

TEST_F(PassingBlocksTest, PromptsWithoutChunksStay) {
  StartWithStore();
  BackendRequest request = WithChunks();
  request.chunks.clear();
  ExpectWhole(Run(request), request);
  EXPECT_THAT(Stored(request), ::testing::Each(true));
  EXPECT_TRUE(decode_[0].service.calls().back().store_answer());
}

TEST_F(PassingBlocksTest, BlocksAreCountedFromTheFirstChunk) {
  BackendRequest request = WithChunks();
  const std::vector<pod::BlockKey> keys(16);
  EXPECT_EQ(PassingBlocks(request, keys, kBlock).size(), 13u);
  request.chunks[0].begin = 5000;
  EXPECT_TRUE(PassingBlocks(request, keys, kBlock).empty());
  request.chunks[0].begin = 0;
  EXPECT_EQ(PassingBlocks(request, keys, kBlock).size(), 16u);
  request.contexts = {{.begin = 400, .tokens = 100}};
  EXPECT_TRUE(PassingBlocks(request, keys, kBlock).empty()) << "such a prompt is not stored as a whole";
}

}  // namespace
}  // namespace perigee::cluster
