// Ranks at the store: what they write together is the whole plane, what they read is their own heads', and an error of
// one ends alike at all, with the group still usable.
#include "node/tensor_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <thread>

#include "kvstore/server.h"
#include "transport/collective/ucx_collective.h"

namespace perigee::node {
namespace {

constexpr char kSecret[] = "a secret of the tests";

kvstore::ClientOptions Trusted() {
  kvstore::ClientOptions options;
  options.secret = kSecret;
  return options;
}

using kvstore::PlaneId;
using pod::PlaneKind;
using ::testing::HasSubstr;

constexpr int kLayers = 2;

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

pod::Identity TestIdentity(const pod::Layout& layout) {
  return {.tenant = "tenant-a",
          .salt = "",
          .model_fingerprint = layout.plan().model_fingerprint(),
          .plan_id = layout.plan().id(),
          .block_tokens = layout.block_tokens(),
          .shard = 0};
}

// 2 layers x 4 kv heads: leads, followers, near-only slots; all three planes have bytes.
pod::Layout TestLayout() {
  const pod::Slot lead{pod::Role::kLead, {}, pod::Codec::kBf16}, near_only{pod::Role::kNearOnly, {}, {}};
  const auto follows = [](int head) { return pod::Slot{pod::Role::kFollower, {0, head}, pod::Codec::kBf16}; };
  const auto plan = pod::Plan::Create({kLayers, 4, 32}, {16, 64}, pod::Sharing::kKey, pod::Codec::kBf16,
                                      {lead, lead, lead, near_only, follows(0), lead, near_only, lead}, Digest{7});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *pod::Layout::Create(*plan, 64);
}

// One block's planes, as one rank would have them: of the whole model, random.
struct Block {
  std::vector<PlaneId> ids;
  std::vector<pod::PlaneHeader> headers;  // Without section sums.
  std::vector<std::vector<std::byte>> payloads;
};

Block MakeBlock(const pod::Layout& layout, int number) {
  Block block;
  std::mt19937 rng(static_cast<uint32_t>(number));
  const pod::BlockKey key{Sha256(absl::StrCat("block ", number))};
  for (PlaneKind kind : pod::kPlaneKinds) {
    block.ids.push_back({key, kind});
    pod::PlaneHeader header;
    header.kind = kind;
    header.key = header.root = key;
    header.tenant = "tenant-a";
    header.model_fingerprint = layout.plan().model_fingerprint();
    header.plan_id = layout.plan().id();
    header.shape = layout.plan().shape();
    header.near_codec = layout.plan().near_codec();
    header.block_tokens = layout.block_tokens();
    header.tokens = layout.block_tokens();
    header.payload_bytes = layout.plane_bytes(kind);
    block.headers.push_back(header);
    std::vector<std::byte>& payload = block.payloads.emplace_back(layout.plane_bytes(kind));
    for (std::byte& b : payload) b = static_cast<std::byte>(rng());
  }
  return block;
}

// A rank's sections of a whole plane.
std::vector<std::byte> LocalPart(const pod::HeadShard& shard, PlaneKind kind, const std::vector<std::byte>& whole) {
  std::vector<std::byte> local(shard.local().plane_bytes(kind));
  for (const pod::SectionRun& run : shard.runs(kind)) {
    for (size_t i = 0; i < run.count; ++i) {
      const pod::Section& from = shard.full().sections(kind)[run.full + i];
      std::memcpy(&local[shard.local().sections(kind)[run.local + i].offset_bytes], &whole[from.offset_bytes],
                  from.bytes);
    }
  }
  return local;
}

class TensorParallelTest : public ::testing::Test {
 protected:
  TensorParallelTest() : layout_(TestLayout()) {
    kvstore::ServerOptions options;
    options.port = 0;
    options.slab_bytes = 8 << 20;
    options.credentials = {{kSecret, "", true}};
    auto store = kvstore::StoreServer::Start(options);
    EXPECT_TRUE(store.ok()) << store.status();
    store_ = *std::move(store);
  }

  struct Rank {
    transport::Collective& group;
    kvstore::StoreClient& store;
    const pod::HeadShard& shard;
  };

