// A request's id on its way between processes: callers put the one that their thread works for (base/trace.h) into the
// call's metadata, servers take it from there (proto/grpc_server.h).
#ifndef PERIGEE_PROTO_REQUEST_ID_H_
#define PERIGEE_PROTO_REQUEST_ID_H_

#include <grpcpp/grpcpp.h>

#include "absl/strings/string_view.h"

namespace perigee {

inline constexpr char kRequestIdKey[] = "perigee-request-id";

// Nothing for "".
void SendRequestId(absl::string_view id, grpc::ClientContext& context);
// "" where the caller sent none, or something that cannot be one. Valid as long as the context.
absl::string_view ReceivedRequestId(const grpc::ServerContext& context);

}  // namespace perigee

#endif  // PERIGEE_PROTO_REQUEST_ID_H_
