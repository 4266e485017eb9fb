#include "transport/cuda/plane_handoff.h"

#include <cuda.h>
#include <dlfcn.h>
#include <unistd.h>

#include <cstring>
#include <random>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "transport/cuda/cuda_handles.h"
#include "transport/cuda/plane_handle.h"

namespace perigee::transport {
namespace {

using internal::CudaError;

static_assert(sizeof(cudaIpcMemHandle_t) == sizeof(PlaneHandle::ipc));
static_assert(sizeof(cudaUUID_t) == sizeof(PlaneHandle::device_uuid));

// The thread's current device is its owner's business: given back.
class DeviceScope {
 public:
  explicit DeviceScope(int device) : device_(device) {
    status_ = CudaError("ask for the current device", cudaGetDevice(&before_));
    if (status_.ok() && before_ != device) {
      status_ = CudaError(absl::StrCat("use CUDA device ", device), cudaSetDevice(device));
    }
  }
  ~DeviceScope() {
    if (before_ != device_) cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;
  const absl::Status& status() const { return status_; }

 private:
  const int device_;
  int before_ = 0;
  absl::Status status_;
};

// Random per process: an IPC handle cannot be opened where it was made. A fork has another process id.
uint64_t ThisProcess() {
  static const uint64_t random = [] {
    std::random_device device;
    return (uint64_t{device()} << 32) | device();
  }();
  return random ^ static_cast<uint64_t>(getpid());
}

struct Allocation {
  int device = 0;
  uint64_t base = 0;
  uint64_t size_bytes = 0;
};

// The allocation that an address belongs to. Only the driver's API knows; it is there where the runtime works.
absl::StatusOr<Allocation> FindAllocation(const void* address) {
  cudaPointerAttributes attributes{};
  PERIGEE_RETURN_IF_ERROR(CudaError("look up an address", cudaPointerGetAttributes(&attributes, address)));
  if (attributes.type != cudaMemoryTypeDevice) {
    return absl::InvalidArgumentError(
        absl::StrCat("address ", reinterpret_cast<uintptr_t>(address), " is not memory of a CUDA device"));
  }
  using Function = CUresult (*)(CUdeviceptr*, size_t*, CUdeviceptr);
  static const auto function = [] {
    void* driver = dlopen("libcuda.so.1", RTLD_NOW);
    return reinterpret_cast<Function>(driver == nullptr ? nullptr : dlsym(driver, "cuMemGetAddressRange_v2"));
  }();
  if (function == nullptr) return absl::UnavailableError("libcuda.so.1 has no cuMemGetAddressRange_v2");
  const DeviceScope scope(attributes.device);
  PERIGEE_RETURN_IF_ERROR(scope.status());
  CUdeviceptr base = 0;
  size_t size_bytes = 0;
  const CUresult result = function(&base, &size_bytes, reinterpret_cast<CUdeviceptr>(address));
  if (result != CUDA_SUCCESS) {
    return absl::InternalError(absl::StrCat("find the allocation of ", reinterpret_cast<uintptr_t>(address),
                                            ": CUDA driver error ", static_cast<int>(result)));
  }
  return Allocation{attributes.device, base, size_bytes};
}

absl::StatusOr<int> FindDevice(const std::array<uint8_t, 16>& uuid) {
  int count = 0;
  PERIGEE_RETURN_IF_ERROR(CudaError("look for CUDA devices", cudaGetDeviceCount(&count)));
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    PERIGEE_RETURN_IF_ERROR(CudaError("ask for a device", cudaGetDeviceProperties(&properties, device)));
    if (std::memcmp(&properties.uuid, uuid.data(), uuid.size()) == 0) return device;
  }
  return absl::UnavailableError(absl::StrCat("the exporting GPU is none of the ", count,
                                             " that this process sees: use the network between machines, and make all "
                                             "GPUs of this one visible (CUDA_VISIBLE_DEVICES)"));
}

class CudaImport final : public DeviceImport {
 public:
  explicit CudaImport(int device) : device_(device) {}

