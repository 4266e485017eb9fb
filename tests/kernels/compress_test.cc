#include "kernels/compress.h"

#include <cstring>

#include "kernels/codec.h"
#include "kernels_testing.h"

namespace perigee::kernels {
namespace {

using pod::Codec;
using pod::PlaneKind;
using pod::Role;
using pod::Sharing;
using pod::Slot;
using testing::AlignedBytes;
using testing::RandomFloats;

pod::Plan TestPlan(int head_dim, Codec near_codec, Codec far_codec) {
  std::vector<Slot> slots = {
      {Role::kLead, {0, 0}, far_codec},     {Role::kFollower, {0, 0}, far_codec}, {Role::kNearOnly, {0, 2}, far_codec},
      {Role::kFollower, {0, 0}, far_codec}, {Role::kLead, {1, 1}, far_codec},     {Role::kFollower, {1, 1}, far_codec},
  };
  return *pod::Plan::Create({2, 3, head_dim}, {16, 64}, Sharing::kKey, near_codec, slots, Digest{});
}

struct Planes {
  explicit Planes(const pod::Layout& layout)
      : distant(layout.plane_bytes(PlaneKind::kDistant)),
        proximal(layout.plane_bytes(PlaneKind::kProximal)),
        summary(layout.plane_bytes(PlaneKind::kSummary)) {}
  MutableBlock block() { return {distant.data.get(), proximal.data.get(), summary.data.get()}; }
  AlignedBytes distant, proximal, summary;
};

void PutElement(const Planes& planes, const pod::Tile& tile, size_t index, float x) {
  const auto& plane = tile.plane == PlaneKind::kDistant ? planes.distant : planes.proximal;
  const uint16_t bits = testing::FromFloat(tile.codec, x);
  std::memcpy(plane.data.get() + tile.offset_bytes + 2 * index, &bits, 2);
}

// One element at a time, from the definition in pod/layout.h.
void PackReference(const pod::Layout& layout, int layer, const std::vector<float>& keys,
                   const std::vector<float>& values, int first, int tokens, const Planes& planes) {
  const pod::KvShape& shape = layout.plan().shape();
  const size_t dim = static_cast<size_t>(shape.head_dim), block = static_cast<size_t>(layout.block_tokens());
  for (int h = 0; h < shape.kv_heads; ++h) {
    const pod::SlotTiles& tiles = layout.slot(layer, h);
    const Role role = layout.plan().slot(layer, h).role;
    for (int t = 0; t < tokens; ++t) {
      for (size_t d = 0; d < dim; ++d) {
        const size_t from = (static_cast<size_t>(t * shape.kv_heads + h)) * dim + d;
        const size_t place = static_cast<size_t>(first + t);
        PutElement(planes, tiles.near_keys, place * dim + d, keys[from]);
        PutElement(planes, tiles.near_values, d * block + place, values[from]);
        if (role == Role::kLead) PutElement(planes, tiles.far_keys, place * dim + d, keys[from]);
        if (role != Role::kNearOnly) PutElement(planes, tiles.far_values, d * block + place, values[from]);
      }
    }
  }
}

void ExpectSameBytes(const AlignedBytes& a, const AlignedBytes& b) {
  ASSERT_EQ(a.size, b.size);
  EXPECT_EQ(std::memcmp(a.data.get(), b.data.get(), a.size), 0);
}

TEST(Compress, WritesExactlyTheBytesOfTheLayout) {
  for (auto [near, far] :
       {std::pair{Codec::kBf16, Codec::kBf16}, {Codec::kBf16, Codec::kFp16}, {Codec::kFp16, Codec::kBf16}}) {
    for (int block_tokens : {16, 64, 128}) {
      for (int dim : {2, 8, 96}) {
        const pod::Layout layout = *pod::Layout::Create(TestPlan(dim, near, far), block_tokens);
        testing::ForEachTarget([&] {
          Planes actual(layout), expected(layout);
          for (int layer = 0; layer < 2; ++layer) {
            // In three goes: tokens outside the range given must stay as they are.
            const int cuts[] = {0, 5, 6, block_tokens - 3};
            for (int c = 0; c + 1 < 4; ++c) {
              const int tokens = cuts[c + 1] - cuts[c];
              const auto keys =
                  RandomFloats(static_cast<size_t>(tokens * 3 * dim), static_cast<uint32_t>(layer * 10 + c));
              const auto values = RandomFloats(keys.size(), static_cast<uint32_t>(100 + layer * 10 + c), 100.0f);
              CompressLayer(layout, layer, keys.data(), values.data(), cuts[c], tokens, actual.block());
              PackReference(layout, layer, keys, values, cuts[c], tokens, expected);
            }
          }
          ExpectSameBytes(actual.distant, expected.distant);
          ExpectSameBytes(actual.proximal, expected.proximal);
        });
      }
    }
  }
}

TEST(Compress, ANullProximalPlaneIsLeftOut) {
  const pod::Layout layout = *pod::Layout::Create(TestPlan(8, Codec::kBf16, Codec::kFp16), 16);
  const auto keys = RandomFloats(16 * 3 * 8, 1), values = RandomFloats(16 * 3 * 8, 2);
  Planes with(layout), without(layout);
  CompressLayer(layout, 0, keys.data(), values.data(), 0, 16, with.block());
  MutableBlock block = without.block();
  block.proximal = nullptr;
  CompressLayer(layout, 0, keys.data(), values.data(), 0, 16, block);
  ExpectSameBytes(with.distant, without.distant);
}

TEST(Summarize, BoundsHoldForStoredKeysAndAreTight) {
  for (Codec far : {Codec::kBf16, Codec::kFp16}) {
    const int dim = 24;
    const pod::Layout layout = *pod::Layout::Create(TestPlan(dim, Codec::kBf16, far), 32);
    Planes planes(layout);
    for (int tokens : {1, 19, 32}) {
      for (int layer = 0; layer < 2; ++layer) {
        const auto keys = RandomFloats(static_cast<size_t>(32 * 3 * dim), static_cast<uint32_t>(layer + 5), 7.0f);
        CompressLayer(layout, layer, keys.data(), keys.data(), 0, 32, planes.block());
        SummarizeLayer(layout, layer, tokens, planes.block());
        for (int h = 0; h < 3; ++h) {
          const int64_t offset = layout.summary_offset(layer, h);
          ASSERT_EQ(offset >= 0, layout.plan().slot(layer, h).role == Role::kLead);
          if (offset < 0) continue;
          const auto* bounds = reinterpret_cast<const uint16_t*>(planes.summary.data.get() + offset);
          for (int d = 0; d < dim; ++d) {
            float low = INFINITY, high = -INFINITY;
            for (int t = 0; t < tokens; ++t) {
              const float x = keys[static_cast<size_t>((t * 3 + h) * dim + d)];
              const float stored = testing::ToFloat(far, testing::FromFloat(far, x));
              low = std::min(low, stored);
              high = std::max(high, stored);
            }
            EXPECT_EQ(bounds[d], Bf16Down(low));
            EXPECT_EQ(bounds[dim + d], Bf16Up(high));
            EXPECT_LE(testing::Bf16ToFloat(bounds[d]), low);
            EXPECT_GE(testing::Bf16ToFloat(bounds[dim + d]), high);
            if (far == Codec::kBf16) {  // No rounding left to do.
              EXPECT_EQ(testing::Bf16ToFloat(bounds[d]), low);
              EXPECT_EQ(testing::Bf16ToFloat(bounds[dim + d]), high);
            }
          }
        }
      }
    }
  }
}

TEST(Summarize, NaNKeysMakeBoundsThatPromiseNothing) {
  const pod::Layout layout = *pod::Layout::Create(TestPlan(8, Codec::kBf16, Codec::kBf16), 16);
  Planes planes(layout);
  auto keys = RandomFloats(16 * 3 * 8, 1);
  keys[3 * 24 + 5] = NAN;  // Token 3, head 0, channel 5.
  CompressLayer(layout, 0, keys.data(), keys.data(), 0, 16, planes.block());
  SummarizeLayer(layout, 0, 16, planes.block());
  const auto* bounds = reinterpret_cast<const uint16_t*>(planes.summary.data.get() + layout.summary_offset(0, 0));
  EXPECT_EQ(testing::Bf16ToFloat(bounds[5]), -INFINITY);
  EXPECT_EQ(testing::Bf16ToFloat(bounds[8 + 5]), INFINITY);
  EXPECT_TRUE(std::isfinite(testing::Bf16ToFloat(bounds[4])));
}

}  // namespace
}  // namespace perigee::kernels
