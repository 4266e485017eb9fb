// What a program built without NCCL answers.
#include "transport/collective/nccl_collective.h"

namespace perigee::transport {

absl::StatusOr<std::unique_ptr<Collective>> CreateNcclCollective(const GroupOptions&, int, absl::Time) {
  return absl::UnimplementedError(
      "this program was built without NCCL; build it where CMake finds the CUDA toolkit, nccl.h and libnccl");
}

}  // namespace perigee::transport
