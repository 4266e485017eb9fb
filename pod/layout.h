// Where every tile of a block lies in its planes: the one layout from kernel to disk to wire to kernel.
//
// A tile is one slot's keys or values of one block: keys [token][dim], values transposed [dim][token], in a codec,
// little-endian.
//   distant plane    keys of leads, values of leads and followers, in each slot's far codec
//   proximal plane   what a near reader needs besides: keys of followers, keys and values of near-only slots, and, for
//                    slots whose far codec is not the near codec, keys and values again in the near codec
//   summary plane    per lead: smallest and largest key element per channel (bf16, rounded outward), [min, max][dim]
// Tiles stand in the order sharing group (its lead's layer, head), then layer, then kv head, keys before values;
// near-only slots come last. One sharing group's run of tiles in a plane (or one near-only slot's) is a section, the
// unit of checksums and of partial fetches. Tile starts are aligned to 1 KiB where a tile is that large, else to 64
// bytes; a plane starts on 4 KiB wherever it lies. A plane may be empty (0 bytes).
//
// Immutable; any thread may read.
#ifndef PERIGEE_POD_LAYOUT_H_
#define PERIGEE_POD_LAYOUT_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "pod/plan.h"

namespace perigee::pod {

inline constexpr int kMaxBlockTokens = 128;

// The values are part of the file formats.
enum class PlaneKind : uint8_t { kDistant = 1, kProximal = 2, kSummary = 3 };
inline constexpr std::array<PlaneKind, 3> kPlaneKinds = {PlaneKind::kDistant, PlaneKind::kProximal,
                                                         PlaneKind::kSummary};
const char* PlaneKindName(PlaneKind kind);

inline constexpr size_t kPlaneAlignment = 4096;

struct Tile {
  PlaneKind plane = PlaneKind::kDistant;
  Codec codec = Codec::kBf16;
  int64_t offset_bytes = -1;  // From the plane's start; -1: this slot has no such tile.
  size_t bytes = 0;
  bool present() const { return offset_bytes >= 0; }
};

// The four tiles through which one slot is read. Near and far tiles are the same tile where nothing distinguishes them.
// far_keys is the lead's tile for a follower; far tiles of a near-only slot are absent.
struct SlotTiles {
  Tile near_keys, near_values, far_keys, far_values;
};

struct Section {
  size_t offset_bytes = 0;
  size_t bytes = 0;
  int last_layer = 0;  // Complete once this layer's keys and values are written.
};

class Layout {
 public:
  // block_tokens: 16, 32, 64 or 128 (kMaxBlockTokens). INVALID_ARGUMENT for others, and where a section would have 4
  // GiB or more (headers count in u32).
  static absl::StatusOr<Layout> Create(const Plan& plan, int block_tokens);

  const Plan& plan() const { return plan_; }
  int block_tokens() const { return block_tokens_; }
  const SlotTiles& slot(int layer, int kv_head) const {
    return slots_[static_cast<size_t>(layer * plan_.shape().kv_heads + kv_head)];
  }
  // Offset of a lead's [2][head_dim] bf16 bounds in the summary plane; -1 for other slots.
  int64_t summary_offset(int layer, int kv_head) const;

  size_t plane_bytes(PlaneKind kind) const { return plane_bytes_[Index(kind)]; }
  const std::vector<Section>& sections(PlaneKind kind) const { return sections_[Index(kind)]; }

  // The byte ranges of a plane that layer `layer` writes, neighbours joined: what a prefill may ship once the layer is
  // done.
  const std::vector<Section>& layer_ranges(PlaneKind kind, int layer) const {
    return layer_ranges_[Index(kind)][static_cast<size_t>(layer)];
  }

  // Bytes of one token's keys and values in all slots at 16 bits: a dense cache, the yardstick of every saving.
  size_t dense_bytes_per_token() const;

  // The share of a dense cache of the same blocks that a reader of `tokens` (at least 0) cached tokens neither stores
  // nor fetches: it has the distant planes of all blocks and the proximal planes of those near to the last token.
  // Summary planes are not counted. Negative where planes cost more than dense ones (near copies of slots in another
  // far codec, padding of odd tiles). 0 for no tokens.
  double PredictedSaving(int64_t tokens) const;

 private:
  static size_t Index(PlaneKind kind) { return static_cast<size_t>(kind) - 1; }
  explicit Layout(const Plan& plan) : plan_(plan) {}
  Plan plan_;
  int block_tokens_ = 0;
  std::vector<SlotTiles> slots_;
  std::vector<int64_t> summary_offsets_;
  std::array<size_t, 3> plane_bytes_{};
  std::array<std::vector<Section>, 3> sections_;
  std::array<std::vector<std::vector<Section>>, 3> layer_ranges_;
};

}  // namespace perigee::pod

#endif  // PERIGEE_POD_LAYOUT_H_
