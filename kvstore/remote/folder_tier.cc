#include "kvstore/remote/folder_tier.h"

#include <algorithm>
#include <deque>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/status.h"
#include "kvstore/remote/object_folder.h"
#include "kvstore/remote/operations.h"
#include "kvstore/remote/remote_object.h"

namespace perigee::kvstore {
namespace {

using PutOperation = SingleOperation<RemoteOperation, absl::StatusOr<PutOutcome>>;
using GetOperation = SingleOperation<RemoteOperation, absl::StatusOr<RecordHead>>;
using ListOperation = SingleOperation<RemoteOperation, absl::StatusOr<RemoteListPage>>;
using ProbeOperation = SingleOperation<RemoteOperation, absl::Status>;
using DeleteOperation = BatchOperation<RemoteOperation, absl::Status>;
using StatOperation = BatchOperation<RemoteOperation, absl::StatusOr<RecordHead>>;

const absl::Status& StatusOf(const absl::Status& status) { return status; }
const absl::Status& StatusOf(const absl::StatusOr<RecordHead>& head) { return head.status(); }

class FolderTier : public RemoteTier {
 public:
  FolderTier(const FolderOptions& options, ObjectFolder folder)
      : options_(options), folder_(std::move(folder)), operations_(options.limits, options.slow_after) {
    for (int i = 0; i < std::max(1, options.threads); ++i) threads_.emplace_back([this] { Work(); });
    threads_.emplace_back([this] { Probe(); });
  }

  ~FolderTier() override {
    operations_.Shutdown();
    {
      absl::MutexLock lock(&mu_);
      stop_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }

  absl::StatusOr<OperationId> Put(RemotePut put, absl::Time deadline, PutDone done) override {
    PERIGEE_ASSIGN_OR_RETURN(const CheckedPut checked, CheckPut(put));
    if (checked.record_bytes > options_.max_object_bytes) {
      return absl::InvalidArgumentError(absl::StrCat("put of ", put.id.ToString(), ": an object of ",
                                                     checked.record_bytes, " bytes; the tier takes at most ",
                                                     options_.max_object_bytes, " (max_object_bytes)"));
    }
    auto operation = std::make_shared<PutOperation>();
    operation->done = std::move(done);
    PERIGEE_RETURN_IF_ERROR(operations_.Begin(operation, 1, checked.record_bytes, deadline));
    const OperationId id = operation->id();
    // A copy, because a thread that hangs in a write cannot be told that the caller's memory is gone.
    std::vector<std::byte> record(checked.record_bytes);
    if (absl::Status written = WriteRecord(put, checked, record); !written.ok()) {
      if (operations_.Withdraw(*operation)) return written;
      return id;
    }
    Enqueue(operation, [this, plane = put.id, record = std::move(record)](PutOperation& o) {
      absl::StatusOr<PutOutcome> outcome = folder_.Write(plane, record, [&o] { return o.claimed(); });
      Observe(outcome.status());
      operations_.End(o, std::move(outcome));
    });
    return id;
  }

  absl::StatusOr<OperationId> Get(RemoteGet get, absl::Time deadline, GetDone done) override {
    PERIGEE_RETURN_IF_ERROR(CheckGetArguments(get));
    auto operation = std::make_shared<GetOperation>();
    operation->done = std::move(done);
    PERIGEE_RETURN_IF_ERROR(
        operations_.Begin(operation, 1, kUsualHeadBytes + RoundUpToPage(get.destination.size()), deadline));
    const OperationId id = operation->id();
    Enqueue(operation, [this, get](GetOperation& o) { IsWhole(get) ? GetWhole(o, get) : GetRange(o, get); });
    return id;
  }

  absl::StatusOr<OperationId> Delete(std::vector<PlaneId> ids, absl::Time deadline, DeleteDone done) override {
    return Batch<DeleteOperation>(std::move(ids), deadline, std::move(done),
                                  [this](const PlaneId& plane) { return folder_.Remove(plane); });
  }

  absl::StatusOr<OperationId> Stat(std::vector<PlaneId> ids, absl::Time deadline, StatDone done) override {
    return Batch<StatOperation>(std::move(ids), deadline, std::move(done),
                                [this](const PlaneId& plane) { return StatNow(plane); });
  }

  absl::StatusOr<OperationId> List(std::string page_token, size_t max_planes, absl::Time deadline,
                                   ListDone done) override {
    if (max_planes == 0) return absl::InvalidArgumentError("list: a page of 0 planes; ask for at least 1");
    auto operation = std::make_shared<ListOperation>();
    operation->done = std::move(done);
    PERIGEE_RETURN_IF_ERROR(operations_.Begin(operation, 1, 0, deadline));
    const OperationId id = operation->id();
    Enqueue(operation, [this, page_token = std::move(page_token), max_planes](ListOperation& o) {
      absl::StatusOr<RemoteListPage> page = folder_.List(page_token, max_planes);
      Observe(page.status());
      operations_.End(o, std::move(page));
    });
    return id;
  }

  void Cancel(OperationId operation) override {
    operations_.EndSoon(operation, absl::CancelledError("cancelled by the caller"));
  }

  RemoteHealth health() const override {
    const RemoteOperations::Snapshot now = operations_.Look();
    absl::MutexLock lock(&mu_);
    RemoteHealth out{.reachable = !absl::IsUnavailable(trouble_),
                     .full = absl::IsResourceExhausted(trouble_),
                     .slow = now.slow,
                     .message = std::string(trouble_.message()),
                     .operations = now.operations,
                     .bytes = now.bytes};
    if (out.slow && out.message.empty()) {
      out.message = absl::StrCat("an operation is under way for ",
                                 absl::FormatDuration(absl::Trunc(now.oldest, absl::Milliseconds(1))),
                                 " or has just missed its deadline");
    }
    return out;
  }

  RemoteCapabilities capabilities() const override {
    const uint64_t bytes = options_.max_object_bytes;
    return {.backend = "folder",
            .max_payload_bytes = bytes > kMaxHeadBytes ? (bytes - kMaxHeadBytes) / kPageBytes * kPageBytes : 0,
            .ranged_get = true,
            .atomic_put = false};
  }

 private:
  // work(operation) runs on one of the threads, unless the operation has ended before.
  template <typename Operation, typename Function>
  void Enqueue(std::shared_ptr<Operation> operation, Function work) {
    absl::MutexLock lock(&mu_);
    queue_.push_back([operation = std::move(operation), work = std::move(work)]() mutable {
      if (!operation->claimed()) work(*operation);
    });
  }

  template <typename Operation, typename Done, typename Function>
  absl::StatusOr<OperationId> Batch(std::vector<PlaneId> ids, absl::Time deadline, Done done, Function one) {
    PERIGEE_RETURN_IF_ERROR(CheckBatch(ids.size(), options_.limits));
    auto operation = std::make_shared<Operation>(std::move(ids));
    operation->done = std::move(done);
    PERIGEE_RETURN_IF_ERROR(operations_.Begin(operation, operation->ids.size(), 0, deadline));
    const OperationId id = operation->id();
    for (size_t i = 0; i < operation->ids.size(); ++i) {
      Enqueue(operation, [this, i, one](Operation& o) {
        auto answer = one(o.ids[i]);
        Observe(StatusOf(answer));
        operations_.EndOne(o, i, std::move(answer));
      });
    }
    return id;
  }

  void GetWhole(GetOperation& operation, const RemoteGet& get) {
    // One byte more than the record can have, so that bytes behind its end show.
    const absl::StatusOr<std::string> record =
        folder_.Read(get.id, kMaxHeadBytes + RoundUpToPage(get.payload_bytes) + 1);
    Observe(record.status());
    if (!operation.Claim()) return;
    absl::StatusOr<RecordHead> head = record.ok() ? DeliverRecord(get, *record) : record.status();
    operations_.Finish(operation, [&] { operation.done(std::move(head)); });
  }

  void GetRange(GetOperation& operation, const RemoteGet& get) {
    const absl::StatusOr<ObjectFolder::Parts> parts =
        folder_.ReadParts(get.id, get.offset_bytes, get.destination.size());
    Observe(parts.status());
    if (!operation.Claim()) return;
    absl::StatusOr<RecordHead> head = parts.ok() ? CheckHead(parts->head, get.id) : parts.status();
    if (head.ok()) {
      absl::Status status = CheckGet(*head, get);
      if (status.ok()) status = DeliverRange(*head, get, AsBytes(parts->body));
      if (!status.ok()) head = status;
    }
    operations_.Finish(operation, [&] { operation.done(std::move(head)); });
  }

  absl::StatusOr<RecordHead> StatNow(const PlaneId& plane) {
    PERIGEE_ASSIGN_OR_RETURN(const ObjectFolder::Parts parts, folder_.ReadParts(plane, 0, 0));
    PERIGEE_ASSIGN_OR_RETURN(RecordHead head, CheckHead(parts.head, plane));
    PERIGEE_RETURN_IF_ERROR(CheckRecordBytes(plane, head, parts.head.size(), parts.file_bytes));
    return head;
  }

  void Work() {
    for (;;) {
      absl::AnyInvocable<void()> work;
      {
        absl::MutexLock lock(&mu_);
        const auto some = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || !queue_.empty(); };
        mu_.Await(absl::Condition(&some));
        if (queue_.empty()) return;
        work = std::move(queue_.front());
        queue_.pop_front();
      }
      work();
    }
  }

