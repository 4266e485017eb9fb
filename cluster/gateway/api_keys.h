// Who may ask: API keys and the tenants that they stand for.
//
// A keys file has a line "KEY TENANT" for each key; empty lines and lines that begin with # are skipped. Keys are 16 to
// 256 visible ASCII characters, tenants up to 128. Several keys may stand for one tenant.
#ifndef PERIGEE_CLUSTER_GATEWAY_API_KEYS_H_
#define PERIGEE_CLUSTER_GATEWAY_API_KEYS_H_

#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::cluster {

// Immutable: any thread may call.
class ApiKeys {
 public:
  // INVALID_ARGUMENT names the line, never the key.
  static absl::StatusOr<ApiKeys> Parse(absl::string_view text);
  static absl::StatusOr<ApiKeys> Read(const std::string& path);

  // From a request's Authorization header ("Bearer KEY"). UNAUTHENTICATED where it is missing or unknown.
  absl::StatusOr<std::string> TenantOf(absl::string_view authorization) const;

 private:
  // By the key's SHA-256, so that the time of a look-up says nothing about keys.
  absl::flat_hash_map<std::string, std::string> tenant_by_key_digest_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_API_KEYS_H_
