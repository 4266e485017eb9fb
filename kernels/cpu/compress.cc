#include "kernels/compress.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "kernels/codec.h"

namespace perigee::kernels {
namespace {

uint16_t* TileElements(const MutableBlock& block, const pod::Tile& tile) {
  std::byte* plane = tile.plane == pod::PlaneKind::kProximal ? block.proximal : block.distant;
  return plane == nullptr || !tile.present() ? nullptr : reinterpret_cast<uint16_t*>(plane + tile.offset_bytes);
}

bool SameTile(const pod::Tile& a, const pod::Tile& b) { return a.plane == b.plane && a.offset_bytes == b.offset_bytes; }

struct Source {
  const float* data;  // [tokens][stride], of which head_dim are this head's.
  size_t stride;
  size_t head_dim;
  size_t first_token, tokens, block_tokens;
};

void WriteKeys(const Source& s, pod::Codec codec, uint16_t* tile) {
  for (size_t t = 0; t < s.tokens; ++t) {
    Encode(codec, s.data + t * s.stride, s.head_dim, tile + (s.first_token + t) * s.head_dim);
  }
}

void WriteValues(const Source& s, pod::Codec codec, std::vector<uint16_t>& scratch, uint16_t* tile) {
  scratch.resize(s.tokens * s.head_dim);
  for (size_t t = 0; t < s.tokens; ++t) Encode(codec, s.data + t * s.stride, s.head_dim, &scratch[t * s.head_dim]);
  for (size_t d = 0; d < s.head_dim; ++d) {
    uint16_t* row = tile + d * s.block_tokens + s.first_token;
    for (size_t t = 0; t < s.tokens; ++t) row[t] = scratch[t * s.head_dim + d];
  }
}

}  // namespace

void CompressLayer(const pod::Layout& layout, int layer, const float* keys, const float* values, int first_token,
                   int tokens, const MutableBlock& block) {
  if (tokens <= 0) return;
  const pod::KvShape& shape = layout.plan().shape();
  const size_t head_dim = static_cast<size_t>(shape.head_dim);
  std::vector<uint16_t> scratch;
  for (int h = 0; h < shape.kv_heads; ++h) {
    const pod::SlotTiles& tiles = layout.slot(layer, h);
    const pod::Role role = layout.plan().slot(layer, h).role;
    Source source{keys + static_cast<size_t>(h) * head_dim,
                  head_dim * static_cast<size_t>(shape.kv_heads),
                  head_dim,
                  static_cast<size_t>(first_token),
                  static_cast<size_t>(tokens),
                  static_cast<size_t>(layout.block_tokens())};
    if (uint16_t* tile = TileElements(block, tiles.near_keys)) WriteKeys(source, tiles.near_keys.codec, tile);
    // A follower's far keys are its lead's, not its own.
    if (role == pod::Role::kLead && !SameTile(tiles.far_keys, tiles.near_keys)) {
      if (uint16_t* tile = TileElements(block, tiles.far_keys)) WriteKeys(source, tiles.far_keys.codec, tile);
    }
    source.data = values + static_cast<size_t>(h) * head_dim;
    if (uint16_t* tile = TileElements(block, tiles.near_values)) {
      WriteValues(source, tiles.near_values.codec, scratch, tile);
    }
    if (role != pod::Role::kNearOnly && !SameTile(tiles.far_values, tiles.near_values)) {
      if (uint16_t* tile = TileElements(block, tiles.far_values)) {
        WriteValues(source, tiles.far_values.codec, scratch, tile);
      }
    }
  }
}

void SummarizeLayer(const pod::Layout& layout, int layer, int tokens, const MutableBlock& block) {
  if (block.summary == nullptr || block.distant == nullptr) return;
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const pod::KvShape& shape = layout.plan().shape();
  const size_t head_dim = static_cast<size_t>(shape.head_dim);
  std::vector<float> row(head_dim), low(head_dim), high(head_dim);
  for (int h = 0; h < shape.kv_heads; ++h) {
    const int64_t offset = layout.summary_offset(layer, h);
    if (offset < 0) continue;
    const pod::Tile& keys = layout.slot(layer, h).far_keys;
    const uint16_t* tile = reinterpret_cast<const uint16_t*>(block.distant + keys.offset_bytes);
    uint16_t* bounds = reinterpret_cast<uint16_t*>(block.summary + offset);  // [min, max][head_dim]
    // Nothing stored: bounds that promise nothing.
    std::fill(low.begin(), low.end(), tokens > 0 ? kInfinity : -kInfinity);
    std::fill(high.begin(), high.end(), tokens > 0 ? -kInfinity : kInfinity);
    for (int t = 0; t < tokens; ++t) {
      Decode(keys.codec, tile + static_cast<size_t>(t) * head_dim, head_dim, row.data());
      for (size_t d = 0; d < head_dim; ++d) {
        const bool is_nan = row[d] != row[d];
        low[d] = std::min(low[d], is_nan ? -kInfinity : row[d]);
        high[d] = std::max(high[d], is_nan ? kInfinity : row[d]);
      }
    }
    for (size_t d = 0; d < head_dim; ++d) {
      bounds[d] = Bf16Down(low[d]);
      bounds[head_dim + d] = Bf16Up(high[d]);
    }
  }
}

}  // namespace perigee::kernels
