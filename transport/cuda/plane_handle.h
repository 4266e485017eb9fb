// A device allocation's handle as it travels between two processes of one machine: what export writes and import reads.
// Pure bytes; nothing here needs CUDA. docs/formats.md describes the layout.
#ifndef PERIGEE_TRANSPORT_CUDA_PLANE_HANDLE_H_
#define PERIGEE_TRANSPORT_CUDA_PLANE_HANDLE_H_

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::transport {

struct PlaneHandle {
  std::array<uint8_t, 16> device_uuid{};  // of the GPU that holds the memory
  uint64_t process = 0;                   // random per process: whether the importer is the exporter
  uint64_t base = 0;                      // the allocation's address in the exporting process
  uint64_t size_bytes = 0;
  std::array<uint8_t, 64> ipc{};  // cudaIpcMemHandle_t
};

// A fixed number of bytes.
std::string EncodePlaneHandle(const PlaneHandle& handle);
// INVALID_ARGUMENT for anything that EncodePlaneHandle has not made, for another version, and for memory that cannot
// be.
absl::StatusOr<PlaneHandle> DecodePlaneHandle(absl::string_view bytes);

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_CUDA_PLANE_HANDLE_H_
