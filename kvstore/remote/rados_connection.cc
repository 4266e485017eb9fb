#include "kvstore/remote/rados_connection.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace perigee::kvstore {
namespace {

std::string Setting(librados::Rados& cluster, const char* name) {
  std::string value;
  return cluster.conf_get(name, value) == 0 ? value : "";
}

uint64_t NumberSetting(librados::Rados& cluster, const char* name) {
  uint64_t value = 0;
  return absl::SimpleAtoi(Setting(cluster, name), &value) ? value : 0;
}

std::string WholeSeconds(absl::Duration duration) {
  return absl::StrCat(std::max<int64_t>(1, absl::ToInt64Seconds(absl::Ceil(duration, absl::Seconds(1)))));
}

}  // namespace

absl::Status RadosStatus(int error, absl::string_view what) {
  const std::string text = absl::StrCat(what, ": ", std::strerror(-error));
  switch (-error) {
    case 0:
      return absl::OkStatus();
    case ENOENT:
      return absl::NotFoundError(text);
    case ENOSPC:
      return absl::ResourceExhaustedError(
          absl::StrCat(text, "; the Ceph cluster or pool is full: add OSDs, or delete planes"));
    case EDQUOT:
      return absl::ResourceExhaustedError(
          absl::StrCat(text, "; the pool's quota is used up: raise it (ceph osd pool set-quota), or delete planes"));
    case EIO:
      return absl::DataLossError(absl::StrCat(text, "; no OSD has an intact copy (ceph health detail)"));
    case EPERM:
    case EACCES:
      return absl::PermissionDeniedError(
          absl::StrCat(text, "; the client needs caps mon 'allow r' and osd 'allow rw pool=...' (ceph auth caps)"));
    case E2BIG:
    case EFBIG:
    case EMSGSIZE:
      return absl::InvalidArgumentError(
          absl::StrCat(text, "; larger than osd_max_object_size or osd_max_write_size of the OSDs"));
    case EOPNOTSUPP:
    case EINVAL:
      return absl::FailedPreconditionError(text);
    default:
      // Time-outs, resets, a blocklisted client: all of them may pass.
      return absl::UnavailableError(text);
  }
}

absl::StatusOr<std::unique_ptr<RadosConnection>> RadosConnection::Connect(const RadosOptions& options) {
  std::unique_ptr<RadosConnection> connection(new RadosConnection);
  PERIGEE_RETURN_IF_ERROR(connection->Start(options));
  return connection;
}

absl::Status RadosConnection::Start(const RadosOptions& options) {
  const std::string config = absl::StrCat("Ceph config ", options.config_path);
  if (const int error = cluster_.init2(options.client_name.c_str(), "ceph", 0); error < 0) {
    return absl::InvalidArgumentError(absl::StrCat("'", options.client_name, "' is no Ceph client name (",
                                                   std::strerror(-error), "); give one like client.perigee"));
  }
  initialised_ = true;
  if (const int error = cluster_.conf_read_file(options.config_path.c_str()); error < 0) {
    return absl::FailedPreconditionError(absl::StrCat(config, " cannot be read (", std::strerror(-error),
                                                      "): correct the path, or copy it from a Ceph node"));
  }
  cluster_.conf_set("client_mount_timeout", WholeSeconds(options.connect_timeout).c_str());
  cluster_.conf_set("rados_mon_op_timeout", WholeSeconds(options.give_up_after).c_str());
  cluster_.conf_set("rados_osd_op_timeout", WholeSeconds(options.give_up_after).c_str());
  // Over these bounds librados would block the thread that begins an operation; the tier has bounds of its own.
  cluster_.conf_set("objecter_inflight_ops", absl::StrCat(1 << 24).c_str());
  cluster_.conf_set("objecter_inflight_op_bytes", absl::StrCat(uint64_t{1} << 50).c_str());

  const std::string monitors = Setting(cluster_, "mon_host");
  if (const int error = cluster_.connect(); error < 0) {
    switch (-error) {
      case ENOENT:
        return absl::FailedPreconditionError(
            absl::StrCat(config, " does not lead to a cluster for ", options.client_name,
                         " (no monitor in 'mon host', or no keyring): correct 'mon host' and 'keyring' there"));
      case EPERM:
      case EACCES:
        return absl::PermissionDeniedError(absl::StrCat(config, ": the cluster refuses ", options.client_name,
                                                        "; check its keyring and caps (ceph auth get ",
                                                        options.client_name, ")"));
      default:
        return absl::UnavailableError(absl::StrCat("no Ceph monitor answers within ",
                                                   absl::FormatDuration(options.connect_timeout), " (", config,
                                                   ", mon host ", monitors, ": ", std::strerror(-error),
                                                   "); start or reach the monitors, or correct 'mon host' there"));
    }
  }
  pool_ = options.pool;
  if (const int error = cluster_.ioctx_create(options.pool.c_str(), io_); error < 0) {
    if (error == -ENOENT) {
      return absl::FailedPreconditionError(absl::StrCat("the cluster of ", config, " has no pool '", options.pool,
                                                        "': create it (ceph osd pool create ", options.pool,
                                                        ") or name another"));
    }
    return RadosStatus(error, absl::StrCat("open pool '", options.pool, "' of ", config));
  }
  pool_id_ = io_.get_id();
  io_.set_namespace(options.name_space);

  const uint64_t object = NumberSetting(cluster_, "osd_max_object_size");
  const uint64_t write_mib = NumberSetting(cluster_, "osd_max_write_size");
  max_object_bytes_ = std::numeric_limits<uint64_t>::max();
  if (object > 0) max_object_bytes_ = std::min(max_object_bytes_, object);
  if (write_mib > 0) max_object_bytes_ = std::min(max_object_bytes_, write_mib << 20);
  if (options.max_object_bytes > 0) max_object_bytes_ = std::min(max_object_bytes_, options.max_object_bytes);
  return absl::OkStatus();
}

RadosConnection::~RadosConnection() {
  if (!initialised_) return;
  io_.close();
  cluster_.shutdown();
}

bool RadosConnection::PoolIsThere() {
  const int64_t id = cluster_.pool_lookup(pool_.c_str());
  // Other errors say nothing about the pool.
  return id == pool_id_ || (id < 0 && id != -ENOENT);
}

}  // namespace perigee::kvstore
