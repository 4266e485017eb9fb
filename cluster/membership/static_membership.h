// Membership from a file that names the nodes: what `perigee up` and people write, for clusters without etcd.
//
// {"epoch": 1, "nodes": [...]} (docs/formats.md, section 8.2). All processes on the machine, or on a shared file
// system, read the same file and look for changes twice a second. Changes from here are made under a lock (PATH.lock),
// and appear at once and whole. Whoever changes stores by hand need not raise the epoch: the first process that sees
// other stores under an epoch that it knows raises it in the file.
//
// The operator is trusted: a node is a member until it is taken out of the file, whether it lives or not, and joining
// replaces the entry of that id, whoever made it. Load is not told to others. A file that is gone or wrong keeps the
// last view, and is logged once.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_STATIC_MEMBERSHIP_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_STATIC_MEMBERSHIP_H_

#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/functional/function_ref.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cluster/membership/membership.h"
#include "cluster/membership/record.h"
#include "cluster/membership/view_holder.h"

namespace perigee::cluster {

struct StaticOptions {
  absl::Duration poll_interval = absl::Milliseconds(500);
  absl::Duration lock_deadline = absl::Seconds(5);  // Of waiting for others' changes to end.
};

class StaticMembership : public Membership {
 public:
  // NOT_FOUND without the file, INVALID_ARGUMENT for a wrong one.
  static absl::StatusOr<std::unique_ptr<StaticMembership>> Open(const std::string& path,
                                                                const StaticOptions& options = {});
  // The same without a file: for one process alone, and for tests.
  static std::unique_ptr<StaticMembership> InMemory(MembershipFile content = {});
  ~StaticMembership() override;

  std::shared_ptr<const ClusterView> View() const override { return holder_.View(); }
  bool AwaitNewer(uint64_t version, absl::Time deadline) const override {
    return holder_.AwaitNewer(version, deadline);
  }
  absl::StatusOr<std::unique_ptr<Registration>> Join(const NodeRecord& node) override;
  absl::Status SetState(const std::string& id, NodeState state) override;
  absl::Status Remove(const std::string& id) override;

 private:
  StaticMembership(std::string path, const StaticOptions& options) : path_(std::move(path)), options_(options) {}
  // Reads the content, lets `change` at it, and writes it, with a new epoch where stores are others.
  absl::Status Edit(absl::FunctionRef<absl::Status(MembershipFile&)> change);
  absl::Status EditFile(absl::FunctionRef<absl::Status(MembershipFile&)> change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Accept(MembershipFile content) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  // Looks at the file. An error: the view is as before.
  absl::Status Reload() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Watch();

  const std::string path_;  // Empty: in memory.
  const StaticOptions options_;
  ViewHolder holder_;
  absl::Mutex mu_;
  MembershipFile content_ ABSL_GUARDED_BY(mu_);  // That the view shows.
  std::string text_ ABSL_GUARDED_BY(mu_);        // Of the file, when it was read last.
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread watcher_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_STATIC_MEMBERSHIP_H_