  // Runs the body on a thread per rank, each with a group, an engine and a client of its own.
  void OnRanks(int size, const std::function<void(const Rank&)>& body,
               const std::function<kvstore::ClientOptions(int rank)>& client_options = nullptr) {
    transport::GroupOptions options;
    options.group_name = "ranks";
    options.size = size;
    auto leader = transport::Rendezvous::Open(options);
    ASSERT_TRUE(leader.ok()) << leader.status();
    options.rendezvous_port = (*leader)->port();
    std::vector<std::thread> threads;
    for (int rank = 0; rank < size; ++rank) {
      threads.emplace_back([&, rank] {
        transport::GroupOptions mine = options;
        mine.rank = rank;
        auto rendezvous = rank == 0 ? std::move(leader) : transport::Rendezvous::Open(mine);
        ASSERT_TRUE(rendezvous.ok()) << rendezvous.status();
        auto joined = (*rendezvous)->Join(Soon());
        ASSERT_TRUE(joined.ok()) << joined.status();
        transport::UcxCollective group(*std::move(joined));
        const auto engine = transport::Context::Create({});
        ASSERT_TRUE(engine.ok()) << engine.status();
        const auto store = kvstore::StoreClient::Connect(store_->address(), engine->get(),
                                                         client_options ? client_options(rank) : Trusted());
        ASSERT_TRUE(store.ok()) << store.status();
        const auto shard = pod::HeadShard::Create(layout_, rank, size);
        ASSERT_TRUE(shard.ok()) << shard.status();
        body({group, **store, *shard});
        // Whatever happened, the group is whole.
        const absl::Status after = group.Barrier(Soon());
        EXPECT_TRUE(after.ok()) << after;
      });
    }
    for (std::thread& thread : threads) thread.join();
  }

  // Writes a block; ships only the layers below `layers`.
  static absl::StatusOr<uint64_t> Write(const Rank& rank, const Block& block, int layers = kLayers) {
    std::vector<std::vector<std::byte>> local;
    for (size_t i = 0; i < block.ids.size(); ++i) {
      local.push_back(LocalPart(rank.shard, block.ids[i].kind, block.payloads[i]));
    }
    const PayloadOf payload = [&](size_t i) { return std::span<const std::byte>(local[i]); };
    absl::StatusOr<ShardedWrite> write = ShardedWrite::Begin(rank.group, rank.store, rank.shard, block.ids, Soon());
    if (!write.ok()) return write.status();
    for (int l = 0; l < layers; ++l) write->Ship(l, payload);
    return write->Commit(block.headers, payload, Soon());
  }

  uint64_t StoredPlanes() {
    const auto engine = transport::Context::Create({});
    const auto client = kvstore::StoreClient::Connect(store_->address(), engine->get(), Trusted());
    EXPECT_TRUE(client.ok()) << client.status();
    return (*client)->List("", 100, "")->planes.size();
  }

