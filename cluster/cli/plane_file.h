// One plane as a file: the record of the disk tier (kvstore/ssd/segment_record.h), whole and checked.
#ifndef PERIGEE_CLUSTER_CLI_PLANE_FILE_H_
#define PERIGEE_CLUSTER_CLI_PLANE_FILE_H_

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kvstore/client.h"
#include "kvstore/sharded_store.h"

namespace perigee::cli {

struct PlaneFile {
  kvstore::PlaneId id;
  pod::PlaneHeader header;
  int64_t created_unix_us = 0;
  uint32_t ttl_s = 0;     // From its creation; 0: for ever.
  std::string bytes;      // The record.
  size_t head_bytes = 0;  // In front of the payload.

  std::span<const std::byte> payload() const {
    return {reinterpret_cast<const std::byte*>(bytes.data()) + head_bytes, header.payload_bytes};
  }
  // Of the chain's first block, as far as the header says.
  pod::BlockKey root() const { return header.has_root() ? header.root : header.key; }
};

// DATA_LOSS or FAILED_PRECONDITION unless these are, without a wrong bit, one plane's record.
absl::StatusOr<PlaneFile> DecodePlaneFile(std::string bytes);
// The same of a file; errors name it.
absl::StatusOr<PlaneFile> ReadPlaneFile(const std::string& path);

// Reads planes of one store, verified, as records. One per plane; NOT_FOUND for one that has gone meanwhile, DATA_LOSS
// for wrong bytes. meta: of a listing, or with payload_bytes 0 where it is not known.
struct WantedPlane {
  kvstore::PlaneId id;
  int64_t created_unix_us = 0;
  uint32_t ttl_s = 0;
};
std::vector<absl::StatusOr<PlaneFile>> FetchPlanes(kvstore::StoreClient& client, std::span<const WantedPlane> planes);

// Stores planes of one chain. How many were not there already; those whose time has passed are left out.
absl::StatusOr<size_t> StorePlanes(kvstore::ShardedStore& store, const pod::BlockKey& root,
                                   std::span<const PlaneFile> planes, int replicas);

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_PLANE_FILE_H_
