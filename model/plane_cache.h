// The served cache: a view of blocks, each held as planes, attended as they are stored.
//
// Blocks arrive in three ways: fetched as the sequence's beginning (their planes come from a store, AddBlock), fetched
// as a part of a context that may stand anywhere (Place), and fresh (Append compresses tokens into planes that the
// allocator gives). Plane buffers are shared, so that several sequences may read one prompt; only the sequence that
// appends into a block's buffers writes them: those of placed blocks nobody does. One thread.
//
// Fresh tokens usually stand behind all others. Where contexts were placed they may also stand in gaps between them
// (texts between contexts), and at positions whose tokens in placed blocks were hidden (Hide): an overlay of tokens
// that are computed again, each at its position.
#ifndef PERIGEE_MODEL_PLANE_CACHE_H_
#define PERIGEE_MODEL_PLANE_CACHE_H_

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/attention.h"
#include "model/kv_cache.h"
#include "pod/layout.h"

namespace perigee::model {

using PlaneBuffer = std::shared_ptr<std::byte[]>;

// Gives zeroed memory, aligned to pod::kPlaneAlignment; RESOURCE_EXHAUSTED when there is none left.
using PlaneAllocator = std::function<absl::StatusOr<PlaneBuffer>(size_t bytes)>;

// Planes from the process's heap.
PlaneAllocator HeapPlanes();

struct CachedBlock {
  PlaneBuffer distant;   // Null where the layout's plane is empty.
  PlaneBuffer proximal;  // Null where empty, not fetched, or retired.
  PlaneBuffer summary;   // Only of fresh blocks.
  int64_t position = 0;
  int64_t base_position = 0;
  int32_t tokens = 0;
  // As in kernels::BlockRef.
  bool far_only = false;
  bool context = false;
  kernels::HiddenTokens hidden = {};
  std::shared_ptr<int64_t[]> positions = nullptr;  // Of an overlay's tokens; null: one after the other.

  int64_t last_position() const { return positions == nullptr ? position + tokens - 1 : positions[tokens - 1]; }
  PlaneBuffer& plane(pod::PlaneKind kind) {
    return kind == pod::PlaneKind::kDistant ? distant : kind == pod::PlaneKind::kProximal ? proximal : summary;
  }
  const PlaneBuffer& plane(pod::PlaneKind kind) const { return const_cast<CachedBlock*>(this)->plane(kind); }
};

class PlaneCache : public KvCache {
 public:
  // layout and rope must outlive the cache.
  PlaneCache(const pod::Layout* layout, const kernels::Rope* rope, int q_heads, PlaneAllocator allocator);

  // A block that starts where the last one ends; the last one must be full. A block with fewer than block_tokens tokens
  // is filled up by later Appends, so its buffers must be this cache's alone and its proximal plane present.
  absl::Status AddBlock(CachedBlock block);

  // A block that lies at its position as it is, next to, between or over others. Its tokens are never added to.
  // INVALID_ARGUMENT for one that cannot be.
  absl::Status Place(CachedBlock block);
  // Hides the placed tokens at these positions (ascending): they are to be computed again. NOT_FOUND for a position at
  // which no token is placed.
  absl::Status Hide(std::span<const int64_t> positions);
  // Whether the token that is placed there lies in a far_only block.
  bool FarOnlyAt(int64_t position) const;
  // Attention over blocks with `context` set (kernels/attention.h).
  void SetContextAttention(float temperature, float scale);

  // Another sequence that goes on from here: full blocks are shared, the bytes of a block that is to be filled up are
  // copied. Not while blocks are arriving (FAILED_PRECONDITION); RESOURCE_EXHAUSTED: the allocator.
  absl::StatusOr<PlaneCache> Fork() const;

  // Blocks added so far may still be arriving: before Append and Attend touch a layer's tiles for the first time, they
  // call `arrived(layer)`, which returns once everything that this layer reads or writes is here, or ends the pass with
  // its error. Layers come in order; the hook is dropped after the last one.
  void AwaitArrival(std::function<absl::Status(int layer)> arrived);

  // Frees proximal planes that no query at or after `position` is near to.
  void RetireProximal(int64_t position);

  // What the placed blocks hold of a layer's values at these positions (ascending): [position][kv_head][head_dim], as
  // they were stored; NaN where a slot has none in far blocks. Waits for the layer to arrive. NOT_FOUND as Hide.
  absl::Status PlacedValues(int layer, std::span<const int64_t> positions, float* out);

  const std::vector<CachedBlock>& blocks() const { return blocks_; }
  const pod::Layout& layout() const { return *layout_; }

  int64_t tokens() const override { return tokens_; }
  bool KeepsQueriesOf(int layer) const override { return keeps_queries_[static_cast<size_t>(layer)]; }
  absl::Status Append(int layer, std::span<const int64_t> positions, const float* keys, const float* values) override;
  absl::Status Attend(int layer, std::span<const int64_t> positions, std::span<const float* const> queries,
                      float* out) override;
  void Advance(std::span<const int64_t> positions) override;

 private:
  // A stretch of the chunk that goes into one block, one token after the other.
  struct Stretch {
    size_t block = 0;
    int first_token = 0, tokens = 0;
    size_t row = 0;  // Of the chunk.
  };
  absl::Status Grow(std::span<const int64_t> positions);
  absl::StatusOr<size_t> AddFresh(int64_t position);
  absl::Status AddSummary(CachedBlock& block);
  absl::Status Arrived(int layer);
  kernels::BlockRef RefOf(const CachedBlock& block) const;
  // The placed block, and the token in it, that stands at the position.
  absl::StatusOr<std::pair<size_t, int>> FindPlaced(int64_t position) const;

  const pod::Layout* const layout_;
  const kernels::Rope* const rope_;
  const int q_heads_;
  const PlaneAllocator allocator_;
  std::vector<bool> keeps_queries_;
  std::vector<CachedBlock> blocks_;
  std::vector<kernels::BlockRef> refs_;    // Parallel to blocks_.
  std::vector<Stretch> chunk_;             // The chunk that is being appended, by block.
  std::multimap<int64_t, size_t> placed_;  // By their first positions.
  std::set<int64_t> hidden_;               // To be computed again, and not yet.
  std::optional<size_t> open_;             // The block that the token behind its last one goes into.
  std::optional<size_t> open_overlay_;
  float context_temperature_ = 1, context_scale_ = 1;
  size_t retired_until_ = 0;  // Blocks below were looked at by RetireProximal and are sinks or retired.
  int64_t tokens_ = 0;
  std::function<absl::Status(int layer)> arrival_;  // Null: everything is here.
  int arrived_layers_ = 0;                          // While arrival_: the layers below are here.
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_PLANE_CACHE_H_
