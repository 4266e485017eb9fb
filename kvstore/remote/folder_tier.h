// The remote tier in a folder of a shared file system (NFS, CephFS, Lustre): one file per plane.
//
//   PATH/PREFIX/FORMAT       "perigee.remote 1": tells a folder that is mounted from one that is not
//   PATH/PREFIX/abc/NAME     the record of the plane whose key begins with abc, NAME as in remote_object.h
//   PATH/PREFIX/tmp/         puts under way; what a writer left there goes after a day
//
// Any number of stores may share a folder. A file appears by rename, after fsync. Threads of the tier's own do all file
// access, on buffers of its own: a file system that hangs holds them, not the callers, but the destructor waits for
// it. `done` is called on these threads or the table's.
#ifndef PERIGEE_KVSTORE_REMOTE_FOLDER_TIER_H_
#define PERIGEE_KVSTORE_REMOTE_FOLDER_TIER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/remote/remote_tier.h"

namespace perigee::kvstore {

struct FolderOptions {
  std::string path;  // Must exist.
  std::string prefix = "perigee";
  // Makes PATH/PREFIX where it is missing. Without it that is an error, because below a mount point whose share is not
  // mounted planes would go to the local disk.
  bool create = false;
  int threads = 8;  // So many file operations at a time.
  RemoteLimits limits;
  uint64_t max_object_bytes = uint64_t{1} << 30;
  absl::Duration slow_after = absl::Seconds(1);
  absl::Duration probe_interval = absl::Seconds(5);
};

// Blocks while the file system does. FAILED_PRECONDITION when the folder is not there or of another version.
absl::StatusOr<std::unique_ptr<RemoteTier>> OpenFolderTier(const FolderOptions& options);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REMOTE_FOLDER_TIER_H_
