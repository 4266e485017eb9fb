// Device memory, hand-off between processes and NCCL, on a GPU. Without one, each test that needs it is skipped and
// says so, and what remains is that the answers are UNAVAILABLE.
#include <cuda_runtime_api.h>
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/file.h"
#include "cuda_pattern.h"
#include "transport/collective/nccl_collective.h"
#include "transport/context.h"
#include "transport/cuda/cuda_memory.h"
#include "transport/cuda/plane_handle.h"
#include "transport/cuda/plane_handoff.h"

extern char** environ;

namespace perigee::transport {
namespace {

using testing::HasSubstr;

int Devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

#define NEEDS_GPUS(n)                                                                                         \
  if (Devices() < (n)) {                                                                                      \
    GTEST_SKIP() << "NOT TESTED: this needs " << (n) << " GPU(s), " << Devices() << " found on this machine"; \
  }

absl::Time Soon() { return absl::Now() + absl::Seconds(60); }

template <typename Work>
absl::Status Finish(Work& work, CopyTicket ticket) {
  const absl::Time deadline = Soon();
  while (absl::Now() < deadline) {
    const absl::StatusOr<bool> done = work.Poll(ticket);
    if (!done.ok()) return done.status();
    if (*done) return absl::OkStatus();
  }
  return absl::DeadlineExceededError("the copy does not end");
}

class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes, int device = 0) : bytes_(bytes) {
    void* memory = nullptr;
    if (cudaSetDevice(device) != cudaSuccess || cudaMalloc(&memory, bytes) != cudaSuccess) std::abort();
    if (cudaMemset(memory, 0xee, bytes) != cudaSuccess) std::abort();
    data_ = static_cast<std::byte*>(memory);
  }
  ~DeviceBuffer() { cudaFree(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  std::span<std::byte> bytes() const { return {data_, bytes_}; }
  template <typename T>
  void Set(const std::vector<T>& values) {
    if (cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice) != cudaSuccess)
      std::abort();
  }
  template <typename T = std::byte>
  std::vector<T> Get() const {
    std::vector<T> values(bytes_ / sizeof(T));
    if (cudaMemcpy(values.data(), data_, bytes_, cudaMemcpyDeviceToHost) != cudaSuccess) std::abort();
    return values;
  }

 private:
  size_t bytes_;
  std::byte* data_ = nullptr;
};

// transport_cuda_peer with its standard output to read from.
class Process {
 public:
  explicit Process(std::vector<std::string> arguments) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) std::abort();
    input_ = UniqueFd(in[1]);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, in[0], 0);
    posix_spawn_file_actions_adddup2(&actions, out[1], 1);
    std::string program = TRANSPORT_CUDA_PEER;
    std::vector<char*> argv = {program.data()};
    for (std::string& argument : arguments) argv.push_back(argument.data());
    argv.push_back(nullptr);
    if (posix_spawn(&pid_, TRANSPORT_CUDA_PEER, &actions, nullptr, argv.data(), environ) != 0) std::abort();
    posix_spawn_file_actions_destroy(&actions);
    close(in[0]);
    close(out[1]);
    stream_ = fdopen(out[0], "r");
  }
  ~Process() {
    input_.Reset();
    std::fclose(stream_);
    waitpid(pid_, nullptr, 0);
  }
  Process(const Process&) = delete;
  std::string Line() {
    char line[4096] = {};
    if (std::fgets(line, sizeof(line), stream_) == nullptr) return "";
    line[std::strcspn(line, "\n")] = '\0';
    return line;
  }

 private:
  pid_t pid_ = -1;
  UniqueFd input_;
  FILE* stream_ = nullptr;
};

TEST(WithoutGpuTest, EverythingSaysThatItIsUnavailable) {
  if (Devices() > 0) GTEST_SKIP() << "this machine has " << Devices() << " GPU(s)";
  EXPECT_TRUE(absl::IsUnavailable(CreateCudaMemory(0).status())) << CreateCudaMemory(0).status();
  std::byte byte{};
  EXPECT_TRUE(absl::IsUnavailable(ExportDeviceMemory({&byte, 1}).status())) << ExportDeviceMemory({&byte, 1}).status();
  PlaneHandle handle;
  handle.base = 4096;
  handle.size_bytes = 4096;
  EXPECT_TRUE(absl::IsUnavailable(ImportDeviceMemory(EncodePlaneHandle(handle), 0).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ImportDeviceMemory("damaged", 0).status()));
  const absl::Status group =
      CreateNcclCollective({.group_name = "g", .transport = {.transports = "tcp"}}, 0, Soon()).status();
  EXPECT_THAT(group, testing::AnyOf(testing::Property(&absl::Status::code, absl::StatusCode::kUnavailable),
                                    testing::Property(&absl::Status::code, absl::StatusCode::kUnimplemented)));
}

// ---- Staging ----

