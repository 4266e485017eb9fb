// The served cache: a view of blocks, each held as planes, attended as they are stored.
//
// Blocks arrive in two ways: fetched (their planes come from a store, AddBlock) and fresh (Append compresses tokens
// into planes that the allocator gives). Plane buffers are shared, so that several sequences may read one prompt; only
// the sequence that appends into a block's buffers writes them. One thread.
#ifndef PERIGEE_MODEL_PLANE_CACHE_H_
#define PERIGEE_MODEL_PLANE_CACHE_H_

#include <cstddef>
#include <functional>
#include <memory>
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

  // Another sequence that goes on from here: full blocks are shared, the bytes of a block that is to be filled up are
  // copied. Not while blocks are arriving (FAILED_PRECONDITION); RESOURCE_EXHAUSTED: the allocator.
  absl::StatusOr<PlaneCache> Fork() const;

  // Blocks added so far may still be arriving: before Append and Attend touch a layer's tiles for the first time, they
  // call `arrived(layer)`, which returns once everything that this layer reads or writes is here, or ends the pass with
  // its error. Layers come in order; the hook is dropped after the last one.
  void AwaitArrival(std::function<absl::Status(int layer)> arrived);

  // Frees proximal planes that no query at or after `position` is near to, except those of blocks that `keep` names (by
  // index).
  void RetireProximal(int64_t position, const std::function<bool(size_t block)>& keep = nullptr);

  const std::vector<CachedBlock>& blocks() const { return blocks_; }
  const pod::Layout& layout() const { return *layout_; }

  int64_t tokens() const override { return tokens_; }
  bool KeepsQueriesOf(int layer) const override { return keeps_queries_[static_cast<size_t>(layer)]; }
  absl::Status Append(int layer, std::span<const int64_t> positions, const float* keys, const float* values) override;
  absl::Status Attend(int layer, std::span<const int64_t> positions, std::span<const float* const> queries,
                      float* out) override;
  void Advance(std::span<const int64_t> positions) override { tokens_ += static_cast<int64_t>(positions.size()); }

 private:
  absl::Status Grow(int count);
  absl::Status Arrived(int layer);

  const pod::Layout* const layout_;
  const kernels::Rope* const rope_;
  const int q_heads_;
  const PlaneAllocator allocator_;
  std::vector<bool> keeps_queries_;
  std::vector<CachedBlock> blocks_;
  std::vector<kernels::BlockRef> refs_;  // Parallel to blocks_.
  size_t retired_until_ = 0;  // Blocks below were looked at by RetireProximal and are sinks, kept or retired.
  int64_t tokens_ = 0;
  std::function<absl::Status(int layer)> arrival_;  // Null: everything is here.
  int arrived_layers_ = 0;                          // While arrival_: the layers below are here.
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_PLANE_CACHE_H_
