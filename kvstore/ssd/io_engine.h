// Internal to the real file layer: who carries transfers to the kernel. Two backends: a ring (io_uring) and threads
// that call preadv and pwritev.
#ifndef PERIGEE_KVSTORE_SSD_IO_ENGINE_H_
#define PERIGEE_KVSTORE_SSD_IO_ENGINE_H_

#include <sys/uio.h>

#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kvstore/ssd/file_layer.h"

namespace perigee::kvstore {

// A transfer on its way: what is left of it.
struct IoJob {
  FileTransfer transfer;
  int fd = -1;
  uint64_t offset_bytes = 0;
  iovec pieces[2] = {};
  bool counts = true;  // Against the depth.

  IoJob(FileTransfer t, int descriptor);
  bool is_sync() const { return transfer.kind == FileTransfer::Kind::kSync; }
  bool is_write() const { return transfer.kind == FileTransfer::Kind::kWrite; }
  // The pieces that are not empty.
  iovec* first_piece() { return pieces[0].iov_len > 0 ? pieces : pieces + 1; }
  int piece_count() const { return (pieces[0].iov_len > 0 ? 1 : 0) + (pieces[1].iov_len > 0 ? 1 : 0); }
  // Takes in what the system call said (a byte count or -errno). True when the job has ended, with *status; false when
  // the rest has to be tried again.
  bool Advance(int64_t result, absl::Status* status);
};

class IoEngine {
 public:
  virtual ~IoEngine() = default;
  virtual void Start(std::vector<std::unique_ptr<IoJob>> jobs) = 0;
  virtual std::string Describe() const = 0;
};

// UNAVAILABLE, saying why, where the kernel (or seccomp) refuses.
absl::StatusOr<std::unique_ptr<IoEngine>> MakeUringEngine(unsigned depth, std::span<std::byte> memory);
std::unique_ptr<IoEngine> MakeThreadEngine(unsigned threads);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_IO_ENGINE_H_
