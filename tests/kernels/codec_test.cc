#include "kernels/codec.h"

#include "kernels_testing.h"

namespace perigee::kernels {
namespace {

using pod::Codec;
using testing::ForEachTarget;

TEST(Codec, DecodesAll65536ValuesAndEncodesThemBack) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  for (Codec codec : {Codec::kBf16, Codec::kFp16}) {
    ForEachTarget([&] {
      std::vector<float> decoded(all.size());
      std::vector<uint16_t> encoded(all.size());
      Decode(codec, all.data(), all.size(), decoded.data());
      Encode(codec, decoded.data(), decoded.size(), encoded.data());
      for (size_t i = 0; i < all.size(); ++i) {
        const float expected = testing::ToFloat(codec, all[i]);
        if (std::isnan(expected)) {
          ASSERT_TRUE(std::isnan(decoded[i])) << i;
          ASSERT_TRUE(std::isnan(testing::ToFloat(codec, encoded[i]))) << i;
          continue;
        }
        ASSERT_EQ(std::bit_cast<uint32_t>(decoded[i]), std::bit_cast<uint32_t>(expected)) << i;
        const bool saturates = codec == Codec::kFp16 && std::isinf(expected);
        ASSERT_EQ(encoded[i], saturates ? (all[i] & 0x8000) | 0x7BFF : all[i]) << i;
      }
    });
  }
}

TEST(Codec, RoundsToNearestEvenAroundEveryValue) {
  for (Codec codec : {Codec::kBf16, Codec::kFp16}) {
    std::vector<float> points;
    const uint32_t top = codec == Codec::kBf16 ? 0x7F7F : 0x7BFF;
    for (uint32_t h = 0; h < top; ++h) {
      const float low = testing::ToFloat(codec, static_cast<uint16_t>(h));
      const float high = testing::ToFloat(codec, static_cast<uint16_t>(h + 1));
      const float tie = static_cast<float>((double{low} + high) / 2);
      for (float x : {tie, std::nextafterf(tie, 0), std::nextafterf(tie, INFINITY), std::nextafterf(low, INFINITY)}) {
        points.push_back(x);
        points.push_back(-x);
      }
    }
    ForEachTarget([&] {
      std::vector<uint16_t> encoded(points.size());
      Encode(codec, points.data(), points.size(), encoded.data());
      for (size_t i = 0; i < points.size(); ++i) {
        ASSERT_EQ(encoded[i], testing::FromFloat(codec, points[i])) << points[i];
      }
    });
  }
}

TEST(Codec, EdgesOfTheRange) {
  const float in[] = {65504, 65519, 65520, 1e30f, -1e30f, INFINITY, -INFINITY, 0x1p-25f, 0x1.8p-25f, -0.0f, NAN};
  const uint16_t expected[] = {0x7BFF, 0x7BFF, 0x7BFF, 0x7BFF, 0xFBFF, 0x7BFF, 0xFBFF, 0, 1, 0x8000};
  ForEachTarget([&] {
    uint16_t out[11];
    Encode(Codec::kFp16, in, 11, out);
    for (int i = 0; i < 10; ++i) EXPECT_EQ(out[i], expected[i]) << in[i];
    EXPECT_TRUE(std::isnan(testing::F16ToFloat(out[10])));
    const float big[] = {std::numeric_limits<float>::max(), INFINITY, -INFINITY, std::bit_cast<float>(0x7F800001u)};
    Encode(Codec::kBf16, big, 4, out);
    EXPECT_EQ(out[0], 0x7F80);  // Nearest is infinity; bf16 does not saturate.
    EXPECT_EQ(out[1], 0x7F80);
    EXPECT_EQ(out[2], 0xFF80);
    EXPECT_TRUE(std::isnan(testing::Bf16ToFloat(out[3])));  // A NaN whose kept bits are all 0.
  });
}

TEST(Codec, EveryLengthIsWholeAndWritesNothingBeyond) {
  const std::vector<float> in = testing::RandomFloats(70, 1);
  ForEachTarget([&] {
    for (size_t n = 0; n <= 70; ++n) {
      std::vector<uint16_t> out(72, 0xABCD);
      Encode(Codec::kFp16, in.data(), n, out.data());
      for (size_t i = 0; i < 72; ++i) ASSERT_EQ(out[i], i < n ? testing::FromFloat(Codec::kFp16, in[i]) : 0xABCD);
      std::vector<float> back(72, 99.0f);
      Decode(Codec::kFp16, out.data(), n, back.data());
      for (size_t i = 0; i < 72; ++i) ASSERT_EQ(back[i], i < n ? testing::F16ToFloat(out[i]) : 99.0f);
    }
  });
}

TEST(Codec, RoundTripIsEncodeThenDecode) {
  std::vector<float> x = testing::RandomFloats(1000, 2);
  std::vector<float> expected = x;
  for (float& v : expected) v = testing::Bf16ToFloat(testing::FromFloat(Codec::kBf16, v));
  RoundTrip(Codec::kBf16, x.data(), x.size());
  EXPECT_EQ(x, expected);
}

TEST(Codec, DirectedRoundingBoundsAndIsTight) {
  std::mt19937 random(3);
  for (int i = 0; i < 200000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(random()));
    if (std::isnan(x)) continue;
    const float down = testing::Bf16ToFloat(Bf16Down(x)), up = testing::Bf16ToFloat(Bf16Up(x));
    ASSERT_LE(down, x);
    ASSERT_GE(up, x);
    const bool exact = (std::bit_cast<uint32_t>(x) & 0xFFFF) == 0;
    if (exact) {
      ASSERT_EQ(down, up);
    } else {  // Neighbours on the bf16 line.
      ASSERT_EQ(std::abs(int{Bf16Down(x)} - int{Bf16Up(x)}), 1) << x;
    }
  }
  EXPECT_TRUE(std::isnan(testing::Bf16ToFloat(Bf16Down(NAN))));
  EXPECT_TRUE(std::isnan(testing::Bf16ToFloat(Bf16Up(NAN))));
}

}  // namespace
}  // namespace perigee::kernels
