// A request's spans over several processes: how they are asked for, and the file that they become.
#include "base/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "cluster/admin/admin_service.h"
#include "cluster/channel.h"
#include "cluster/trace_file.h"
#include "members.h"
#include "proto/grpc_server.h"
#include "proto/request_id.h"

namespace perigee::cluster {
namespace {

using Json = nlohmann::json;
using ::testing::HasSubstr;

class TraceTest : public ::testing::Test {
 protected:
  TraceTest() {
    AdminOptions options;
    options.admits = [](absl::string_view secret) { return secret == "sesame"; };
    service_ = std::make_unique<AdminService>(std::move(options));
    service_->Begin(node_, [] { return v1::ProgressResponse(); });
    auto server = GrpcServer::Start("127.0.0.1:0", {service_.get()});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    node_.address = server_->address();
  }
  NodeTrace Collect(const std::string& id, const std::string& secret = "sesame") {
    std::vector<NodeTrace> traces = CollectTrace({node_}, secret, id, absl::Seconds(20));
    EXPECT_EQ(traces.size(), 1u);
    return traces.at(0);
  }
  NodeRecord node_ = MakeNode("here", Role::kDecode, 7001);
  std::unique_ptr<AdminService> service_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(TraceTest, AServerTellsWhatItRemembersToThoseWhoKnowTheSecret) {
  {
    const RequestScope scope("tell-1");
    Span span("work");
    span.Set("tokens", 3);
  }
  const NodeTrace trace = Collect("tell-1");
  ASSERT_TRUE(trace.status.ok()) << trace.status;
  ASSERT_EQ(trace.trace.spans_size(), 1);
  EXPECT_EQ(trace.trace.spans(0).name(), "work");
  EXPECT_EQ(trace.trace.spans(0).attributes().at("tokens"), "3");
  EXPECT_EQ(trace.clock_ahead_us, 0);  // It is this process's clock.
  EXPECT_EQ(Collect("tell-2").trace.spans_size(), 0);
  EXPECT_TRUE(absl::IsUnauthenticated(Collect("tell-1", "guess").status));
}

TEST_F(TraceTest, ACallWorksForTheRequestThatItsMetadataNames) {
  // Any call will do: this one is to say which request its thread works for.
  class Asked final : public v1::AdminService::Service {
   public:
    grpc::Status Version(grpc::ServerContext*, const v1::VersionRequest*, v1::VersionResponse* response) override {
      response->set_version(std::string(CurrentRequest()));
      return grpc::Status::OK;
    }
  };
  Asked service;
  const auto server = GrpcServer::Start("127.0.0.1:0", {&service});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto stub = v1::AdminService::NewStub(ConnectTo((*server)->address()));
  const auto ask = [&](const std::string& id) {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(20)));
    context.AddMetadata(kRequestIdKey, id);
    v1::VersionResponse response;
    EXPECT_TRUE(stub->Version(&context, {}, &response).ok());
    return response.version();
  };
  EXPECT_EQ(ask("call-1"), "call-1");
  EXPECT_EQ(ask("not an id"), "");
  EXPECT_EQ(ask("call-2"), "call-2");
}

TEST_F(TraceTest, AProcessThatDoesNotAnswerIsNamed) {
  server_.reset();
  const std::vector<NodeTrace> traces = CollectTrace({node_}, "sesame", "x", absl::Seconds(2));
  ASSERT_EQ(traces.size(), 1u);
  EXPECT_FALSE(traces[0].status.ok());
  const Json file = Json::parse(TraceToJson("x", traces));
  EXPECT_TRUE(file["otherData"]["did_not_answer"].contains("here"));
  EXPECT_TRUE(file["traceEvents"].empty());
}

TEST_F(TraceTest, WhatCannotBeAnIdIsRefused) {
  const NodeTrace trace = Collect("no id");
  EXPECT_TRUE(absl::IsInvalidArgument(trace.status)) << trace.status;
}

NodeTrace Node(const std::string& name, int64_t ahead_us) {
  NodeTrace node;
  node.node.id = name;
  node.clock_ahead_us = ahead_us;
  return node;
}

void AddSpan(NodeTrace& node, const std::string& name, int64_t begin_us, int64_t end_us, uint32_t thread = 1) {
  v1::TraceSpan* span = node.trace.add_spans();
  span->set_name(name);
  span->set_begin_unix_us(begin_us);
  span->set_end_unix_us(end_us);
  span->set_thread(thread);
}

TEST(TraceFileTest, ClocksOfHostsAreBroughtTogether) {
  NodeTrace gateway = Node("gateway", 0), decode = Node("decode", 5000);
  AddSpan(gateway, "decode call", 1000, 2000);
  AddSpan(decode, "generate", 6100, 6900);
  AddSpan(decode, "first token", 6500, 6500);
  const Json file = Json::parse(TraceToJson("r", {gateway, decode}));
  std::map<std::string, Json> events;
  for (const Json& event : file["traceEvents"]) {
    if (event["ph"] != "M") events[event["name"]] = event;
  }
  ASSERT_EQ(events.size(), 3u);
  EXPECT_EQ(events["decode call"]["ts"], 1000);
  EXPECT_EQ(events["generate"]["ts"], 1100);
  EXPECT_EQ(events["generate"]["dur"], 800);
  EXPECT_EQ(events["generate"]["ph"], "X");
  EXPECT_EQ(events["first token"]["ph"], "i");
  EXPECT_EQ(events["first token"]["ts"], 1500);
  EXPECT_NE(events["generate"]["pid"], events["decode call"]["pid"]);
}

TEST(TraceFileTest, NamesAreEscaped) {
  NodeTrace node = Node("gateway", 0);
  AddSpan(node, "a \"name\"\n", 1, 2);
  (*node.trace.mutable_spans(0)->mutable_attributes())["key"] = "value";
  const Json file = Json::parse(TraceToJson("r", {node}));
  EXPECT_EQ(file["traceEvents"][1]["name"], "a \"name\"\n");
  EXPECT_EQ(file["traceEvents"][1]["args"]["key"], "value");
}

}  // namespace
}  // namespace perigee::cluster
