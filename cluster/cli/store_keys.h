// Keys and planes that verbs name: parsing, beginnings of keys, listing all stores.
#ifndef PERIGEE_CLUSTER_CLI_STORE_KEYS_H_
#define PERIGEE_CLUSTER_CLI_STORE_KEYS_H_

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/cli/cluster_access.h"
#include "kvstore/client.h"
#include "pod/block_key.h"

namespace perigee::cli {

const char* TierName(kvstore::Tier tier);
const char* PinName(kvstore::PinMode pin);

// 64 hexadecimal digits; kUsage for others.
absl::StatusOr<pod::BlockKey> ParseKey(const std::string& hex);

// Every plane of one store; stops early when `visit` returns false.
absl::Status ForEachPlane(kvstore::StoreClient& client, const std::string& tenant, const kvstore::ListFilter& filter,
                          const std::function<bool(const kvstore::ListedPlane&)>& visit);

// All stores' planes, by the stores' ids.
using ListedByStore = std::map<std::string, std::vector<kvstore::ListedPlane>>;
absl::StatusOr<ListedByStore> ListAll(StoreFleet& fleet, const std::string& tenant,
                                      const kvstore::ListFilter& filter = {});

// Whole keys, and beginnings of keys that are stored. kUsage for what can be neither, kNotFound for a beginning that
// none has; INVALID_ARGUMENT for one that several have.
absl::StatusOr<std::vector<pod::BlockKey>> ResolveKeys(StoreFleet& fleet, const std::vector<std::string>& names,
                                                       const std::string& tenant);
// The header of one of the block's planes, from a store that has it.
absl::StatusOr<pod::PlaneHeader> HeaderOf(StoreFleet& fleet, const pod::BlockKey& key);
// Of a stored block whose header says.
std::optional<pod::BlockKey> RootOf(StoreFleet& fleet, const pod::BlockKey& key);

// Calls `call` with at most 4096 keys at a time, and adds up what it says.
absl::StatusOr<uint64_t> InBatches(const std::vector<pod::BlockKey>& keys,
                                   const std::function<absl::StatusOr<uint64_t>(std::span<const pod::BlockKey>)>& call);

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_STORE_KEYS_H_
