// What the tests of kernels/ share: running each SIMD target, random data, and a model's worth of blocks packed by
// hand.
#ifndef PERIGEE_TESTS_KERNELS_KERNELS_TESTING_H_
#define PERIGEE_TESTS_KERNELS_KERNELS_TESTING_H_

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "kernels/attention.h"
#include "kernels/reference/reference.h"
#include "kernels/rope.h"
#include "pod/layout.h"
#include "pod/plan.h"

namespace perigee::kernels::testing {

// Runs body once for each SIMD target this processor has: the AVX2 floor and the portable baseline are tested on every
// machine.
inline void ForEachTarget(const std::function<void()>& body) {
  const int64_t supported = hwy::SupportedTargets();
  for (int64_t target : {int64_t{HWY_AVX3}, int64_t{HWY_AVX2}, int64_t{HWY_SSE4}, int64_t{HWY_SCALAR}}) {
    if (target != HWY_SCALAR && (supported & target) == 0) continue;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body();
    hwy::SetSupportedTargetsForTest(0);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
}

// The independent packers: one element at a time, by arithmetic on the number line rather than on bits.
inline float Bf16ToFloat(uint16_t h) { return std::bit_cast<float>(static_cast<uint32_t>(h) << 16); }

inline float F16ToFloat(uint16_t h) {
  const int exponent = h >> 10 & 31, mantissa = h & 1023;
  const float sign = h & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return mantissa != 0 ? std::nanf("") : sign * INFINITY;
  return sign * (exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                               : std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25));
}

inline float ToFloat(pod::Codec codec, uint16_t h) {
  return codec == pod::Codec::kBf16 ? Bf16ToFloat(h) : F16ToFloat(h);
}

// Nearest even, for finite x in range: the neighbours below and above in magnitude are compared in double.
inline uint16_t FromFloat(pod::Codec codec, float x) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const float magnitude = std::fabs(x);
  if (std::isnan(x)) return static_cast<uint16_t>(sign | (codec == pod::Codec::kBf16 ? 0x7FC0 : 0x7E00));
  uint16_t low = 0, high = codec == pod::Codec::kBf16 ? 0x7F80 : 0x7BFF;
  if (codec == pod::Codec::kFp16 && magnitude >= 65504) return static_cast<uint16_t>(sign | 0x7BFF);
  while (high - low > 1) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    (ToFloat(codec, middle) <= magnitude ? low : high) = middle;
  }
  const double below = double{magnitude} - ToFloat(codec, low);
  // Infinity stands where the next number would.
  const double next = high == 0x7F80 ? std::ldexp(1.0, 128) : double{ToFloat(codec, high)};
  const double above = next - magnitude;
  const bool up = above < below || (above == below && (low & 1) != 0);
  return static_cast<uint16_t>(sign | (up ? high : low));
}

struct AlignedBytes {
  explicit AlignedBytes(size_t n, int fill = 0)
      : size(n), data(static_cast<std::byte*>(std::aligned_alloc(4096, (n + 4096) / 4096 * 4096)), &std::free) {
    std::memset(data.get(), fill, (n + 4096) / 4096 * 4096);
  }
  size_t size;
  std::unique_ptr<std::byte, void (*)(void*)> data;
};

inline std::vector<float> RandomFloats(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(n);
  for (float& v : x) v = normal(random);
  return x;
}

// A context of `tokens` tokens of one plan: dense numbers for the reference, planes for Attend. Every number is one
// that bf16 and fp16 both hold, so that near and far precision agree and the reference may have one cache.
struct World {
  pod::Plan plan;
  pod::Layout layout;
  int q_heads;
  int tokens;
  Rope rope;
  reference::DenseCache cache;
  std::vector<AlignedBytes> distant, proximal;
  std::vector<BlockRef> blocks;
  std::vector<std::vector<float>> query_data;  // [layer][query][q_head][head_dim]
  std::vector<const float*> queries;
  std::vector<int64_t> positions;  // Of the queries, one after the other.

  int block_tokens() const { return layout.block_tokens(); }
  int dim() const { return plan.shape().head_dim; }

  static float Representable(float x) {
    const float rounded = Bf16ToFloat(FromFloat(pod::Codec::kBf16, x));
    return std::fabs(rounded) < 1e-4f ? 0.0f : rounded;
  }

  World(const pod::Plan& p, int block_size, int query_heads, int token_count, uint32_t seed, float key_scale = 1.0f)
      : plan(p),
        layout(*pod::Layout::Create(p, block_size)),
        q_heads(query_heads),
        tokens(token_count),
        rope(MakeRope(p.shape().head_dim, 10000)) {
    const pod::KvShape& shape = plan.shape();
    cache.keys.resize(static_cast<size_t>(shape.layers));
    cache.values.resize(static_cast<size_t>(shape.layers));
    for (int l = 0; l < shape.layers; ++l) {
      for (int h = 0; h < shape.kv_heads; ++h) {
        const size_t n = static_cast<size_t>(tokens * shape.head_dim);
        auto keys = RandomFloats(n, seed + 1000u * static_cast<uint32_t>(l) + static_cast<uint32_t>(h), key_scale);
        auto values = RandomFloats(n, seed + 7777u + 1000u * static_cast<uint32_t>(l) + static_cast<uint32_t>(h));
        for (float& x : keys) x = Representable(x);
        for (float& x : values) x = Representable(x);
        cache.keys[static_cast<size_t>(l)].push_back(std::move(keys));
        cache.values[static_cast<size_t>(l)].push_back(std::move(values));
      }
    }
    Pack();
  }

