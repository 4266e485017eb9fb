#include "kvstore/segment_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "base/status.h"

namespace perigee::kvstore {
namespace {

// Takes done bytes off the front of the two ranges; false when nothing is left.
bool Advance(iovec (&pieces)[2], size_t done) {
  for (iovec& piece : pieces) {
    const size_t n = std::min(done, piece.iov_len);
    piece.iov_base = static_cast<char*>(piece.iov_base) + n;
    piece.iov_len -= n;
    done -= n;
  }
  return pieces[0].iov_len + pieces[1].iov_len > 0;
}

}  // namespace

absl::StatusOr<SegmentFile> SegmentFile::Open(const std::string& path, bool create) {
  SegmentFile file;
  file.path_ = path;
  file.fd_ = UniqueFd(::open(path.c_str(), O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0644));
  if (!file.fd_) return ErrnoStatus(create ? "create" : "open", path, errno);
  return file;
}

absl::Status SegmentFile::Write(uint64_t offset_bytes, absl::string_view first,
                                std::span<const std::byte> second) const {
  iovec pieces[2] = {{const_cast<char*>(first.data()), first.size()},
                     {const_cast<std::byte*>(second.data()), second.size()}};
  size_t done = 0;
  while (Advance(pieces, done)) {
    const ssize_t n = ::pwritev(fd_.get(), pieces, 2, static_cast<off_t>(offset_bytes));
    if (n < 0 && errno == EINTR) {
      done = 0;
      continue;
    }
    if (n <= 0) return ErrnoStatus("write", path_, n < 0 ? errno : ENOSPC);
    done = static_cast<size_t>(n);
    offset_bytes += done;
  }
  return absl::OkStatus();
}

absl::Status SegmentFile::Read(uint64_t offset_bytes, std::span<std::byte> first, std::span<std::byte> second) const {
  iovec pieces[2] = {{first.data(), first.size()}, {second.data(), second.size()}};
  size_t done = 0;
  while (Advance(pieces, done)) {
    const ssize_t n = ::preadv(fd_.get(), pieces, 2, static_cast<off_t>(offset_bytes));
    if (n < 0 && errno == EINTR) {
      done = 0;
      continue;
    }
    if (n < 0) return ErrnoStatus("read", path_, errno);
    if (n == 0) return absl::DataLossError(absl::StrCat(path_, " ends at ", offset_bytes, ", inside a record"));
    done = static_cast<size_t>(n);
    offset_bytes += done;
  }
  return absl::OkStatus();
}

absl::Status SegmentFile::Sync() const {
  if (::fdatasync(fd_.get()) != 0) return ErrnoStatus("fdatasync", path_, errno);
  return absl::OkStatus();
}

absl::Status SegmentFile::Truncate(uint64_t size_bytes) const {
  if (::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) != 0) return ErrnoStatus("truncate", path_, errno);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SegmentFile::SizeBytes() const {
  struct stat info;
  if (::fstat(fd_.get(), &info) != 0) return ErrnoStatus("stat", path_, errno);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path_, " is not a regular file"));
  return static_cast<uint64_t>(info.st_size);
}

absl::Status SegmentFile::Unlink() const {
  if (::unlink(path_.c_str()) != 0) return ErrnoStatus("unlink", path_, errno);
  return absl::OkStatus();
}

std::string SegmentFileName(uint64_t segment) { return absl::StrFormat("%08d.seg", segment); }

std::optional<uint64_t> ParseSegmentFileName(absl::string_view name) {
  uint64_t segment = 0;
  if (name.size() < 12 || name.substr(name.size() - 4) != ".seg") return std::nullopt;
  if (!absl::SimpleAtoi(name.substr(0, name.size() - 4), &segment) || SegmentFileName(segment) != name)
    return std::nullopt;
  return segment;
}

absl::Status SyncDirectory(const std::string& path) {
  UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return ErrnoStatus("open", path, errno);
  if (::fsync(fd.get()) != 0) return ErrnoStatus("fsync", path, errno);
  return absl::OkStatus();
}

}  // namespace perigee::kvstore
