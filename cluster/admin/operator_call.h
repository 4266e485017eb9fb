// One call of an operator's client: with a deadline, and the secret that the process asks for.
#ifndef PERIGEE_CLUSTER_ADMIN_OPERATOR_CALL_H_
#define PERIGEE_CLUSTER_ADMIN_OPERATOR_CALL_H_

#include <grpcpp/grpcpp.h>

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "base/status.h"
#include "cluster/admin/wire.h"
#include "proto/grpc_status.h"

namespace perigee::cluster {

// Errors begin with `whom`.
template <typename Stub, typename Request, typename Response>
absl::StatusOr<Response> CallAsOperator(Stub& stub,
                                        grpc::Status (Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                                        const Request& request, const std::string& secret, absl::Duration deadline,
                                        absl::string_view whom) {
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + deadline));
  if (!secret.empty()) context.AddMetadata(kAdminSecretMetadata, secret);
  Response response;
  PERIGEE_RETURN_IF_ERROR(Annotate(FromGrpc((stub.*method)(&context, request, &response)), whom));
  return response;
}

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_ADMIN_OPERATOR_CALL_H_
