// A process as a member of the cluster: it sees the others, is seen by them, and tells how busy it is.
#ifndef PERIGEE_CLUSTER_MEMBER_H_
#define PERIGEE_CLUSTER_MEMBER_H_

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cluster/membership/directory_feeder.h"
#include "cluster/membership/open_membership.h"
#include "kvstore/placement.h"

namespace perigee::cluster {

// Any thread may call, but for Join and Leave.
class Member {
 public:
  // spec: see OpenMembership.
  static absl::StatusOr<std::unique_ptr<Member>> Open(const std::string& spec, const EtcdOptions& etcd);
  // Leaves.
  ~Member();

  Membership& membership() { return *membership_; }
  // Kept in step with the cluster's stores.
  std::shared_ptr<kvstore::StoreDirectory> stores() const { return stores_; }

  // Enters, and from then on says every two seconds what `load` says, until Leave.
  absl::Status Join(const NodeRecord& node, std::function<NodeLoad()> load);
  void Leave();
  // OK for one that has entered and is to be given work. Whether the cluster's source answers just now does not matter:
  // losing it stops changes, not traffic.
  absl::Status Ready() const;

 private:
  Member() = default;
  void Report();

  std::unique_ptr<Membership> membership_;
  std::shared_ptr<kvstore::StoreDirectory> stores_ = std::make_shared<kvstore::StoreDirectory>();
  std::unique_ptr<DirectoryFeeder> feeder_;
  std::function<NodeLoad()> load_;
  mutable absl::Mutex mu_;
  std::string id_ ABSL_GUARDED_BY(mu_);
  std::unique_ptr<Registration> registration_ ABSL_GUARDED_BY(mu_);
  bool leaving_ ABSL_GUARDED_BY(mu_) = false;
  std::thread reporter_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBER_H_
