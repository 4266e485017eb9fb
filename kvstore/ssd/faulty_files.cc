#include "kvstore/ssd/faulty_files.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/match.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "kvstore/ssd/aligned_buffer.h"

namespace perigee::kvstore {
namespace {

namespace fs = std::filesystem;

std::string Kept(const std::string& path) { return path + ".unlinked"; }
std::string FolderOf(const std::string& path) { return fs::path(path).parent_path().string(); }

const char* Name(FaultyFiles::Call call) {
  static constexpr const char* kNames[] = {"open", "read", "write", "fdatasync", "truncate", "unlink", "fsync"};
  return kNames[static_cast<int>(call)];
}

}  // namespace

class FaultyFiles::FaultyFile : public File {
 public:
  FaultyFile(FaultyFiles* layer, std::shared_ptr<Disk> disk) : File(disk->file->path()), layer_(layer), disk_(disk) {}
  absl::StatusOr<uint64_t> SizeBytes() const override { return disk_->file->SizeBytes(); }
  absl::Status Truncate(uint64_t size_bytes) override {
    absl::MutexLock lock(&layer_->mu_);
    PERIGEE_RETURN_IF_ERROR(layer_->Check(Call::kTruncate, path()));
    return disk_->file->Truncate(size_bytes);
  }
  absl::Status Preallocate(uint64_t size_bytes) override {
    absl::MutexLock lock(&layer_->mu_);
    PERIGEE_RETURN_IF_ERROR(layer_->Check(Call::kTruncate, path()));
    return disk_->file->Preallocate(size_bytes);
  }
  Disk& disk() const { return *disk_; }

