// The remote tier in Ceph RADOS, through librados: one object per plane in one pool and namespace.
//
// All calls are asynchronous to the cluster; librados' blocking calls (connecting, listing) run on threads of the
// tier's own. Lost connections are restored by librados; where it cannot (the client was blocklisted, the pool was made
// anew) the tier connects again by itself. `done` is called on a thread of librados or of the tier's.
#ifndef PERIGEE_KVSTORE_REMOTE_RADOS_TIER_H_
#define PERIGEE_KVSTORE_REMOTE_RADOS_TIER_H_

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/remote/remote_tier.h"

namespace perigee::kvstore {

struct RadosOptions {
  std::string config_path;  // A ceph.conf: monitors, keyring.
  std::string pool;
  std::string name_space;  // RADOS namespace within the pool; empty: the default one.
  std::string client_name = "client.admin";
  std::string prefix = "perigee";  // Of object names: stores that share planes share it.

  absl::Duration connect_timeout = absl::Seconds(5);
  // Open succeeds although the cluster does not answer, and connects later. What only an operator can mend (no such
  // file or pool, a refused key) fails in any case.
  bool start_unconnected = false;

  RemoteLimits limits;
  uint64_t max_object_bytes = 0;  // 0: what the cluster takes (osd_max_object_size, osd_max_write_size).
  absl::Duration slow_after = absl::Seconds(1);
  absl::Duration probe_interval = absl::Seconds(5);  // How often the cluster is asked for a sign of life.
  // After this librados itself gives an operation up, whatever its deadline: bounds how long a List can hold the
  // destructor.
  absl::Duration give_up_after = absl::Seconds(60);
};

// Waits up to connect_timeout for the cluster. UNAVAILABLE when it does not answer, FAILED_PRECONDITION, NOT_FOUND,
// INVALID_ARGUMENT or PERMISSION_DENIED when the set-up is wrong: the message names the config and what to do.
// UNIMPLEMENTED in a program built without librados.
absl::StatusOr<std::unique_ptr<RemoteTier>> OpenRadosTier(const RadosOptions& options);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REMOTE_RADOS_TIER_H_
