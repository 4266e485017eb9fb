// Members as JSON (docs/formats.md, section 8): the values of etcd's keys, and the file of a static membership.
//
// Parsers read bytes that people and other versions wrote: fields that they do not know are ignored, values that
// cannot be are refused with INVALID_ARGUMENT, which names the node, the field and the value.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_RECORD_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_RECORD_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "cluster/membership/membership.h"
#include "kvstore/placement.h"

namespace perigee::cluster {

inline constexpr uint64_t kMaxEpoch = (uint64_t{1} << 53) - 1;  // Integers that every JSON reader keeps.
inline constexpr size_t kMaxMembershipFileBytes = size_t{8} << 20;

const char* StateName(NodeState state);  // "serving", "draining"
absl::StatusOr<NodeState> StateFromName(absl::string_view name);

// 1 to 128 of A-Z a-z 0-9 . _ -
absl::Status CheckNodeId(absl::string_view id);
// host:port. `name`: of the field, for the error.
absl::Status CheckAddress(const char* name, absl::string_view address);
// What a parser would refuse, before it is written.
absl::Status CheckRecord(const NodeRecord& node);

std::string RecordToJson(const NodeRecord& node);
absl::StatusOr<NodeRecord> RecordFromJson(absl::string_view text);

std::string LoadToJson(const NodeLoad& load);
absl::StatusOr<NodeLoad> LoadFromJson(absl::string_view text);

// What an operator wants a node to be: {"state": ...}.
std::string StateToJson(NodeState state);
absl::StatusOr<NodeState> StateFromJson(absl::string_view text);

// Which start of a node was removed: {"incarnation": ...}; 0 where nobody knew.
std::string RemovalToJson(uint64_t incarnation);
absl::StatusOr<uint64_t> RemovalFromJson(absl::string_view text);

// The file of a static membership.
struct MembershipFile {
  uint64_t epoch = 1;             // At least 1.
  std::vector<NodeRecord> nodes;  // No id twice.
};
std::string FileToJson(const MembershipFile& file);
absl::StatusOr<MembershipFile> FileFromJson(absl::string_view text);

// {"epoch": E, "stores": [...]}: the stores that planes are placed on, by id.
std::string StoreMapToJson(const kvstore::StoreMap& map);
absl::StatusOr<kvstore::StoreMap> StoreMapFromJson(absl::string_view text);

// A random number below 2^53, not 0.
uint64_t NewIncarnation();

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_RECORD_H_
