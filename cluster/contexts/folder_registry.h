// Contexts in a folder, for clusters whose members stand in a file: FOLDER/TENANT/ID.json is a record and
// ID.CONTENT its content, where all three are SHA-256 digests: no user's text is a path.
//
// Several processes, and machines with a shared file system, may use the folder: changes are made under a lock (FOLDER/
// lock), and appear whole, contents before their records. Readers take no lock.
#ifndef PERIGEE_CLUSTER_CONTEXTS_FOLDER_REGISTRY_H_
#define PERIGEE_CLUSTER_CONTEXTS_FOLDER_REGISTRY_H_

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "cluster/contexts/registry.h"

namespace perigee::cluster {

class FolderContextRegistry final : public ContextRegistry {
 public:
  // Makes the folder where it is missing, for this user only.
  static absl::StatusOr<std::unique_ptr<FolderContextRegistry>> Open(const std::string& folder,
                                                                     const ContextLimits& limits = {});

  const ContextLimits& limits() const override { return limits_; }
  absl::StatusOr<PutResult> Put(const NewContext& context) override;
  absl::StatusOr<ContextRecord> Get(const std::string& tenant, const std::string& id) override;
  absl::StatusOr<std::string> Content(const ContextRecord& record) override;
  absl::StatusOr<std::vector<ContextRecord>> List(const std::string& tenant, const std::string& after,
                                                  size_t limit) override;
  absl::Status Delete(const std::string& tenant, const std::string& id) override;

 private:
  FolderContextRegistry(std::string folder, const ContextLimits& limits)
      : folder_(std::move(folder)), limits_(limits) {}
  std::string TenantFolder(const std::string& tenant) const;
  std::string RecordFile(const std::string& tenant, const std::string& id) const;
  std::string ContentFile(const ContextRecord& record) const;
  // Alone among all processes.
  absl::Status Change(absl::FunctionRef<absl::Status()> change);
  // How many records a tenant has.
  size_t Count(const std::string& tenant) const;

  const std::string folder_;
  const ContextLimits limits_;
  absl::Mutex mu_;  // Before the file's lock, which knows processes only.
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_FOLDER_REGISTRY_H_