TEST(CudaMemoryTest, CopiesBothWaysAndTellsWhatItOwns) {
  NEEDS_GPUS(1);
  auto memory = CreateCudaMemory(0);
  ASSERT_TRUE(memory.ok()) << memory.status();
  EXPECT_THAT(std::string((*memory)->name()), HasSubstr("cuda:0"));
  constexpr size_t kBytes = (size_t{8} << 20) + 5;
  DeviceBuffer device(kBytes);
  auto pinned = (*memory)->AllocatePinned(kBytes);
  ASSERT_TRUE(pinned.ok()) << pinned.status();
  std::vector<std::byte> pageable(kBytes);
  EXPECT_TRUE((*memory)->Owns(device.bytes().data()));
  EXPECT_TRUE((*memory)->Owns(device.bytes().data() + kBytes - 1));
  EXPECT_FALSE((*memory)->Owns(pinned->data()));
  EXPECT_FALSE((*memory)->Owns(pageable.data()));
  EXPECT_FALSE((*memory)->Owns(nullptr));
  EXPECT_EQ(reinterpret_cast<uintptr_t>(pinned->data()) % 4096, 0u);

  for (size_t i = 0; i < kBytes; ++i) (*pinned)[i] = Pattern(i);
  auto up = (*memory)->StartCopyToDevice(device.bytes().data(), pinned->data(), kBytes);
  ASSERT_TRUE(up.ok()) << up.status();
  ASSERT_TRUE(Finish(**memory, *up).ok());
  EXPECT_TRUE(absl::IsInvalidArgument((*memory)->Poll(*up).status()));  // used up
  EXPECT_TRUE(std::equal(pinned->begin(), pinned->end(), device.Get().begin()));

  std::fill(pinned->begin(), pinned->end(), std::byte{0});
  // Several at once, out of order, into pinned and pageable memory.
  const size_t half = kBytes / 2;
  auto second = (*memory)->StartCopyToHost(pinned->data() + half, device.bytes().data() + half, kBytes - half);
  auto first = (*memory)->StartCopyToHost(pinned->data(), device.bytes().data(), half);
  auto third = (*memory)->StartCopyToHost(pageable.data(), device.bytes().data(), kBytes);
  ASSERT_TRUE(first.ok() && second.ok() && third.ok());
  for (const CopyTicket ticket : {*third, *first, *second}) EXPECT_TRUE(Finish(**memory, ticket).ok());
  for (size_t i = 0; i < kBytes; ++i) {
    ASSERT_EQ((*pinned)[i], Pattern(i)) << i;
    ASSERT_EQ(pageable[i], Pattern(i)) << i;
  }
  (*memory)->FreePinned(*pinned);
}

TEST(CudaMemoryTest, RefusesWhatItCannotCopy) {
  NEEDS_GPUS(1);
  EXPECT_TRUE(absl::IsInvalidArgument(CreateCudaMemory(-1).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(CreateCudaMemory(Devices()).status()));
  auto memory = CreateCudaMemory(0);
  ASSERT_TRUE(memory.ok()) << memory.status();
  DeviceBuffer device(4096);
  std::vector<std::byte> host(4096);
  EXPECT_TRUE(absl::IsInvalidArgument((*memory)->StartCopyToHost(host.data(), host.data(), 10).status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*memory)->StartCopyToHost(host.data(), device.bytes().data(), 0).status()));
  EXPECT_TRUE(
      absl::IsInvalidArgument((*memory)->StartCopyToDevice(device.bytes().data(), device.bytes().data(), 10).status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*memory)->Poll(CopyTicket{}).status()));
  EXPECT_TRUE(absl::IsInvalidArgument((*memory)->AllocatePinned(0).status()));
}

// ---- Hand-off ----

void ExpectReads(DeviceImport& import, int device) {
  DeviceBuffer destination(3 << 20, device);
  const std::vector<HandoffRange> ranges = {
      {5, destination.bytes().subspan(0, 1000)},
      {import.size_bytes() - 4096, destination.bytes().subspan(1000, 4096)},
      {size_t{2} << 20, destination.bytes().subspan(size_t{1} << 20, size_t{2} << 20)},
  };
  const auto ticket = import.StartRead(ranges);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  const absl::Status done = Finish(import, *ticket);
  ASSERT_TRUE(done.ok()) << done;
  const std::vector<std::byte> got = destination.Get();
  for (const HandoffRange& range : ranges) {
    const size_t at = static_cast<size_t>(range.destination.data() - destination.bytes().data());
    for (size_t i = 0; i < range.destination.size(); ++i) {
      ASSERT_EQ(got[at + i], Pattern(range.offset + i)) << "offset " << range.offset << " + " << i;
    }
  }
  EXPECT_EQ(got[6000], std::byte{0xee});  // beside the ranges nothing was written

  const HandoffRange beyond{import.size_bytes() - 10, destination.bytes().subspan(0, 11)};
  EXPECT_TRUE(absl::IsOutOfRange(import.StartRead({&beyond, 1}).status()));
  const HandoffRange wraps{~uint64_t{0} - 5, destination.bytes().subspan(0, 11)};
  EXPECT_TRUE(absl::IsOutOfRange(import.StartRead({&wraps, 1}).status()));
  std::vector<std::byte> host(10);
  const HandoffRange to_host{0, host};
  EXPECT_TRUE(absl::IsInvalidArgument(import.StartRead({&to_host, 1}).status()));
  const HandoffRange past_the_end{0, {destination.bytes().data() + (3 << 20) - 5, 10}};
  EXPECT_TRUE(absl::IsInvalidArgument(import.StartRead({&past_the_end, 1}).status()));
}

