#include "kvstore/remote/object_folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/file.h"
#include "base/status.h"
#include "kvstore/remote/remote_object.h"

namespace perigee::kvstore {
namespace {

constexpr absl::string_view kFormat = "perigee.remote 1\n";
constexpr size_t kFanOutDigits = 3;
constexpr absl::Duration kLeftoverAge = absl::Hours(24);
// Below this a file system counts as full.
constexpr uint64_t kFullBytes = uint64_t{64} << 20;

absl::Status MakeFolder(const std::string& path) {
  if (::mkdir(path.c_str(), 0777) == 0 || errno == EEXIST) return absl::OkStatus();
  return ErrnoStatus("create folder", path, errno);
}

// Makes creations, renames and unlinks in a folder durable.
absl::Status SyncFolder(const std::string& path) {
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return ErrnoStatus("open", path, errno);
  if (::fsync(fd.get()) != 0) return ErrnoStatus("fsync", path, errno);
  return absl::OkStatus();
}

// Reads until `bytes` or the file's end.
int ReadFully(int fd, uint64_t offset, uint64_t bytes, std::string* out) {
  out->resize(bytes);
  size_t got = 0;
  while (got < bytes) {
    const ssize_t n = ::pread(fd, out->data() + got, bytes - got, static_cast<off_t>(offset + got));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    if (n == 0) break;
    got += static_cast<size_t>(n);
  }
  out->resize(got);
  return 0;
}

int WriteFully(int fd, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd, bytes.data(), bytes.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return errno;
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return 0;
}

// Names in a folder, sorted. errno, or 0.
int NamesIn(const std::string& path, std::vector<std::string>* names) {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(::opendir(path.c_str()), &::closedir);
  if (folder == nullptr) return errno;
  for (;;) {
    errno = 0;
    const dirent* entry = ::readdir(folder.get());
    if (entry == nullptr) break;
    names->push_back(entry->d_name);
  }
  std::sort(names->begin(), names->end());
  return errno;
}

}  // namespace

absl::StatusOr<ObjectFolder> ObjectFolder::Open(const std::string& path, const std::string& prefix, bool create) {
  PERIGEE_RETURN_IF_ERROR(CheckRemotePrefix(prefix));
  ObjectFolder folder(absl::StrCat(path, "/", prefix), prefix);
  absl::StatusOr<std::string> format = ReadFile(folder.Marker(), 4096);
  if (absl::IsNotFound(format.status())) {
    if (!create) {
      return absl::FailedPreconditionError(
          absl::StrCat(folder.Marker(), " is not there: mount the share, or let the tier make its folder (create)"));
    }
    PERIGEE_RETURN_IF_ERROR(MakeFolder(folder.root_));
    PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(folder.Marker(), kFormat));
    format = std::string(kFormat);
  }
  PERIGEE_RETURN_IF_ERROR(format.status());
  if (*format != kFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat(folder.Marker(), " says '", absl::string_view(*format).substr(0, 40),
                     "', this program knows 'perigee.remote 1': use the program that wrote it, or another prefix"));
  }
  PERIGEE_RETURN_IF_ERROR(MakeFolder(folder.root_ + "/tmp"));
  folder.RemoveLeftovers();
  return folder;
}

std::string ObjectFolder::FanOut(const PlaneId& id) const {
  return absl::StrCat(root_, "/", ToHex(id.key.digest).substr(0, kFanOutDigits));
}

std::string ObjectFolder::PathOf(const PlaneId& id) const {
  return absl::StrCat(FanOut(id), "/", RemoteObjectName(prefix_, id));
}

absl::Status ObjectFolder::Failure(absl::string_view operation, const std::string& path, int error) const {
  const absl::Status status = ErrnoStatus(operation, path, error);
  switch (error) {
    case ENOENT:
      if (::access(Marker().c_str(), F_OK) == 0) return status;
      return absl::UnavailableError(absl::StrCat(Marker(), " is not there: the share is not mounted, or was moved"));
    case ENOSPC:
    case EDQUOT:
      return absl::ResourceExhaustedError(
          absl::StrCat(status.message(), ": the file system or its quota is full; make room, or delete planes"));
    case EACCES:
    case EPERM:
      return status;
    case EROFS:
    case EINVAL:
      return absl::FailedPreconditionError(status.message());
    default:  // EIO, ESTALE, ENOTCONN, ETIMEDOUT, ...: what a share says that may come back.
      return absl::UnavailableError(status.message());
  }
}

