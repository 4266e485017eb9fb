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
// query is rotated by the difference, once per distinct difference. So blocks of one text can stand anywhere in
// another, next to blocks that were computed here (arXiv 2502.15734, 2405.16444 rewrite the keys instead).
//
// A query sees the tokens that stand at its own position and before, whatever blocks they are in: blocks may begin
// anywhere, hold any number of tokens and stand at the same positions as others. Near to a query is a block whose first
// token is one of the sinks or whose last one (hidden or not) is recent (pod::IsSpanNear).
//
// Tokens of a block can be hidden: an overlay stands for them, a block of tokens that were computed again, each at its
// own position. Nothing is written into the block that is hidden.
//
// Blocks that were computed without sight of each other can be marked as contexts (parallel encoding, arXiv
// 2502.05431): their logits are divided by a temperature, and the log-sum-exp of all their logits is multiplied by a
// scale before it is weighed against the rest's.
//
// Memory is the caller's; nothing is kept after the call. Any thread; parallel inside.
#ifndef PERIGEE_KERNELS_ATTENTION_H_
#define PERIGEE_KERNELS_ATTENTION_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "kernels/rope.h"
#include "pod/layout.h"

namespace perigee::kernels {

// Bit t of word t / 64: token t of a block is not there.
using HiddenTokens = std::array<uint64_t, pod::kMaxBlockTokens / 64>;

// One block of a view, in any order. Token t stands at position + t, or at positions[t].
struct BlockRef {
  const std::byte* distant = nullptr;
  const std::byte* proximal =
      nullptr;                // May be null while no query of the call is near to the block, or the plane is empty.
  int64_t position = 0;       // Of the block's first token, in the request. May be negative where that is hidden.
  int64_t base_position = 0;  // Of the block's first token, when its keys were rotated.
  int32_t tokens = 0;
  // Its proximal plane is not to be had: every query reads it as a far one, and near-only slots do not see it.
  bool far_only = false;
  bool context = false;
  HiddenTokens hidden = {};  // All may be.
  // [tokens], ascending, the first one is `position`; null: one after the other. Keys were rotated at these positions,
  // base_position is `position`.
  const int64_t* positions = nullptr;

  int64_t PositionOf(int32_t token) const { return positions == nullptr ? position + token : positions[token]; }
};

struct AttentionInput {
  const pod::Layout* layout = nullptr;
  const Rope* rope = nullptr;
  int layer = 0;
  int q_heads = 0;
  std::span<const int64_t> positions;  // Of the queries, ascending; each attends to positions up to its own.
  std::span<const float* const>
      queries;  // By layer; [layer] and, under score sharing, the lead layers of this layer's slots are read.
  std::span<const BlockRef> blocks;
  float context_temperature = 1, context_scale = 1;  // Both 1: contexts are blocks as all others.
};

// FAILED_PRECONDITION where a query needs a plane that is null. INVALID_ARGUMENT where no visible token of the view
// stands at a query's own position (for layers with near-only slots: none but in far_only blocks), or a block, the
// positions or the temperature or scale cannot be. Nothing is written then.
absl::Status Attend(const AttentionInput& input, float* out);

}  // namespace perigee::kernels

#endif  // PERIGEE_KERNELS_ATTENTION_H_
