#include "kvstore/dram/huge_pages.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <fstream>
#include <string>

#include "kvstore/plane_id.h"

namespace perigee::kvstore {
namespace {

TEST(HugePages, MappedMemoryIsZeroAlignedAndCountedByTheKernel) {
  const MappedMemory memory(kHugePageBytes * 3 + 1, /*huge=*/true);
  EXPECT_EQ(memory.bytes(), kHugePageBytes * 4);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(memory.data()) % kHugePageBytes, 0u);
  for (size_t i = 0; i < memory.bytes(); i += 512) ASSERT_EQ(memory.data()[i], std::byte{0});
  std::memset(memory.data(), 1, memory.bytes());
  const auto use = CountHugePages({memory.data(), memory.bytes()});
  ASSERT_TRUE(use.ok()) << use.status();
  EXPECT_EQ(use->mapped_bytes, memory.bytes());
  EXPECT_EQ(use->resident_bytes, memory.bytes());
  EXPECT_LE(use->huge_bytes, use->resident_bytes);
  std::string enabled;
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::getline(file, enabled);
  if (!file || enabled.find("[never]") != std::string::npos) GTEST_SKIP() << "no transparent huge pages here";
  // The kernel gives what it has; where it gives none at all, it has none to give, not even after an explicit wish.
  RecordProperty("huge_bytes", std::to_string(use->huge_bytes));
  EXPECT_EQ(use->huge_bytes % kHugePageBytes, 0u);
}

TEST(HugePages, SmallMemoryIsInWholePagesAndNotHuge) {
  const MappedMemory memory(kPageBytes + 1, /*huge=*/false);
  EXPECT_EQ(memory.bytes(), 2 * kPageBytes);
  std::memset(memory.data(), 1, memory.bytes());
  const auto use = CountHugePages({memory.data(), memory.bytes()});
  ASSERT_TRUE(use.ok()) << use.status();
  EXPECT_EQ(use->mapped_bytes, memory.bytes());
  EXPECT_EQ(use->huge_bytes, 0u);
}

TEST(HugePages, WhatCannotBeIsSaid) {
  const MappedMemory memory(kHugePageBytes, /*huge=*/true);
  EXPECT_EQ(AdviseHugePages({memory.data(), kHugePageBytes}).code(), absl::StatusCode::kOk);
  const absl::Status small = AdviseHugePages({memory.data(), kHugePageBytes - 1});
  EXPECT_EQ(small.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(small.message()), testing::HasSubstr("2097151"));
  EXPECT_EQ(CountHugePages({static_cast<const std::byte*>(nullptr), 4096}).status().code(),
            absl::StatusCode::kNotFound);
}

TEST(HugePages, MemoryIsGivenBack) {
  const std::byte* gone = nullptr;
  {
    MappedMemory first(kHugePageBytes, /*huge=*/true);
    gone = first.data();
    const MappedMemory moved(std::move(first));
    EXPECT_EQ(moved.data(), gone);
    EXPECT_TRUE(CountHugePages({gone, kHugePageBytes}).ok());
  }
  EXPECT_EQ(CountHugePages({gone, kHugePageBytes}).status().code(), absl::StatusCode::kNotFound);
}

}  // namespace
}  // namespace perigee::kvstore
