#include "cluster/member.h"

#include <utility>

#include "base/status.h"

namespace perigee::cluster {
namespace {

constexpr absl::Duration kReportEvery = absl::Seconds(2);

}  // namespace

absl::StatusOr<std::unique_ptr<Member>> Member::Open(const std::string& spec, const EtcdOptions& etcd) {
  std::unique_ptr<Member> member(new Member);
  PERIGEE_ASSIGN_OR_RETURN(member->membership_, OpenMembership(spec, etcd));
  member->feeder_ = std::make_unique<DirectoryFeeder>(member->membership_.get(), member->stores_.get());
  return member;
}

Member::~Member() { Leave(); }

absl::Status Member::Join(const NodeRecord& node, std::function<NodeLoad()> load) {
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<Registration> registration, membership_->Join(node));
  load_ = std::move(load);
  {
    absl::MutexLock lock(&mu_);
    id_ = node.id;
    registration_ = std::move(registration);
  }
  reporter_ = std::thread([this] { Report(); });
  return absl::OkStatus();
}

void Member::Report() {
  for (;;) {
    const NodeLoad load = load_();
    absl::MutexLock lock(&mu_);
    registration_->SetLoad(load);
    if (mu_.AwaitWithTimeout(absl::Condition(&leaving_), kReportEvery)) return;
  }
}

void Member::Leave() {
  if (!reporter_.joinable()) return;
  {
    absl::MutexLock lock(&mu_);
    leaving_ = true;
  }
  reporter_.join();
  std::unique_ptr<Registration> registration;  // It says good-bye, which may take its time.
  absl::MutexLock lock(&mu_);
  registration.swap(registration_);
}

absl::Status Member::Ready() const {
  absl::MutexLock lock(&mu_);
  if (registration_ == nullptr) return absl::UnavailableError("it is not in the cluster");
  if (const absl::Status status = registration_->Status(); !status.ok() && !absl::IsUnavailable(status)) return status;
  const std::shared_ptr<const ClusterView> view = membership_->View();
  const NodeRecord* self = FindNode(*view, id_);
  if (self == nullptr || self->state == NodeState::kServing) return absl::OkStatus();
  return absl::UnavailableError("it is being drained");
}

}  // namespace perigee::cluster
