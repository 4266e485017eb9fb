#include "transport/cuda/cuda_handles.h"

#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace perigee::transport::internal {

absl::Status CudaError(absl::string_view what, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  const std::string text = absl::StrCat(what, ": ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")");
  switch (error) {
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorDevicesUnavailable:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorSystemNotReady:
    case cudaErrorStubLibrary:
      return absl::UnavailableError(text);
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(text);
    case cudaErrorInvalidValue:
    case cudaErrorInvalidDevice:
    case cudaErrorInvalidDevicePointer:
      return absl::InvalidArgumentError(text);
    default:
      return absl::InternalError(text);
  }
}

absl::Status UseDevice(int device) {
  int count = 0;
  PERIGEE_RETURN_IF_ERROR(CudaError("look for CUDA devices", cudaGetDeviceCount(&count)));
  if (count == 0) return absl::UnavailableError("there is no CUDA device");
  if (device < 0 || device >= count) {
    return absl::InvalidArgumentError(absl::StrCat("CUDA device ", device, "; there are ", count, ", from 0"));
  }
  return CudaError(absl::StrCat("use CUDA device ", device), cudaSetDevice(device));
}

absl::StatusOr<Stream> MakeStream() {
  cudaStream_t stream = nullptr;
  PERIGEE_RETURN_IF_ERROR(CudaError("make a stream", cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)));
  return Stream(stream);
}

absl::StatusOr<Event> MakeEvent() {
  cudaEvent_t event = nullptr;
  PERIGEE_RETURN_IF_ERROR(CudaError("make an event", cudaEventCreateWithFlags(&event, cudaEventDisableTiming)));
  return Event(event);
}

absl::StatusOr<bool> Happened(const Event& event) {
  const cudaError_t state = cudaEventQuery(event.get());
  if (state == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  PERIGEE_RETURN_IF_ERROR(CudaError("work on the device", state));
  return true;
}

}  // namespace perigee::transport::internal
