// What a program built without CUDA answers.
#include "base/status.h"
#include "transport/cuda/cuda_memory.h"
#include "transport/cuda/plane_handle.h"
#include "transport/cuda/plane_handoff.h"

namespace perigee::transport {
namespace {

absl::Status WithoutCuda() {
  return absl::UnimplementedError("this program was built without CUDA; build it where CMake finds the CUDA toolkit");
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMemory>> CreateCudaMemory(int) { return WithoutCuda(); }

absl::StatusOr<std::string> ExportDeviceMemory(std::span<std::byte>) { return WithoutCuda(); }

absl::StatusOr<std::unique_ptr<DeviceImport>> ImportDeviceMemory(absl::string_view handle, int) {
  PERIGEE_RETURN_IF_ERROR(DecodePlaneHandle(handle).status());
  return WithoutCuda();
}

}  // namespace perigee::transport
