// Contexts in etcd, for clusters whose members stand there. For each a record and its content, two keys that change
// together, by compare-and-swap:
//
//   /contexts/perigee/NAME/records/TENANT/ID     TENANT: SHA-256
//   /contexts/perigee/NAME/contents/TENANT/ID
//
// They lie beside the cluster's prefix and not below it: every process of the cluster watches all that is below, and
// contents are no news to stores and nodes.
#ifndef PERIGEE_CLUSTER_CONTEXTS_ETCD_REGISTRY_H_
#define PERIGEE_CLUSTER_CONTEXTS_ETCD_REGISTRY_H_

#include <memory>
#include <string>

#include "cluster/contexts/registry.h"
#include "cluster/membership/etcd_client.h"

namespace perigee::cluster {

class EtcdContextRegistry final : public ContextRegistry {
 public:
  // Calls nobody.
  static absl::StatusOr<std::unique_ptr<EtcdContextRegistry>> Open(const EtcdOptions& options,
                                                                   const ContextLimits& limits = {});

  const ContextLimits& limits() const override { return limits_; }
  absl::StatusOr<PutResult> Put(const NewContext& context) override;
  absl::StatusOr<ContextRecord> Get(const std::string& tenant, const std::string& id) override;
  absl::StatusOr<std::string> Content(const ContextRecord& record) override;
  absl::StatusOr<std::vector<ContextRecord>> List(const std::string& tenant, const std::string& after,
                                                  size_t limit) override;
  absl::Status Delete(const std::string& tenant, const std::string& id) override;

 private:
  EtcdContextRegistry(std::unique_ptr<EtcdClient> client, const ContextLimits& limits)
      : client_(std::move(client)), limits_(limits) {}
  struct Found {
    std::string record;        // As JSON.
    int64_t mod_revision = 0;  // 0: there is none.
  };
  absl::StatusOr<Found> Find(const std::string& key);
  std::string Records(const std::string& tenant) const;
  std::string Contents(const std::string& tenant) const;

  const std::unique_ptr<EtcdClient> client_;
  const ContextLimits limits_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_ETCD_REGISTRY_H_
