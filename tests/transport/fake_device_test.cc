// The fake device catches what tests rely on it to catch.
#include "fake_device.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace perigee::transport {
namespace {

TEST(FakeDeviceTest, BytesArriveOnlyWithThePollThatSaysSo) {
  FakeDevice device(8192, /*polls_per_copy=*/2);
  auto pinned = device.AllocatePinned(4096);
  ASSERT_TRUE(pinned.ok());
  std::fill(device.contents().begin(), device.contents().end(), std::byte{7});
  const auto ticket = device.StartCopyToHost(pinned->data(), device.memory().data() + 100, 1000);
  ASSERT_TRUE(ticket.ok());
  for (int i = 0; i < 2; ++i) {
    EXPECT_FALSE(*device.Poll(*ticket));
    EXPECT_EQ((*pinned)[0], std::byte{FakeDevice::kStale});
  }
  EXPECT_TRUE(*device.Poll(*ticket));
  EXPECT_EQ((*pinned)[0], std::byte{7});
  EXPECT_TRUE(absl::IsInvalidArgument(device.Poll(*ticket).status()));

  // A source that is reused too early arrives as what it became.
  std::fill(pinned->begin(), pinned->end(), std::byte{1});
  const auto up = device.StartCopyToDevice(device.memory().data(), pinned->data(), 10);
  ASSERT_TRUE(up.ok());
  (*pinned)[3] = std::byte{2};
  while (!*device.Poll(*up)) {
  }
  EXPECT_EQ(device.contents()[3], std::byte{2});
  device.FreePinned(*pinned);
  EXPECT_EQ(device.pinned_bytes(), 0u);
}

TEST(FakeDeviceTest, FailsWhereItWasTold) {
  FakeDevice device(4096, 0);
  auto pinned = device.AllocatePinned(4096);
  ASSERT_TRUE(pinned.ok());
  const auto start = [&] { return device.StartCopyToHost(pinned->data(), device.memory().data(), 10); };
  device.FailStartAfter(1);
  EXPECT_TRUE(*device.Poll(*start()));
  EXPECT_TRUE(absl::IsInternal(start().status()));
  device.FailCopyAfter(0);
  const auto ticket = start();
  ASSERT_TRUE(ticket.ok());
  EXPECT_TRUE(absl::IsInternal(device.Poll(*ticket).status()));
  EXPECT_EQ((*pinned)[0], std::byte{FakeDevice::kStale});
  EXPECT_TRUE(*device.Poll(*start()));
  device.Stall(true);
  const auto stalled = start();
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(*device.Poll(*stalled));
  device.Stall(false);
  EXPECT_TRUE(*device.Poll(*stalled));
  device.FailPinnedAllocations(true);
  EXPECT_TRUE(absl::IsResourceExhausted(device.AllocatePinned(10).status()));
  device.FreePinned(*pinned);
}

TEST(FakeDeviceDeathTest, TouchingDeviceMemoryFromTheHostIsFatal) {
  FakeDevice device(4096);
  EXPECT_TRUE(device.Owns(device.memory().data() + 4095));
  EXPECT_FALSE(device.Owns(device.memory().data() + 4096));
  EXPECT_FALSE(device.Owns(device.contents().data()));
  EXPECT_DEATH(std::fill(device.memory().begin(), device.memory().end(), std::byte{1}), "");
}

TEST(FakeDeviceTest, RefusesAddressesOutside) {
  FakeDevice device(4096);
  std::byte host[16] = {};
  EXPECT_TRUE(absl::IsInvalidArgument(device.StartCopyToHost(host, device.memory().data() + 4090, 16).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(device.StartCopyToHost(host, host, 16).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(device.StartCopyToDevice(device.memory().data(), host, 0).status()));
}

}  // namespace
}  // namespace perigee::transport
