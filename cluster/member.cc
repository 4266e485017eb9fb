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
  PERIGEE_ASSIGN_OR_RETURN(registration_, membership_->Join(node));
  load_ = std::move(load);
  reporter_ = std::thread([this] { Report(); });
  return absl::OkStatus();
}

void Member::Report() {
  for (;;) {
    registration_->SetLoad(load_());
    absl::MutexLock lock(&mu_);
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
  registration_.reset();
}

}  // namespace perigee::cluster
