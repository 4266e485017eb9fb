// Nodes for tests of membership, and waiting for what a view should become.
#ifndef PERIGEE_TESTS_CLUSTER_MEMBERS_H_
#define PERIGEE_TESTS_CLUSTER_MEMBERS_H_

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "cluster/membership/membership.h"

namespace perigee::cluster {

inline constexpr absl::Duration kDeadline = absl::Seconds(20);

inline NodeRecord MakeNode(const std::string& id, Role role, int port = 7100) {
  NodeRecord node;
  node.id = id;
  node.role = role;
  node.address = absl::StrCat("127.0.0.1:", port);
  return node;
}
inline NodeRecord MakeStore(const std::string& id, int port = 7100) { return MakeNode(id, Role::kStore, port); }

inline std::vector<std::string> Ids(const ClusterView& view) {
  std::vector<std::string> ids;
  for (const NodeRecord& node : view.nodes) ids.push_back(node.id);
  return ids;
}

// Until a view is as wanted; the last one looked at.
inline std::shared_ptr<const ClusterView> AwaitView(const Membership& membership,
                                                    const std::function<bool(const ClusterView&)>& wanted,
                                                    absl::Duration within = kDeadline) {
  const absl::Time deadline = absl::Now() + within;
  for (;;) {
    const auto view = membership.View();
    if (wanted(*view) || !membership.AwaitNewer(view->version, deadline)) return view;
  }
}
inline std::vector<std::string> AwaitIds(const Membership& membership, const std::vector<std::string>& ids,
                                         absl::Duration within = kDeadline) {
  return Ids(*AwaitView(
      membership, [&](const ClusterView& view) { return Ids(view) == ids; }, within));
}
inline bool AwaitState(const Membership& membership, const std::string& id, NodeState state) {
  const auto is_so = [&](const ClusterView& view) {
    const NodeRecord* node = FindNode(view, id);
    return node != nullptr && node->state == state;
  };
  return is_so(*AwaitView(membership, is_so));
}

class FolderTest : public ::testing::Test {
 protected:
  FolderTest() {
    std::string name = testing::TempDir() + "/perigee_membership_XXXXXX";
    folder_ = ::mkdtemp(name.data());
  }
  ~FolderTest() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_TESTS_CLUSTER_MEMBERS_H_