constexpr size_t kPool = size_t{8} << 20;

TEST(PlaneHandoffTest, AnotherProcessReadsRangesOfExportedMemory) {
  NEEDS_GPUS(1);
  Process exporter({"export", std::to_string(kPool)});
  const std::string line = exporter.Line();
  const auto handle = FromHex(line);
  ASSERT_TRUE(handle.ok()) << line;
  for (int device = 0; device < Devices(); ++device) {
    auto import = ImportDeviceMemory(*handle, device);
    ASSERT_TRUE(import.ok()) << import.status();
    EXPECT_EQ((*import)->size_bytes(), kPool);
    ExpectReads(**import, device);
  }
}

TEST(PlaneHandoffTest, TheExportingProcessMayImportToo) {
  NEEDS_GPUS(1);
  DeviceBuffer pool(kPool);
  std::vector<std::byte> bytes(kPool);
  for (size_t i = 0; i < kPool; ++i) bytes[i] = Pattern(i);
  pool.Set(bytes);
  const auto handle = ExportDeviceMemory(pool.bytes());
  ASSERT_TRUE(handle.ok()) << handle.status();
  auto import = ImportDeviceMemory(*handle, 0);
  ASSERT_TRUE(import.ok()) << import.status();
  ExpectReads(**import, 0);
}

TEST(PlaneHandoffTest, OnlyWholeDeviceAllocationsAreExported) {
  NEEDS_GPUS(1);
  DeviceBuffer pool(kPool);
  EXPECT_TRUE(absl::IsInvalidArgument(ExportDeviceMemory(pool.bytes().subspan(4096)).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(ExportDeviceMemory(pool.bytes().subspan(0, 4096)).status()));
  std::vector<std::byte> host(4096);
  EXPECT_TRUE(absl::IsInvalidArgument(ExportDeviceMemory(host).status()));
}

TEST(PlaneHandoffTest, AHandleOfAnotherMachinesGpuIsRefused) {
  NEEDS_GPUS(1);
  DeviceBuffer pool(kPool);
  const auto bytes = ExportDeviceMemory(pool.bytes());
  ASSERT_TRUE(bytes.ok()) << bytes.status();
  auto handle = DecodePlaneHandle(*bytes);
  ASSERT_TRUE(handle.ok());
  handle->device_uuid[3] ^= 1;
  EXPECT_TRUE(absl::IsUnavailable(ImportDeviceMemory(EncodePlaneHandle(*handle), 0).status()));
}

// ---- NCCL ----

TEST(NcclTest, AGroupOfOneDoesEveryOperation) {
  NEEDS_GPUS(1);
  auto group = CreateNcclCollective({.group_name = "g", .transport = {.transports = "tcp"}}, 0, Soon());
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ((*group)->rank(), 0);
  EXPECT_EQ((*group)->size(), 1);
  DeviceBuffer values(3 * sizeof(float));
  values.Set(std::vector<float>{1.5f, -2.0f, 3.0f});
  absl::Status status = (*group)->AllReduceSum({reinterpret_cast<float*>(values.bytes().data()), 3}, Soon());
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_THAT(values.Get<float>(), testing::ElementsAre(1.5f, -2.0f, 3.0f));
  DeviceBuffer all(3 * sizeof(float));
  status = (*group)->AllGather(values.bytes(), all.bytes(), Soon());
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(all.Get(), values.Get());
  status = (*group)->Broadcast(all.bytes(), 0, Soon());
  EXPECT_TRUE(status.ok()) << status;
  std::string text = "text";
  EXPECT_TRUE((*group)->BroadcastString(&text, 0, Soon()).ok());
  EXPECT_TRUE((*group)->Barrier(Soon()).ok());
  std::vector<float> host(3);
  EXPECT_TRUE(absl::IsInvalidArgument((*group)->AllReduceSum(host, Soon())));
}

TEST(NcclTest, TwoRanksOnTwoGpusAddUp) {
  NEEDS_GPUS(2);
  uint16_t port = 0;
  {
    auto context = Context::Create({.transports = "tcp"});
    ASSERT_TRUE(context.ok()) << context.status();
    auto listener = (*context)->Listen("127.0.0.1", 0, TrustEveryone);
    ASSERT_TRUE(listener.ok()) << listener.status();
    port = listener->port();
  }
  Process rank0({"nccl", "0", "2", std::to_string(port)}), rank1({"nccl", "1", "2", std::to_string(port)});
  EXPECT_EQ(rank0.Line(), "ok");
  EXPECT_EQ(rank1.Line(), "ok");
}

}  // namespace
}  // namespace perigee::transport
