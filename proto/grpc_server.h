// A gRPC server that says why it could not start, and stops within a deadline. Handlers of calls that name their
// request (proto/request_id.h) run in its scope (base/trace.h).
#ifndef PERIGEE_PROTO_GRPC_SERVER_H_
#define PERIGEE_PROTO_GRPC_SERVER_H_

#include <grpcpp/grpcpp.h>
#include <grpcpp/impl/service_type.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace perigee {

class GrpcServer {
 public:
  // listen: "host:port", port 0 for any free one. The services are the caller's and outlive the server. ALREADY_EXISTS
  // when the port is taken: unlike gRPC's default, two servers never share one.
  static absl::StatusOr<std::unique_ptr<GrpcServer>> Start(const std::string& listen,
                                                           const std::vector<grpc::Service*>& services);
  ~GrpcServer() { Stop(absl::ZeroDuration()); }

  // "host:port" with the port in use.
  const std::string& address() const { return address_; }

  // Waits until no call is running in this process, at most for `grace`; then cancels what still runs. Idempotent.
  void Stop(absl::Duration grace);

 private:
  GrpcServer() = default;
  std::unique_ptr<grpc::Server> server_;
  std::string address_;
};

}  // namespace perigee

#endif  // PERIGEE_PROTO_GRPC_SERVER_H_
