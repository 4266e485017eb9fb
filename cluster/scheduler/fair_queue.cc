#include "cluster/scheduler/fair_queue.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"

namespace perigee::cluster {
namespace {

constexpr absl::Duration kAskEvery = absl::Milliseconds(50);
constexpr size_t kMaxTenants = 65536;

}  // namespace

FairQueue::Turn::Turn(Turn&& other) noexcept : queue_(std::exchange(other.queue_, nullptr)), begun_(other.begun_) {}

FairQueue::Turn& FairQueue::Turn::operator=(Turn&& other) noexcept {
  std::swap(queue_, other.queue_);
  std::swap(begun_, other.begun_);
  return *this;
}

FairQueue::Turn::~Turn() {
  if (queue_ != nullptr) queue_->Leave(begun_);
}

void FairQueue::SetPlaces(size_t places) {
  absl::MutexLock lock(&mu_);
  places_ = places;
  CallNext();
}

size_t FairQueue::waiting() const {
  absl::MutexLock lock(&mu_);
  return waiting_.size();
}

size_t FairQueue::serving() const {
  absl::MutexLock lock(&mu_);
  return serving_;
}

absl::Status FairQueue::Admit(absl::Time deadline) const {
  if (serving_ < places_ && waiting_.empty()) return absl::OkStatus();
  if (waiting_.size() >= options_.max_waiting) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the cluster is busy: ", waiting_.size(), " requests are waiting already; try again later"));
  }
  const absl::Duration expected =
      service_ * static_cast<double>(waiting_.size() + 1) / static_cast<double>(std::max<size_t>(places_, 1));
  const absl::Duration left = deadline - absl::Now();
  if (expected > std::min(options_.max_wait, left)) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the cluster is busy: ", waiting_.size(), " requests are waiting, and this one's turn would come in ",
        absl::FormatDuration(absl::Trunc(expected, absl::Milliseconds(100))), "; try again later"));
  }
  return absl::OkStatus();
}

absl::StatusOr<FairQueue::Turn> FairQueue::Enter(const std::string& tenant, double cost, absl::Time deadline,
                                                 absl::FunctionRef<bool()> cancelled) {
  absl::MutexLock lock(&mu_);
  PERIGEE_RETURN_IF_ERROR(Admit(deadline));
  if (finish_.size() >= kMaxTenants) {
    absl::erase_if(finish_, [this](const auto& entry) { return entry.second <= now_; });
  }
  double& finish = finish_[tenant];
  const double before = finish;
  const double start = std::max(now_, finish);
  finish = start + std::max(cost, 1e-9);
  const auto mine = waiting_.insert(waiting_.end(), {.start = start});
  CallNext();
  while (!mine->called) {
    mu_.AwaitWithDeadline(absl::Condition(&mine->called), std::min(deadline, absl::Now() + kAskEvery));
    if (mine->called) break;
    const bool late = absl::Now() >= deadline;
    mu_.Unlock();  // Whatever it looks at may take its time.
    const bool gone = !late && cancelled();
    mu_.Lock();
    if (mine->called || (!late && !gone)) continue;
    waiting_.erase(mine);
    // What it did not use is its tenant's again, unless others of the tenant count on it already.
    if (const auto found = finish_.find(tenant);
        found != finish_.end() && found->second == start + std::max(cost, 1e-9)) {
      found->second = before;
    }
    if (late) return absl::DeadlineExceededError("the request's time was over before its turn came");
    return absl::CancelledError("the caller is gone");
  }
  waiting_.erase(mine);
  Turn turn;
  turn.queue_ = this;
  turn.begun_ = absl::Now();
  return turn;
}

// Called waiters stay in the list until they have woken up, but are no longer in the running.
void FairQueue::CallNext() {
  while (serving_ < places_) {
    Waiter* next = nullptr;
    for (Waiter& waiter : waiting_) {
      if (!waiter.called && (next == nullptr || waiter.start < next->start)) next = &waiter;
    }
    if (next == nullptr) return;
    next->called = true;
    now_ = std::max(now_, next->start);
    ++serving_;
  }
}

void FairQueue::Leave(absl::Time begun) {
  absl::MutexLock lock(&mu_);
  const absl::Duration took = absl::Now() - begun;
  service_ = service_ == absl::ZeroDuration() ? took : service_ * 0.9 + took * 0.1;
  --serving_;
  CallNext();
}

}  // namespace perigee::cluster