  // Writes every tile from the cache, one element at a time. All other bytes are 0xFF: NaN in either codec.
  void Pack() {
    distant.clear();
    proximal.clear();
    blocks.clear();
    for (int begin = 0; begin < tokens; begin += block_tokens()) {
      BlockRef block;
      block.position = block.base_position = begin;
      block.tokens = std::min(block_tokens(), tokens - begin);
      distant.emplace_back(layout.plane_bytes(pod::PlaneKind::kDistant), 0xFF);
      proximal.emplace_back(layout.plane_bytes(pod::PlaneKind::kProximal), 0xFF);
      block.distant = distant.back().data.get();
      block.proximal = proximal.back().data.get();
      blocks.push_back(block);
      for (int l = 0; l < plan.shape().layers; ++l) {
        for (int h = 0; h < plan.shape().kv_heads; ++h) {
          const pod::SlotTiles& tiles = layout.slot(l, h);
          const pod::Role role = plan.slot(l, h).role;
          WriteTile(block, tiles.near_keys, l, h, true);
          WriteTile(block, tiles.near_values, l, h, false);
          if (role == pod::Role::kLead) WriteTile(block, tiles.far_keys, l, h, true);
          if (role != pod::Role::kNearOnly) WriteTile(block, tiles.far_values, l, h, false);
        }
      }
    }
  }

  uint16_t* Element(const BlockRef& block, const pod::Tile& tile, bool is_key, int token, int d) const {
    const std::byte* plane = tile.plane == pod::PlaneKind::kDistant ? block.distant : block.proximal;
    auto* elements = reinterpret_cast<uint16_t*>(const_cast<std::byte*>(plane + tile.offset_bytes));
    return elements + (is_key ? token * dim() + d : d * block_tokens() + token);
  }

  void WriteTile(const BlockRef& block, const pod::Tile& tile, int l, int h, bool is_key) {
    const auto& source = (is_key ? cache.keys : cache.values)[static_cast<size_t>(l)][static_cast<size_t>(h)];
    for (int t = 0; t < block.tokens; ++t) {
      for (int d = 0; d < dim(); ++d) {
        const float x = source[static_cast<size_t>((block.base_position + t) * dim() + d)];
        *Element(block, tile, is_key, t, d) = FromFloat(tile.codec, x);
      }
    }
  }

  void SetQueries(int64_t first, int count, uint32_t seed, float scale = 1.0f) {
    positions.resize(static_cast<size_t>(count));
    std::iota(positions.begin(), positions.end(), first);
    query_data.clear();
    queries.clear();
    for (int l = 0; l < plan.shape().layers; ++l) {
      query_data.push_back(
          RandomFloats(static_cast<size_t>(count * q_heads * dim()), seed + static_cast<uint32_t>(l), scale));
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
    return input;
  }

  size_t OutSize() const { return positions.size() * static_cast<size_t>(q_heads * dim()); }

  std::vector<float> Expected(int layer) const {
    std::vector<float> out(OutSize());
    if (positions.empty()) return out;
    reference::Attend(plan, block_tokens(), layer, q_heads, cache, positions.front(),
                      static_cast<int>(positions.size()), queries, out.data());
    return out;
  }
};

inline void ExpectNear(const std::vector<float>& actual, const std::vector<float>& expected, float tolerance) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(actual[i])) continue;
    ASSERT_NEAR(actual[i], expected[i], tolerance * std::max(1.0f, std::fabs(expected[i]))) << "at " << i;
  }
}

inline pod::Plan IdentityPlan(pod::KvShape shape, pod::Window window = {}, pod::Codec codec = pod::Codec::kBf16) {
  return *pod::Plan::Identity(shape, window, Digest{}, codec);
}

// Four layers of two heads: leads, followers of a lower layer's own and other head, of the same layer's other head, and
// near-only.
inline pod::Plan MixedPlan(int head_dim, pod::Window window, pod::Sharing sharing, pod::Codec near_codec,
                           pod::Codec far_codec) {
  using pod::Role;
  using pod::Slot;
  const auto lead = [&](int l, int h) { return Slot{Role::kLead, {l, h}, far_codec}; };
  const auto follow = [&](int l, int h) { return Slot{Role::kFollower, {l, h}, far_codec}; };
  std::vector<Slot> slots = {
      lead(0, 0),   follow(0, 0),                              // Same layer, other head.
      follow(0, 0), lead(1, 1),                                //
      follow(1, 1), Slot{Role::kNearOnly, {2, 1}, far_codec},  // Other head, lower layer.
      follow(0, 0), follow(1, 1),
  };
  auto plan = pod::Plan::Create({4, 2, head_dim}, window, sharing, near_codec, slots, Digest{});
  EXPECT_TRUE(plan.ok()) << plan.status();
  return *plan;
}

}  // namespace perigee::kernels::testing

#endif  // PERIGEE_TESTS_KERNELS_KERNELS_TESTING_H_
