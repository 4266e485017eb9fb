#include "cluster/admin/admin_service.h"

#include <unistd.h>

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/clock.h"
#include "base/status.h"
#include "base/trace.h"
#include "cluster/admin/wire.h"
#include "kvstore/placement.h"
#include "proto/grpc_status.h"
#include "spdlog/spdlog.h"

namespace perigee::cluster {

void AdminService::Begin(NodeRecord self, std::function<v1::ProgressResponse()> progress) {
  absl::MutexLock lock(&mu_);
  self_ = std::move(self);
  progress_ = std::move(progress);
}

absl::Status AdmitOperator(const grpc::ServerContext& context,
                           const std::function<bool(absl::string_view secret)>& admits) {
  if (!admits) return absl::OkStatus();
  const auto secret = context.client_metadata().find(kAdminSecretMetadata);
  if (secret != context.client_metadata().end() &&
      admits(absl::string_view(secret->second.data(), secret->second.size()))) {
    return absl::OkStatus();
  }
  return absl::UnauthenticatedError(
      "this process takes an operator's orders only with the secret of a trusted client of the stores: name its file");
}

absl::Status AdminService::Admit(const grpc::ServerContext& context) const {
  if (Self().id.empty()) return absl::UnavailableError("this process is still starting: try again");
  return AdmitOperator(context, options_.admits);
}

absl::StatusOr<Membership*> AdminService::Cluster() const {
  if (options_.membership != nullptr) return options_.membership;
  return absl::FailedPreconditionError("this process is no member of a cluster: start it with --join");
}

NodeRecord AdminService::Self() const {
  absl::MutexLock lock(&mu_);
  return self_;
}

ClusterView AdminService::CurrentView() const {
  if (options_.membership != nullptr) return *options_.membership->View();
  ClusterView alone;
  alone.placement_epoch = 1;
  alone.nodes = {Self()};
  alone.as_of = absl::Now();
  return alone;
}

grpc::Status AdminService::Version(grpc::ServerContext*, const v1::VersionRequest*, v1::VersionResponse* response) {
  const NodeRecord self = Self();
  response->set_version(options_.version);
  response->set_role(RoleToWire(self.role));
  response->set_id(self.id);
  response->set_started_unix_us(self.started_unix_us);
  response->set_process_id(static_cast<uint32_t>(::getpid()));
  return grpc::Status::OK;
}

grpc::Status AdminService::View(grpc::ServerContext* context, const v1::ViewRequest*, v1::ViewResponse* response) {
  if (const absl::Status admitted = Admit(*context); !admitted.ok()) return ToGrpc(admitted);
  const ClusterView view = CurrentView();
  response->set_placement_epoch(view.placement_epoch);
  for (const NodeRecord& node : view.nodes) NodeToWire(node, response->add_nodes());
  response->set_as_of_unix_us(absl::ToUnixMicros(view.as_of));
  response->set_self(Self().id);
  response->set_alone(options_.membership == nullptr);
  return grpc::Status::OK;
}

grpc::Status AdminService::SetState(grpc::ServerContext* context, const v1::SetStateRequest* request,
                                    v1::SetStateResponse*) {
  return ToGrpc([&]() -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(Admit(*context));
    PERIGEE_ASSIGN_OR_RETURN(Membership* const cluster, Cluster());
    PERIGEE_ASSIGN_OR_RETURN(const NodeState state, StateFromWire(request->state()));
    PERIGEE_RETURN_IF_ERROR(cluster->SetState(request->id(), state));
    spdlog::info("an operator at {} has set node '{}' to {}", context->peer(), request->id(),
                 state == NodeState::kDraining ? "draining" : "serving");
    return absl::OkStatus();
  }());
}

grpc::Status AdminService::Remove(grpc::ServerContext* context, const v1::RemoveRequest* request, v1::RemoveResponse*) {
  return ToGrpc([&]() -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(Admit(*context));
    PERIGEE_ASSIGN_OR_RETURN(Membership* const cluster, Cluster());
    PERIGEE_RETURN_IF_ERROR(cluster->Remove(request->id()));
    spdlog::info("an operator at {} has removed node '{}'", context->peer(), request->id());
    return absl::OkStatus();
  }());
}

