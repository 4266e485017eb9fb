// The other process of cuda_test.
//   transport_cuda_peer export BYTES       fills device memory with Pattern(i), prints its handle in hex, and keeps it
//   until
//                                          standard input ends
//   transport_cuda_peer nccl RANK SIZE PORT  one rank, on device RANK: sums and prints "ok"
#include <cuda_runtime_api.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "cuda_pattern.h"
#include "transport/collective/nccl_collective.h"
#include "transport/cuda/plane_handoff.h"

namespace perigee::transport {
namespace {

int Fail(absl::string_view why) {
  std::printf("fail %.*s\n", static_cast<int>(why.size()), why.data());
  std::fflush(stdout);
  return 1;
}

int Export(size_t bytes) {
  std::vector<std::byte> host(bytes);
  for (size_t i = 0; i < bytes; ++i) host[i] = Pattern(i);
  void* device = nullptr;
  if (cudaMalloc(&device, bytes) != cudaSuccess ||
      cudaMemcpy(device, host.data(), bytes, cudaMemcpyHostToDevice) != cudaSuccess) {
    return Fail("no device memory");
  }
  const auto handle = ExportDeviceMemory({static_cast<std::byte*>(device), bytes});
  if (!handle.ok()) return Fail(handle.status().message());
  const std::string hex = ToHex({reinterpret_cast<const uint8_t*>(handle->data()), handle->size()});
  std::printf("%s\n", hex.c_str());
  std::fflush(stdout);
  char byte = 0;
  while (read(0, &byte, 1) > 0) {
  }
  return 0;
}

int Nccl(int rank, int size, uint16_t port) {
  const absl::Time deadline = absl::Now() + absl::Seconds(60);
  auto group = CreateNcclCollective(
      {.group_name = "nccl", .rank = rank, .size = size, .rendezvous_port = port, .transport = {.transports = "tcp"}},
      rank, deadline);
  if (!group.ok()) return Fail(group.status().message());
  constexpr size_t kCount = (size_t{1} << 20) + 3;
  std::vector<float> values(kCount);
  for (size_t i = 0; i < kCount; ++i) values[i] = static_cast<float>(i % 1000 + rank);
  float* device = nullptr;
  if (cudaMalloc(reinterpret_cast<void**>(&device), kCount * sizeof(float)) != cudaSuccess ||
      cudaMemcpy(device, values.data(), kCount * sizeof(float), cudaMemcpyHostToDevice) != cudaSuccess) {
    return Fail("no device memory");
  }
  const absl::Status status = (*group)->AllReduceSum({device, kCount}, deadline);
  if (!status.ok()) return Fail(status.message());
  if (cudaMemcpy(values.data(), device, kCount * sizeof(float), cudaMemcpyDeviceToHost) != cudaSuccess) {
    return Fail("cannot copy back");
  }
  for (size_t i = 0; i < kCount; ++i) {
    // Small integers: exact in any order.
    if (values[i] != static_cast<float>(size * (i % 1000) + size * (size - 1) / 2)) return Fail("wrong sum");
  }
  if (!(*group)->Barrier(deadline).ok()) return Fail("no barrier");
  std::printf("ok\n");
  return 0;
}

}  // namespace
}  // namespace perigee::transport

int main(int argc, char** argv) {
  const absl::string_view what = argc > 1 ? argv[1] : "";
  if (what == "export" && argc == 3) return perigee::transport::Export(std::strtoull(argv[2], nullptr, 10));
  if (what == "nccl" && argc == 5) {
    return perigee::transport::Nccl(std::atoi(argv[2]), std::atoi(argv[3]), static_cast<uint16_t>(std::atoi(argv[4])));
  }
  return 2;
}
