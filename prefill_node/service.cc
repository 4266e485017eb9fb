#include "prefill_node/service.h"

#include "absl/time/time.h"
#include "proto/grpc_status.h"

namespace perigee::prefill_node {

grpc::Status PrefillService::Info(grpc::ServerContext* context, const v1::NodeInfoRequest* request,
                                  v1::NodeInfo* response) {
  *response = node_->Info();
  *response->mutable_load() = Load();
  return grpc::Status::OK;
}

v1::NodeLoad PrefillService::Load() const {
  v1::NodeLoad load = node_->Load();
  load.set_running(static_cast<uint32_t>(prefill_.running()));
  load.set_draining(draining_);
  return load;
}

grpc::Status PrefillService::Prefill(grpc::ServerContext* context, const v1::PrefillRequest* request,
                                     v1::PrefillResponse* response) {
  return ToGrpc(prefill_.Prefill(*request, absl::FromChrono(context->deadline()), response,
                                 [context] { return context->IsCancelled(); }));
}

}  // namespace perigee::prefill_node
