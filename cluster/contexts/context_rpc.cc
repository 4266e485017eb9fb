#include "cluster/contexts/context_rpc.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "cluster/admin/admin_service.h"
#include "cluster/admin/operator_call.h"
#include "cluster/channel.h"
#include "proto/grpc_status.h"

namespace perigee::cluster {
namespace {

using Stub = v1::Contexts::Stub;

constexpr uint32_t kDefaultLimit = 100, kMaxLimit = 1000;

v1::ContextState StateToWire(ContextState state) {
  switch (state) {
    case ContextState::kPending:
      return v1::CONTEXT_STATE_PENDING;
    case ContextState::kComputing:
      return v1::CONTEXT_STATE_COMPUTING;
    case ContextState::kReady:
      return v1::CONTEXT_STATE_READY;
    case ContextState::kFailed:
      return v1::CONTEXT_STATE_FAILED;
    case ContextState::kUnknown:
      break;
  }
  return v1::CONTEXT_STATE_UNKNOWN;
}

void ToWire(const ContextInfo& info, v1::ContextEntry* wire) {
  wire->set_id(info.record.id);
  wire->set_version(info.record.version);
  wire->set_content(std::string(AsView(info.record.content)));
  wire->set_bytes(info.record.bytes);
  wire->set_tokens(info.record.tokens);
  wire->set_created_unix_us(absl::ToUnixMicros(info.record.created));
  wire->set_changed_unix_us(absl::ToUnixMicros(info.record.changed));
  wire->set_state(StateToWire(info.progress.state));
  wire->set_error(info.progress.error);
}

}  // namespace

grpc::Status ContextRpc::Put(grpc::ServerContext* context, const v1::PutContextRequest* request,
                             v1::PutContextResponse* response) {
  return ToGrpc([&]() -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(AdmitOperator(*context, admits_));
    ContextContent content = request->text();
    if (request->has_tokens()) {
      content = std::vector<int32_t>(request->tokens().ids().begin(), request->tokens().ids().end());
    }
    PERIGEE_ASSIGN_OR_RETURN(const ContextService::PutAnswer put,
                             service_->Put(request->tenant(), request->id(), std::move(content)));
    ToWire(put.info, response->mutable_context());
    response->set_created(put.created);
    return absl::OkStatus();
  }());
}

grpc::Status ContextRpc::Get(grpc::ServerContext* context, const v1::GetContextRequest* request,
                             v1::ContextEntry* response) {
  return ToGrpc([&]() -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(AdmitOperator(*context, admits_));
    PERIGEE_ASSIGN_OR_RETURN(const ContextInfo info, service_->Get(request->tenant(), request->id()));
    ToWire(info, response);
    return absl::OkStatus();
  }());
}

grpc::Status ContextRpc::List(grpc::ServerContext* context, const v1::ListContextsRequest* request,
                              v1::ListContextsResponse* response) {
  return ToGrpc([&]() -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(AdmitOperator(*context, admits_));
    const uint32_t limit = request->limit() == 0 ? kDefaultLimit : request->limit();
    if (limit > kMaxLimit) {
      return absl::InvalidArgumentError(absl::StrCat("a page has at most ", kMaxLimit, " contexts, not ", limit));
    }
    PERIGEE_ASSIGN_OR_RETURN(std::vector<ContextInfo> infos,
                             service_->List(request->tenant(), request->after(), limit + 1));
    response->set_more(infos.size() > limit);
    if (infos.size() > limit) infos.resize(limit);
    for (const ContextInfo& info : infos) ToWire(info, response->add_contexts());
    return absl::OkStatus();
  }());
}

grpc::Status ContextRpc::Delete(grpc::ServerContext* context, const v1::DeleteContextRequest* request,
                                v1::DeleteContextResponse*) {
  return ToGrpc([&]() -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(AdmitOperator(*context, admits_));
    return service_->Delete(request->tenant(), request->id());
  }());
}

ContextClient::ContextClient(std::string address, std::string secret, absl::Duration call_deadline)
    : address_(std::move(address)),
      secret_(std::move(secret)),
      call_deadline_(call_deadline),
      stub_(v1::Contexts::NewStub(ConnectTo(address_))) {}

template <typename Request, typename Response>
absl::StatusOr<Response> ContextClient::Call(grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&,
                                                                          Response*),
                                             const Request& request) {
  return CallAsOperator(*stub_, method, request, secret_, call_deadline_, absl::StrCat("gateway ", address_));
}

absl::StatusOr<v1::PutContextResponse> ContextClient::Put(const v1::PutContextRequest& request) {
  return Call(&Stub::Put, request);
}

absl::StatusOr<v1::ContextEntry> ContextClient::Get(const std::string& tenant, const std::string& id) {
  v1::GetContextRequest request;
  request.set_tenant(tenant);
  request.set_id(id);
  return Call(&Stub::Get, request);
}

absl::StatusOr<v1::ListContextsResponse> ContextClient::List(const std::string& tenant, const std::string& after) {
  v1::ListContextsRequest request;
  request.set_tenant(tenant);
  request.set_after(after);
  return Call(&Stub::List, request);
}

absl::Status ContextClient::Delete(const std::string& tenant, const std::string& id) {
  v1::DeleteContextRequest request;
  request.set_tenant(tenant);
  request.set_id(id);
  return Call(&Stub::Delete, request).status();
}

}  // namespace perigee::cluster
