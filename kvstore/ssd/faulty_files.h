// A file layer that does to another one what disks do: errors, full, read-only and slow disks, short writes, power
// cuts. For tests; an ordinary backend (SsdOptions::files). Transfers end within Start. Any thread may call.
#ifndef PERIGEE_KVSTORE_SSD_FAULTY_FILES_H_
#define PERIGEE_KVSTORE_SSD_FAULTY_FILES_H_

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/ssd/file_layer.h"

namespace perigee::kvstore {

class FaultyFiles : public FileLayer {
 public:
  enum class Call : uint8_t { kOpen, kRead, kWrite, kSync, kTruncate, kUnlink, kSyncFolder };
  struct Fault {
    Call call = Call::kRead;
    int error = 0;                // errno
    std::string path_contains{};  // Empty: every path.
    uint64_t skip = 0;            // Calls that still succeed.
    uint64_t times = UINT64_MAX;
    uint64_t first_bytes = 0;  // kWrite: this much is written before the error.
  };

  FaultyFiles(std::shared_ptr<FileLayer> base, uint64_t seed);
  ~FaultyFiles() override;

  void Inject(const Fault& fault);
  void Clear();  // All of Inject, SetReadOnly, SetDelay and SetFreeBytes.
  void SetReadOnly(bool read_only);
  void SetDelay(absl::Duration delay);  // Of every read and write.
  void SetFreeBytes(std::optional<uint64_t> bytes);

  // What was written since a file's last sync is kept, undone or undone in part, page by page, as chance has it; so are
  // creations and unlinks since their folder's last sync. From then on every call fails. Writes that a failed sync
  // covered count as never synced, whatever came later.
  void PowerCut();

  uint64_t calls(Call call) const;

  absl::StatusOr<std::unique_ptr<File>> Open(const std::string& path, bool create) override;
  void Start(std::vector<FileTransfer> transfers) override;
  absl::Status Unlink(const std::string& path) override;
  absl::Status SyncFolder(const std::string& path) override;
  absl::StatusOr<uint64_t> FreeBytes(const std::string& path) override;
  std::string Describe() const override;

 private:
  class FaultyFile;
  struct Undo {
    uint64_t offset = 0;
    std::vector<std::byte> before;
    bool lost = false;  // A sync of it failed.
  };
  // Of one path; outlives the File objects.
  struct Disk {
    std::shared_ptr<File> file;
    uint64_t synced_size = 0;
    std::vector<Undo> unsynced;
  };

  absl::Status Check(Call call, const std::string& path, uint64_t* first_bytes = nullptr)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  absl::Status Run(FileTransfer& transfer) ABSL_LOCKS_EXCLUDED(mu_);
  absl::Status Write(FileTransfer& transfer, uint64_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::shared_ptr<FileLayer> base_;
  mutable absl::Mutex mu_;
  std::mt19937_64 random_ ABSL_GUARDED_BY(mu_);
  std::vector<Fault> faults_ ABSL_GUARDED_BY(mu_);
  std::map<Call, uint64_t> calls_ ABSL_GUARDED_BY(mu_);
  bool read_only_ ABSL_GUARDED_BY(mu_) = false;
  bool cut_ ABSL_GUARDED_BY(mu_) = false;
  absl::Duration delay_ ABSL_GUARDED_BY(mu_);
  std::optional<uint64_t> free_bytes_ ABSL_GUARDED_BY(mu_);
  std::map<std::string, std::shared_ptr<Disk>> disks_ ABSL_GUARDED_BY(mu_);
  std::vector<std::string> created_ ABSL_GUARDED_BY(mu_);   // Their folder is not synced yet.
  std::vector<std::string> unlinked_ ABSL_GUARDED_BY(mu_);  // Likewise; kept under another name.
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_FAULTY_FILES_H_
