#include "cluster/admin/admin_client.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/admin/operator_call.h"
#include "cluster/admin/wire.h"
#include "cluster/channel.h"
#include "proto/grpc_status.h"

namespace perigee::cluster {

using Stub = v1::AdminService::Stub;

AdminClient::AdminClient(std::string address, std::string secret, absl::Duration call_deadline)
    : address_(std::move(address)),
      secret_(std::move(secret)),
      call_deadline_(call_deadline),
      stub_(v1::AdminService::NewStub(ConnectTo(address_))) {}

template <typename Request, typename Response>
absl::StatusOr<Response> AdminClient::Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                                        Response*),
                                           const Request& request) {
  return CallAsOperator(*stub_, method, request, secret_, call_deadline_, address_);
}

absl::StatusOr<AdminClient::View> AdminClient::GetView() {
  PERIGEE_ASSIGN_OR_RETURN(const v1::ViewResponse wire, Call(&Stub::View, v1::ViewRequest()));
  View view;
  view.self = wire.self();
  view.alone = wire.alone();
  view.cluster.placement_epoch = wire.placement_epoch();
  view.cluster.as_of = absl::FromUnixMicros(wire.as_of_unix_us());
  for (const v1::MemberNode& node : wire.nodes()) {
    absl::StatusOr<NodeRecord> record = NodeFromWire(node);
    if (!record.ok()) return Annotate(record.status(), address_);
    view.cluster.nodes.push_back(*std::move(record));
  }
  return view;
}

absl::StatusOr<v1::VersionResponse> AdminClient::GetVersion() { return Call(&Stub::Version, v1::VersionRequest()); }
absl::StatusOr<v1::ConfigResponse> AdminClient::GetConfig() { return Call(&Stub::Config, v1::ConfigRequest()); }
absl::StatusOr<v1::ProgressResponse> AdminClient::GetProgress() { return Call(&Stub::Progress, v1::ProgressRequest()); }
absl::StatusOr<v1::PlacementResponse> AdminClient::GetPlacement(const v1::PlacementRequest& request) {
  return Call(&Stub::Placement, request);
}

absl::StatusOr<v1::TraceResponse> AdminClient::GetTrace(const std::string& request_id) {
  v1::TraceRequest request;
  request.set_request_id(request_id);
  return Call(&Stub::Trace, request);
}

absl::Status AdminClient::SetState(const std::string& id, NodeState state) {
  v1::SetStateRequest request;
  request.set_id(id);
  request.set_state(StateToWire(state));
  return Call(&Stub::SetState, request).status();
}

absl::Status AdminClient::Remove(const std::string& id) {
  v1::RemoveRequest request;
  request.set_id(id);
  return Call(&Stub::Remove, request).status();
}

absl::Status AdminClient::Join(const NodeRecord& node) {
  v1::JoinRequest request;
  NodeToWire(node, request.mutable_node());
  return Call(&Stub::Join, request).status();
}

}  // namespace perigee::cluster
