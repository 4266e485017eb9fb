// What the SSD tier needs of a file system, and nothing more: the layer below its segment files. One backend is the
// machine's (OpenRealFiles), one injects faults into another one (faulty_files.h). The index, RocksDB's, does not go
// through here.
//
// Offsets and lengths of transfers are whole pages (kPageBytes) and their memory starts on one: files may be opened for
// direct I/O. Any thread may call. Errors are errno's, with operation and path: RESOURCE_EXHAUSTED for a full disk,
// FAILED_PRECONDITION for a read-only one, DATA_LOSS for a read past the end.
#ifndef PERIGEE_KVSTORE_SSD_FILE_LAYER_H_
#define PERIGEE_KVSTORE_SSD_FILE_LAYER_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perigee::kvstore {

// An open file. Outlives its own unlinking, so whoever holds it can finish reading. Must outlive its transfers.
class File {
 public:
  virtual ~File() = default;
  virtual absl::StatusOr<uint64_t> SizeBytes() const = 0;
  virtual absl::Status Truncate(uint64_t size_bytes) = 0;
  // Takes disk space up to size_bytes now and lets the file end there, so that writing costs no allocation. May refuse.
  virtual absl::Status Preallocate(uint64_t size_bytes) = 0;
  const std::string& path() const { return path_; }

 protected:
  explicit File(std::string path) : path_(std::move(path)) {}

 private:
  const std::string path_;
};

// One asynchronous operation. kRead and kWrite move two neighbouring ranges, `first` at offset_bytes and `second` after
// it; either may be empty. kSync makes all writes to the file that have ended before durable (data, and what is needed
// to read it back).
struct FileTransfer {
  enum class Kind : uint8_t { kRead, kWrite, kSync };
  File* file = nullptr;
  Kind kind = Kind::kRead;
  uint64_t offset_bytes = 0;
  std::span<std::byte> first{};
  std::span<std::byte> second{};
  // Called once: from a thread of the layer or from within Start, no lock of the layer held. Must not block for long.
  std::function<void(absl::Status)> done{};
};

class FileLayer {
 public:
  virtual ~FileLayer() = default;  // After all transfers have ended.

  // create: the file must not exist yet; otherwise it must.
  virtual absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, bool create) = 0;
  virtual void Start(std::vector<FileTransfer> transfers) = 0;
  virtual absl::Status Unlink(const std::string& path) = 0;
  // Makes creations and unlinks in a folder durable.
  virtual absl::Status SyncFolder(const std::string& path) = 0;
  // Bytes that an ordinary user may still take on the file system of `path`.
  virtual absl::StatusOr<uint64_t> FreeBytes(const std::string& path) = 0;
  // "io_uring", "threads", ...; for logs and reports.
  virtual std::string Describe() const = 0;
};

enum class IoEngineKind : uint8_t { kAuto, kUring, kThreads };

struct RealFilesOptions {
  IoEngineKind engine = IoEngineKind::kAuto;  // kAuto: io_uring where the kernel allows it, else threads.
  unsigned depth = 32;                        // Operations given to the kernel at a time; the rest waits in order.
  bool direct = true;                         // Where a file system refuses O_DIRECT: buffered, said once in the log.
  // Registered with the ring, which saves pinning it for every transfer. Must outlive the layer.
  std::span<std::byte> memory{};
};
// kUring fails where io_uring is refused; the others do not fail.
absl::StatusOr<std::unique_ptr<FileLayer>> OpenRealFiles(const RealFilesOptions& options);

// Starts all and waits for them; the first error.
absl::Status RunTransfers(FileLayer& files, std::vector<FileTransfer> transfers);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_FILE_LAYER_H_
