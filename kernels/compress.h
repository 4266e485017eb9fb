// compress: fresh keys and values -> the tiles of a block's planes. The only writer of plane bytes.
//
// Shapes: keys[tokens][kv_heads][head_dim] and values likewise, float, keys already rotated at their positions relative
// to the block's base (the caller's choice of base: usually the absolute position in the prompt). Plane buffers are the
// caller's, plane_bytes(kind) long, 64-byte aligned at least, and zero where never written, so that padding is
// deterministic.
//
// Threads: calls for different blocks may run at the same time; calls for one block must not.
#ifndef PERIGEE_KERNELS_COMPRESS_H_
#define PERIGEE_KERNELS_COMPRESS_H_

#include <cstddef>

#include "pod/layout.h"

namespace perigee::kernels {

// One block's planes, writable. proximal and summary may be null: then those tiles are not written.
struct MutableBlock {
  std::byte* distant = nullptr;
  std::byte* proximal = nullptr;
  std::byte* summary = nullptr;
};

// Writes `tokens` tokens of one layer into token places [first_token, first_token + tokens) of the block.
// 0 <= first_token, first_token + tokens <= block_tokens; tokens outside that range stay as they are.
void CompressLayer(const pod::Layout& layout, int layer, const float* keys, const float* values, int first_token,
                   int tokens, const MutableBlock& block);

// Writes one layer's part of the summary plane from the block's first `tokens` tokens, read back from the distant
// tiles: bounds of what is stored, after rounding. NaN keys give bounds of -inf and +inf.
void SummarizeLayer(const pod::Layout& layout, int layer, int tokens, const MutableBlock& block);

}  // namespace perigee::kernels

#endif  // PERIGEE_KERNELS_COMPRESS_H_
