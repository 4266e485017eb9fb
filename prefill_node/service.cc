#include "prefill_node/service.h"

#include <spdlog/spdlog.h>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/trace.h"
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
  load.set_prefill_tokens_ahead(prefill_.tokens_ahead());
  load.set_draining(draining_);
  return load;
}

grpc::Status PrefillService::Prefill(grpc::ServerContext* context, const v1::PrefillRequest* request,
                                     v1::PrefillResponse* response) {
  const absl::Time start = absl::Now();
  const absl::Status status = prefill_.Prefill(*request, absl::FromChrono(context->deadline()), response,
                                               [context] { return context->IsCancelled(); });
  if (!CurrentRequest().empty()) {
    spdlog::info("prefilled {} tokens, {} of them reused, in {} ms{}{}", response->token_ids_size(),
                 response->reused_tokens(), absl::ToInt64Milliseconds(absl::Now() - start), status.ok() ? "" : ": ",
                 status.ok() ? "" : status.ToString());
  }
  return ToGrpc(status);
}

}  // namespace perigee::prefill_node
