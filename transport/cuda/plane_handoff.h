// GPU-to-GPU hand-off inside one machine: one process exports its device memory (a pool of planes), another imports it
// and copies ranges out of it, over NVLink or PCIe, without the host.
//
//   exporter: handle = ExportDeviceMemory(pool)          -> the control plane carries the bytes
//   importer: memory = ImportDeviceMemory(handle, device); ticket = memory->StartRead(ranges); memory->Poll(ticket)
//
// Ownership: the exporter keeps the allocation until every importer has closed its import (CUDA leaves the rest
// undefined). Ranges must have been written, by kernels that have finished, before the exporter names them to anyone;
// who may read which range, and until when, is the lease's to say.
// Trust: an import maps the whole allocation, and CUDA maps in units of 2 MiB: export allocations of whole 2 MiB, and
// only to processes that may read all of it. Threads: any thread may export or import; one thread at a time per
// DeviceImport. Errors: UNIMPLEMENTED when built without CUDA; UNAVAILABLE when there is no GPU, or the exporting GPU
// cannot be seen from this process (another machine; CUDA_VISIBLE_DEVICES); INVALID_ARGUMENT for damaged handles and
// memory that is not what it must be; OUT_OF_RANGE for ranges outside; INTERNAL when the device has failed.
#ifndef PERIGEE_TRANSPORT_CUDA_PLANE_HANDOFF_H_
#define PERIGEE_TRANSPORT_CUDA_PLANE_HANDOFF_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "transport/device_memory.h"

namespace perigee::transport {

// `memory` is one whole allocation of cudaMalloc. The bytes are plane_handle.h's.
absl::StatusOr<std::string> ExportDeviceMemory(std::span<std::byte> memory);

// One piece of a read.
struct HandoffRange {
  uint64_t offset = 0;               // in the exported allocation
  std::span<std::byte> destination;  // memory of the importing device; not empty
};

class DeviceImport {
 public:
  // Waits for the reads under way, then closes the import.
  virtual ~DeviceImport() = default;

  virtual uint64_t size_bytes() const = 0;

  // Starts all copies of the ranges; destinations belong to the read until Poll has said true or an error. On an error
  // here, nothing runs any more.
  virtual absl::StatusOr<CopyTicket> StartRead(std::span<const HandoffRange> ranges) = 0;
  // As DeviceMemory::Poll.
  virtual absl::StatusOr<bool> Poll(CopyTicket ticket) = 0;
};

// Destinations will be memory of `device`, as CUDA numbers them in this process. Works in the exporting process too. A
// process imports an allocation once at a time.
absl::StatusOr<std::unique_ptr<DeviceImport>> ImportDeviceMemory(absl::string_view handle, int device);

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_CUDA_PLANE_HANDOFF_H_
