// One node's entry in etcd, kept alive by a thread of its own.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_ETCD_REGISTRATION_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_ETCD_REGISTRATION_H_

#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cluster/membership/etcd_client.h"
#include "cluster/membership/etcd_state.h"
#include "cluster/membership/membership.h"

namespace perigee::cluster {

class EtcdRegistration : public Registration {
 public:
  // As Membership::Join. `node` has been checked.
  static absl::StatusOr<std::unique_ptr<Registration>> Join(std::shared_ptr<EtcdClient> client, NodeRecord node);
  ~EtcdRegistration() override;
  void SetLoad(const NodeLoad& load) override;
  absl::Status Status() const override;

 private:
  enum class Occasion { kStart, kAgain };
  EtcdRegistration(std::shared_ptr<EtcdClient> client, NodeRecord node);

  // Of the thread, and before it exists of Join. Enter: makes sure that the entry is there and under the lease.
  absl::Status Enter(Occasion occasion);
  absl::Status CheckOthers(const mvccpb::KeyValue* node, const mvccpb::KeyValue* removed, Occasion occasion) const;
  absl::Status Refresh();
  absl::Status TellLoad();
  void Keep();

  const std::shared_ptr<EtcdClient> client_;
  const NodeRecord node_;
  const EtcdKeys keys_;
  EtcdLease lease_;  // id 0: none.
  bool out_for_good_ = false;

  mutable absl::Mutex mu_;
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  NodeLoad load_ ABSL_GUARDED_BY(mu_);
  bool load_told_ ABSL_GUARDED_BY(mu_) = true;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread keeper_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_ETCD_REGISTRATION_H_