  absl::Status Open(const PlaneHandle& handle) {
    size_bytes_ = handle.size_bytes;
    PERIGEE_ASSIGN_OR_RETURN(source_device_, FindDevice(handle.device_uuid));
    if (handle.process == ThisProcess()) {
      source_ = handle.base;
      PERIGEE_ASSIGN_OR_RETURN(const Allocation allocation, FindAllocation(reinterpret_cast<void*>(source_)));
      if (allocation.base != handle.base || allocation.size_bytes != handle.size_bytes) {
        return absl::InvalidArgumentError("the exported allocation is gone; export again");
      }
    } else {
      const DeviceScope scope(source_device_);
      PERIGEE_RETURN_IF_ERROR(scope.status());
      cudaIpcMemHandle_t ipc;
      std::memcpy(&ipc, handle.ipc.data(), sizeof(ipc));
      PERIGEE_RETURN_IF_ERROR(CudaError("open another process's device memory",
                                        cudaIpcOpenMemHandle(&opened_, ipc, cudaIpcMemLazyEnablePeerAccess)));
      source_ = reinterpret_cast<uint64_t>(opened_);
      // What the handle says must not be taken for what is mapped.
      PERIGEE_ASSIGN_OR_RETURN(const Allocation mapped, FindAllocation(opened_));
      if (size_bytes_ > mapped.size_bytes - (source_ - mapped.base)) {
        return absl::InvalidArgumentError(absl::StrCat("the handle names ", size_bytes_, " bytes, the allocation has ",
                                                       mapped.size_bytes, "; export again"));
      }
    }
    const DeviceScope scope(device_);
    PERIGEE_RETURN_IF_ERROR(scope.status());
    if (source_device_ != device_) {
      // Without it the copies work too, through the host.
      int can = 0;
      if (cudaDeviceCanAccessPeer(&can, device_, source_device_) == cudaSuccess && can != 0) {
        const cudaError_t enabled = cudaDeviceEnablePeerAccess(source_device_, 0);
        if (enabled != cudaErrorPeerAccessAlreadyEnabled) {
          PERIGEE_RETURN_IF_ERROR(CudaError("reach the other GPU's memory", enabled));
        }
        cudaGetLastError();
      }
    }
    PERIGEE_ASSIGN_OR_RETURN(stream_, internal::MakeStream());
    return absl::OkStatus();
  }

  ~CudaImport() override {
    if (stream_ != nullptr) cudaStreamSynchronize(stream_.get());
    if (opened_ != nullptr) {
      const DeviceScope scope(source_device_);
      cudaIpcCloseMemHandle(opened_);
    }
  }

  uint64_t size_bytes() const override { return size_bytes_; }

  absl::StatusOr<CopyTicket> StartRead(std::span<const HandoffRange> ranges) override {
    for (const HandoffRange& range : ranges) PERIGEE_RETURN_IF_ERROR(Check(range));
    const DeviceScope scope(device_);
    PERIGEE_RETURN_IF_ERROR(scope.status());
    PERIGEE_ASSIGN_OR_RETURN(internal::Event event, internal::MakeEvent());
    absl::Status status;
    for (size_t i = 0; i < ranges.size() && status.ok(); ++i) {
      const auto* from = reinterpret_cast<const void*>(source_ + ranges[i].offset);
      void* to = ranges[i].destination.data();
      const size_t bytes = ranges[i].destination.size();
      status = CudaError(absl::StrCat("copy ", bytes, " bytes between GPUs"),
                         source_device_ == device_
                             ? cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream_.get())
                             : cudaMemcpyPeerAsync(to, device_, from, source_device_, bytes, stream_.get()));
    }
    if (status.ok()) status = CudaError("record an event", cudaEventRecord(event.get(), stream_.get()));
    if (!status.ok()) {
      cudaStreamSynchronize(stream_.get());
      return status;
    }
    reads_.emplace(next_id_, std::move(event));
    return CopyTicket{next_id_++};
  }

