// One rank of a tensor-parallel prefill or decode, in a process of its own:
//
//   tensor_parallel_rank JOB.json
//
// The job: role ("prefill", "decode"), rank, size, port (rank 0: 0, and prints the port that it got), store, model (a
// folder), plan (a file or "identity"), tenant, ids, max_tokens (decode), dies_at (prefill: the position of the chunk
// in whose last layer but one this rank kills itself; -1: does not). Prints one line of JSON: what was reused, computed
// and written, or the greedy tokens and their logits. Exit code 1, with the error on standard error.
#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "kvstore/registered_pool.h"
#include "model/served_model.h"
#include "node/reuse.h"
#include "node/tensor_parallel.h"
#include "transport/collective/ucx_collective.h"

namespace perigee {
namespace {

using kvstore::PlaneId;
using pod::PlaneKind;

constexpr absl::Duration kTimeout = absl::Seconds(60);  // Of one step; far past what a loaded machine needs.
constexpr int kBlockTokens = 16;
constexpr int64_t kChunkTokens = 64;

absl::Time Soon() { return absl::Now() + kTimeout; }

struct Rank {
  std::unique_ptr<transport::UcxCollective> group;
  std::unique_ptr<model::ServedModel> model;
  std::unique_ptr<transport::Context> engine;
  std::unique_ptr<kvstore::RegisteredPool> pool;
  std::unique_ptr<kvstore::StoreClient> store;
  pod::Identity identity;
  std::vector<int32_t> ids;
  std::vector<pod::BlockKey> keys;
  int64_t cached = 0;  // Tokens to be cached: all but the last, which decoding runs.

  const pod::HeadShard& shard() const { return model->shard(); }
  model::PlaneAllocator allocator() const {
    return [this](size_t bytes) { return pool->Allocate(bytes); };
  }
  model::PlaneCache NewCache() const {
    return model::PlaneCache(&shard().local(), &model->transformer().rope(), model->transformer().rank_config().q_heads,
                             allocator());
  }
};

absl::StatusOr<std::unique_ptr<Rank>> Start(const nlohmann::json& job) {
  auto r = std::make_unique<Rank>();
  transport::GroupOptions group;
  group.group_name = "tensor_parallel_test";
  group.rank = job["rank"];
  group.size = job["size"];
  group.rendezvous_port = job["port"];
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<transport::Rendezvous> rendezvous, transport::Rendezvous::Open(group));
  if (group.rank == 0) {
    std::printf("port %d\n", rendezvous->port());
    std::fflush(stdout);
  }
  PERIGEE_ASSIGN_OR_RETURN(transport::Group joined, rendezvous->Join(Soon()));
  r->group = std::make_unique<transport::UcxCollective>(std::move(joined));

