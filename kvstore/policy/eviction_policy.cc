#include "kvstore/policy/eviction_policy.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "kvstore/policy/policies.h"

namespace perigee::kvstore {
namespace {

struct Named {
  absl::string_view name;
  std::unique_ptr<EvictionPolicy> (*make)(const PolicyOptions&);
};
constexpr Named kPolicies[] = {
    {"default", MakeValuePolicy}, {"value", MakeValuePolicy}, {"lru", MakeLruPolicy}, {"s3fifo", MakeS3FifoPolicy}};

}  // namespace

std::vector<absl::string_view> EvictionPolicyNames() {
  std::vector<absl::string_view> names;
  for (const Named& policy : kPolicies) names.push_back(policy.name);
  return names;
}

absl::StatusOr<std::unique_ptr<EvictionPolicy>> MakeEvictionPolicy(absl::string_view name,
                                                                   const PolicyOptions& options) {
  if (options.max_entries == 0 || options.max_entries > kNoEntry) {
    return absl::InvalidArgumentError(
        absl::StrCat("an eviction policy for ", options.max_entries, " entries; it takes 1 to ", kNoEntry));
  }
  for (const Named& policy : kPolicies) {
    if (policy.name == name) return policy.make(options);
  }
  return absl::InvalidArgumentError(absl::StrCat("there is no eviction policy \"", name, "\"; there are ",
                                                 absl::StrJoin(EvictionPolicyNames(), ", ")));
}

}  // namespace perigee::kvstore
