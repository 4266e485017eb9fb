#include "pod/layout.h"

#include <algorithm>

#include "base/status.h"

namespace perigee::pod {
namespace {

size_t RoundUp(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Appends tiles to the three planes in order and cuts them into sections.
class PlaneBuilder {
 public:
  Tile Add(PlaneKind kind, Codec codec, size_t bytes, int layer) {
    Plane& plane = planes_[static_cast<size_t>(kind) - 1];
    // Aligns the next tile's start: the tiles of one plane are all equally large, since every codec so far has 16 bits.
    const size_t space = RoundUp(bytes, bytes >= 1024 ? 1024 : 64);
    const Tile tile{kind, codec, static_cast<int64_t>(plane.size), bytes};
    plane.size += space;
    plane.last_layer = std::max(plane.last_layer, layer);
    if (static_cast<size_t>(layer) >= plane.by_layer.size()) plane.by_layer.resize(static_cast<size_t>(layer) + 1);
    std::vector<Section>& ranges = plane.by_layer[static_cast<size_t>(layer)];
    if (!ranges.empty() && ranges.back().offset_bytes + ranges.back().bytes == static_cast<size_t>(tile.offset_bytes)) {
      ranges.back().bytes += space;
    } else {
      ranges.push_back({static_cast<size_t>(tile.offset_bytes), space, layer});
    }
    return tile;
  }

  void EndSection() {
    for (Plane& plane : planes_) {
      if (plane.size > plane.section_begin) {
        plane.sections.push_back({plane.section_begin, plane.size - plane.section_begin, plane.last_layer});
      }
      plane.section_begin = plane.size;
      plane.last_layer = 0;
    }
  }

  struct Plane {
    size_t size = 0;
    size_t section_begin = 0;
    int last_layer = 0;
    std::vector<Section> sections;
    std::vector<std::vector<Section>> by_layer;
  };
  std::array<Plane, 3>& planes() { return planes_; }

 private:
  std::array<Plane, 3> planes_;
};

}  // namespace

const char* PlaneKindName(PlaneKind kind) {
  switch (kind) {
    case PlaneKind::kDistant:
      return "distant";
    case PlaneKind::kProximal:
      return "proximal";
    case PlaneKind::kSummary:
      return "summary";
  }
  return "unknown";
}

absl::StatusOr<Layout> Layout::Create(const Plan& plan, int block_tokens) {
  if (block_tokens != 16 && block_tokens != 32 && block_tokens != 64 && block_tokens != 128) {
    return absl::InvalidArgumentError(absl::StrCat("block_tokens is ", block_tokens, "; it must be 16, 32, 64 or 128"));
  }
  Layout layout(plan);
  layout.block_tokens_ = block_tokens;
  const KvShape& shape = plan.shape();
  layout.slots_.resize(static_cast<size_t>(shape.slots()));
  layout.summary_offsets_.assign(static_cast<size_t>(shape.slots()), -1);
  const auto index = [&](int l, int h) { return static_cast<size_t>(l * shape.kv_heads + h); };
  const auto tile_bytes = [&](Codec codec) {
    return static_cast<size_t>(block_tokens) * static_cast<size_t>(shape.head_dim) *
           static_cast<size_t>(CodecBits(codec)) / 8;
  };
  const size_t near_bytes = tile_bytes(plan.near_codec());

  // Members of every sharing group, in (layer, head) order.
  std::vector<std::vector<SlotId>> groups(static_cast<size_t>(shape.slots()));
  std::vector<SlotId> near_only;
  for (int l = 0; l < shape.layers; ++l) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      const Slot& slot = plan.slot(l, h);
      if (slot.role == Role::kNearOnly) {
        near_only.push_back({l, h});
      } else {
        groups[index(slot.lead.layer, slot.lead.kv_head)].push_back({l, h});
      }
    }
  }

