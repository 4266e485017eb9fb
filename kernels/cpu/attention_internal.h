// Internal to kernels/: how Attend is cut into units, and what the SIMD code is given.
//
// A unit is (kv head, range of rows, range of blocks); it yields one partial softmax state per row. A row is one
// (query, query head of the group); rows are numbered query * R + head, R = q_heads / kv_heads, so a group's heads
// stand side by side and read each tile once. Contexts that are weighed apart have ranges of their own.
//
// Scores are kept unscaled and in units of a power of two per row: queries are multiplied by 2^-e, chosen so that no
// dot product with a finite key can overflow; the softmax takes exp2((s - m) * exponent_scale). Probabilities carry a
// common factor 2^-24, so that the sum of up to 2^24 values of any finite size cannot overflow either. Both factors are
// exact and cancel.
#ifndef PERIGEE_KERNELS_CPU_ATTENTION_INTERNAL_H_
#define PERIGEE_KERNELS_CPU_ATTENTION_INTERNAL_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "kernels/attention.h"
#include "pod/window.h"

namespace perigee::kernels::internal {

inline constexpr int kTileRows = 64;  // Rows of one unit of the tile path: lanes of its small matrix products.
inline constexpr float kProbabilityBias = -24.0f;  // As an exponent of 2; see above.

// Rotation of a query by the negative of one block offset.
struct Rotation {
  int64_t offset = 0;               // position - base_position.
  std::vector<float> cosine, sine;  // [head_dim / 2]; empty where offset is 0.
};

// A block that some query sees.
struct OrderedBlock {
  int32_t index = 0;     // Into AttentionInput::blocks.
  int32_t rotation = 0;  // Into Call::rotations.
  int64_t first = 0;     // Where its first token stands that is not hidden: earlier queries do not see the block.
  int64_t last = 0;      // Where its last token stands, hidden or not.
  bool has_hidden = false;
};

struct Call {
  const AttentionInput* input = nullptr;
  int head_dim = 0;
  int block_tokens = 0;
  int group = 0;  // R: query heads per kv head.
  std::vector<Rotation> rotations;
  std::vector<OrderedBlock> order;  // First the contexts; then again, those of one rotation stand together.
  size_t contexts = 0;              // Of `order`; 0 where temperature and scale are 1.
};

// Checks shapes, positions and the view, and fills in the call. No queries: there is nothing to do.
absl::Status PrepareCall(const AttentionInput& input, Call* call);

// Blocks order[begin, end), all of them contexts or none.
struct Range {
  size_t begin = 0, end = 0;
  bool context = false;
};

// Tokens that stand at `position` or before. They are the block's first; hidden ones count.
inline int SeenTokens(const BlockRef& block, int64_t position) {
  if (block.positions == nullptr) {
    return static_cast<int>(std::clamp<int64_t>(position - block.position + 1, 0, block.tokens));
  }
  return static_cast<int>(std::upper_bound(block.positions, block.positions + block.tokens, position) -
                          block.positions);
}

inline bool IsHidden(const BlockRef& block, int token) {
  return (block.hidden[static_cast<size_t>(token) / 64] >> (token % 64) & 1) != 0;
}

inline bool IsNear(const Call& call, const OrderedBlock& at, int64_t position) {
  const BlockRef& block = call.input->blocks[static_cast<size_t>(at.index)];
  return !block.far_only && pod::IsSpanNear(call.input->layout->plan().window(), block.position, at.last, position);
}

// What one kv head reads: tiles and the query heads that meet them.
struct HeadPlan {
  pod::SlotTiles tiles;
  const float* near_queries = nullptr;  // [query][q_heads][head_dim], advanced to the group's first head.
  const float* far_queries = nullptr;
  bool has_far = false;
  bool uniform = false;  // Near and far are the same tiles and the same query: no distinction.
};
HeadPlan PlanHead(const Call& call, int kv_head);

inline const uint16_t* Elements(const BlockRef& block, const pod::Tile& tile) {
  const std::byte* plane = tile.plane == pod::PlaneKind::kProximal ? block.proximal : block.distant;
  return reinterpret_cast<const uint16_t*>(plane + tile.offset_bytes);
}

// Unfinished softmax of one row: out = o / l. No token seen: m = -inf, l = 0, o = 0.
struct PartialState {
  float* m;  // [rows] largest score so far
  float* l;  // [rows] sum of exp2((s - m) * exponent_scale)
  float* o;  // [rows][head_dim]
};

// 2^-e and the matching exponent scale (log2(e) / sqrt(head_dim) / temperature * 2^e) of one row, from its near and far
// query.
struct RowScale {
  float query_scale = 1;
  float exponent_scale = 1;
};
RowScale ScaleRow(const float* near_query, const float* far_query, int head_dim, float temperature);

inline float TemperatureOf(const Call& call, const Range& range) {
  return range.context ? call.input->context_temperature : 1.0f;
}

// dst = query * query_scale, rotated.
void PackRow(const Rotation& rotation, const float* query, float query_scale, int head_dim, float* dst);

// The SIMD entry points (attention_tile_simd.cc, attention_dot_simd.cc). Rows [first_row, first_row + rows), blocks
// order[begin, end). Tile path: any number of rows up to kTileRows. Dot path: rows of one query, where CanDot says so.
void AttendTile(const Call& call, int kv_head, int64_t first_row, int rows, const Range& range,
                const PartialState& out);
void AttendDot(const Call& call, int kv_head, int64_t first_row, int rows, const Range& range, const PartialState& out);
inline bool CanDot(int head_dim) { return head_dim % 8 == 0; }

// For tests: forces a path or a number of splits.
struct Tuning {
  enum class Path { kAuto, kTile, kDot };
  Path path = Path::kAuto;
  int splits = 0;  // Of the blocks; 0: chosen from the number of threads.
};
absl::Status AttendTuned(const AttentionInput& input, const Tuning& tuning, float* out);

}  // namespace perigee::kernels::internal

#endif  // PERIGEE_KERNELS_CPU_ATTENTION_INTERNAL_H_
