// A device for tests on machines without one. Its memory is mapped twice: the "device addresses" are PROT_NONE, so that
// whoever touches them from the processor dies by SIGSEGV; copies go through the other mapping.
//
// A copy moves its bytes only at the poll that reports its end, `polls_per_copy` polls after its start: who reads a
// destination or reuses a source before that gets wrong bytes, as on a real device. Destinations on the host are filled
// with kStale at the start.
#ifndef PERIGEE_TESTS_TRANSPORT_FAKE_DEVICE_H_
#define PERIGEE_TESTS_TRANSPORT_FAKE_DEVICE_H_

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <span>

#include "absl/strings/str_cat.h"
#include "transport/device_memory.h"

namespace perigee::transport {

class FakeDevice final : public DeviceMemory {
 public:
  static constexpr int kStale = 0xdb;

  // `device_bytes` of device memory, zero at first.
  explicit FakeDevice(size_t device_bytes, int polls_per_copy = 3)
      : bytes_(device_bytes), polls_per_copy_(polls_per_copy) {
    const int fd = memfd_create("fake_device", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes_)) != 0) std::abort();
    void* device = mmap(nullptr, bytes_, PROT_NONE, MAP_SHARED, fd, 0);
    void* hidden = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (device == MAP_FAILED || hidden == MAP_FAILED) std::abort();
    device_ = static_cast<std::byte*>(device);
    hidden_ = static_cast<std::byte*>(hidden);
  }
  ~FakeDevice() override {
    if (!pinned_.empty()) std::abort();  // FreePinned was forgotten
    while (!copies_.empty()) Finish(copies_.begin());
    munmap(device_, bytes_);
    munmap(hidden_, bytes_);
  }
  FakeDevice(const FakeDevice&) = delete;
  FakeDevice& operator=(const FakeDevice&) = delete;

  // The device's address space; not to be touched.
  std::span<std::byte> memory() const { return {device_, bytes_}; }
  // The same bytes where a test may read and write them.
  std::span<std::byte> contents() const { return {hidden_, bytes_}; }

  // The `n`th copy from now (0: the next) fails: at its start, or at the poll that would have ended it.
  void FailStartAfter(int n) { fail_start_in_ = n; }
  void FailCopyAfter(int n) { fail_copy_in_ = n; }
  void FailPinnedAllocations(bool fail) { fail_pinned_ = fail; }
  // While true, no copy comes nearer to its end.
  void Stall(bool stall) { stall_ = stall; }

  size_t copies_under_way() const { return copies_.size(); }
  uint64_t copies_started() const { return next_id_ - 1; }
  size_t pinned_bytes() const {
    size_t bytes = 0;
    for (const auto& [base, size] : pinned_) bytes += size;
    return bytes;
  }

  absl::string_view name() const override { return "fake device"; }
  bool Owns(const void* address) const override { return address >= device_ && address < device_ + bytes_; }

  absl::StatusOr<std::span<std::byte>> AllocatePinned(size_t bytes) override {
    Enter enter(this);
    if (bytes == 0) return absl::InvalidArgumentError("no bytes to allocate");
    if (fail_pinned_) return absl::ResourceExhaustedError("the fake device was told to have no pinned memory");
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return absl::ResourceExhaustedError(absl::StrCat("no ", bytes, " bytes"));
    pinned_[memory] = bytes;
    return std::span<std::byte>(static_cast<std::byte*>(memory), bytes);
  }
  void FreePinned(std::span<std::byte> memory) override {
    Enter enter(this);
    const auto found = pinned_.find(memory.data());
    if (found == pinned_.end() || found->second != memory.size()) std::abort();
    for (const auto& [id, copy] : copies_) {
      if (copy.host + copy.bytes > memory.data() && copy.host < memory.data() + memory.size()) std::abort();
    }
    munmap(memory.data(), memory.size());
    pinned_.erase(found);
  }

  absl::StatusOr<CopyTicket> StartCopyToHost(void* host, const void* device, size_t bytes) override {
    Enter enter(this);
    return Start(static_cast<std::byte*>(host), static_cast<const std::byte*>(device), bytes, /*to_host=*/true);
  }
  absl::StatusOr<CopyTicket> StartCopyToDevice(void* device, const void* host, size_t bytes) override {
    Enter enter(this);
    return Start(static_cast<std::byte*>(const_cast<void*>(host)), static_cast<const std::byte*>(device), bytes,
                 /*to_host=*/false);
  }

  absl::StatusOr<bool> Poll(CopyTicket ticket) override {
    Enter enter(this);
    const auto found = copies_.find(ticket.id);
    if (found == copies_.end()) return absl::InvalidArgumentError(absl::StrCat("ticket ", ticket.id, " is used up"));
    Copy& copy = found->second;
    if (stall_ || copy.polls_left-- > 0) return false;
    if (copy.fails) {
      copies_.erase(found);
      return absl::InternalError("the fake device was told to fail this copy");
    }
    // In one direction, copies end in the order of their start.
    for (auto it = copies_.begin(); it != found;) {
      it->second.to_host == copy.to_host && !it->second.fails ? Move(it->second) : void();
      ++it;
    }
    Finish(found);
    return true;
  }

 private:
  struct Copy {
    std::byte* host = nullptr;
    size_t device_offset = 0;
    size_t bytes = 0;
    bool to_host = false;
    int polls_left = 0;
    bool fails = false;
    bool moved = false;
  };
  // Dies when two threads are inside at once.
  struct Enter {
    explicit Enter(FakeDevice* device) : device(device) {
      if (device->inside_.exchange(true)) std::abort();
    }
    ~Enter() { device->inside_ = false; }
    FakeDevice* device;
  };

  absl::StatusOr<CopyTicket> Start(std::byte* host, const std::byte* device, size_t bytes, bool to_host) {
    if (bytes == 0 || !Owns(device) || bytes > static_cast<size_t>(device_ + bytes_ - device) || Owns(host)) {
      return absl::InvalidArgumentError(absl::StrCat("copy of ", bytes, " bytes leaves the fake device's memory"));
    }
    if (fail_start_in_ >= 0 && fail_start_in_-- == 0) {
      return absl::InternalError("the fake device was told to fail this start");
    }
    const bool fails = fail_copy_in_ >= 0 && fail_copy_in_-- == 0;
    if (to_host) std::memset(host, kStale, bytes);
    copies_[next_id_] = Copy{host, static_cast<size_t>(device - device_), bytes, to_host, polls_per_copy_, fails};
    return CopyTicket{next_id_++};
  }
  void Move(Copy& copy) {
    if (copy.moved) return;
    copy.moved = true;
    std::byte* device = hidden_ + copy.device_offset;
    copy.to_host ? std::memcpy(copy.host, device, copy.bytes) : std::memcpy(device, copy.host, copy.bytes);
  }
  void Finish(std::map<uint64_t, Copy>::iterator copy) {
    if (!copy->second.fails) Move(copy->second);
    copies_.erase(copy);
  }

  const size_t bytes_;
  const int polls_per_copy_;
  std::byte* device_ = nullptr;
  std::byte* hidden_ = nullptr;
  std::map<void*, size_t> pinned_;
  std::map<uint64_t, Copy> copies_;  // in the order of their start
  uint64_t next_id_ = 1;
  int fail_start_in_ = -1;
  int fail_copy_in_ = -1;
  bool fail_pinned_ = false;
  bool stall_ = false;
  std::atomic<bool> inside_{false};
};

}  // namespace perigee::transport

#endif  // PERIGEE_TESTS_TRANSPORT_FAKE_DEVICE_H_