  PlaneBuilder builder;
  const auto add_near = [&](SlotId id, bool keys, bool values) {
    SlotTiles& tiles = layout.slots_[index(id.layer, id.kv_head)];
    if (keys) tiles.near_keys = builder.Add(PlaneKind::kProximal, plan.near_codec(), near_bytes, id.layer);
    if (values) tiles.near_values = builder.Add(PlaneKind::kProximal, plan.near_codec(), near_bytes, id.layer);
  };
  for (int l = 0; l < shape.layers; ++l) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      if (plan.slot(l, h).role != Role::kLead) continue;
      SlotTiles& lead = layout.slots_[index(l, h)];
      const Codec lead_codec = plan.slot(l, h).far_codec;
      // A lead may stand after same-layer followers in head order; its keys come first all the same.
      lead.far_keys = builder.Add(PlaneKind::kDistant, lead_codec, tile_bytes(lead_codec), l);
      for (const SlotId id : groups[index(l, h)]) {
        SlotTiles& tiles = layout.slots_[index(id.layer, id.kv_head)];
        const Codec codec = plan.slot(id).far_codec;
        tiles.far_keys = lead.far_keys;
        tiles.far_values = builder.Add(PlaneKind::kDistant, codec, tile_bytes(codec), id.layer);
        const bool lossy_values = codec != plan.near_codec();
        const bool own_keys = id == SlotId{l, h} && lead_codec == plan.near_codec();
        if (own_keys) tiles.near_keys = lead.far_keys;
        if (!lossy_values) tiles.near_values = tiles.far_values;
        add_near(id, !own_keys, lossy_values);
      }
      const size_t bounds_bytes = size_t{2} * static_cast<size_t>(shape.head_dim) * sizeof(uint16_t);
      layout.summary_offsets_[index(l, h)] =
          builder.Add(PlaneKind::kSummary, Codec::kBf16, bounds_bytes, l).offset_bytes;
      builder.EndSection();
    }
  }
  for (const SlotId id : near_only) {
    add_near(id, true, true);
    builder.EndSection();
  }

  for (PlaneKind kind : kPlaneKinds) {
    for (const Section& section : builder.planes()[Index(kind)].sections) {
      if (section.bytes > UINT32_MAX) {
        return absl::InvalidArgumentError(absl::StrCat(
            "a section of the ", PlaneKindName(kind), " plane would have ", section.bytes, " bytes; at most ",
            UINT32_MAX, " can be written: share among fewer slots or take smaller blocks"));
      }
    }
    PlaneBuilder::Plane& plane = builder.planes()[Index(kind)];
    plane.by_layer.resize(static_cast<size_t>(shape.layers));
    layout.plane_bytes_[Index(kind)] = plane.size;
    layout.sections_[Index(kind)] = std::move(plane.sections);
    layout.layer_ranges_[Index(kind)] = std::move(plane.by_layer);
  }
  return layout;
}

int64_t Layout::summary_offset(int layer, int kv_head) const {
  return summary_offsets_[static_cast<size_t>(layer * plan_.shape().kv_heads + kv_head)];
}

double Layout::PredictedSaving(int64_t tokens) const {
  if (tokens <= 0) return 0;
  const Window& window = plan_.window();
  const int64_t blocks = (tokens - 1) / block_tokens_ + 1;
  const int64_t sink_blocks = SinkEnd(window, block_tokens_) / block_tokens_;
  const int64_t recent_begin = RecentBegin(window, block_tokens_, tokens - 1) / block_tokens_;
  const int64_t far_blocks = std::max<int64_t>(0, recent_begin - sink_blocks);
  const double stored =
      static_cast<double>(blocks) * static_cast<double>(plane_bytes(PlaneKind::kDistant)) +
      static_cast<double>(blocks - far_blocks) * static_cast<double>(plane_bytes(PlaneKind::kProximal));
  return 1 - stored / (static_cast<double>(blocks) * block_tokens_ * static_cast<double>(dense_bytes_per_token()));
}

size_t Layout::dense_bytes_per_token() const {
  return static_cast<size_t>(plan_.shape().slots()) * static_cast<size_t>(plan_.shape().head_dim) * 2 * 2;
}

}  // namespace perigee::pod