  PERIGEE_ASSIGN_OR_RETURN(r->model, model::ServedModel::Load({.folder = job["model"],
                                                               .plan_file = job["plan"],
                                                               .block_tokens = kBlockTokens,
                                                               .group = node::ModelGroup(r->group.get(), kTimeout)}));
  PERIGEE_ASSIGN_OR_RETURN(r->engine, transport::Context::Create({}));
  PERIGEE_ASSIGN_OR_RETURN(r->pool, kvstore::RegisteredPool::Create(r->engine.get(), size_t{32} << 20));
  kvstore::ClientOptions options;
  options.secret = "a secret of the tests";
  options.call_deadline = options.transfer_deadline = options.connect_deadline = kTimeout;
  PERIGEE_ASSIGN_OR_RETURN(r->store, kvstore::StoreClient::Connect(job["store"], r->engine.get(), options));
  r->identity = r->model->IdentityFor(job["tenant"], "");
  r->ids = job["ids"].get<std::vector<int32_t>>();
  r->cached = static_cast<int64_t>(r->ids.size()) - 1;
  r->keys = pod::DeriveChain(r->identity, std::span(r->ids).first(static_cast<size_t>(r->cached)));
  return r;
}

// Brings the planes that a query at `position` reads of the first `blocks` blocks, this rank's heads of them.
absl::Status Fetch(const Rank& r, size_t blocks, int64_t position, model::PlaneCache& cache, uint64_t* bytes) {
  const pod::Layout& layout = r.model->layout();
  std::vector<PlaneId> planes;
  std::vector<size_t> block_of;
  for (size_t b = 0; b < blocks; ++b) {
    for (PlaneKind kind : {PlaneKind::kDistant, PlaneKind::kProximal}) {
      if (layout.plane_bytes(kind) == 0) continue;
      if (kind == PlaneKind::kProximal &&
          !pod::IsNear(layout.plan().window(), kBlockTokens, static_cast<int64_t>(b) * kBlockTokens, position)) {
        continue;
      }
      planes.push_back({r.keys[b], kind});
      block_of.push_back(b);
    }
  }
  PERIGEE_ASSIGN_OR_RETURN(std::vector<node::FetchedPlane> fetched,
                           node::FetchShard(*r.group, *r.store, r.shard(), r.identity, planes, r.allocator(), Soon()));
  std::vector<model::CachedBlock> view(blocks);
  for (size_t i = 0; i < planes.size(); ++i) {
    PERIGEE_RETURN_IF_ERROR(Annotate(fetched[i].status, absl::StrCat("block ", block_of[i])));
    model::CachedBlock& block = view[block_of[i]];
    block.base_position = fetched[i].base_position;
    *bytes += fetched[i].size_bytes;
    (planes[i].kind == PlaneKind::kDistant ? block.distant : block.proximal) = std::move(fetched[i].bytes);
  }
  for (size_t b = 0; b < blocks; ++b) {
    view[b].position = static_cast<int64_t>(b) * kBlockTokens;
    view[b].tokens = static_cast<int32_t>(std::min<int64_t>(kBlockTokens, r.cached - view[b].position));
    PERIGEE_RETURN_IF_ERROR(cache.AddBlock(std::move(view[b])));
  }
  return absl::OkStatus();
}

// How many leading blocks the store has, as rank 0 sees it: one answer for all.
absl::StatusOr<size_t> BlocksToReuse(const Rank& r) {
  const auto ask = [&]() -> absl::StatusOr<std::string> {
    const pod::Layout& layout = r.model->layout();
    PERIGEE_ASSIGN_OR_RETURN(const kvstore::LookupResult lookup, r.store->Lookup(r.keys));
    std::vector<node::StoredBlock> stored(r.keys.size());
    for (size_t b = 0; b < stored.size(); ++b) {
      stored[b].distant = layout.plane_bytes(PlaneKind::kDistant) == 0;
      stored[b].proximal = layout.plane_bytes(PlaneKind::kProximal) == 0;
      for (const kvstore::FoundPlane& plane : lookup.blocks[b].planes) {
        if (plane.kind == PlaneKind::kDistant) stored[b].distant = true;
        if (plane.kind == PlaneKind::kProximal) stored[b].proximal = true;
      }
    }
    return absl::StrCat(node::LongestUsablePrefix(layout, r.cached, stored).blocks);
  };
  PERIGEE_ASSIGN_OR_RETURN(const std::string answer, node::FromLeader(*r.group, ask, Soon()));
  return std::stoul(answer);
}

absl::StatusOr<nlohmann::json> Prefill(const Rank& r, int64_t dies_at) {
  const pod::Layout& layout = r.model->layout();
  model::PlaneCache cache = r.NewCache();
  PERIGEE_ASSIGN_OR_RETURN(const size_t reused_blocks, BlocksToReuse(r));
  const int64_t reused = std::min(static_cast<int64_t>(reused_blocks) * kBlockTokens, r.cached);
  uint64_t fetched_bytes = 0, written_bytes = 0;
  if (reused > 0 && reused < r.cached) {
    PERIGEE_RETURN_IF_ERROR(Fetch(r, reused_blocks, reused, cache, &fetched_bytes));
  }
  for (int64_t begin = reused; begin < r.cached; begin = cache.tokens()) {
    const int64_t end = std::min(r.cached, begin + kChunkTokens);
    std::vector<PlaneId> planes;
    std::vector<size_t> block_of;
    for (size_t b = static_cast<size_t>(begin / kBlockTokens); static_cast<int64_t>(b) * kBlockTokens < end; ++b) {
      for (PlaneKind kind : pod::kPlaneKinds) {
        if (layout.plane_bytes(kind) == 0) continue;
        if (kind == PlaneKind::kProximal &&
            !node::KeepsProximal(layout, static_cast<int64_t>(b) * kBlockTokens, {r.cached})) {
          continue;
        }
        planes.push_back({r.keys[b], kind});
        block_of.push_back(b);
      }
    }
    const node::PayloadOf payload = [&](size_t i) -> std::span<const std::byte> {
      const model::CachedBlock& block = cache.blocks()[block_of[i]];
      const model::PlaneBuffer& plane = planes[i].kind == PlaneKind::kDistant    ? block.distant
                                        : planes[i].kind == PlaneKind::kProximal ? block.proximal
                                                                                 : block.summary;
      return {plane.get(), r.shard().local().plane_bytes(planes[i].kind)};
    };
    PERIGEE_ASSIGN_OR_RETURN(node::ShardedWrite write,
                             node::ShardedWrite::Begin(*r.group, *r.store, r.shard(), planes, Soon()));
    const auto ship = [&](int layer) {
      write.Ship(layer, payload);
      if (begin == dies_at && layer == layout.plan().shape().layers - 2) ::raise(SIGKILL);
      return absl::OkStatus();
    };
    PERIGEE_RETURN_IF_ERROR(r.model->transformer().Forward(
        std::span(r.ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), cache,
        model::Logits::kNone, nullptr, ship));
    std::vector<pod::PlaneHeader> headers;
    for (size_t i = 0; i < planes.size(); ++i) {
      const size_t b = block_of[i];
      pod::PlaneHeader& header = headers.emplace_back();
      header.kind = planes[i].kind;
      header.key = r.keys[b];
      header.has_parent = b > 0;
      if (b > 0) header.parent = r.keys[b - 1];
      header.root = r.keys[0];
      header.tenant = r.identity.tenant;
      header.model_fingerprint = r.identity.model_fingerprint;
      header.plan_id = r.identity.plan_id;
      header.shape = layout.plan().shape();
      header.near_codec = layout.plan().near_codec();
      header.block_tokens = kBlockTokens;
      header.tokens = cache.blocks()[b].tokens;
      header.base_position = cache.blocks()[b].base_position;
      header.payload_bytes = layout.plane_bytes(planes[i].kind);
    }
    PERIGEE_ASSIGN_OR_RETURN(const uint64_t new_bytes, write.Commit(headers, payload, Soon()));
    written_bytes += new_bytes;
    cache.RetireProximal(cache.tokens());
  }
  return nlohmann::json{{"reused", reused},
                        {"computed", r.cached - reused},
                        {"fetched_bytes", fetched_bytes},
                        {"written_bytes", written_bytes},
                        {"put_bytes", r.store->stats().put_bytes}};
}

absl::StatusOr<nlohmann::json> Decode(const Rank& r, int max_tokens) {
  model::PlaneCache cache = r.NewCache();
  uint64_t fetched_bytes = 0;
  PERIGEE_RETURN_IF_ERROR(Fetch(r, r.keys.size(), r.cached, cache, &fetched_bytes));
  std::vector<int32_t> tokens;
  std::vector<std::vector<float>> all_logits;
  int32_t token = r.ids.back();
  while (static_cast<int>(tokens.size()) < max_tokens) {
    std::vector<float> logits;
    PERIGEE_RETURN_IF_ERROR(r.model->transformer().Forward(std::span(&token, 1), cache, model::Logits::kLast, &logits));
    cache.RetireProximal(cache.tokens());
    token = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    tokens.push_back(token);
    all_logits.push_back(std::move(logits));
  }
  return nlohmann::json{{"tokens", tokens}, {"logits", all_logits}, {"fetched_bytes", fetched_bytes}};
}

absl::StatusOr<nlohmann::json> Run(const nlohmann::json& job) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<Rank> rank, Start(job));
  absl::StatusOr<nlohmann::json> result = job["role"] == "prefill" ? Prefill(*rank, job["dies_at"].get<int64_t>())
                                                                   : Decode(*rank, job["max_tokens"].get<int>());
  // Leaves together, so that none sees another leave in the middle of its own work.
  if (result.ok()) PERIGEE_RETURN_IF_ERROR(rank->group->Barrier(Soon()));
  return result;
}

}  // namespace
}  // namespace perigee

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const auto text = perigee::ReadFile(argv[1]);
  if (!text.ok()) return 2;
  const auto result = perigee::Run(nlohmann::json::parse(*text));
  if (!result.ok()) {
    std::fprintf(stderr, "%s\n", result.status().ToString().c_str());
    return 1;
  }
  std::printf("%s\n", result->dump().c_str());
  return 0;
}
