// Contexts over real gRPC: what an operator is shown, and what is refused.
#include "cluster/contexts/context_rpc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/contexts/folder_registry.h"
#include "cluster/contexts/open_registry.h"
#include "fake_nodes.h"
#include "members.h"
#include "proto/grpc_server.h"

namespace perigee::cluster {
namespace {

using ::testing::HasSubstr;

class ContextRpcTest : public FolderTest {
 protected:
  void SetUp() override {
    tokenizer_ = *model::LoadTokenizer(std::string(PERIGEE_SOURCE_DIR) + "/models/podling");
    registry_ = *OpenContextRegistry("static:" + folder_ + "/members.json", {}, "");
    const auto prefill = [](const std::string&, const std::vector<int32_t>&, const std::function<bool()>&) {
      return absl::InvalidArgumentError("not this one");
    };
    service_ = std::make_unique<ContextService>(registry_.get(), tokenizer_.get(), prefill,
                                                ContextServiceOptions{.window_tokens = 4096});
    rpc_ = std::make_unique<ContextRpc>(service_.get(), [](absl::string_view secret) { return secret == "known"; });
    server_ = *GrpcServer::Start("127.0.0.1:0", {rpc_.get()});
  }
  ContextClient Client(const std::string& secret = "known") { return ContextClient(server_->address(), secret); }
  static v1::PutContextRequest Text(const std::string& id, const std::string& text) {
    v1::PutContextRequest request;
    request.set_tenant("ann");
    request.set_id(id);
    request.set_text(text);
    return request;
  }

  std::unique_ptr<model::Tokenizer> tokenizer_;
  std::unique_ptr<ContextRegistry> registry_;
  std::unique_ptr<ContextService> service_;
  std::unique_ptr<ContextRpc> rpc_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(ContextRpcTest, EveryFieldTravels) {
  ContextClient client = Client();
  const auto put = client.Put(Text("river", "the pass key"));
  ASSERT_TRUE(put.ok()) << put.status();
  EXPECT_TRUE(put->created());
  ASSERT_TRUE(Becomes([&] { return client.Get("ann", "river")->state() == v1::CONTEXT_STATE_FAILED; }));
  const auto shown = client.Get("ann", "river");
  ASSERT_TRUE(shown.ok()) << shown.status();
  const ContextRecord record = *registry_->Get("ann", "river");
  EXPECT_EQ(shown->version(), 1u);
  EXPECT_EQ(shown->content(), AsView(record.content));
  EXPECT_EQ(shown->bytes(), record.bytes);
  EXPECT_EQ(shown->tokens(), tokenizer_->Encode("the pass key", false)->size());
  EXPECT_EQ(absl::FromUnixMicros(shown->created_unix_us()), record.created);
  EXPECT_EQ(absl::FromUnixMicros(shown->changed_unix_us()), record.changed);
  EXPECT_EQ(shown->error(), "not this one");
  v1::PutContextRequest ids = Text("ids", "");
  ids.mutable_tokens()->add_ids(300);
  ASSERT_TRUE(client.Put(ids).ok());
  EXPECT_EQ(client.Get("ann", "ids")->tokens(), 1u);
  EXPECT_FALSE(client.Put(ids)->created());
  EXPECT_TRUE(std::filesystem::exists(folder_ + "/contexts")) << "beside the file of members";
}

TEST_F(ContextRpcTest, ListsAreReadPageByPage) {
  ContextClient client = Client();
  for (int i = 0; i < 101; ++i) ASSERT_TRUE(client.Put(Text(absl::StrCat("c", 1000 + i), "x")).ok());
  const auto first = client.List("ann", "");
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->contexts_size(), 100);
  EXPECT_TRUE(first->more());
  const auto rest = client.List("ann", first->contexts(99).id());
  EXPECT_EQ(rest->contexts_size(), 1);
  EXPECT_FALSE(rest->more());
}

TEST_F(ContextRpcTest, ErrorsNameTheGatewayAndTheReason) {
  ContextClient client = Client();
  for (const absl::Status& status : {client.Get("ann", "none").status(), client.Delete("ann", "none")}) {
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(server_->address()));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(client.Put(Text("a/b", "x")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(client.Put(Text("a", "\xFF")).status()));
  ASSERT_TRUE(client.Put(Text("a", "x")).ok());
  EXPECT_TRUE(absl::IsNotFound(client.Get("bob", "a").status()));
  EXPECT_EQ(client.Delete("ann", "a"), absl::OkStatus());
}

TEST_F(ContextRpcTest, WhoDoesNotKnowTheSecretIsRefused) {
  for (const std::string secret : {"", "guessed"}) {
    ContextClient client = Client(secret);
    for (const absl::Status& status : {client.Put(Text("a", "x")).status(), client.Get("ann", "a").status(),
                                       client.List("ann", "").status(), client.Delete("ann", "a")}) {
      EXPECT_TRUE(absl::IsUnauthenticated(status)) << status;
    }
  }
}

TEST_F(ContextRpcTest, AFolderIsForMembersInAFileOnly) {
  EXPECT_TRUE(absl::IsInvalidArgument(OpenContextRegistry("etcd:127.0.0.1:1", {}, folder_).status()));
  EXPECT_TRUE(OpenContextRegistry("etcd:127.0.0.1:1", {}, "").ok()) << "etcd is called when it is needed";
  EXPECT_TRUE(OpenContextRegistry("static:/no/members.json", {}, folder_ + "/other").ok());
}

}  // namespace
}  // namespace perigee::cluster
