// The admin service over real gRPC: what it shows, changes and refuses, with a cluster and without.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "cluster/admin/admin_client.h"
#include "cluster/admin/admin_service.h"
#include "cluster/membership/static_membership.h"
#include "members.h"
#include "proto/grpc_server.h"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class AdminTest : public ::testing::Test {
 protected:
  void Serve(AdminOptions options, bool begin = true) {
    options.version = "1.2.3";
    options.settings = {{"dram-mib", "256", true}, {"policy", "default", false}};
    service_ = std::make_unique<AdminService>(std::move(options));
    auto server = GrpcServer::Start("127.0.0.1:0", {service_.get()});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    if (begin) Begin();
  }
  void Begin() {
    service_->Begin(MakeStore("s1"), [] {
      v1::ProgressResponse progress;
      progress.set_running(7);
      return progress;
    });
  }
  AdminOptions InCluster() {
    MembershipFile file;
    file.nodes = {MakeStore("s1", 7001), MakeStore("s2", 7002), MakeNode("g1", Role::kGateway, 7003)};
    file.nodes[2].http_address = "127.0.0.1:8080";
    membership_ = StaticMembership::InMemory(file);
    AdminOptions options;
    options.membership = membership_.get();
    options.keeps_entries = true;
    return options;
  }
  AdminClient Client(const std::string& secret = "") const { return AdminClient(server_->address(), secret); }

  std::unique_ptr<StaticMembership> membership_;
  std::unique_ptr<AdminService> service_;
  std::unique_ptr<GrpcServer> server_;
};

TEST_F(AdminTest, ShowsTheClusterItsSettingsAndItsWork) {
  Serve(InCluster());
  AdminClient client = Client();
  const auto view = client.GetView();
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_THAT(Ids(view->cluster), ElementsAre("g1", "s1", "s2"));
  EXPECT_EQ(view->cluster.nodes, membership_->View()->nodes) << "every field travels";
  EXPECT_EQ(view->cluster.placement_epoch, membership_->View()->placement_epoch);
  EXPECT_EQ(view->self, "s1");
  EXPECT_FALSE(view->alone);
  EXPECT_EQ(client.GetVersion()->version(), "1.2.3");
  EXPECT_EQ(client.GetVersion()->role(), v1::NODE_ROLE_STORE);
  EXPECT_EQ(client.GetProgress()->running(), 7u);
  const auto config = client.GetConfig();
  ASSERT_EQ(config->settings_size(), 2);
  EXPECT_EQ(config->settings(0).name(), "dram-mib");
  EXPECT_TRUE(config->settings(0).given());
  EXPECT_FALSE(config->settings(1).given());
}

TEST_F(AdminTest, PlacementIsTheMapsOwn) {
  Serve(InCluster());
  AdminClient client = Client();
  const kvstore::StoreMap map = StoresOf(*membership_->View());
  const pod::BlockKey root{Sha256("a root")};
  v1::PlacementRequest request;
  request.set_root(root.digest.data(), root.digest.size());
  auto placement = client.GetPlacement(request);
  ASSERT_TRUE(placement.ok()) << placement.status();
  EXPECT_EQ(placement->group(), kvstore::GroupOf(root));
  EXPECT_THAT(placement->owners(), ElementsAre(map.stores[map.Owners(kvstore::GroupOf(root), 1)[0]].id));
  EXPECT_EQ(placement->readers_size(), 2);
  request.set_replicas(2);
  EXPECT_EQ(client.GetPlacement(request)->owners_size(), 2);
  request.set_replicas(9);
  EXPECT_EQ(client.GetPlacement(request).status().code(), absl::StatusCode::kInvalidArgument);
  request.set_replicas(1);
  request.set_group(65536);
  EXPECT_THAT(std::string(client.GetPlacement(request).status().message()), HasSubstr("65536"));
  request.clear_group();
  request.set_root("short");
  EXPECT_FALSE(client.GetPlacement(request).ok());
}

TEST_F(AdminTest, DrainsEntersAndRemovesNodes) {
  Serve(InCluster());
  AdminClient client = Client();
  ASSERT_TRUE(client.SetState("s2", NodeState::kDraining).ok());
  EXPECT_TRUE(AwaitState(*membership_, "s2", NodeState::kDraining));
  ASSERT_TRUE(client.SetState("s2", NodeState::kServing).ok());
  EXPECT_TRUE(AwaitState(*membership_, "s2", NodeState::kServing));
  EXPECT_EQ(client.SetState("nobody", NodeState::kDraining).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(client.Join(MakeStore("s3", 7009)).ok());
  EXPECT_THAT(AwaitIds(*membership_, {"g1", "s1", "s2", "s3"}), ElementsAre("g1", "s1", "s2", "s3"));
  EXPECT_EQ(client.Join(MakeStore("no good", 1)).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(client.Remove("s2").ok());
  EXPECT_THAT(AwaitIds(*membership_, {"g1", "s1", "s3"}), ElementsAre("g1", "s1", "s3"));
  EXPECT_EQ(client.Remove("s2").code(), absl::StatusCode::kNotFound);
}

TEST_F(AdminTest, NodesThatEnterThemselvesAreNotEntered) {
  AdminOptions options = InCluster();
  options.keeps_entries = false;
  Serve(std::move(options));
  EXPECT_EQ(Client().Join(MakeStore("s3")).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(membership_->View()->nodes.size(), 3u);
}

TEST_F(AdminTest, WithoutAClusterItKnowsItselfAndChangesNothing) {
  Serve({});
  const auto view = Client().GetView();
  ASSERT_TRUE(view.ok()) << view.status();
  EXPECT_TRUE(view->alone);
  EXPECT_THAT(Ids(view->cluster), ElementsAre("s1"));
  EXPECT_EQ(Client().SetState("s1", NodeState::kDraining).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Client().Remove("s1").code(), absl::StatusCode::kFailedPrecondition);
}

TEST_F(AdminTest, OnlyWhoKnowsTheSecretMayAskAndChange) {
  AdminOptions options = InCluster();
  options.admits = [](absl::string_view secret) { return secret == "right"; };
  Serve(std::move(options));
  for (const char* wrong : {"", "wrong"}) {
    AdminClient client = Client(wrong);
    EXPECT_EQ(client.GetView().status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(client.GetConfig().status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(client.GetProgress().status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(client.GetPlacement({}).status().code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(client.SetState("s2", NodeState::kDraining).code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(client.Remove("s2").code(), absl::StatusCode::kUnauthenticated);
    EXPECT_EQ(client.Join(MakeStore("s3")).code(), absl::StatusCode::kUnauthenticated);
    EXPECT_TRUE(client.GetVersion().ok());
  }
  EXPECT_EQ(membership_->View()->nodes.size(), 3u);
  EXPECT_TRUE(Client("right").GetView().ok());
}

TEST_F(AdminTest, BeforeTheProcessKnowsItselfItSaysSo) {
  Serve({}, /*begin=*/false);
  EXPECT_EQ(Client().GetView().status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(Client().GetProgress().status().code(), absl::StatusCode::kUnavailable);
  Begin();
  EXPECT_TRUE(Client().GetProgress().ok());
}

}  // namespace
}  // namespace perigee::cluster
