// The operator's side of a process: who is in the cluster, changes of that, this process's settings and work.
// perigee/v1/admin.proto says what each call does.
#ifndef PERIGEE_CLUSTER_ADMIN_ADMIN_SERVICE_H_
#define PERIGEE_CLUSTER_ADMIN_ADMIN_SERVICE_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "cluster/membership/membership.h"
#include "perigee/v1/admin.grpc.pb.h"

namespace perigee::cluster {

// One of a process's settings, as it was started.
struct Setting {
  std::string name;
  std::string value;
  bool given = false;  // Else the default.
};

struct AdminOptions {
  std::string version;
  // Null: the process is no cluster's member. Outlives the service.
  Membership* membership = nullptr;
  // An operator may enter nodes: the membership is a file, and keeps them.
  bool keeps_entries = false;
  std::vector<Setting> settings;
  // Whether a caller with this secret may ask and change; empty: everybody may.
  std::function<bool(absl::string_view secret)> admits;
};

// UNAUTHENTICATED for a caller without a secret that `admits` (see AdminOptions).
absl::Status AdmitOperator(const grpc::ServerContext& context,
                           const std::function<bool(absl::string_view secret)>& admits);

// Any thread may call.
class AdminService final : public v1::AdminService::Service {
 public:
  explicit AdminService(AdminOptions options) : options_(std::move(options)) {}

  // From when the process knows who it is; before, calls are UNAVAILABLE. `progress`: what it has under way. It is
  // called on gRPC's threads until the server that serves this has stopped.
  void Begin(NodeRecord self, std::function<v1::ProgressResponse()> progress);

  grpc::Status Version(grpc::ServerContext* context, const v1::VersionRequest* request,
                       v1::VersionResponse* response) override;
  grpc::Status View(grpc::ServerContext* context, const v1::ViewRequest* request, v1::ViewResponse* response) override;
  grpc::Status SetState(grpc::ServerContext* context, const v1::SetStateRequest* request,
                        v1::SetStateResponse* response) override;
  grpc::Status Remove(grpc::ServerContext* context, const v1::RemoveRequest* request,
                      v1::RemoveResponse* response) override;
  grpc::Status Join(grpc::ServerContext* context, const v1::JoinRequest* request, v1::JoinResponse* response) override;
  grpc::Status Placement(grpc::ServerContext* context, const v1::PlacementRequest* request,
                         v1::PlacementResponse* response) override;
  grpc::Status Config(grpc::ServerContext* context, const v1::ConfigRequest* request,
                      v1::ConfigResponse* response) override;
  grpc::Status Progress(grpc::ServerContext* context, const v1::ProgressRequest* request,
                        v1::ProgressResponse* response) override;
  grpc::Status Trace(grpc::ServerContext* context, const v1::TraceRequest* request,
                     v1::TraceResponse* response) override;

 private:
  absl::Status Admit(const grpc::ServerContext& context) const;
  absl::StatusOr<Membership*> Cluster() const;
  ClusterView CurrentView() const;
  NodeRecord Self() const;

  const AdminOptions options_;
  mutable absl::Mutex mu_;
  NodeRecord self_ ABSL_GUARDED_BY(mu_);  // No id: not yet.
  std::function<v1::ProgressResponse()> progress_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_ADMIN_ADMIN_SERVICE_H_
