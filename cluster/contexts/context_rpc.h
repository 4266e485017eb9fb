// Contexts over gRPC, both sides: perigee/v1/context.proto says what each call does.
#ifndef PERIGEE_CLUSTER_CONTEXTS_CONTEXT_RPC_H_
#define PERIGEE_CLUSTER_CONTEXTS_CONTEXT_RPC_H_

#include <grpcpp/grpcpp.h>

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "cluster/contexts/context_service.h"
#include "perigee/v1/context.grpc.pb.h"

namespace perigee::cluster {

// Any thread may call.
class ContextRpc final : public v1::Contexts::Service {
 public:
  // `service` outlives it. admits: as AdminOptions has it.
  ContextRpc(ContextService* service, std::function<bool(absl::string_view secret)> admits)
      : service_(service), admits_(std::move(admits)) {}

  grpc::Status Put(grpc::ServerContext* context, const v1::PutContextRequest* request,
                   v1::PutContextResponse* response) override;
  grpc::Status Get(grpc::ServerContext* context, const v1::GetContextRequest* request,
                   v1::ContextEntry* response) override;
  grpc::Status List(grpc::ServerContext* context, const v1::ListContextsRequest* request,
                    v1::ListContextsResponse* response) override;
  grpc::Status Delete(grpc::ServerContext* context, const v1::DeleteContextRequest* request,
                      v1::DeleteContextResponse* response) override;

 private:
  ContextService* const service_;
  const std::function<bool(absl::string_view secret)> admits_;
};

// Any thread may call. Errors name the address. UNAVAILABLE: nobody answers there.
class ContextClient {
 public:
  // secret: "" for gateways that want none.
  ContextClient(std::string address, std::string secret, absl::Duration call_deadline = absl::Seconds(30));

  absl::StatusOr<v1::PutContextResponse> Put(const v1::PutContextRequest& request);
  absl::StatusOr<v1::ContextEntry> Get(const std::string& tenant, const std::string& id);
  absl::StatusOr<v1::ListContextsResponse> List(const std::string& tenant, const std::string& after);
  absl::Status Delete(const std::string& tenant, const std::string& id);

 private:
  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::Contexts::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                           Response*),
                                const Request& request);

  const std::string address_, secret_;
  const absl::Duration call_deadline_;
  std::unique_ptr<v1::Contexts::Stub> stub_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_CONTEXT_RPC_H_
