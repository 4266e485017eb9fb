#include "kvstore/remote/operations.h"

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace perigee::kvstore {
namespace {

// How long a missed deadline makes the tier count as slow.
constexpr absl::Duration kSlowMemory = absl::Seconds(10);

}  // namespace

RemoteOperation::~RemoteOperation() {
  if (table_ == nullptr) return;
  RemoteOperations& table = *table_;
  absl::MutexLock lock(&table.mu_);
  table.ReturnShare(*this);
}

RemoteOperations::RemoteOperations(const RemoteLimits& limits, absl::Duration slow_after)
    : limits_(limits), slow_after_(slow_after), thread_([this] { Run(); }) {}

RemoteOperations::~RemoteOperations() {
  {
    absl::MutexLock lock(&mu_);
    stop_ = true;
  }
  thread_.join();
}

absl::Status RemoteOperations::Begin(const std::shared_ptr<RemoteOperation>& operation, size_t objects, uint64_t bytes,
                                     absl::Time deadline) {
  absl::MutexLock lock(&mu_);
  if (shutting_down_) return absl::CancelledError("the remote tier is shutting down");
  // Each alone must be able to go through, however large.
  if ((objects_ > 0 && objects > 0 && objects_ + objects > limits_.max_operations) ||
      (bytes_ > 0 && bytes > 0 && bytes_ + bytes > limits_.max_bytes)) {
    return absl::AbortedError(absl::StrCat("the remote tier has ", objects_, " objects and ", bytes_,
                                           " bytes under way, at most ", limits_.max_operations, " and ",
                                           limits_.max_bytes, ": try again when some have ended, or raise the limits"));
  }
  RemoteOperation& o = *operation;
  o.table_ = this;
  o.id_ = next_id_++;
  o.begun_ = absl::Now();
  o.deadline_ = deadline;
  o.objects_ = objects;
  o.bytes_ = bytes;
  objects_ += objects;
  bytes_ += bytes;
  ++alive_;
  open_.emplace(o.id_, operation);
  deadlines_.emplace(deadline, o.id_);
  if (deadlines_.begin()->second == o.id_) changed_ = true;
  return absl::OkStatus();
}

void RemoteOperations::ReturnShare(RemoteOperation& operation) {
  objects_ -= operation.objects_;
  bytes_ -= operation.bytes_;
  --alive_;
  operation.table_ = nullptr;
}

void RemoteOperations::Forget(RemoteOperation& operation) {
  deadlines_.erase({operation.deadline_, operation.id_});
  open_.erase(operation.id_);
}

void RemoteOperations::Finish(RemoteOperation& operation, absl::FunctionRef<void()> done) {
  {
    absl::MutexLock lock(&mu_);
    ReturnShare(operation);
    Forget(operation);  // The caller holds a reference.
    ++callbacks_;
  }
  done();
  absl::MutexLock lock(&mu_);
  --callbacks_;
}

bool RemoteOperations::Withdraw(RemoteOperation& operation) {
  if (!operation.Claim()) return false;
  absl::MutexLock lock(&mu_);
  ReturnShare(operation);
  Forget(operation);
  return true;
}

void RemoteOperations::EndSoon(RemoteTier::OperationId id, absl::Status why) {
  absl::MutexLock lock(&mu_);
  if (open_.contains(id)) ending_.emplace_back(id, std::move(why));
}

bool RemoteOperations::HasWork() const { return stop_ || changed_ || !ending_.empty(); }

void RemoteOperations::Run() {
  for (;;) {
    std::vector<std::pair<std::shared_ptr<RemoteOperation>, absl::Status>> ending;
    {
      absl::MutexLock lock(&mu_);
      const absl::Time next = deadlines_.empty() ? absl::InfiniteFuture() : deadlines_.begin()->first;
      mu_.AwaitWithDeadline(absl::Condition(this, &RemoteOperations::HasWork), next);
      if (stop_) return;
      changed_ = false;
      for (auto& [id, why] : ending_) {
        const auto it = open_.find(id);
        if (it != open_.end()) ending.emplace_back(it->second, std::move(why));
      }
      ending_.clear();
      const absl::Time now = absl::Now();
      while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
        const auto it = open_.find(deadlines_.begin()->second);
        deadlines_.erase(deadlines_.begin());
        ending.emplace_back(it->second,
                            absl::DeadlineExceededError(absl::StrCat(
                                "the remote tier did not answer within ",
                                absl::FormatDuration(absl::Trunc(now - it->second->begun_, absl::Milliseconds(1))))));
        last_late_ = now;
      }
    }
    EndEarly(std::move(ending));
  }
}

void RemoteOperations::EndEarly(std::vector<std::pair<std::shared_ptr<RemoteOperation>, absl::Status>> operations) {
  for (auto& [operation, why] : operations) {
    // Whoever claimed it before is about to call `done`, and forgets it.
    if (!operation->Claim()) continue;
    {
      absl::MutexLock lock(&mu_);
      Forget(*operation);
      ++callbacks_;
    }
    operation->EndEarly(why);
    operation.reset();
    absl::MutexLock lock(&mu_);
    --callbacks_;
  }
}

void RemoteOperations::Shutdown() {
  absl::MutexLock lock(&mu_);
  shutting_down_ = true;
  for (const auto& [id, operation] : open_) {
    ending_.emplace_back(id, absl::CancelledError("the remote tier is shutting down"));
  }
  const auto idle = [this]()
                        ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return open_.empty() && alive_ == 0 && callbacks_ == 0; };
  mu_.Await(absl::Condition(&idle));
}

absl::Status CheckBatch(size_t objects, const RemoteLimits& limits) {
  if (objects >= 1 && objects <= limits.max_operations) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a batch of ", objects, " objects; give 1 to ", limits.max_operations));
}

RemoteOperations::Snapshot RemoteOperations::Look() const {
  absl::MutexLock lock(&mu_);
  const absl::Time now = absl::Now();
  Snapshot out{.operations = objects_, .bytes = bytes_, .oldest = {}, .slow = false};
  if (!open_.empty()) out.oldest = now - open_.begin()->second->begun_;
  out.slow = out.oldest > slow_after_ || now - last_late_ < kSlowMemory;
  return out;
}

}  // namespace perigee::kvstore
