#include "cluster/membership/view_holder.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace perigee::cluster {

ViewHolder::ViewHolder() : view_(std::make_shared<const ClusterView>(ClusterView{.nodes = {}, .as_of = {}})) {}

std::shared_ptr<const ClusterView> ViewHolder::View() const {
  absl::MutexLock lock(&mu_);
  return view_;
}

bool ViewHolder::AwaitNewer(uint64_t version, absl::Time deadline) const {
  absl::MutexLock lock(&mu_);
  const auto newer = [this, version]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return view_->version > version; };
  return mu_.AwaitWithDeadline(absl::Condition(&newer), deadline);
}

void ViewHolder::Publish(uint64_t placement_epoch, std::vector<NodeRecord> nodes) {
  std::sort(nodes.begin(), nodes.end(), [](const NodeRecord& a, const NodeRecord& b) { return a.id < b.id; });
  auto next = std::make_shared<ClusterView>(
      ClusterView{.placement_epoch = placement_epoch, .nodes = std::move(nodes), .as_of = absl::Now()});
  absl::MutexLock lock(&mu_);
  const bool same = view_->version > 0 && view_->placement_epoch == placement_epoch && view_->nodes == next->nodes;
  next->version = view_->version + (same ? 0 : 1);
  view_ = std::move(next);
}

void ViewHolder::Touch() {
  absl::MutexLock lock(&mu_);
  auto next = std::make_shared<ClusterView>(*view_);
  next->as_of = absl::Now();
  view_ = std::move(next);
}

}  // namespace perigee::cluster
