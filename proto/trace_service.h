// This process's spans (base/trace.h) over gRPC. GrpcServer has it beside its caller's services.
#ifndef PERIGEE_PROTO_TRACE_SERVICE_H_
#define PERIGEE_PROTO_TRACE_SERVICE_H_

#include <grpcpp/impl/service_type.h>

#include <memory>

namespace perigee {

std::unique_ptr<grpc::Service> MakeTraceService();

}  // namespace perigee

#endif  // PERIGEE_PROTO_TRACE_SERVICE_H_
