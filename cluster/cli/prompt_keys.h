// From a prompt to its blocks' keys, as the cluster's nodes derive them.
#ifndef PERIGEE_CLUSTER_CLI_PROMPT_KEYS_H_
#define PERIGEE_CLUSTER_CLI_PROMPT_KEYS_H_

#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "cluster/cli/cluster_access.h"
#include "pod/block_key.h"

namespace perigee::cli {

// What the cluster's prefill node (or else its decode node) says that its blocks depend on. NOT_FOUND without one.
absl::StatusOr<pod::Identity> IdentityOf(const ClusterAccess& cluster, const std::string& tenant,
                                         const std::string& salt);

// The keys of what is stored of a prompt: all its tokens but the last.
std::vector<pod::BlockKey> StoredChain(const pod::Identity& identity, std::span<const int32_t> tokens);

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_PROMPT_KEYS_H_
