// A store's control plane with a hand on it: every call goes through to the real store, some after the test had a say.
#ifndef PERIGEE_TESTS_NODE_FAULTY_CONTROL_H_
#define PERIGEE_TESTS_NODE_FAULTY_CONTROL_H_

#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <memory>
#include <string>

#include "kvstore/service.h"
#include "perigee/v1/kvstore.grpc.pb.h"
#include "proto/grpc_server.h"

namespace perigee {

class FaultyControl final : public v1::KvStore::Service {
 public:
  // What becomes of the n-th Commit, counted from 0: runs before it goes through and may change it or, with an error,
  // answer in the store's place. Runs on the server's threads.
  std::function<grpc::Status(int n, v1::CommitRequest* request)> on_commit;
  // Runs on the way back.
  std::function<void(int n, v1::CommitResponse* response)> after_commit;
  std::atomic<int> commits{0};

  // Before on_commit is set nothing is changed. Set hooks before the first call.
  explicit FaultyControl(const std::string& store)
      : stub_(v1::KvStore::NewStub(grpc::CreateChannel(store, grpc::InsecureChannelCredentials()))) {
    auto server = GrpcServer::Start("127.0.0.1:0", {this});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  ~FaultyControl() override { server_ = nullptr; }
  const std::string& address() const { return server_->address(); }

  grpc::Status Commit(grpc::ServerContext* context, const v1::CommitRequest* request,
                      v1::CommitResponse* response) override {
    const int n = commits++;
    v1::CommitRequest changed = *request;
    if (on_commit) {
      const grpc::Status status = on_commit(n, &changed);
      if (!status.ok()) return status;
    }
    const grpc::Status status = Through(context, &v1::KvStore::Stub::Commit, &changed, response);
    if (after_commit) after_commit(n, response);
    return status;
  }
#define PERIGEE_THROUGH(Method)                                                         \
  grpc::Status Method(grpc::ServerContext* context, const v1::Method##Request* request, \
                      v1::Method##Response* response) override {                        \
    return Through(context, &v1::KvStore::Stub::Method, request, response);             \
  }
  PERIGEE_THROUGH(Hello)
  PERIGEE_THROUGH(Reserve)
  PERIGEE_THROUGH(Abort)
  PERIGEE_THROUGH(Lookup)
  PERIGEE_THROUGH(Acquire)
  PERIGEE_THROUGH(Renew)
  PERIGEE_THROUGH(Release)
  PERIGEE_THROUGH(ReportCorrupt)
  PERIGEE_THROUGH(Delete)
  PERIGEE_THROUGH(List)
  PERIGEE_THROUGH(Stat)
#undef PERIGEE_THROUGH

 private:
  template <typename Method, typename Request, typename Response>
  grpc::Status Through(grpc::ServerContext* from, Method method, const Request* request, Response* response) {
    grpc::ClientContext context;
    const auto session = from->client_metadata().find(kvstore::kSessionMetadata);
    if (session != from->client_metadata().end()) {
      context.AddMetadata(kvstore::kSessionMetadata, std::string(session->second.data(), session->second.size()));
    }
    return (stub_.get()->*method)(&context, *request, response);
  }
  const std::unique_ptr<v1::KvStore::Stub> stub_;
  std::unique_ptr<GrpcServer> server_;
};

}  // namespace perigee

#endif  // PERIGEE_TESTS_NODE_FAULTY_CONTROL_H_
