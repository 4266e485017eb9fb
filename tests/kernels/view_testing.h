// General views for the tests of kernels/: blocks that stand anywhere, as planes for Attend and as a list of tokens for
// the reference.
#ifndef PERIGEE_TESTS_KERNELS_VIEW_TESTING_H_
#define PERIGEE_TESTS_KERNELS_VIEW_TESTING_H_

#include <algorithm>
#include <cstdint>
#include <random>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cpu/attention_internal.h"
#include "kernels_testing.h"

namespace perigee::kernels::testing {

// One block to be: what a BlockRef says of it.
struct BlockSpec {
  int64_t position = 0;
  int64_t base_position = 0;
  int tokens = 1;
  std::set<int> hidden = {};
  bool far_only = false;
  bool context = false;
  std::vector<int64_t> positions = {};           // An overlay's.
  std::set<int> nan_keys = {}, nan_values = {};  // Tokens whose first key or value element is NaN.
};

struct View {
  pod::Plan plan;
  pod::Layout layout;
  int q_heads;
  Rope rope;
  std::mt19937 random;
  std::vector<AlignedBytes> planes;
  std::vector<std::vector<int64_t>> overlays;
  std::vector<BlockRef> blocks;
  std::vector<reference::ViewToken> tokens;  // The visible ones.
  std::vector<int64_t> positions;            // Of the queries.
  std::vector<std::vector<float>> query_data;
  std::vector<const float*> queries;
  float temperature = 1, scale = 1;

  View(const pod::Plan& p, int block_tokens, int query_heads, uint32_t seed, double theta = 10000)
      : plan(p),
        layout(*pod::Layout::Create(p, block_tokens)),
        q_heads(query_heads),
        rope(MakeRope(p.shape().head_dim, theta)),
        random(seed) {}

  int dim() const { return plan.shape().head_dim; }
  int Below(int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); }
  bool Chance(double p) { return std::uniform_real_distribution<double>()(random) < p; }

  // Random keys and values, of these sizes. What is hidden, and what no token fills, is NaN in the planes.
  void Add(const BlockSpec& spec, float key_size = 1, float value_size = 1) {
    BlockRef block;
    block.position = spec.position;
    block.base_position = spec.base_position;
    block.tokens = spec.tokens;
    block.far_only = spec.far_only;
    block.context = spec.context;
    for (int t : spec.hidden) block.hidden[static_cast<size_t>(t) / 64] |= uint64_t{1} << t % 64;
    if (!spec.positions.empty()) {
      overlays.push_back(spec.positions);  // A vector that moves keeps its elements in place.
      block.positions = overlays.back().data();
    }
    planes.emplace_back(layout.plane_bytes(pod::PlaneKind::kDistant), 0xFF);
    block.distant = planes.back().data.get();
    if (!spec.far_only) {
      planes.emplace_back(layout.plane_bytes(pod::PlaneKind::kProximal), 0xFF);
      block.proximal = planes.back().data.get();
    }
    const pod::KvShape& shape = plan.shape();
    for (int t = 0; t < spec.tokens; ++t) {
      if (spec.hidden.contains(t)) continue;
      reference::ViewToken token;
      token.position = block.PositionOf(t);
      token.block_first = block.position;
      token.block_last = block.PositionOf(spec.tokens - 1);
      token.far_only = spec.far_only;
      token.context = spec.context;
      for (int l = 0; l < shape.layers; ++l) {
        token.keys.emplace_back();
        token.values.emplace_back();
        for (int h = 0; h < shape.kv_heads; ++h) {
          std::vector<double> key = RandomRow(key_size), value = RandomRow(value_size);
          if (spec.nan_keys.contains(t)) key[0] = NAN;
          if (spec.nan_values.contains(t)) value[0] = NAN;
          const pod::SlotTiles& tiles = layout.slot(l, h);
          const pod::Role role = plan.slot(l, h).role;
          Write(block, tiles.near_keys, true, t, key);
          Write(block, tiles.near_values, false, t, value);
          if (role == pod::Role::kLead) Write(block, tiles.far_keys, true, t, key);
          if (role != pod::Role::kNearOnly) Write(block, tiles.far_values, false, t, value);
          reference::ApplyRope(rope, spec.position - spec.base_position, 1, key.data());
          token.keys.back().push_back(std::move(key));
          token.values.back().push_back(std::move(value));
        }
      }
      tokens.push_back(std::move(token));
    }
    blocks.push_back(block);
  }

