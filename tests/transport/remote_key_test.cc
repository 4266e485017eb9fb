#include "transport/remote_key.h"

#include <gtest/gtest.h>

#include <string>

namespace perigee::transport {
namespace {

PackedKey Sample() {
  PackedKey key;
  for (size_t i = 0; i < key.context_id.size(); ++i) key.context_id[i] = static_cast<uint8_t>(i * 7 + 1);
  key.region_id = 0x123456789abcdef0;
  key.base = 0x7f1234560000;
  key.size_bytes = 123456789;
  key.ucx_key = std::string("\x01\x00\x02key", 6);
  return key;
}

TEST(RemoteKeyTest, RoundTrips) {
  const auto key = DecodeRemoteKey(EncodeRemoteKey(Sample()));
  ASSERT_TRUE(key.ok()) << key.status();
  EXPECT_EQ(key->context_id, Sample().context_id);
  EXPECT_EQ(key->region_id, Sample().region_id);
  EXPECT_EQ(key->base, Sample().base);
  EXPECT_EQ(key->size_bytes, Sample().size_bytes);
  EXPECT_EQ(key->ucx_key, Sample().ucx_key);
}

TEST(RemoteKeyTest, RefusesEveryTruncationAndExtension) {
  const std::string bytes = EncodeRemoteKey(Sample());
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_TRUE(absl::IsInvalidArgument(DecodeRemoteKey(bytes.substr(0, n)).status())) << n;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeRemoteKey(bytes + '\0').status()));
}

TEST(RemoteKeyTest, RefusesEveryBitFlip) {
  const std::string bytes = EncodeRemoteKey(Sample());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] ^= static_cast<char>(1 << (bit % 8));
    EXPECT_TRUE(absl::IsInvalidArgument(DecodeRemoteKey(flipped).status())) << bit;
  }
}

TEST(RemoteKeyTest, RefusesImpossibleRegionsAndHugeInput) {
  PackedKey key = Sample();
  key.size_bytes = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeRemoteKey(EncodeRemoteKey(key)).status()));
  key.size_bytes = ~uint64_t{0};  // wraps around
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeRemoteKey(EncodeRemoteKey(key)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodeRemoteKey(std::string(1 << 20, 'x')).status()));
}

TEST(RemoteKeyTest, AKeyMayLackUcxsPart) {
  PackedKey key = Sample();
  key.ucx_key.clear();
  const auto decoded = DecodeRemoteKey(EncodeRemoteKey(key));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(decoded->ucx_key.empty());
  EXPECT_EQ(decoded->region_id, key.region_id);
}

}  // namespace
}  // namespace perigee::transport
