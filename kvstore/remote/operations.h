// The operations that a remote tier has under way: bounds, deadlines, cancellation, and that `done` is called once.
//
// A backend derives its operations from RemoteOperation. Whoever claims one - the backend that has its result, or the
// table's thread at the deadline - alone may write to the caller's memory and call `done`; the other comes too late and
// does nothing. An operation's share of the bounds is returned when the backend finishes it, or, after an early end,
// when the backend lets go of the object.
//
// Any thread may call. Callbacks run outside all locks.
#ifndef PERIGEE_KVSTORE_REMOTE_OPERATIONS_H_
#define PERIGEE_KVSTORE_REMOTE_OPERATIONS_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/functional/any_invocable.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/remote/remote_tier.h"

namespace perigee::kvstore {

class RemoteOperations;

class RemoteOperation {
 public:
  RemoteOperation() = default;
  virtual ~RemoteOperation();
  RemoteOperation(const RemoteOperation&) = delete;
  RemoteOperation& operator=(const RemoteOperation&) = delete;

  // True for the first caller only.
  bool Claim() { return !claimed_.exchange(true); }
  bool claimed() const { return claimed_.load(); }
  RemoteTier::OperationId id() const { return id_; }

 protected:
  // Tells the backend that nobody waits for it any more.
  virtual void GiveUp() {}

 private:
  friend class RemoteOperations;
  // Claimed by the caller: calls `done`, then GiveUp.
  virtual void EndEarly(const absl::Status& why) = 0;

  std::atomic<bool> claimed_ = false;
  RemoteOperations* table_ = nullptr;  // Where it has a share of the bounds.
  RemoteTier::OperationId id_ = 0;
  absl::Time begun_;
  absl::Time deadline_;
  size_t objects_ = 0;
  uint64_t bytes_ = 0;
};

class RemoteOperations {
 public:
  RemoteOperations(const RemoteLimits& limits, absl::Duration slow_after);
  ~RemoteOperations();  // After Shutdown.

  // ABORTED over a bound, CANCELLED after Shutdown; then the operation is not known here. objects and bytes 0: outside
  // of the bounds.
  absl::Status Begin(const std::shared_ptr<RemoteOperation>& operation, size_t objects, uint64_t bytes,
                     absl::Time deadline);

  // By the backend that has claimed it: returns its share, then calls `done`.
  void Finish(RemoteOperation& operation, absl::FunctionRef<void()> done);

  // Claims and finishes; nothing if it has ended already.
  template <typename Operation, typename Result>
  void End(Operation& operation, Result result) {
    if (operation.Claim()) Finish(operation, [&] { operation.done(std::move(result)); });
  }
  // The answer for one object of a batch; the last one ends it.
  template <typename Batch, typename Answer>
  void EndOne(Batch& batch, size_t i, Answer answer) {
    if (auto all = batch.Add(i, std::move(answer))) Finish(batch, [&] { batch.done(*std::move(all)); });
  }

  // Takes back a Begin whose operation the backend refused at once. False: it has ended already, `done` was called.
  bool Withdraw(RemoteOperation& operation);

  // Ends it with `why` on the table's thread, unless it has ended.
  void EndSoon(RemoteTier::OperationId id, absl::Status why);

  // Cancels everything and waits until every callback has returned and the backend has let go of every operation.
  void Shutdown();

  struct Snapshot {
    size_t operations = 0;
    uint64_t bytes = 0;
    absl::Duration oldest;  // How long the oldest one is under way.
    bool slow = false;
  };
  Snapshot Look() const;

 private:
  friend class RemoteOperation;
  void Run();
  void EndEarly(std::vector<std::pair<std::shared_ptr<RemoteOperation>, absl::Status>> operations);
  void Forget(RemoteOperation& operation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ReturnShare(RemoteOperation& operation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool HasWork() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const RemoteLimits limits_;
  const absl::Duration slow_after_;
  mutable absl::Mutex mu_;
  // By id, so the oldest comes first. An operation leaves both when it ends.
  absl::btree_map<RemoteTier::OperationId, std::shared_ptr<RemoteOperation>> open_ ABSL_GUARDED_BY(mu_);
  absl::btree_set<std::pair<absl::Time, RemoteTier::OperationId>> deadlines_ ABSL_GUARDED_BY(mu_);
  std::vector<std::pair<RemoteTier::OperationId, absl::Status>> ending_ ABSL_GUARDED_BY(mu_);
  RemoteTier::OperationId next_id_ ABSL_GUARDED_BY(mu_) = 1;
  size_t alive_ ABSL_GUARDED_BY(mu_) = 0;      // Operations that have not been destroyed or finished.
  size_t callbacks_ ABSL_GUARDED_BY(mu_) = 0;  // Being called now.
  size_t objects_ ABSL_GUARDED_BY(mu_) = 0;
  uint64_t bytes_ ABSL_GUARDED_BY(mu_) = 0;
  absl::Time last_late_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  bool changed_ ABSL_GUARDED_BY(mu_) = false;  // The thread has to look at its deadlines again.
  bool shutting_down_ ABSL_GUARDED_BY(mu_) = false;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::thread thread_;
};

// An operation with one result: absl::StatusOr<something>. Base: RemoteOperation or the backend's own kind of it.
template <typename Base, typename Result>
struct SingleOperation : Base {
  using Base::Base;
  void EndEarly(const absl::Status& why) override {
    done(why);
    this->GiveUp();
  }
  absl::AnyInvocable<void(Result)> done;
};

// One answer per object; an early end fills in those that are missing.
template <typename Base, typename Answer>
class BatchOperation : public Base {
 public:
  template <typename... Args>
  explicit BatchOperation(std::vector<PlaneId> planes, Args&&... args)
      : Base(std::forward<Args>(args)...), ids(std::move(planes)), answers_(ids.size()), missing_(ids.size()) {}

  void EndEarly(const absl::Status& why) override {
    std::vector<Answer> all;
    {
      absl::MutexLock lock(&mu_);
      for (std::optional<Answer>& answer : answers_) all.push_back(answer ? *std::move(answer) : Answer(why));
    }
    done(std::move(all));
    this->GiveUp();
  }

  // All answers, once there are all and the operation is claimed by it.
  std::optional<std::vector<Answer>> Add(size_t i, Answer answer) {
    absl::MutexLock lock(&mu_);
    answers_[i] = std::move(answer);
    if (--missing_ > 0 || !this->Claim()) return std::nullopt;
    std::vector<Answer> all;
    for (std::optional<Answer>& one : answers_) all.push_back(*std::move(one));
    return all;
  }

  const std::vector<PlaneId> ids;
  absl::AnyInvocable<void(std::vector<Answer>)> done;

 private:
  absl::Mutex mu_;
  std::vector<std::optional<Answer>> answers_ ABSL_GUARDED_BY(mu_);
  size_t missing_ ABSL_GUARDED_BY(mu_);
};

// INVALID_ARGUMENT for a batch that is empty or can never go through.
absl::Status CheckBatch(size_t objects, const RemoteLimits& limits);

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_REMOTE_OPERATIONS_H_