grpc::Status AdminService::Join(grpc::ServerContext* context, const v1::JoinRequest* request, v1::JoinResponse*) {
  return ToGrpc([&]() -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(Admit(*context));
    PERIGEE_ASSIGN_OR_RETURN(Membership* const cluster, Cluster());
    if (!options_.keeps_entries) {
      return absl::FailedPreconditionError("in this cluster nodes enter themselves: start one with --join");
    }
    PERIGEE_ASSIGN_OR_RETURN(const NodeRecord node, NodeFromWire(request->node()));
    PERIGEE_RETURN_IF_ERROR(cluster->Join(node).status());  // The entry stays.
    spdlog::info("an operator at {} has entered node '{}' at {}", context->peer(), node.id, node.address);
    return absl::OkStatus();
  }());
}

grpc::Status AdminService::Placement(grpc::ServerContext* context, const v1::PlacementRequest* request,
                                     v1::PlacementResponse* response) {
  return ToGrpc([&]() -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(Admit(*context));
    uint32_t group = request->group();
    if (!request->has_group()) {
      PERIGEE_ASSIGN_OR_RETURN(const pod::BlockKey root, pod::BlockKeyFromBytes(request->root()));
      group = kvstore::GroupOf(root);
    }
    if (group > std::numeric_limits<kvstore::PlacementGroup>::max()) {
      return absl::InvalidArgumentError(absl::StrCat("placement group ", group, "; at most 65535"));
    }
    const uint32_t replicas = std::max(1u, request->replicas());
    if (replicas > kvstore::kMaxReplicas) {
      return absl::InvalidArgumentError(absl::StrCat(replicas, " replicas; at most ", kvstore::kMaxReplicas));
    }
    const kvstore::StoreMap map = StoresOf(CurrentView());
    response->set_epoch(map.epoch);
    response->set_group(group);
    const auto placement_group = static_cast<kvstore::PlacementGroup>(group);
    for (const size_t i : map.Owners(placement_group, replicas)) response->add_owners(map.stores[i].id);
    for (const size_t i : map.Readers(placement_group, replicas + 1)) response->add_readers(map.stores[i].id);
    return absl::OkStatus();
  }());
}

grpc::Status AdminService::Config(grpc::ServerContext* context, const v1::ConfigRequest*,
                                  v1::ConfigResponse* response) {
  if (const absl::Status admitted = Admit(*context); !admitted.ok()) return ToGrpc(admitted);
  for (const Setting& setting : options_.settings) {
    auto* wire = response->add_settings();
    wire->set_name(setting.name);
    wire->set_value(setting.value);
    wire->set_given(setting.given);
  }
  return grpc::Status::OK;
}

grpc::Status AdminService::Progress(grpc::ServerContext* context, const v1::ProgressRequest*,
                                    v1::ProgressResponse* response) {
  if (const absl::Status admitted = Admit(*context); !admitted.ok()) return ToGrpc(admitted);
  std::function<v1::ProgressResponse()> progress;
  {
    absl::MutexLock lock(&mu_);
    progress = progress_;
  }
  *response = progress();
  return grpc::Status::OK;
}

grpc::Status AdminService::Trace(grpc::ServerContext* context, const v1::TraceRequest* request,
                                 v1::TraceResponse* response) {
  if (const absl::Status admitted = Admit(*context); !admitted.ok()) return ToGrpc(admitted);
  if (!IsRequestId(request->request_id())) {
    return {grpc::StatusCode::INVALID_ARGUMENT, "request_id is not 1 to 128 of A-Z a-z 0-9 . _ : -"};
  }
  for (TraceSpan& span : ProcessTrace().Find(request->request_id())) {
    v1::TraceSpan* out = response->add_spans();
    out->set_name(std::move(span.name));
    out->set_begin_unix_us(span.begin_unix_us);
    out->set_end_unix_us(span.end_unix_us);
    out->set_thread(span.thread);
    for (auto& [key, value] : span.attributes) (*out->mutable_attributes())[key] = std::move(value);
  }
  response->set_forgotten_spans(ProcessTrace().forgotten());
  response->set_now_unix_us(absl::ToUnixMicros(SteadyNow()));
  return grpc::Status::OK;
}

}  // namespace perigee::cluster
