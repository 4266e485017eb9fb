#include "proto/trace_service.h"

#include <grpcpp/grpcpp.h>
#include <spdlog/spdlog.h>

#include "base/clock.h"
#include "base/trace.h"
#include "perigee/v1/trace.grpc.pb.h"

namespace perigee {
namespace {

class Service final : public v1::TraceService::Service {
  grpc::Status GetTrace(grpc::ServerContext* context, const v1::GetTraceRequest* request,
                        v1::GetTraceResponse* response) override {
    if (!IsRequestId(request->request_id())) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "request_id is not 1 to 128 of A-Z a-z 0-9 . _ : -"};
    }
    response->set_process(spdlog::default_logger()->name());
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
};

}  // namespace

std::unique_ptr<grpc::Service> MakeTraceService() { return std::make_unique<Service>(); }

}  // namespace perigee
