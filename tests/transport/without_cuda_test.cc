// A program built without CUDA says so.
#include <gtest/gtest.h>

#include "absl/time/clock.h"
#include "transport/collective/nccl_collective.h"
#include "transport/cuda/cuda_memory.h"
#include "transport/cuda/plane_handle.h"
#include "transport/cuda/plane_handoff.h"

namespace perigee::transport {
namespace {

TEST(WithoutCudaTest, EveryFactorySaysThatItWasBuiltWithoutCuda) {
  EXPECT_TRUE(absl::IsUnimplemented(CreateCudaMemory(0).status()));
  std::byte byte{};
  EXPECT_TRUE(absl::IsUnimplemented(ExportDeviceMemory({&byte, 1}).status()));
  PlaneHandle handle;
  handle.base = 4096;
  handle.size_bytes = 4096;
  EXPECT_TRUE(absl::IsUnimplemented(ImportDeviceMemory(EncodePlaneHandle(handle), 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ImportDeviceMemory("damaged", 0).status()));
  EXPECT_TRUE(absl::IsUnimplemented(CreateNcclCollective({.group_name = "g"}, 0, absl::Now()).status()));
}

}  // namespace
}  // namespace perigee::transport
