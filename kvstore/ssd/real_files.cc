#include <fcntl.h>
#include <spdlog/spdlog.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>

#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "base/status.h"
#include "kvstore/ssd/io_engine.h"

namespace perigee::kvstore {
namespace {

class RealFile : public File {
 public:
  RealFile(std::string path, UniqueFd fd) : File(std::move(path)), fd_(std::move(fd)) {}

  absl::StatusOr<uint64_t> SizeBytes() const override {
    struct stat info;
    if (::fstat(fd_.get(), &info) != 0) return ErrnoStatus("stat", path(), errno);
    if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path(), " is not a regular file"));
    return static_cast<uint64_t>(info.st_size);
  }
  absl::Status Truncate(uint64_t size_bytes) override {
    if (::ftruncate(fd_.get(), static_cast<off_t>(size_bytes)) != 0) return ErrnoStatus("truncate", path(), errno);
    return absl::OkStatus();
  }
  absl::Status Preallocate(uint64_t size_bytes) override {
    if (::fallocate(fd_.get(), 0, 0, static_cast<off_t>(size_bytes)) != 0) {
      return ErrnoStatus("allocate", path(), errno);
    }
    return absl::OkStatus();
  }
  int fd() const { return fd_.get(); }

 private:
  const UniqueFd fd_;
};

class RealFiles : public FileLayer {
 public:
  RealFiles(std::unique_ptr<IoEngine> engine, bool direct) : engine_(std::move(engine)), direct_(direct) {}

  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, bool create) override {
    const int flags = O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0);
    int fd = ::open(path.c_str(), flags | (direct_ ? O_DIRECT : 0), 0644);
    if (fd < 0 && errno == EINVAL && direct_) {
      if (!said_buffered_.exchange(true)) {
        spdlog::warn("the file system of {} refuses direct I/O: its planes go through the page cache", path);
      }
      fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC | (create ? O_CREAT : 0), 0644);
    }
    // A read-only disk still serves what it has.
    if (fd < 0 && (errno == EROFS || errno == EACCES) && !create) {
      fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | (direct_ ? O_DIRECT : 0));
    }
    if (fd < 0) return ErrnoStatus(create ? "create" : "open", path, errno);
    return std::make_unique<RealFile>(path, UniqueFd(fd));
  }

  void Start(std::vector<FileTransfer> transfers) override {
    std::vector<std::unique_ptr<IoJob>> jobs;
    jobs.reserve(transfers.size());
    for (FileTransfer& transfer : transfers) {
      const int fd = static_cast<RealFile*>(transfer.file)->fd();
      jobs.push_back(std::make_unique<IoJob>(std::move(transfer), fd));
    }
    engine_->Start(std::move(jobs));
  }

  absl::Status Unlink(const std::string& path) override {
    if (::unlink(path.c_str()) != 0) return ErrnoStatus("unlink", path, errno);
    return absl::OkStatus();
  }
  absl::Status SyncFolder(const std::string& path) override {
    const UniqueFd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (!fd) return ErrnoStatus("open", path, errno);
    if (::fsync(fd.get()) != 0) return ErrnoStatus("fsync", path, errno);
    return absl::OkStatus();
  }
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override {
    struct statvfs info;
    if (::statvfs(path.c_str(), &info) != 0) return ErrnoStatus("statvfs", path, errno);
    return uint64_t{info.f_bavail} * info.f_frsize;
  }
  std::string Describe() const override {
    return absl::StrCat(engine_->Describe(), direct_ ? ", direct" : ", buffered");
  }

 private:
  const std::unique_ptr<IoEngine> engine_;
  const bool direct_;
  std::atomic<bool> said_buffered_{false};
};

}  // namespace

IoJob::IoJob(FileTransfer t, int descriptor)
    : transfer(std::move(t)), fd(descriptor), offset_bytes(transfer.offset_bytes) {
  pieces[0] = {transfer.first.data(), transfer.first.size()};
  pieces[1] = {transfer.second.data(), transfer.second.size()};
}

bool IoJob::Advance(int64_t result, absl::Status* status) {
  const char* what = is_sync() ? "fdatasync" : is_write() ? "write" : "read";
  if (result == -EINTR || result == -EAGAIN) return false;
  if (result < 0) {
    *status = ErrnoStatus(what, transfer.file->path(), static_cast<int>(-result));
    return true;
  }
  if (is_sync()) return true;
  auto done = static_cast<size_t>(result);
  offset_bytes += done;
  for (iovec& piece : pieces) {
    const size_t n = std::min(done, piece.iov_len);
    piece.iov_base = static_cast<char*>(piece.iov_base) + n;
    piece.iov_len -= n;
    done -= n;
  }
  if (piece_count() == 0) return true;
  if (result > 0) return false;
  *status =
      is_write()
          ? ErrnoStatus(what, transfer.file->path(), ENOSPC)
          : absl::DataLossError(absl::StrCat(transfer.file->path(), " ends at ", offset_bytes, ", inside a record"));
  return true;
}

absl::StatusOr<std::unique_ptr<FileLayer>> OpenRealFiles(const RealFilesOptions& options) {
  std::unique_ptr<IoEngine> engine;
  if (options.engine != IoEngineKind::kThreads) {
    absl::StatusOr<std::unique_ptr<IoEngine>> uring = MakeUringEngine(options.depth, options.memory);
    if (uring.ok()) {
      engine = *std::move(uring);
    } else if (options.engine == IoEngineKind::kUring) {
      return uring.status();
    } else {
      spdlog::info("{}; the SSD tier reads and writes with threads", std::string(uring.status().message()));
    }
  }
  if (engine == nullptr) engine = MakeThreadEngine(std::min(options.depth, 16u));
  return std::make_unique<RealFiles>(std::move(engine), options.direct);
}

absl::Status RunTransfers(FileLayer& files, std::vector<FileTransfer> transfers) {
  if (transfers.empty()) return absl::OkStatus();
  struct State {
    explicit State(size_t n) : left(static_cast<int>(n)) {}
    absl::BlockingCounter left;
    absl::Mutex mu;
    absl::Status first ABSL_GUARDED_BY(mu);
  } state(transfers.size());
  for (FileTransfer& transfer : transfers) {
    transfer.done = [&state](const absl::Status& status) {
      if (!status.ok()) {
        absl::MutexLock lock(&state.mu);
        state.first.Update(status);
      }
      state.left.DecrementCount();
    };
  }
  files.Start(std::move(transfers));
  state.left.Wait();
  absl::MutexLock lock(&state.mu);
  return state.first;
}

}  // namespace perigee::kvstore