  void Probe() {
    std::weak_ptr<ProbeOperation> last;
    for (;;) {
      auto operation = std::make_shared<ProbeOperation>();
      operation->done = [this](absl::Status status) {
        absl::MutexLock lock(&mu_);
        trouble_ = absl::IsDeadlineExceeded(status)
                       ? absl::UnavailableError(absl::StrCat(options_.path, " does not answer: look at the mount"))
                       : status;
      };
      // One that still waits for a thread has told already that the folder does not answer.
      if (last.expired() && operations_.Begin(operation, 0, 0, absl::Now() + options_.probe_interval).ok()) {
        last = operation;
        Enqueue(operation, [this](ProbeOperation& o) { operations_.End(o, folder_.Check()); });
      }
      operation.reset();
      absl::MutexLock lock(&mu_);
      if (mu_.AwaitWithTimeout(absl::Condition(&stop_), options_.probe_interval)) return;
    }
  }

  // What every answer says about the folder; success is left to the probe, which knows whether it is full.
  void Observe(const absl::Status& status) {
    if (!absl::IsUnavailable(status) && !absl::IsResourceExhausted(status)) return;
    absl::MutexLock lock(&mu_);
    trouble_ = status;
  }

  const FolderOptions options_;
  ObjectFolder folder_;
  mutable absl::Mutex mu_;
  std::deque<absl::AnyInvocable<void()>> queue_ ABSL_GUARDED_BY(mu_);
  absl::Status trouble_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  RemoteOperations operations_;
  std::vector<std::thread> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<RemoteTier>> OpenFolderTier(const FolderOptions& options) {
  PERIGEE_ASSIGN_OR_RETURN(ObjectFolder folder, ObjectFolder::Open(options.path, options.prefix, options.create));
  return std::make_unique<FolderTier>(options, std::move(folder));
}

}  // namespace perigee::kvstore
