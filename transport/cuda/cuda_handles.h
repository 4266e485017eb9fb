// Inside of transport/cuda and the NCCL collective, where CUDA was found: its errors in our words, and owners of its
// handles.
#ifndef PERIGEE_TRANSPORT_CUDA_CUDA_HANDLES_H_
#define PERIGEE_TRANSPORT_CUDA_CUDA_HANDLES_H_

#include <cuda_runtime_api.h>

#include <memory>
#include <type_traits>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::transport::internal {

// OK for cudaSuccess. UNAVAILABLE: no GPU or driver; RESOURCE_EXHAUSTED: out of memory; INVALID_ARGUMENT: what CUDA
// calls an invalid value; INTERNAL for the rest. Clears the error where CUDA lets it be cleared.
absl::Status CudaError(absl::string_view what, cudaError_t error);

// Makes `device` the calling thread's. With the errors that CreateCudaMemory promises.
absl::Status UseDevice(int device);

struct DestroyStream {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
};
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyStream>;
// On the current device; does not wait for the legacy default stream.
absl::StatusOr<Stream> MakeStream();

struct DestroyEvent {
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
};
using Event = std::unique_ptr<std::remove_pointer_t<cudaEvent_t>, DestroyEvent>;
absl::StatusOr<Event> MakeEvent();

// True once what was recorded has happened.
absl::StatusOr<bool> Happened(const Event& event);

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_CUDA_CUDA_HANDLES_H_
