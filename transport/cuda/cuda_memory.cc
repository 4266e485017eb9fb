#include "transport/cuda/cuda_memory.h"

#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "transport/cuda/cuda_handles.h"

namespace perigee::transport {
namespace {

using internal::CudaError;

class CudaMemory final : public DeviceMemory {
 public:
  explicit CudaMemory(int device) : device_(device) {}

  absl::Status Init() {
    PERIGEE_RETURN_IF_ERROR(internal::UseDevice(device_));
    cudaDeviceProp properties{};
    PERIGEE_RETURN_IF_ERROR(CudaError("ask for the device", cudaGetDeviceProperties(&properties, device_)));
    name_ = absl::StrCat("cuda:", device_, " ", properties.name);
    // One per direction: the copy engines work at the same time.
    PERIGEE_ASSIGN_OR_RETURN(to_host_, internal::MakeStream());
    PERIGEE_ASSIGN_OR_RETURN(to_device_, internal::MakeStream());
    return absl::OkStatus();
  }

  ~CudaMemory() override {
    if (to_host_ != nullptr) cudaStreamSynchronize(to_host_.get());
    if (to_device_ != nullptr) cudaStreamSynchronize(to_device_.get());
  }

  absl::string_view name() const override { return name_; }

  bool Owns(const void* address) const override {
    if (address == nullptr) return false;
    cudaPointerAttributes attributes{};
    if (cudaPointerGetAttributes(&attributes, address) != cudaSuccess) {
      cudaGetLastError();
      return false;
    }
    return attributes.type == cudaMemoryTypeDevice && attributes.device == device_;
  }

  absl::StatusOr<std::span<std::byte>> AllocatePinned(size_t bytes) override {
    if (bytes == 0) return absl::InvalidArgumentError("no bytes to allocate");
    PERIGEE_RETURN_IF_ERROR(CudaError("use the device", cudaSetDevice(device_)));
    void* memory = nullptr;
    PERIGEE_RETURN_IF_ERROR(CudaError(absl::StrCat("allocate ", bytes, " bytes of pinned memory"),
                                      cudaHostAlloc(&memory, bytes, cudaHostAllocPortable)));
    return std::span<std::byte>(static_cast<std::byte*>(memory), bytes);
  }
  void FreePinned(std::span<std::byte> memory) override { cudaFreeHost(memory.data()); }

  absl::StatusOr<CopyTicket> StartCopyToHost(void* host, const void* device, size_t bytes) override {
    PERIGEE_RETURN_IF_ERROR(Check(device, host, bytes));
    return Start(to_host_, host, device, bytes, cudaMemcpyDeviceToHost);
  }
  absl::StatusOr<CopyTicket> StartCopyToDevice(void* device, const void* host, size_t bytes) override {
    PERIGEE_RETURN_IF_ERROR(Check(device, host, bytes));
    return Start(to_device_, device, host, bytes, cudaMemcpyHostToDevice);
  }

  absl::StatusOr<bool> Poll(CopyTicket ticket) override {
    const auto found = copies_.find(ticket.id);
    if (found == copies_.end()) {
      return absl::InvalidArgumentError(absl::StrCat("copy ", ticket.id, " is not under way on ", name_));
    }
    const absl::StatusOr<bool> done = internal::Happened(found->second);
    if (done.ok() && !*done) return false;
    if (done.ok()) idle_events_.push_back(std::move(found->second));
    copies_.erase(found);
    return done;
  }

 private:
  absl::Status Check(const void* device, const void* host, size_t bytes) const {
    if (bytes == 0 || !Owns(device) || host == nullptr || Owns(host)) {
      return absl::InvalidArgumentError(absl::StrCat("a copy of ", bytes, " bytes between ", name_, " at ",
                                                     reinterpret_cast<uintptr_t>(device), " and the host at ",
                                                     reinterpret_cast<uintptr_t>(host),
                                                     ": one must be memory of this device, the other of the host"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<CopyTicket> Start(const internal::Stream& stream, void* to, const void* from, size_t bytes,
                                   cudaMemcpyKind kind) {
    PERIGEE_RETURN_IF_ERROR(CudaError("use the device", cudaSetDevice(device_)));
    internal::Event event;
    if (idle_events_.empty()) {
      PERIGEE_ASSIGN_OR_RETURN(event, internal::MakeEvent());
    } else {
      event = std::move(idle_events_.back());
      idle_events_.pop_back();
    }
    PERIGEE_RETURN_IF_ERROR(
        CudaError(absl::StrCat("copy ", bytes, " bytes"), cudaMemcpyAsync(to, from, bytes, kind, stream.get())));
    const absl::Status recorded = CudaError("record an event", cudaEventRecord(event.get(), stream.get()));
    if (!recorded.ok()) {
      cudaStreamSynchronize(stream.get());  // nobody could ask when it has ended
      return recorded;
    }
    copies_.emplace(next_id_, std::move(event));
    return CopyTicket{next_id_++};
  }

  const int device_;
  std::string name_;
  internal::Stream to_host_, to_device_;
  uint64_t next_id_ = 1;
  std::unordered_map<uint64_t, internal::Event> copies_;
  std::vector<internal::Event> idle_events_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceMemory>> CreateCudaMemory(int device) {
  auto memory = std::make_unique<CudaMemory>(device);
  PERIGEE_RETURN_IF_ERROR(memory->Init());
  return memory;
}

}  // namespace perigee::transport
