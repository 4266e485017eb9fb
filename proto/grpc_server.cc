#include "proto/grpc_server.h"

#include <atomic>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/trace.h"
#include "proto/request_id.h"

namespace perigee {
namespace {

// Of the call that this thread runs.
thread_local std::optional<RequestScope> scope;

// Counts the calls that run in this process's synchronous services, and says for which requests.
class CallCounter final : public grpc::Server::GlobalCallbacks {
 public:
  static CallCounter& Get() {
    static CallCounter* counter = [] {
      auto* c = new CallCounter;  // gRPC keeps it for the process's life.
      grpc::Server::SetGlobalCallbacks(c);
      return c;
    }();
    return *counter;
  }
  void PreSynchronousRequest(grpc::ServerContext* context) override {
    running_.fetch_add(1);
    if (const absl::string_view id = ReceivedRequestId(*context); !id.empty()) scope.emplace(id);
  }
  void PostSynchronousRequest(grpc::ServerContext*) override {
    scope.reset();
    running_.fetch_sub(1);
  }
  int running() const { return running_.load(); }

 private:
  std::atomic<int> running_{0};
};

}  // namespace

absl::StatusOr<std::unique_ptr<GrpcServer>> GrpcServer::Start(const std::string& listen,
                                                              const std::vector<grpc::Service*>& services) {
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos || colon + 1 == listen.size()) {
    return absl::InvalidArgumentError(absl::StrCat("listen address '", listen, "' is not host:port"));
  }
  CallCounter::Get();
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.SetMaxReceiveMessageSize(64 << 20);
  builder.AddListeningPort(listen, grpc::InsecureServerCredentials(), &port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  std::unique_ptr<GrpcServer> out(new GrpcServer);
  out->server_ = builder.BuildAndStart();
  if (out->server_ == nullptr || port == 0) {
    return absl::AlreadyExistsError(absl::StrCat(
        "cannot listen on ", listen, ": the port is in use or the address is not of this machine; choose another"));
  }
  out->address_ = absl::StrCat(listen.substr(0, colon), ":", port);
  return out;
}

void GrpcServer::Stop(absl::Duration grace) {
  if (server_ == nullptr) return;
  // gRPC's own graceful shutdown also waits for idle clients to hang up, and they do not look at their connections
  // while idle.
  const absl::Time end = absl::Now() + grace;
  while (CallCounter::Get().running() > 0 && absl::Now() < end) absl::SleepFor(absl::Milliseconds(5));
  server_->Shutdown(absl::ToChronoTime(absl::Now()));
  server_ = nullptr;
}

}  // namespace perigee