  // `count` tokens from `position` on in blocks as full as can be, keys rotated from base_position on.
  void AddText(BlockSpec spec, int count) {
    for (; count > 0; count -= layout.block_tokens()) {
      spec.tokens = std::min(count, layout.block_tokens());
      Add(spec);
      spec.position += spec.tokens;
      spec.base_position += spec.tokens;
    }
  }

  // A number that bf16 and fp16 both hold, unless it is large.
  std::vector<double> RandomRow(float size) {
    std::normal_distribution<float> normal(0, size);
    std::vector<double> row;
    for (int d = 0; d < dim(); ++d) row.push_back(World::Representable(normal(random)));
    return row;
  }

  void Write(const BlockRef& block, const pod::Tile& tile, bool is_key, int token, const std::vector<double>& row) {
    const std::byte* plane = tile.plane == pod::PlaneKind::kDistant ? block.distant : block.proximal;
    if (plane == nullptr) return;
    auto* elements = reinterpret_cast<uint16_t*>(const_cast<std::byte*>(plane + tile.offset_bytes));
    for (int d = 0; d < dim(); ++d) {
      const int at = is_key ? token * dim() + d : d * layout.block_tokens() + token;
      elements[at] = FromFloat(tile.codec, static_cast<float>(row[static_cast<size_t>(d)]));
    }
  }

  // Positions at which a query may stand.
  std::vector<int64_t> Standable() const {
    std::set<int64_t> all;
    for (const reference::ViewToken& token : tokens) {
      if (!token.far_only) all.insert(token.position);
    }
    return {all.begin(), all.end()};
  }

  void SetQueries(std::vector<int64_t> at, float size = 1) {
    positions = std::move(at);
    query_data.clear();
    queries.clear();
    for (int l = 0; l < plan.shape().layers; ++l) {
      query_data.push_back(
          RandomFloats(positions.size() * static_cast<size_t>(q_heads * dim()), static_cast<uint32_t>(random()), size));
    }
    for (const auto& q : query_data) queries.push_back(q.data());
  }

  AttentionInput Input(int layer) const {
    AttentionInput input;
    input.layout = &layout;
    input.rope = &rope;
    input.layer = layer;
    input.q_heads = q_heads;
    input.positions = positions;
    input.queries = queries;
    input.blocks = blocks;
    input.context_temperature = temperature;
    input.context_scale = scale;
    return input;
  }

  size_t OutSize() const { return positions.size() * static_cast<size_t>(q_heads * dim()); }

  std::vector<float> Expected(int layer) const {
    std::vector<float> out(OutSize());
    reference::AttendView(plan, layer, q_heads, tokens, positions, queries, temperature, scale, out.data());
    return out;
  }

  std::vector<float> Attended(int layer, internal::Tuning tuning = {}) const {
    std::vector<float> out(OutSize(), -12345.0f);
    const absl::Status status = internal::AttendTuned(Input(layer), tuning, out.data());
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }

  // Every path, target and some cuts against the reference, all layers.
  void Check(float tolerance = 3e-6f) const {
    for (int layer = 0; layer < plan.shape().layers; ++layer) {
      SCOPED_TRACE(absl::StrCat("layer ", layer));
      const std::vector<float> expected = Expected(layer);
      ForEachTarget([&] {
        for (auto path : {internal::Tuning::Path::kTile, internal::Tuning::Path::kDot}) {
          for (int splits : {1, 7}) {
            SCOPED_TRACE(absl::StrCat("path ", static_cast<int>(path), ", splits ", splits));
            ExpectNear(Attended(layer, {path, splits}), expected, tolerance);
            if (::testing::Test::HasFatalFailure()) return;
          }
        }
      });
      if (::testing::Test::HasFatalFailure()) return;
    }
  }
};

}  // namespace perigee::kernels::testing

#endif  // PERIGEE_TESTS_KERNELS_VIEW_TESTING_H_
