#include "proto/grpc_server.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace perigee {

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const std::string& listen, grpc::Service* service) {
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos || colon + 1 == listen.size()) {
    return absl::InvalidArgumentError(absl::StrCat("listen address '", listen, "' is not host:port"));
  }
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(service);
  std::unique_ptr<GrpcServer> out(new GrpcServer);
  out->server_ = builder.BuildAndStart();
  if (out->server_ == nullptr || port == 0) {
    return absl::AlreadyExistsError(
        absl::StrCat("cannot listen on ", listen, ": the port is in use or the address is not of this machine; choose another"));
  }
  out->address_ = absl::StrCat(listen.substr(0, colon), ":", port);
  return out;
}

void GrpcServer::Stop(absl::Duration grace) {
  if (server_ != nullptr) server_->Shutdown(absl::ToChronoTime(absl::Now() + grace));
}

}  // namespace perigee
