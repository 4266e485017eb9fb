// Device memory as the transport sees it: an address that only a device may touch, and copies between it and the host
// that run on their own.
//
// A transfer to or from device memory that the network card cannot reach is staged: the device copies into pinned host
// memory while the wire carries the piece before it. This interface is all that staging needs to know of a device; the
// CUDA one is in cuda/cuda_memory.h. It moves bytes and knows nothing of their shape.
//
// Ownership: device memory is the caller's, pinned memory is the caller's from AllocatePinned to FreePinned.
// Threads: Owns and name from any thread; all others from one thread at a time (a transfer engine's progress thread).
// Nothing blocks except AllocatePinned, FreePinned and the destructor.
// Errors: INVALID_ARGUMENT for addresses that are not what a call needs; RESOURCE_EXHAUSTED when pinned memory runs
// out; INTERNAL when the device has failed (most devices then fail every later call too).
#ifndef PERIGEE_TRANSPORT_DEVICE_MEMORY_H_
#define PERIGEE_TRANSPORT_DEVICE_MEMORY_H_

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::transport {

// One copy under way. Plain value; means something only to the DeviceMemory that gave it.
struct CopyTicket {
  uint64_t id = 0;  // 0: none
};

class DeviceMemory {
 public:
  // Waits for the copies under way. Pinned memory must have been freed.
  virtual ~DeviceMemory() = default;

  // "cuda:0 NVIDIA H100", for messages.
  virtual absl::string_view name() const = 0;

  // Whether the address is memory of this device that the processor must not touch. False for host memory, pinned host
  // memory and null.
  virtual bool Owns(const void* address) const = 0;

  // Host memory that the device copies from and to at full speed, page-aligned, `bytes` > 0. Slow: allocate once,
  // reuse.
  virtual absl::StatusOr<std::span<std::byte>> AllocatePinned(size_t bytes) = 0;
  // What AllocatePinned gave; no copy on it is under way.
  virtual void FreePinned(std::span<std::byte> memory) = 0;

  // Starts a copy of `bytes` > 0. `device_*` is of this device; `host_*` should be pinned: otherwise the call may block
  // for the whole copy. Neither side may be read, written or freed by others until Poll has said true or an error (a
  // source may be read). Copies in one direction end in the order in which they were started.
  virtual absl::StatusOr<CopyTicket> StartCopyToHost(void* host_destination, const void* device_source,
                                                     size_t bytes) = 0;
  virtual absl::StatusOr<CopyTicket> StartCopyToDevice(void* device_destination, const void* host_source,
                                                       size_t bytes) = 0;

  // True once the copy has ended well, false while it runs. After true or an error the copy touches nothing any more
  // and the ticket is used up (INVALID_ARGUMENT from then on).
  virtual absl::StatusOr<bool> Poll(CopyTicket ticket) = 0;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_DEVICE_MEMORY_H_
