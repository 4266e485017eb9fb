#include "decode_node/service.h"

#include <spdlog/spdlog.h>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/trace.h"
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
  const absl::Time start = absl::Now();
  uint32_t tokens = 0;
  const absl::Status status = decode_.Generate(
      *request,
      [&](const v1::GenerateEvent& event) {
        tokens += event.has_token() ? 1 : 0;
        return !context->IsCancelled() && writer->Write(event);
      },
      absl::FromChrono(context->deadline()), [context] { return context->IsCancelled(); });
  if (!CurrentRequest().empty()) {
    spdlog::info("answered {} tokens to a prompt of {} in {} ms{}{}", tokens, request->token_ids_size(),
                 absl::ToInt64Milliseconds(absl::Now() - start), status.ok() ? "" : ": ",
                 status.ok() ? "" : status.ToString());
  }
  return ToGrpc(status);
}

}  // namespace perigee::decode_node