absl::StatusOr<PutOutcome> ObjectFolder::Write(const PlaneId& id, std::span<const std::byte> record,
                                               const std::function<bool()>& given_up) {
  const std::string path = PathOf(id), fan_out = FanOut(id);
  if (::access(path.c_str(), F_OK) == 0) {
    // Its writer may not have come to this yet.
    PERIGEE_RETURN_IF_ERROR(SyncFolder(fan_out));
    return PutOutcome::kAlreadyStored;
  }
  static const uint64_t process = std::random_device()() | uint64_t{std::random_device()()} << 32;
  const std::string temporary =
      absl::StrCat(root_, "/tmp/", RemoteObjectName(prefix_, id), ".", absl::Hex(process), ".", next_temporary_++);
  UniqueFd fd(::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666));
  if (!fd) return Failure("create", temporary, errno);
  const auto store = [&]() -> absl::Status {
    if (const int error = WriteFully(fd.get(), record)) return Failure("write", temporary, error);
    if (::fsync(fd.get()) != 0) return Failure("fsync", temporary, errno);
    if (given_up()) return absl::CancelledError("given up before it was stored");
    if (::rename(temporary.c_str(), path.c_str()) == 0) return absl::OkStatus();
    if (errno != ENOENT) return Failure("rename to", path, errno);
    // The first plane of its fan-out. One level only: nothing is made where the share is not mounted.
    if (::mkdir(fan_out.c_str(), 0777) != 0 && errno != EEXIST) return Failure("create folder", fan_out, errno);
    PERIGEE_RETURN_IF_ERROR(SyncFolder(root_));
    if (::rename(temporary.c_str(), path.c_str()) != 0) return Failure("rename to", path, errno);
    return absl::OkStatus();
  };
  const absl::Status stored = store();
  if (!stored.ok()) {
    ::unlink(temporary.c_str());
    return stored;
  }
  PERIGEE_RETURN_IF_ERROR(SyncFolder(fan_out));
  return PutOutcome::kStored;
}

absl::StatusOr<std::string> ObjectFolder::Read(const PlaneId& id, uint64_t max_bytes) const {
  const std::string path = PathOf(id);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return Failure("open", path, errno);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return Failure("stat", path, errno);
  std::string out;
  // No size from outside becomes an allocation: the caller's bound holds.
  const uint64_t bytes = std::min<uint64_t>(max_bytes, static_cast<uint64_t>(info.st_size));
  if (const int error = ReadFully(fd.get(), 0, bytes, &out)) return Failure("read", path, error);
  return out;
}

absl::StatusOr<ObjectFolder::Parts> ObjectFolder::ReadParts(const PlaneId& id, uint64_t offset_bytes,
                                                            uint64_t bytes) const {
  const std::string path = PathOf(id);
  const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!fd) return Failure("open", path, errno);
  struct stat info;
  if (::fstat(fd.get(), &info) != 0) return Failure("stat", path, errno);
  Parts out;
  out.file_bytes = static_cast<uint64_t>(info.st_size);
  if (const int error = ReadFully(fd.get(), 0, kUsualHeadBytes, &out.head)) return Failure("read", path, error);
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t head_bytes, PeekHeadBytes(out.head, id));
  if (head_bytes > kUsualHeadBytes) {
    if (const int error = ReadFully(fd.get(), 0, head_bytes, &out.head)) return Failure("read", path, error);
  }
  if (const int error = ReadFully(fd.get(), head_bytes + offset_bytes, bytes, &out.body)) {
    return Failure("read", path, error);
  }
  return out;
}

absl::Status ObjectFolder::Remove(const PlaneId& id) const {
  const std::string path = PathOf(id);
  if (::unlink(path.c_str()) != 0) return Failure("remove", path, errno);
  return SyncFolder(FanOut(id));
}

absl::StatusOr<RemoteListPage> ObjectFolder::List(const std::string& page_token, size_t max_planes) const {
  std::string first_folder;
  if (!page_token.empty()) {
    const auto last = ParseRemoteObjectName(prefix_, page_token);
    if (!last)
      return absl::InvalidArgumentError(absl::StrCat("list: '", page_token, "' is no page token of this tier"));
    first_folder = ToHex(last->key.digest).substr(0, kFanOutDigits);
  }
  std::vector<std::string> folders;
  if (const int error = NamesIn(root_, &folders)) return Failure("list", root_, error);
  RemoteListPage page;
  for (const std::string& folder : folders) {
    if (folder.size() != kFanOutDigits || folder < first_folder || folder == "tmp") continue;
    std::vector<std::string> names;
    const std::string path = absl::StrCat(root_, "/", folder);
    const int error = NamesIn(path, &names);
    if (error == ENOTDIR) continue;
    if (error != 0) return Failure("list", path, error);
    auto name = page_token.empty() ? names.begin() : std::upper_bound(names.begin(), names.end(), page_token);
    if (folder != first_folder) name = names.begin();
    for (; name != names.end(); ++name) {
      const auto id = ParseRemoteObjectName(prefix_, *name);
      if (!id) continue;
      if (page.planes.size() == max_planes) {
        page.next_page_token = RemoteObjectName(prefix_, page.planes.back());
        return page;
      }
      page.planes.push_back(*id);
    }
  }
  return page;
}

absl::Status ObjectFolder::Check() const {
  struct statvfs space;
  if (::access(Marker().c_str(), F_OK) != 0) return Failure("look for", Marker(), errno);
  if (::statvfs(root_.c_str(), &space) != 0) return Failure("statvfs", root_, errno);
  if (uint64_t{space.f_bavail} * space.f_frsize < kFullBytes) return Failure("write to", root_, ENOSPC);
  return absl::OkStatus();
}

void ObjectFolder::RemoveLeftovers() const {
  std::vector<std::string> names;
  if (NamesIn(root_ + "/tmp", &names) != 0) return;
  const time_t oldest = absl::ToTimeT(absl::Now() - kLeftoverAge);
  for (const std::string& name : names) {
    const std::string path = absl::StrCat(root_, "/tmp/", name);
    struct stat info;
    if (::stat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_mtime < oldest) ::unlink(path.c_str());
  }
}

}  // namespace perigee::kvstore
