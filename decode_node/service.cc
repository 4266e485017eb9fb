#include "decode_node/service.h"

#include "absl/time/time.h"
#include "proto/grpc_status.h"

namespace perigee::decode_node {

grpc::Status DecodeService::Info(grpc::ServerContext* context, const v1::NodeInfoRequest* request,
                                 v1::NodeInfo* response) {
  *response = node_->Info();
  *response->mutable_load() = Load();
  return grpc::Status::OK;
}

v1::NodeLoad DecodeService::Load() const {
  v1::NodeLoad load = node_->Load();
  load.set_running(static_cast<uint32_t>(decode_.running()));
  load.set_queued(static_cast<uint32_t>(decode_.queued()));
  load.set_max_running(static_cast<uint32_t>(decode_.max_running()));
  load.set_draining(draining_);
  return load;
}

grpc::Status DecodeService::Generate(grpc::ServerContext* context, const v1::GenerateRequest* request,
                                     grpc::ServerWriter<v1::GenerateEvent>* writer) {
  return ToGrpc(decode_.Generate(
      *request, [&](const v1::GenerateEvent& event) { return !context->IsCancelled() && writer->Write(event); },
      absl::FromChrono(context->deadline()), [context] { return context->IsCancelled(); }));
}

}  // namespace perigee::decode_node
