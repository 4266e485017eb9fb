// Huge pages: asking for them, seeing whether they came, and memory of one's own that is laid out for them.
//
// A store looks at random places in gigabytes. With pages of 4 KiB nearly every look misses the TLB; with pages of
// 2 MiB, where the kernel gives them, hardly any does. Nothing here fails where it does not: the memory works either
// way. Any thread may call.
#ifndef PERIGEE_KVSTORE_DRAM_HUGE_PAGES_H_
#define PERIGEE_KVSTORE_DRAM_HUGE_PAGES_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perigee::kvstore {

inline constexpr size_t kHugePageBytes = size_t{2} << 20;

// Asks for huge pages in the whole huge pages inside of `memory` (not touched, not moved). FAILED_PRECONDITION, with
// the kernel's reason, where it refuses; INVALID_ARGUMENT where no whole huge page lies inside.
absl::Status AdviseHugePages(std::span<std::byte> memory);

struct HugePageUse {
  uint64_t mapped_bytes = 0;    // Of the range asked about.
  uint64_t resident_bytes = 0;  // That lie in memory at all.
  uint64_t huge_bytes = 0;      // That lie in huge pages: transparent ones and hugetlbfs'.
  // "1.9 of 2.0 GiB in huge pages", for logs.
  std::string ToString() const;
};
// What the kernel says of the mappings that `memory` lies in (/proc/self/smaps; walks the process's page tables: for
// starts and statistics, not for hot paths). A mapping that is longer than the range counts in proportion. NOT_FOUND
// where the range is not mapped, UNAVAILABLE without /proc.
absl::StatusOr<HugePageUse> CountHugePages(std::span<const std::byte> memory);

// Zeroed memory of this process alone, given back with the object. In whole pages; where huge, in whole huge pages,
// aligned to them and advised. Throws std::bad_alloc like operator new.
class MappedMemory {
 public:
  MappedMemory() = default;
  MappedMemory(size_t bytes, bool huge);
  MappedMemory(MappedMemory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  MappedMemory& operator=(MappedMemory&&) = delete;
  ~MappedMemory();
  // Has the kernel put pages behind all of it now, rather than when they are first touched.
  void Populate();

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_DRAM_HUGE_PAGES_H_
