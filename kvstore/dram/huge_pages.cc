#include "kvstore/dram/huge_pages.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <new>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kvstore/plane_id.h"

namespace perigee::kvstore {
namespace {

uintptr_t RoundUp(uintptr_t value, uintptr_t unit) { return (value + unit - 1) / unit * unit; }

double Gibibytes(uint64_t bytes) { return static_cast<double>(bytes) / (uint64_t{1} << 30); }

}  // namespace

absl::Status AdviseHugePages(std::span<std::byte> memory) {
  const uintptr_t start = reinterpret_cast<uintptr_t>(memory.data());
  const uintptr_t first = RoundUp(start, kHugePageBytes);
  const uintptr_t end = (start + memory.size()) / kHugePageBytes * kHugePageBytes;
  if (end <= first) {
    return absl::InvalidArgumentError(
        absl::StrCat(memory.size(), " bytes hold no whole huge page of ", kHugePageBytes, " bytes"));
  }
  if (madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE) != 0) {
    return absl::FailedPreconditionError(absl::StrCat("the kernel gives no huge pages here: ", std::strerror(errno),
                                                      " (see /sys/kernel/mm/transparent_hugepage/enabled)"));
  }
  return absl::OkStatus();
}

std::string HugePageUse::ToString() const {
  return absl::StrFormat("%.2f of %.2f GiB in huge pages (%.2f GiB mapped)", Gibibytes(huge_bytes),
                         Gibibytes(resident_bytes), Gibibytes(mapped_bytes));
}

absl::StatusOr<HugePageUse> CountHugePages(std::span<const std::byte> memory) {
  const uintptr_t from = reinterpret_cast<uintptr_t>(memory.data());
  const uintptr_t to = from + memory.size();
  std::ifstream file("/proc/self/smaps");
  if (!file) return absl::UnavailableError("cannot read /proc/self/smaps");
  HugePageUse use;
  double share = 0;  // Of the mapping that the lines are about.
  for (std::string line; std::getline(file, line);) {
    uintptr_t start = 0, end = 0;
    uint64_t kib = 0;
    char name[64];
    if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " ", &start, &end) == 2) {
      const uintptr_t low = std::max(start, from), high = std::min(end, to);
      share = low < high ? static_cast<double>(high - low) / static_cast<double>(end - start) : 0;
      if (low < high) use.mapped_bytes += high - low;
    } else if (share > 0 && std::sscanf(line.c_str(), "%63[^:]: %" SCNu64 " kB", name, &kib) == 2) {
      const absl::string_view field(name);
      const uint64_t bytes = static_cast<uint64_t>(share * static_cast<double>(kib << 10));
      const bool hugetlb = field == "Shared_Hugetlb" || field == "Private_Hugetlb";
      if (hugetlb || field == "AnonHugePages" || field == "ShmemPmdMapped" || field == "FilePmdMapped") {
        use.huge_bytes += bytes;
      }
      if (hugetlb || field == "Rss") use.resident_bytes += bytes;  // Rss leaves hugetlbfs' pages out.
    }
  }
  if (use.mapped_bytes == 0) return absl::NotFoundError("nothing is mapped in the range asked about");
  return use;
}

MappedMemory::MappedMemory(size_t bytes, bool huge) {
  const size_t unit = huge ? kHugePageBytes : kPageBytes;
  bytes_ = RoundUp(bytes, unit);
  // Mapped with room to align it, then cut.
  const size_t room = bytes_ + (huge ? kHugePageBytes : 0);
  void* const mapped = mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  const uintptr_t start = reinterpret_cast<uintptr_t>(mapped), first = RoundUp(start, unit);
  if (first > start) munmap(mapped, first - start);
  if (first + bytes_ < start + room) munmap(reinterpret_cast<void*>(first + bytes_), start + room - first - bytes_);
  data_ = reinterpret_cast<std::byte*>(first);
  if (huge) AdviseHugePages({data_, bytes_}).IgnoreError();  // Slower without.
}

MappedMemory::~MappedMemory() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

void MappedMemory::Populate() {
  for (size_t i = 0; i < bytes_; i += kPageBytes) {
    // Written, not read: a read would get the kernel's page of zeros.
    *reinterpret_cast<volatile std::byte*>(data_ + i) = std::byte{0};
  }
}

}  // namespace perigee::kvstore