 private:
  FaultyFiles* const layer_;
  const std::shared_ptr<Disk> disk_;
};

FaultyFiles::FaultyFiles(std::shared_ptr<FileLayer> base, uint64_t seed) : base_(std::move(base)), random_(seed) {}
FaultyFiles::~FaultyFiles() {
  std::error_code ignored;
  for (const std::string& path : unlinked_) fs::remove(Kept(path), ignored);
}

void FaultyFiles::Inject(const Fault& fault) {
  absl::MutexLock lock(&mu_);
  faults_.push_back(fault);
}
void FaultyFiles::Clear() {
  absl::MutexLock lock(&mu_);
  faults_.clear();
  read_only_ = false;
  delay_ = absl::ZeroDuration();
  free_bytes_.reset();
}
void FaultyFiles::SetReadOnly(bool read_only) {
  absl::MutexLock lock(&mu_);
  read_only_ = read_only;
}
void FaultyFiles::SetDelay(absl::Duration delay) {
  absl::MutexLock lock(&mu_);
  delay_ = delay;
}
void FaultyFiles::SetFreeBytes(std::optional<uint64_t> bytes) {
  absl::MutexLock lock(&mu_);
  free_bytes_ = bytes;
}
uint64_t FaultyFiles::calls(Call call) const {
  absl::MutexLock lock(&mu_);
  const auto it = calls_.find(call);
  return it == calls_.end() ? 0 : it->second;
}
std::string FaultyFiles::Describe() const { return absl::StrCat("faults over ", base_->Describe()); }

absl::Status FaultyFiles::Check(Call call, const std::string& path, uint64_t* first_bytes) {
  ++calls_[call];
  if (cut_) return ErrnoStatus(Name(call), path, EIO);
  if (read_only_ && (call == Call::kWrite || call == Call::kTruncate || call == Call::kUnlink)) {
    return ErrnoStatus(Name(call), path, EROFS);
  }
  for (Fault& fault : faults_) {
    if (fault.call != call || fault.times == 0) continue;
    if (!fault.path_contains.empty() && !absl::StrContains(path, fault.path_contains)) continue;
    if (fault.skip > 0) {
      --fault.skip;
      continue;
    }
    --fault.times;
    if (first_bytes != nullptr) *first_bytes = fault.first_bytes;
    return ErrnoStatus(Name(call), path, fault.error);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<File>> FaultyFiles::Open(const std::string& path, bool create) {
  absl::MutexLock lock(&mu_);
  if (create && read_only_) return ErrnoStatus("create", path, EROFS);
  PERIGEE_RETURN_IF_ERROR(Check(Call::kOpen, path));
  auto disk = std::make_shared<Disk>();
  PERIGEE_ASSIGN_OR_RETURN(disk->file, base_->Open(path, create));
  PERIGEE_ASSIGN_OR_RETURN(disk->synced_size, disk->file->SizeBytes());
  disks_[path] = disk;
  if (create) created_.push_back(path);
  return std::make_unique<FaultyFile>(this, disk);
}

absl::Status FaultyFiles::Write(FileTransfer& transfer, uint64_t bytes) {
  Disk& disk = static_cast<FaultyFile*>(transfer.file)->disk();
  const std::span<std::byte> first = transfer.first.first(std::min<size_t>(bytes, transfer.first.size()));
  const std::span<std::byte> second =
      transfer.second.first(std::min<size_t>(bytes - first.size(), transfer.second.size()));
  const uint64_t length = first.size() + second.size();
  if (length == 0) return absl::OkStatus();
  PERIGEE_ASSIGN_OR_RETURN(const uint64_t size, disk.file->SizeBytes());
  Undo undo{.offset = transfer.offset_bytes, .before = std::vector<std::byte>(length)};
  if (transfer.offset_bytes < size) {
    const uint64_t there = std::min(length, size - transfer.offset_bytes) / kPageBytes * kPageBytes;
    const AlignedBuffer before(there);
    PERIGEE_RETURN_IF_ERROR(RunTransfers(
        *base_, {FileTransfer{.file = disk.file.get(), .offset_bytes = undo.offset, .first = before.span()}}));
    std::copy_n(before.span().begin(), there, undo.before.begin());
  }
  disk.unsynced.push_back(std::move(undo));
  return RunTransfers(*base_, {FileTransfer{.file = disk.file.get(),
                                            .kind = FileTransfer::Kind::kWrite,
                                            .offset_bytes = transfer.offset_bytes,
                                            .first = first,
                                            .second = second}});
}

absl::Status FaultyFiles::Run(FileTransfer& transfer) {
  absl::Duration delay;
  {
    absl::MutexLock lock(&mu_);
    delay = transfer.kind == FileTransfer::Kind::kSync ? absl::ZeroDuration() : delay_;
  }
  absl::SleepFor(delay);
  absl::MutexLock lock(&mu_);
  Disk& disk = static_cast<FaultyFile*>(transfer.file)->disk();
  const std::string& path = transfer.file->path();
  switch (transfer.kind) {
    case FileTransfer::Kind::kRead:
      PERIGEE_RETURN_IF_ERROR(Check(Call::kRead, path));
      return RunTransfers(*base_, {FileTransfer{.file = disk.file.get(),
                                                .offset_bytes = transfer.offset_bytes,
                                                .first = transfer.first,
                                                .second = transfer.second}});
    case FileTransfer::Kind::kWrite: {
      uint64_t first_bytes = 0;
      absl::Status status = Check(Call::kWrite, path, &first_bytes);
      const uint64_t length = transfer.first.size() + transfer.second.size();
      if (status.ok() && free_bytes_) {
        if (length > *free_bytes_) status = ErrnoStatus("write", path, ENOSPC);
        first_bytes = *free_bytes_ / kPageBytes * kPageBytes;
        if (status.ok()) *free_bytes_ -= length;
      }
      if (status.ok()) return Write(transfer, length);
      Write(transfer, std::min(first_bytes, length)).IgnoreError();
      return status;
    }
    case FileTransfer::Kind::kSync: {
      const absl::Status status = Check(Call::kSync, path);
      if (!status.ok()) {
        for (Undo& undo : disk.unsynced) undo.lost = true;
        return status;
      }
      std::erase_if(disk.unsynced, [](const Undo& undo) { return !undo.lost; });
      PERIGEE_ASSIGN_OR_RETURN(disk.synced_size, disk.file->SizeBytes());
      return absl::OkStatus();
    }
  }
  return absl::InternalError("no such transfer");
}

void FaultyFiles::Start(std::vector<FileTransfer> transfers) {
  for (FileTransfer& transfer : transfers) transfer.done(Run(transfer));
}

absl::Status FaultyFiles::Unlink(const std::string& path) {
  absl::MutexLock lock(&mu_);
  PERIGEE_RETURN_IF_ERROR(Check(Call::kUnlink, path));
  std::error_code error;
  fs::rename(path, Kept(path), error);
  if (error) return ErrnoStatus("unlink", path, error.value());
  unlinked_.push_back(path);
  return absl::OkStatus();
}

absl::Status FaultyFiles::SyncFolder(const std::string& path) {
  absl::MutexLock lock(&mu_);
  PERIGEE_RETURN_IF_ERROR(Check(Call::kSyncFolder, path));
  std::erase_if(created_, [&](const std::string& file) { return FolderOf(file) == path; });
  std::erase_if(unlinked_, [&](const std::string& file) {
    if (FolderOf(file) != path) return false;
    std::error_code ignored;
    fs::remove(Kept(file), ignored);
    return true;
  });
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> FaultyFiles::FreeBytes(const std::string& path) {
  absl::MutexLock lock(&mu_);
  if (cut_) return ErrnoStatus("statvfs", path, EIO);
  if (free_bytes_) return *free_bytes_;
  return base_->FreeBytes(path);
}

void FaultyFiles::PowerCut() {
  absl::MutexLock lock(&mu_);
  cut_ = true;
  for (auto& [path, disk] : disks_) {
    uint64_t size = disk->file->SizeBytes().value_or(0);
    for (auto undo = disk->unsynced.rbegin(); undo != disk->unsynced.rend(); ++undo) {
      const uint64_t fate = random_() % 3;  // Kept, undone, torn.
      for (uint64_t at = 0; at < undo->before.size() && fate > 0; at += kPageBytes) {
        if ((fate == 2 && random_() % 2 == 0) || undo->offset + at >= size) continue;
        const AlignedBuffer page(kPageBytes);
        std::copy_n(undo->before.begin() + static_cast<std::ptrdiff_t>(at), kPageBytes, page.span().begin());
        RunTransfers(*base_, {FileTransfer{.file = disk->file.get(),
                                           .kind = FileTransfer::Kind::kWrite,
                                           .offset_bytes = undo->offset + at,
                                           .first = page.span()}})
            .IgnoreError();
      }
    }
    if (size > disk->synced_size && random_() % 2 == 0) disk->file->Truncate(disk->synced_size).IgnoreError();
  }
  std::error_code ignored;
  for (const std::string& path : created_) {
    if (random_() % 2 == 0) fs::remove(path, ignored);
  }
  for (const std::string& path : unlinked_) {
    random_() % 2 == 0 ? fs::rename(Kept(path), path, ignored) : static_cast<void>(fs::remove(Kept(path), ignored));
  }
  unlinked_.clear();
}

}  // namespace perigee::kvstore
