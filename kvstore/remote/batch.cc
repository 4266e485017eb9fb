#include "kvstore/remote/batch.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"

namespace perigee::kvstore {
namespace {

constexpr size_t kDeletesAtOnce = 256;
constexpr absl::Duration kOthersWait = absl::Milliseconds(5);

// How many operations of a batch are under way. Outlives the batch: its last `done` may return after the wait.
struct Running {
  absl::Mutex mu;
  size_t operations ABSL_GUARDED_BY(mu) = 0;

  void Begin() {
    absl::MutexLock lock(&mu);
    ++operations;
  }
  void End() {
    absl::MutexLock lock(&mu);
    --operations;
  }
  // Until one of those now under way has ended; where there is none it is others that fill the tier.
  void WaitForOne(absl::Time deadline) {
    absl::MutexLock lock(&mu);
    const size_t before = operations;
    const auto ended = [this, before]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { return operations < before; };
    mu.AwaitWithDeadline(absl::Condition(&ended), std::min(deadline, absl::Now() + kOthersWait));
  }
  void WaitForAll() {
    absl::MutexLock lock(&mu);
    const auto none = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) { return operations == 0; };
    mu.Await(absl::Condition(&none));
  }
};

// begin(): as RemoteTier's calls. Again as long as the tier is full.
template <typename Begin>
absl::Status BeginWhenThereIsRoom(Running& running, absl::Time deadline, Begin begin) {
  for (;;) {
    running.Begin();
    const absl::Status begun = begin().status();
    if (begun.ok()) return begun;
    running.End();
    if (!absl::IsAborted(begun) || absl::Now() >= deadline) return begun;
    running.WaitForOne(deadline);
  }
}

// Begins one operation and waits for its result.
template <typename Result, typename Begin>
absl::StatusOr<Result> Now(absl::Time deadline, Begin begin) {
  const auto running = std::make_shared<Running>();
  absl::StatusOr<Result> result = absl::InternalError("never answered");
  const absl::Status begun = BeginWhenThereIsRoom(*running, deadline, [&] {
    return begin([running, &result](absl::StatusOr<Result> answer) {
      result = std::move(answer);
      running->End();
    });
  });
  if (!begun.ok()) return begun;
  running->WaitForAll();
  return result;
}

}  // namespace

std::vector<absl::Status> PutAll(RemoteTier& tier, std::vector<RemotePut> puts, absl::Time deadline) {
  const auto running = std::make_shared<Running>();
  std::vector<absl::Status> out(puts.size());
  for (size_t i = 0; i < puts.size(); ++i) {
    const absl::Status begun = BeginWhenThereIsRoom(*running, deadline, [&] {
      return tier.Put(puts[i], deadline, [running, to = &out[i]](absl::StatusOr<PutOutcome> outcome) {
        *to = outcome.status();
        running->End();
      });
    });
    if (!begun.ok()) out[i] = begun;
  }
  running->WaitForAll();
  return out;
}

absl::Status DeleteAll(RemoteTier& tier, const std::vector<PlaneId>& ids, absl::Time deadline) {
  for (size_t i = 0; i < ids.size(); i += kDeletesAtOnce) {
    const std::vector<PlaneId> some(ids.begin() + static_cast<ptrdiff_t>(i),
                                    ids.begin() + static_cast<ptrdiff_t>(std::min(i + kDeletesAtOnce, ids.size())));
    // Delete answers with a plain vector.
    const absl::StatusOr<std::vector<absl::Status>> answers = Now<std::vector<absl::Status>>(deadline, [&](auto done) {
      return tier.Delete(some, deadline, [done = std::move(done)](std::vector<absl::Status> statuses) mutable {
        done(std::move(statuses));
      });
    });
    if (!answers.ok()) return answers.status();
    for (const absl::Status& status : *answers) {
      if (!status.ok() && !absl::IsNotFound(status)) return status;
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<RemoteListPage> ListNow(RemoteTier& tier, const std::string& page_token, size_t max_planes,
                                       absl::Time deadline) {
  return Now<RemoteListPage>(deadline,
                             [&](auto done) { return tier.List(page_token, max_planes, deadline, std::move(done)); });
}

absl::StatusOr<std::vector<absl::StatusOr<RecordHead>>> StatNow(RemoteTier& tier, const std::vector<PlaneId>& ids,
                                                                absl::Time deadline) {
  return Now<std::vector<absl::StatusOr<RecordHead>>>(deadline, [&](auto done) {
    return tier.Stat(ids, deadline, [done = std::move(done)](std::vector<absl::StatusOr<RecordHead>> heads) mutable {
      done(std::move(heads));
    });
  });
}

}  // namespace perigee::kvstore
