// Calls to the admin service of one process.
#ifndef PERIGEE_CLUSTER_ADMIN_ADMIN_CLIENT_H_
#define PERIGEE_CLUSTER_ADMIN_ADMIN_CLIENT_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/membership/membership.h"
#include "perigee/v1/admin.grpc.pb.h"

namespace perigee::cluster {

// Any thread may call. Errors name the address. UNAVAILABLE: nobody answers there; DEADLINE_EXCEEDED: not in time.
class AdminClient {
 public:
  // secret: "" for processes that want none.
  AdminClient(std::string address, std::string secret, absl::Duration call_deadline = absl::Seconds(5));

  struct View {
    ClusterView cluster;
    std::string self;
    bool alone = false;
  };
  absl::StatusOr<View> GetView();
  absl::StatusOr<v1::VersionResponse> GetVersion();
  absl::StatusOr<v1::ConfigResponse> GetConfig();
  absl::StatusOr<v1::ProgressResponse> GetProgress();
  absl::StatusOr<v1::TraceResponse> GetTrace(const std::string& request_id);
  absl::StatusOr<v1::PlacementResponse> GetPlacement(const v1::PlacementRequest& request);
  absl::Status SetState(const std::string& id, NodeState state);
  absl::Status Remove(const std::string& id);
  absl::Status Join(const NodeRecord& node);

  const std::string& address() const { return address_; }

 private:
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::AdminService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                               Response*),
                                const Request& request);

  const std::string address_, secret_;
  const absl::Duration call_deadline_;
  std::unique_ptr<v1::AdminService::Stub> stub_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_ADMIN_ADMIN_CLIENT_H_
