#include "pod/head_shard.h"

#include <algorithm>

#include "base/status.h"

namespace perigee::pod {
namespace {

constexpr size_t kNone = SIZE_MAX;

// The full section of every local section, by plane kind.
using SectionMap = std::array<std::vector<size_t>, 3>;

size_t SectionAt(const std::vector<Section>& sections, size_t offset) {
  const auto after = std::upper_bound(sections.begin(), sections.end(), offset,
                                      [](size_t at, const Section& s) { return at < s.offset_bytes; });
  return static_cast<size_t>(after - sections.begin()) - 1;
}

absl::Status Differ(const char* what, PlaneKind kind, int layer, int head) {
  return absl::InternalError(absl::StrCat("head shard: ", what, " of slot (layer ", layer, ", kv head ", head,
                                          ") differs between the full and the rank's ", PlaneKindName(kind), " plane"));
}

// One tile (or a lead's bounds) at `full_offset` of the full plane and `local_offset` of the local one.
absl::Status MapTile(const Layout& full, const Layout& local, PlaneKind kind, size_t full_offset, size_t local_offset,
                     int layer, int head, SectionMap& map) {
  const std::vector<Section>& to = full.sections(kind);
  const std::vector<Section>& from = local.sections(kind);
  const size_t to_index = SectionAt(to, full_offset), from_index = SectionAt(from, local_offset);
  if (full_offset - to[to_index].offset_bytes != local_offset - from[from_index].offset_bytes) {
    return Differ("a tile's place in its section", kind, layer, head);
  }
  if (to[to_index].bytes != from[from_index].bytes) return Differ("the section's size", kind, layer, head);
  size_t& mapped = map[static_cast<size_t>(kind) - 1][from_index];
  if (mapped != kNone && mapped != to_index) return Differ("the section", kind, layer, head);
  mapped = to_index;
  return absl::OkStatus();
}

absl::StatusOr<SectionMap> MapSections(const Layout& full, const Layout& local, int first_head) {
  SectionMap map;
  for (PlaneKind kind : kPlaneKinds) {
    map[static_cast<size_t>(kind) - 1].assign(local.sections(kind).size(), kNone);
  }
  const KvShape& shape = local.plan().shape();
  for (int l = 0; l < shape.layers; ++l) {
    for (int h = 0; h < shape.kv_heads; ++h) {
      const SlotTiles& there = full.slot(l, first_head + h);
      const SlotTiles& here = local.slot(l, h);
      for (const auto tile :
           {&SlotTiles::near_keys, &SlotTiles::near_values, &SlotTiles::far_keys, &SlotTiles::far_values}) {
        const Tile& a = there.*tile;
        const Tile& b = here.*tile;
        if (a.present() != b.present()) return Differ("a tile's presence", a.plane, l, first_head + h);
        if (!a.present()) continue;
        if (a.plane != b.plane || a.codec != b.codec || a.bytes != b.bytes) {
          return Differ("a tile", a.plane, l, first_head + h);
        }
        PERIGEE_RETURN_IF_ERROR(MapTile(full, local, a.plane, static_cast<size_t>(a.offset_bytes),
                                        static_cast<size_t>(b.offset_bytes), l, first_head + h, map));
      }
      const int64_t there_bounds = full.summary_offset(l, first_head + h), here_bounds = local.summary_offset(l, h);
      if ((there_bounds < 0) != (here_bounds < 0)) {
        return Differ("a summary's presence", PlaneKind::kSummary, l, first_head + h);
      }
      if (there_bounds < 0) continue;
      PERIGEE_RETURN_IF_ERROR(MapTile(full, local, PlaneKind::kSummary, static_cast<size_t>(there_bounds),
                                      static_cast<size_t>(here_bounds), l, first_head + h, map));
    }
  }
  return map;
}

}  // namespace

absl::StatusOr<HeadShard> HeadShard::Create(const Layout& full, int rank, int size) {
  const int kv_heads = full.plan().shape().kv_heads;
  if (size < 1 || rank < 0 || rank >= size) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", rank, " of a tensor-parallel group of ", size));
  }
  if (kv_heads % size != 0) {
    return absl::InvalidArgumentError(absl::StrCat("the model's ", kv_heads, " kv heads do not divide by ", size,
                                                   " tensor-parallel ranks: choose a divisor of ", kv_heads));
  }
  const int heads = kv_heads / size;
  std::vector<Layout> locals;
  std::vector<SectionMap> maps;
  for (int r = 0; r < size; ++r) {
    PERIGEE_ASSIGN_OR_RETURN(const Plan plan, full.plan().ForHeads(r * heads, heads));
    PERIGEE_ASSIGN_OR_RETURN(Layout local, Layout::Create(plan, full.block_tokens()));
    PERIGEE_ASSIGN_OR_RETURN(SectionMap map, MapSections(full, local, r * heads));
    locals.push_back(std::move(local));
    maps.push_back(std::move(map));
  }

  HeadShard shard(full, locals[static_cast<size_t>(rank)], rank, size);
  for (PlaneKind kind : kPlaneKinds) {
    const size_t k = Index(kind);
    // Every section belongs to one rank.
    std::vector<int>& owners = shard.owners_[k];
    owners.assign(full.sections(kind).size(), -1);
    for (int r = 0; r < size; ++r) {
      for (const size_t section : maps[static_cast<size_t>(r)][k]) {
        if (section == kNone || owners[section] != -1) {
          return absl::InternalError(absl::StrCat("head shard: a section of rank ", r, "'s ", PlaneKindName(kind),
                                                  " plane has no counterpart of its own"));
        }
        owners[section] = r;
      }
    }
    if (std::find(owners.begin(), owners.end(), -1) != owners.end()) {
      return absl::InternalError(
          absl::StrCat("head shard: a section of the ", PlaneKindName(kind), " plane belongs to no rank"));
    }

    const std::vector<size_t>& map = maps[static_cast<size_t>(rank)][k];
    std::vector<SectionRun>& runs = shard.runs_[k];
    for (size_t i = 0; i < map.size(); ++i) {
      if (!runs.empty() && runs.back().full + runs.back().count == map[i]) {
        ++runs.back().count;
      } else {
        runs.push_back({i, map[i], 1});
      }
    }

    // A layer's ranges may run over section borders: cut there, join again what is adjacent in both planes.
    const std::vector<Section>& here = shard.local_.sections(kind);
    for (int l = 0; l < shard.local_.plan().shape().layers; ++l) {
      std::vector<ShardExtent>& extents = shard.layer_extents_[k].emplace_back();
      for (const Section& range : shard.local_.layer_ranges(kind, l)) {
        const size_t end = range.offset_bytes + range.bytes;
        for (size_t at = range.offset_bytes; at < end;) {
          const size_t s = SectionAt(here, at);
          const size_t bytes = std::min(end, here[s].offset_bytes + here[s].bytes) - at;
          const size_t to = full.sections(kind)[map[s]].offset_bytes + (at - here[s].offset_bytes);
          if (!extents.empty() && extents.back().local_offset + extents.back().bytes == at &&
              extents.back().full_offset + extents.back().bytes == to) {
            extents.back().bytes += bytes;
          } else {
            extents.push_back({at, to, bytes});
          }
          at += bytes;
        }
      }
    }
  }
  return shard;
}

}  // namespace perigee::pod
