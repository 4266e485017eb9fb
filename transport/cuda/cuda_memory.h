// DeviceMemory of one CUDA device: copies by its copy engines on streams of their own, pinned memory by cudaHostAlloc.
#ifndef PERIGEE_TRANSPORT_CUDA_CUDA_MEMORY_H_
#define PERIGEE_TRANSPORT_CUDA_CUDA_MEMORY_H_

#include <memory>

#include "absl/status/statusor.h"
#include "transport/device_memory.h"

namespace perigee::transport {

// `device` as CUDA numbers them in this process. UNIMPLEMENTED when this program was built without CUDA, UNAVAILABLE
// when there is no driver or no GPU, INVALID_ARGUMENT when there are fewer. Copies on the device's own streams are not
// ordered after other streams' work: a kernel that writes a source must have finished when a copy is started.
absl::StatusOr<std::unique_ptr<DeviceMemory>> CreateCudaMemory(int device);

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_CUDA_CUDA_MEMORY_H_
