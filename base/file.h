// Whole-file reads and writes, read-only mappings and owned descriptors. Errors name the path and what the system said.
#ifndef PERIGEE_BASE_FILE_H_
#define PERIGEE_BASE_FILE_H_

#include <cstddef>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee {

// errno as a Status: "open /x/y: No such file or directory" with the matching code (NOT_FOUND, PERMISSION_DENIED,
// RESOURCE_EXHAUSTED for a full disk, ...).
absl::Status ErrnoStatus(absl::string_view operation, absl::string_view path, int error_number);

// Owns a file descriptor; closes it on destruction.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  ~UniqueFd() { Reset(); }
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) {
      Reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  void Reset();

 private:
  int fd_ = -1;
};

// Refuses files over max_bytes (a hostile size must not become an allocation).
absl::StatusOr<std::string> ReadFile(const std::string& path, size_t max_bytes = size_t{1} << 30);

// Writes path.tmp, syncs it, renames it over path, syncs the folder: readers see the old bytes or the new ones.
absl::Status WriteFileAtomically(const std::string& path, absl::string_view bytes);

// A read-only mapping of a whole file. The bytes live as long as the object; any thread may read them.
class MappedFile {
 public:
  static absl::StatusOr<MappedFile> Open(const std::string& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();
  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }

 private:
  MappedFile() = default;
  void* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace perigee

#endif  // PERIGEE_BASE_FILE_H_
