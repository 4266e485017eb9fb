// Internal: the policies behind MakeEvictionPolicy, and what several of them use.
#ifndef PERIGEE_KVSTORE_POLICY_POLICIES_H_
#define PERIGEE_KVSTORE_POLICY_POLICIES_H_

#include <algorithm>
#include <memory>
#include <optional>

#include "kvstore/policy/entry_queues.h"
#include "kvstore/policy/eviction_policy.h"

namespace perigee::kvstore {

std::unique_ptr<EvictionPolicy> MakeLruPolicy(const PolicyOptions& options);
std::unique_ptr<EvictionPolicy> MakeS3FifoPolicy(const PolicyOptions& options);
std::unique_ptr<EvictionPolicy> MakeValuePolicy(const PolicyOptions& options);

inline size_t UsualEntries(const PolicyOptions& options) {
  return options.usual_entries > 0 ? options.usual_entries : options.max_entries;
}
// How many evicted entries a policy remembers that by itself would remember `wanted`.
inline size_t GhostEntries(const PolicyOptions& options, size_t wanted) {
  return options.ghost_entries > 0 ? options.ghost_entries : std::min(wanted, size_t{1} << 24);
}

// EntryQueues::LastResort of one tenant or all; tenant t has the queues from t * queues_per_tenant on.
inline std::optional<EntryId> LastResort(EntryQueues& entries, uint32_t queues_per_tenant,
                                         std::optional<uint32_t> tenant, EvictionPolicy::Evictable evictable) {
  const EntryId id = entries.LastResort([&](EntryId candidate) {
    return (!tenant || entries[candidate].queue / queues_per_tenant == *tenant) && evictable(candidate);
  });
  return id == kNoEntry ? std::nullopt : std::optional(id);
}

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_POLICY_POLICIES_H_
