// The files of the folder tier, by blocking calls: what folder_tier.cc runs on its threads. Any thread may call.
#ifndef PERIGEE_KVSTORE_REMOTE_OBJECT_FOLDER_H_
#define PERIGEE_KVSTORE_REMOTE_OBJECT_FOLDER_H_

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/remote/remote_tier.h"

namespace perigee::kvstore {

class ObjectFolder {
 public:
  // See FolderOptions.
  static absl::StatusOr<ObjectFolder> Open(const std::string& path, const std::string& prefix, bool create);
  ObjectFolder(ObjectFolder&& other) noexcept : root_(std::move(other.root_)), prefix_(std::move(other.prefix_)) {}

  // given_up: asked before the file appears; true leaves nothing behind and ends with CANCELLED.
  absl::StatusOr<PutOutcome> Write(const PlaneId& id, std::span<const std::byte> record,
                                   const std::function<bool()>& given_up);
  // The first bytes of the file, up to max_bytes: all of it if it is not longer.
  absl::StatusOr<std::string> Read(const PlaneId& id, uint64_t max_bytes) const;
  // The head, whole, and `bytes` bytes from an offset in the payload on (fewer where the file ends).
  struct Parts {
    std::string head, body;
    uint64_t file_bytes = 0;
  };
  absl::StatusOr<Parts> ReadParts(const PlaneId& id, uint64_t offset_bytes, uint64_t bytes) const;
  absl::Status Remove(const PlaneId& id) const;
  absl::StatusOr<RemoteListPage> List(const std::string& page_token, size_t max_planes) const;
  // UNAVAILABLE when the folder is not there, RESOURCE_EXHAUSTED when its file system is full.
  absl::Status Check() const;

 private:
  ObjectFolder(std::string root, std::string prefix) : root_(std::move(root)), prefix_(std::move(prefix)) {}
  std::string FanOut(const PlaneId& id) const;
  std::string PathOf(const PlaneId& id) const;
  std::string Marker() const { return root_ + "/FORMAT"; }
  // errno as a status; NOT_FOUND only while the folder is there.
  absl::Status Failure(absl::string_view operation, const std::string& path, int error) const;
  void RemoveLeftovers() const;

  std::string root_;  // PATH/PREFIX
  std::string prefix_;
  std::atomic<uint64_t> next_temporary_ = 0;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REMOTE_OBJECT_FOLDER_H_
