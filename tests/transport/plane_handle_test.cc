#include "transport/cuda/plane_handle.h"

#include <gtest/gtest.h>

#include <string>

#include "base/bytes.h"
#include "base/crc32c.h"

namespace perigee::transport {
namespace {

PlaneHandle Sample() {
  PlaneHandle handle;
  for (size_t i = 0; i < handle.device_uuid.size(); ++i) handle.device_uuid[i] = static_cast<uint8_t>(i * 7 + 1);
  for (size_t i = 0; i < handle.ipc.size(); ++i) handle.ipc[i] = static_cast<uint8_t>(i * 5 + 3);
  handle.process = 0x123456789abcdef0;
  handle.base = 0x7f1234560000;
  handle.size_bytes = uint64_t{3} << 30;
  return handle;
}

// With a right checksum, so that what is refused is the content.
std::string Resealed(std::string bytes) {
  ByteWriter checksum;
  checksum.U32(Crc32c(AsBytes(absl::string_view(bytes).substr(0, bytes.size() - 4))));
  return bytes.substr(0, bytes.size() - 4) + checksum.bytes();
}

TEST(PlaneHandleTest, RoundTrips) {
  const auto handle = DecodePlaneHandle(EncodePlaneHandle(Sample()));
  ASSERT_TRUE(handle.ok()) << handle.status();
  EXPECT_EQ(handle->device_uuid, Sample().device_uuid);
  EXPECT_EQ(handle->ipc, Sample().ipc);
  EXPECT_EQ(handle->process, Sample().process);
  EXPECT_EQ(handle->base, Sample().base);
  EXPECT_EQ(handle->size_bytes, Sample().size_bytes);
}

TEST(PlaneHandleTest, BytesAreThoseOfTheFormatsPage) {
  // Computed from docs/formats.md alone.
  const char* golden =
      "50474448010001080f161d242b323940474e555c636af0debc9a7856341200005634127f0000000000c00000000003080d12171c21262b30"
      "35"
      "3a3f44494e53585d62676c71767b80858a8f94999ea3a8adb2b7bcc1c6cbd0d5dadfe4e9eef3f8fd02070c11161b20252a2f34393e753ea2"
      "a9";
  const std::string bytes = EncodePlaneHandle(Sample());
  EXPECT_EQ(ToHex({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}), golden);
}

TEST(PlaneHandleTest, RefusesEveryTruncationAndExtension) {
  const std::string bytes = EncodePlaneHandle(Sample());
  for (size_t n = 0; n < bytes.size(); ++n) {
    EXPECT_TRUE(absl::IsInvalidArgument(DecodePlaneHandle(bytes.substr(0, n)).status())) << n;
  }
  EXPECT_TRUE(absl::IsInvalidArgument(DecodePlaneHandle(bytes + '\0').status()));
  EXPECT_TRUE(absl::IsInvalidArgument(DecodePlaneHandle(std::string(1 << 20, 'x')).status()));
}

TEST(PlaneHandleTest, RefusesEveryBitFlip) {
  const std::string bytes = EncodePlaneHandle(Sample());
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string flipped = bytes;
    flipped[bit / 8] ^= static_cast<char>(1 << (bit % 8));
    EXPECT_TRUE(absl::IsInvalidArgument(DecodePlaneHandle(flipped).status())) << bit;
  }
}

TEST(PlaneHandleTest, RefusesOtherMagicAndVersionEvenWithARightChecksum) {
  const std::string bytes = EncodePlaneHandle(Sample());
  ASSERT_EQ(Resealed(bytes), bytes);
  for (const size_t at : {0, 3, 4, 5}) {
    std::string other = bytes;
    other[at] ^= 1;
    EXPECT_TRUE(absl::IsInvalidArgument(DecodePlaneHandle(Resealed(other)).status())) << at;
  }
}

TEST(PlaneHandleTest, RefusesImpossibleMemory) {
  const auto refused = [](uint64_t base, uint64_t size_bytes) {
    PlaneHandle handle = Sample();
    handle.base = base;
    handle.size_bytes = size_bytes;
    return absl::IsInvalidArgument(DecodePlaneHandle(EncodePlaneHandle(handle)).status());
  };
  EXPECT_TRUE(refused(0, 1));
  EXPECT_TRUE(refused(4096, 0));
  EXPECT_TRUE(refused(4096, (uint64_t{1} << 48) + 1));
  EXPECT_TRUE(refused(4096, ~uint64_t{0}));        // wraps around
  EXPECT_TRUE(refused(~uint64_t{0} - 100, 4096));  // wraps around
  EXPECT_FALSE(refused(4096, uint64_t{1} << 48));
}

}  // namespace
}  // namespace perigee::transport
