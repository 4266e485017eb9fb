// One segment file: whole-range reads and writes at offsets, sync, truncate. Offsets and lengths are whole pages.
//
// Any thread may call; overlapping writes are the caller's affair. The descriptor outlives an unlink, so a reader that
// holds the object can finish. Errors are errno's, with the path: RESOURCE_EXHAUSTED for a full disk; DATA_LOSS for a
// read past the end.
#ifndef PERIGEE_KVSTORE_SEGMENT_FILE_H_
#define PERIGEE_KVSTORE_SEGMENT_FILE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/file.h"

namespace perigee::kvstore {

class SegmentFile {
 public:
  // create: the file must not exist yet; otherwise it must.
  static absl::StatusOr<SegmentFile> Open(const std::string& path, bool create);

  // Two neighbouring ranges, one after the other, from offset_bytes on.
  absl::Status Write(uint64_t offset_bytes, absl::string_view first, std::span<const std::byte> second) const;
  absl::Status Read(uint64_t offset_bytes, std::span<std::byte> first, std::span<std::byte> second) const;
  absl::Status Sync() const;
  absl::Status Truncate(uint64_t size_bytes) const;
  absl::StatusOr<uint64_t> SizeBytes() const;
  absl::Status Unlink() const;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  UniqueFd fd_;
};

// "00000007.seg" and back; nullopt for any other name.
std::string SegmentFileName(uint64_t segment);
std::optional<uint64_t> ParseSegmentFileName(absl::string_view name);

absl::Status SyncDirectory(const std::string& path);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SEGMENT_FILE_H_
