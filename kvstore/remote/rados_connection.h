// A connected librados client with one pool open, and what librados' error numbers mean here.
#ifndef PERIGEE_KVSTORE_REMOTE_RADOS_CONNECTION_H_
#define PERIGEE_KVSTORE_REMOTE_RADOS_CONNECTION_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <rados/librados.hpp>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kvstore/remote/rados_tier.h"

namespace perigee::kvstore {

class RadosConnection {
 public:
  // Blocks, up to options.connect_timeout and a little. For the errors see OpenRadosTier.
  static absl::StatusOr<std::unique_ptr<RadosConnection>> Connect(const RadosOptions& options);
  // Blocks, and must not run on a thread of librados.
  ~RadosConnection();
  RadosConnection(const RadosConnection&) = delete;
  RadosConnection& operator=(const RadosConnection&) = delete;

  librados::IoCtx& io() { return io_; }
  uint64_t max_object_bytes() const { return max_object_bytes_; }
  // Asks what librados knows of the pools: false once the pool that this connection opened is gone.
  bool PoolIsThere();

  // librados will never restore this connection by itself.
  void MarkLost() { lost_ = true; }
  bool lost() const { return lost_; }

 private:
  RadosConnection() = default;
  absl::Status Start(const RadosOptions& options);

  librados::Rados cluster_;
  librados::IoCtx io_;
  bool initialised_ = false;
  std::string pool_;
  int64_t pool_id_ = -1;
  uint64_t max_object_bytes_ = 0;
  std::atomic<bool> lost_ = false;
};

// error: librados' negative errno.
absl::Status RadosStatus(int error, absl::string_view what);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REMOTE_RADOS_CONNECTION_H_