  const pod::Layout layout_;
  std::unique_ptr<kvstore::StoreServer> store_;
};

TEST_F(TensorParallelTest, WhatTwoRanksWriteOneAndFourRead) {
  const Block block = MakeBlock(layout_, 1);
  uint64_t bytes = 0;
  for (const auto& payload : block.payloads) bytes += payload.size();
  OnRanks(2, [&](const Rank& rank) {
    const auto written = Write(rank, block);
    ASSERT_TRUE(written.ok()) << written.status();
    EXPECT_EQ(*written, bytes);
    // The second time everything is there.
    const auto again = Write(rank, block);
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_EQ(*again, 0u);
  });
  for (const int size : {1, 4}) {
    OnRanks(size, [&](const Rank& rank) {
      const auto fetched =
          FetchShard(rank.group, rank.store, rank.shard, TestIdentity(layout_), block.ids, model::HeapPlanes(), Soon());
      ASSERT_TRUE(fetched.ok()) << fetched.status();
      for (size_t i = 0; i < block.ids.size(); ++i) {
        const FetchedPlane& plane = (*fetched)[i];
        ASSERT_TRUE(plane.status.ok()) << plane.status;
        const std::vector<std::byte> expected = LocalPart(rank.shard, block.ids[i].kind, block.payloads[i]);
        ASSERT_EQ(plane.size_bytes, expected.size());
        if (expected.empty()) continue;
        EXPECT_EQ(0, std::memcmp(plane.bytes.get(), expected.data(), expected.size()));
      }
    });
  }
}

TEST_F(TensorParallelTest, NothingIsStoredWhenARankShippedTooLittle) {
  const Block block = MakeBlock(layout_, 2);
  OnRanks(2, [&](const Rank& rank) {
    const auto written = Write(rank, block, rank.group.rank() == 1 ? kLayers - 1 : kLayers);
    EXPECT_TRUE(absl::IsDataLoss(written.status())) << written.status();
  });
  // Single planes of the block may be whole: those in which the missing layer has nothing of that rank's.
  const auto engine = transport::Context::Create({});
  const auto client = kvstore::StoreClient::Connect(store_->address(), engine->get(), Trusted());
  const auto lease = (*client)->Acquire(block.ids);
  ASSERT_TRUE(lease.ok()) << lease.status();
  EXPECT_FALSE(lease->planes()[0].found);
  EXPECT_FALSE(lease->planes()[1].found);
}

TEST_F(TensorParallelTest, RanksThatNameOtherPlanesAreToldAndNothingIsStored) {
  OnRanks(4, [&](const Rank& rank) {
    const auto written = Write(rank, MakeBlock(layout_, rank.group.rank() == 2 ? 31 : 30));
    EXPECT_EQ(written.status().code(), absl::StatusCode::kInternal);
    EXPECT_THAT(std::string(written.status().message()), HasSubstr("rank 2 of 4"));
  });
  EXPECT_EQ(StoredPlanes(), 0u);
}

TEST_F(TensorParallelTest, AStoreWithoutRoomIsEveryRanksError) {
  std::vector<PlaneId> planes;
  for (int n = 0; n < 1000; ++n) {
    planes.push_back({pod::BlockKey{Sha256(absl::StrCat("many ", n))}, PlaneKind::kDistant});
  }
  OnRanks(2, [&](const Rank& rank) {
    const auto write = ShardedWrite::Begin(rank.group, rank.store, rank.shard, planes, Soon());
    EXPECT_TRUE(absl::IsResourceExhausted(write.status())) << write.status();
  });
}

TEST_F(TensorParallelTest, APlaneThatOneRankCannotReadIsNoRanks) {
  const Block block = MakeBlock(layout_, 4);
  OnRanks(2, [&](const Rank& rank) { ASSERT_TRUE(Write(rank, block).ok()); });
  // The store hides the planes from rank 1, which calls itself another tenant.
  OnRanks(
      2,
      [&](const Rank& rank) {
        const auto fetched = FetchShard(rank.group, rank.store, rank.shard, TestIdentity(layout_), block.ids,
                                        model::HeapPlanes(), Soon());
        ASSERT_TRUE(fetched.ok()) << fetched.status();
        for (const FetchedPlane& plane : *fetched) {
          EXPECT_TRUE(absl::IsNotFound(plane.status)) << plane.status;
          EXPECT_EQ(plane.bytes, nullptr);
          EXPECT_THAT(std::string(plane.status.message()),
                      HasSubstr(rank.group.rank() == 0 ? "rank 1 of 2" : "another tenant's"));
        }
      },
      [](int rank) {
        kvstore::ClientOptions options = Trusted();
        if (rank == 1) options.tenant = "tenant-b";
        return options;
      });
}

TEST_F(TensorParallelTest, LeadersAnswersErrorsAndAgreementsReachEveryRank) {
  OnRanks(4, [&](const Rank& rank) {
    const auto answer = FromLeader(
        rank.group,
        [&]() -> absl::StatusOr<std::string> {
          EXPECT_EQ(rank.group.rank(), 0);
          return std::string("an\0swer", 7);
        },
        Soon());
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(*answer, std::string("an\0swer", 7));
    const auto error = FromLeader(
        rank.group, []() -> absl::StatusOr<std::string> { return absl::NotFoundError("block 3"); }, Soon());
    EXPECT_EQ(error.status(), absl::NotFoundError("block 3"));

    EXPECT_TRUE(Agree(rank.group, absl::OkStatus(), Soon()).ok());
    const absl::Status mine =
        rank.group.rank() == 0 ? absl::OkStatus() : absl::AbortedError(absl::StrCat("no ", rank.group.rank()));
    EXPECT_EQ(Agree(rank.group, mine, Soon()), absl::AbortedError("rank 1 of 4: no 1"));
    const absl::Status endless = absl::AbortedError(std::string(5000, 'x'));
    EXPECT_TRUE(absl::IsAborted(Agree(rank.group, endless, Soon())));
  });
}

}  // namespace
}  // namespace perigee::node
