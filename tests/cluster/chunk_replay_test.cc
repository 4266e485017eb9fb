// A thousand queries that nobody asks again, between popular ones, before a store that has room for little more than
// the popular ones' chunks: these stay. Index, nodes and store are real; what a gateway does between them is done here.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "../node/nodes.h"
#include "cluster/contexts/chunk_index.h"
#include "cluster/scheduler/passing_blocks.h"
#include "node/composed_load.h"
#include "prefill_node/prefill_node.h"

namespace perigee::cluster {
namespace {

constexpr int kPopular = 8, kPopularQueries = 200, kNovelBetween = 5;
constexpr size_t kQuestionTokens = 16, kContextTokens = 128;

struct Replayed {
  int64_t asked = 0, found = 0;  // Tokens of popular chunks.
  double rate() const { return static_cast<double>(found) / static_cast<double>(asked); }
};

class Replay {
 public:
  Replay(uint64_t slab_bytes, bool drop_passing)
      : drop_passing_(drop_passing),
        store_(StartStore(slab_bytes)),
        prefill_side_(StartNode("", store_->address())),
        decode_side_(StartNode("", store_->address())),
        prefill_(prefill_side_.get(), {.chunk_tokens = 256}),
        decode_(decode_side_.get()),
        opening_(node::ContextOpening(prefill_side_->model().tokenizer())),
        index_({.entries = 256}) {
    for (uint32_t i = 0; i < kPopular; ++i) popular_.push_back(Chunk(i));
  }

  Replayed PopularQuery() {
    const size_t first = random_() % kPopular, second = (first + 1 + random_() % (kPopular - 1)) % kPopular;
    return Query(popular_[first], popular_[second]);
  }
  void NovelQuery() {
    Query(Chunk(1000 + novel_), Chunk(1000000 + novel_));
    ++novel_;
  }
  uint64_t used_bytes() { return store_->store().Stats().slab_used_bytes; }
  // All popular chunks, asked often enough to be contexts that the store has.
  void WarmUp() {
    for (int round = 0; round < 3; ++round) {
      for (size_t i = 0; i < kPopular; ++i) Query(popular_[i], popular_[(i + 1) % kPopular]);
    }
  }

 private:
  std::vector<int32_t> Chunk(uint32_t seed) const { return Ids(kContextTokens - opening_.size(), seed); }
  v1::PrefillResponse Prefill(const std::vector<int32_t>& ids, bool whole) {
    v1::PrefillRequest request = SegmentsOf({ids});
    request.set_whole(whole);
    request.set_no_bos(true);
    v1::PrefillResponse response;
    const absl::Status status = prefill_.Prefill(request, absl::Now() + absl::Seconds(60), &response);
    EXPECT_TRUE(status.ok()) << status;
    return response;
  }

  Replayed Query(const std::vector<int32_t>& first, const std::vector<int32_t>& second) {
    Replayed replayed;
    std::vector<int32_t> prompt;
    const std::vector<std::span<const int32_t>> chunks = {first, second};
    const std::vector<bool> contexts = index_.See("", "", chunks);
    v1::GenerateRequest request;
    int64_t in_contexts = 0;
    for (size_t i = 0; i < chunks.size(); ++i) {
      replayed.asked += static_cast<int64_t>(chunks[i].size());
      if (contexts[i]) {
        v1::ContextSpan* span = request.add_contexts();
        span->set_begin(static_cast<uint32_t>(prompt.size()));
        span->set_tokens(static_cast<uint32_t>(chunks[i].size()));
        in_contexts += static_cast<int64_t>(chunks[i].size());
      }
      prompt.insert(prompt.end(), chunks[i].begin(), chunks[i].end());
    }
    prompt = Joined(prompt, Ids(kQuestionTokens, ++questions_));
    request.MergeFrom(AskFor(prompt, 1));
    request.set_repair("none");
    if (in_contexts == 0) {
      Prefill(prompt, false);
      const Answer answer = Generate(decode_, request);
      EXPECT_TRUE(answer.status.ok()) << answer.status;
      if (drop_passing_) DropPassing(prompt);
      return replayed;
    }
    Answer answer = Generate(decode_, request);
    if (answer.status.ok()) {
      replayed.found = in_contexts;
      return replayed;
    }
    EXPECT_TRUE(absl::IsNotFound(answer.status)) << answer.status;
    for (size_t i = 0; i < chunks.size(); ++i) {
      if (!contexts[i]) continue;
      const std::vector<int32_t> alone = Joined(opening_, {chunks[i].begin(), chunks[i].end()});
      replayed.found += Prefill(alone, true).reused_tokens();
    }
    answer = Generate(decode_, request);
    EXPECT_TRUE(answer.status.ok()) << answer.status;
    return replayed;
  }

  void DropPassing(const std::vector<int32_t>& prompt) {
    BackendRequest request;
    request.chunks = {{.begin = 0, .tokens = static_cast<int64_t>(kContextTokens)}};
    const auto keys =
        pod::DeriveChain(prefill_side_->model().IdentityFor("", ""), std::span(prompt).first(prompt.size() - 1));
    const auto deleted = prefill_side_->store().Delete(keys[0], PassingBlocks(request, keys, kBlockTokens));
    EXPECT_TRUE(deleted.ok() && *deleted > 0) << deleted.status();
  }

  const bool drop_passing_;
  std::unique_ptr<kvstore::StoreServer> store_;
  std::unique_ptr<node::Node> prefill_side_, decode_side_;
  prefill_node::PrefillNode prefill_;
  decode_node::DecodeNode decode_;
  const std::vector<int32_t> opening_;
  ChunkIndex index_;
  std::vector<std::vector<int32_t>> popular_;
  std::mt19937 random_{7};
  uint32_t questions_ = 5000000, novel_ = 0;
};

// Popular queries, always the same, with so many novel ones before each.
Replayed PopularAmong(int novel, uint64_t slab_bytes, int queries = kPopularQueries, bool drop_passing = true) {
  Replay replay(slab_bytes, drop_passing);
  replay.WarmUp();
  Replayed all;
  for (int i = 0; i < queries; ++i) {
    for (int n = 0; n < novel; ++n) replay.NovelQuery();
    const Replayed one = replay.PopularQuery();
    all.asked += one.asked;
    all.found += one.found;
  }
  return all;
}

TEST(ChunkReplayTest, AThousandNovelQueriesLeaveThePopularOnesTheirHits) {
  uint64_t popular_bytes = 0;
  {
    Replay replay(uint64_t{64} << 20, true);
    replay.WarmUp();
    popular_bytes = replay.used_bytes();
  }
  const uint64_t slab_bytes = 3 * popular_bytes;
  const Replayed alone = PopularAmong(0, slab_bytes);
  const Replayed among = PopularAmong(kNovelBetween, slab_bytes);
  const Replayed kept = PopularAmong(kNovelBetween, slab_bytes, 40, /*drop_passing=*/false);
  std::printf("a store of %lu KiB: found %.1f %% alone, %.1f %% among novel ones, %.1f %% if what these store stays\n",
              slab_bytes >> 10, 100 * alone.rate(), 100 * among.rate(), 100 * kept.rate());
  EXPECT_GT(alone.rate(), 0.95);
  EXPECT_GT(among.rate(), alone.rate() - 0.02);
  EXPECT_LT(kept.rate(), alone.rate() - 0.1) << "the store has room for everything: nothing was shown";
}

}  // namespace
}  // namespace perigee::cluster
