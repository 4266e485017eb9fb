// The last view of a membership: what both implementations keep for those that read and wait. Any thread may call.
#ifndef PERIGEE_CLUSTER_MEMBERSHIP_VIEW_HOLDER_H_
#define PERIGEE_CLUSTER_MEMBERSHIP_VIEW_HOLDER_H_

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "cluster/membership/membership.h"

namespace perigee::cluster {

class ViewHolder {
 public:
  ViewHolder();

  // Never null; version 0 and no nodes before the first Publish.
  std::shared_ptr<const ClusterView> View() const;
  // Until the version is above `version`; false when the deadline came first.
  bool AwaitNewer(uint64_t version, absl::Time deadline) const;
  // The source was heard now. Sorts the nodes; the version grows only where something is different.
  void Publish(uint64_t placement_epoch, std::vector<NodeRecord> nodes);
  // The source was heard now, and says what it said before.
  void Touch();

 private:
  mutable absl::Mutex mu_;
  std::shared_ptr<const ClusterView> view_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_MEMBERSHIP_VIEW_HOLDER_H_
