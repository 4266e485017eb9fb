// Attention over a view: a request's blocks, each by its planes, read as they are stored.
//
// One softmax over the joined logits of the near part (the slot's own keys) and the far part (the lead's keys), per
// query head (arXiv 2412.02252, section 2.2; merging partial states by log-sum-exp is exact). Serves decoding (one
// query) and prefill (a chunk of queries, causal) alike. Which blocks are near is a function of each query's position
// alone: pod/window.h.
//
// Shapes: queries[layer][query][q_head][head_dim] float, rotated at the query's position in the request; q_head h
// belongs to kv head h / (q_heads / kv_heads). out[query][q_head][head_dim] float.
//
// A block whose keys were rotated at base_position but which stands at `position` in the request is read in place: its
// query is rotated by the difference, once per distinct difference.
//
// Memory is the caller's; nothing is kept after the call. Any thread; parallel inside.
#ifndef PERIGEE_KERNELS_ATTENTION_H_
#define PERIGEE_KERNELS_ATTENTION_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/rope.h"
#include "pod/layout.h"

namespace perigee::kernels {

// One block of a view. Blocks are given in the order of their positions, without overlap; every block but the last
// starts and ends on a border of block_tokens (`tokens` may be less than block_tokens only in the last one).
struct BlockRef {
  const std::byte* distant = nullptr;
  const std::byte* proximal =
      nullptr;                // May be null while no query of the call is near to the block, or the plane is empty.
  int64_t position = 0;       // Of the block's first token, in the request.
  int64_t base_position = 0;  // Of the block's first token, when its keys were rotated.
  int32_t tokens = 0;
};

struct AttentionInput {
  const pod::Layout* layout = nullptr;
  const Rope* rope = nullptr;
  int layer = 0;
  int q_heads = 0;
  int64_t first_position = 0;  // Query i stands at first_position + i and attends to positions up to its own.
  int query_count = 0;
  std::span<const float* const>
      queries;  // By layer; [layer] and, under score sharing, the lead layers of this layer's slots are read.
  std::span<const BlockRef> blocks;
};

// FAILED_PRECONDITION where a query needs a plane that is null; INVALID_ARGUMENT where the view does not reach
// a query's own position or the blocks are out of order.
absl::Status Attend(const AttentionInput& input, float* out);

}  // namespace perigee::kernels

#endif  // PERIGEE_KERNELS_ATTENTION_H_