  absl::StatusOr<bool> Poll(CopyTicket ticket) override {
    const auto found = reads_.find(ticket.id);
    if (found == reads_.end()) return absl::InvalidArgumentError(absl::StrCat("read ", ticket.id, " is not under way"));
    const absl::StatusOr<bool> done = internal::Happened(found->second);
    if (!done.ok() || *done) reads_.erase(found);
    return done;
  }

 private:
  absl::Status Check(const HandoffRange& range) const {
    const size_t bytes = range.destination.size();
    if (range.offset > size_bytes_ || bytes > size_bytes_ - range.offset) {
      return absl::OutOfRangeError(
          absl::StrCat("a read of ", bytes, " bytes at ", range.offset, " leaves the exported ", size_bytes_));
    }
    if (bytes == 0) return absl::InvalidArgumentError("a read of 0 bytes");
    PERIGEE_ASSIGN_OR_RETURN(const Allocation allocation, FindAllocation(range.destination.data()));
    const uint64_t begin = reinterpret_cast<uint64_t>(range.destination.data()) - allocation.base;
    if (allocation.device != device_ || bytes > allocation.size_bytes - begin) {
      return absl::InvalidArgumentError(
          absl::StrCat("a destination of ", bytes, " bytes is not inside memory of device ", device_));
    }
    return absl::OkStatus();
  }

  const int device_;
  int source_device_ = 0;
  void* opened_ = nullptr;  // null in the exporting process
  uint64_t source_ = 0;
  uint64_t size_bytes_ = 0;
  internal::Stream stream_;
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, internal::Event> reads_;
};

}  // namespace

absl::StatusOr<std::string> ExportDeviceMemory(std::span<std::byte> memory) {
  int count = 0;
  PERIGEE_RETURN_IF_ERROR(CudaError("look for CUDA devices", cudaGetDeviceCount(&count)));
  PERIGEE_ASSIGN_OR_RETURN(const Allocation allocation, FindAllocation(memory.data()));
  if (allocation.base != reinterpret_cast<uint64_t>(memory.data()) || allocation.size_bytes != memory.size()) {
    return absl::InvalidArgumentError(absl::StrCat("only a whole allocation can be exported: this one has ",
                                                   allocation.size_bytes, " bytes, ", memory.size(), " were given"));
  }
  const DeviceScope scope(allocation.device);
  PERIGEE_RETURN_IF_ERROR(scope.status());
  cudaIpcMemHandle_t ipc;
  PERIGEE_RETURN_IF_ERROR(CudaError("export device memory", cudaIpcGetMemHandle(&ipc, memory.data())));
  cudaDeviceProp properties{};
  PERIGEE_RETURN_IF_ERROR(CudaError("ask for a device", cudaGetDeviceProperties(&properties, allocation.device)));
  PlaneHandle handle;
  std::memcpy(handle.device_uuid.data(), &properties.uuid, sizeof(properties.uuid));
  std::memcpy(handle.ipc.data(), &ipc, sizeof(ipc));
  handle.process = ThisProcess();
  handle.base = allocation.base;
  handle.size_bytes = allocation.size_bytes;
  return EncodePlaneHandle(handle);
}

absl::StatusOr<std::unique_ptr<DeviceImport>> ImportDeviceMemory(absl::string_view bytes, int device) {
  PERIGEE_ASSIGN_OR_RETURN(const PlaneHandle handle, DecodePlaneHandle(bytes));
  int count = 0;
  PERIGEE_RETURN_IF_ERROR(CudaError("look for CUDA devices", cudaGetDeviceCount(&count)));
  if (device < 0 || device >= count) {
    return absl::InvalidArgumentError(absl::StrCat("CUDA device ", device, "; there are ", count, ", from 0"));
  }
  auto import = std::make_unique<CudaImport>(device);
  PERIGEE_RETURN_IF_ERROR(import->Open(handle));
  return import;
}

}  // namespace perigee::transport
