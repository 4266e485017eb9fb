#include <algorithm>
#include <deque>
#include <thread>
#include <utility>

#include "base/trace.h"
#include "kvstore/client_state.h"

namespace perigee::kvstore {

namespace {

// The next batch's request is on its way while this one's bytes are checked; more would make earlier groups share the
// wire with later ones. The first batch has it alone: the reader can do nothing until it is here.
constexpr size_t kBatchesUnderWay = 2;

}  // namespace

namespace internal {

struct FetchState {
  std::shared_ptr<LeaseState> lease;  // The worker lets go of it when nothing moves any more.
  std::vector<std::vector<FetchRequest>> groups;
  size_t batch_bytes = 0;
  absl::Time started;
  absl::Time deadline;
  std::function<absl::Status(size_t)> on_landed;
  std::thread worker;

  mutable absl::Mutex mu;
  size_t arrived ABSL_GUARDED_BY(mu) = 0;  // Groups, from the first on, whose bytes are here and right.
  bool ended ABSL_GUARDED_BY(mu) = false;
  absl::Status status ABSL_GUARDED_BY(mu);  // Once ended.
  std::vector<size_t> wrong_planes ABSL_GUARDED_BY(mu);
  bool cancelled ABSL_GUARDED_BY(mu) = false;
  absl::Time end ABSL_GUARDED_BY(mu) = absl::InfiniteFuture();

  void Run();

 private:
  struct UnderWay {
    transport::TransferBatch batch;
    size_t first_group = 0, end_group = 0;
    uint64_t bytes = 0;
    absl::Time started;
  };
  absl::StatusOr<UnderWay> StartBatch(size_t first_group);
  absl::Status Land(UnderWay& batch);
  absl::Status VerifyGroup(size_t group, const transport::TransferBatch& batch, size_t* extent);
  absl::Status FetchAll();
};

// One batch of groups from `first_group` on: the first non-empty one alone, because the reader waits for it; later ones
// until the batch is worth its round trip.
absl::StatusOr<FetchState::UnderWay> FetchState::StartBatch(size_t first_group) {
  UnderWay out;
  out.first_group = out.end_group = first_group;
  out.started = absl::Now();
  std::vector<transport::GetTransfer> pieces;
  const size_t enough = first_group == 0 ? 1 : batch_bytes;
  while (out.end_group < groups.size() && out.bytes < enough) {
    for (const FetchRequest& request : groups[out.end_group]) {
      PERIGEE_RETURN_IF_ERROR(lease->Locate(request, &pieces));
      out.bytes += request.destination.size();
    }
    ++out.end_group;
  }
  if (pieces.empty()) return out;
  absl::StatusOr<transport::TransferBatch> batch = lease->StartGet(std::move(pieces), deadline);
  if (!batch.ok()) return lease->WireError(batch.status());
  out.batch = *std::move(batch);
  return out;
}

absl::Status FetchState::VerifyGroup(size_t group, const transport::TransferBatch& batch, size_t* extent) {
  absl::Status status;
  std::vector<size_t> wrong;
  for (const FetchRequest& request : groups[group]) {
    const absl::Status verified = lease->Verify(request, batch, extent);
    status.Update(verified);
    if (!verified.ok()) wrong.push_back(request.plane);
  }
  std::sort(wrong.begin(), wrong.end());
  wrong.erase(std::unique(wrong.begin(), wrong.end()), wrong.end());
  for (const size_t plane : wrong) lease->ReportWrong(plane);
  absl::MutexLock lock(&mu);
  if (status.ok()) {
    arrived = group + 1;
  } else {
    wrong_planes = std::move(wrong);
  }
  return status;
}

absl::Status FetchState::Land(UnderWay& batch) {
  if (batch.bytes > 0) {
    const absl::Status got = batch.batch.Wait();
    if (!got.ok()) return lease->WireError(got);
    lease->CountFetched(batch.bytes, absl::Now() - batch.started);
  }
  if (on_landed) PERIGEE_RETURN_IF_ERROR(on_landed(batch.first_group));
  size_t extent = 0;
  for (size_t g = batch.first_group; g < batch.end_group; ++g) {
    PERIGEE_RETURN_IF_ERROR(VerifyGroup(g, batch.batch, &extent));
  }
  return absl::OkStatus();
}

absl::Status FetchState::FetchAll() {
  std::deque<UnderWay> under_way;  // Ends with this function, which waits for what still moves.
  size_t next = 0;                 // The first group that was not asked for yet.
  while (next < groups.size() || !under_way.empty()) {
    {
      absl::MutexLock lock(&mu);
      if (cancelled) return absl::CancelledError("the fetch was abandoned");
    }
    const size_t wanted = next == 0 ? 1 : kBatchesUnderWay;
    while (next < groups.size() && under_way.size() < wanted) {
      PERIGEE_ASSIGN_OR_RETURN(UnderWay batch, StartBatch(next));
      next = batch.end_group;
      under_way.push_back(std::move(batch));
    }
    PERIGEE_RETURN_IF_ERROR(Land(under_way.front()));
    under_way.pop_front();
  }
  return absl::OkStatus();
}

void FetchState::Run() {
  const absl::Status result = FetchAll();
  {
    absl::MutexLock lock(&mu);
    ended = true;
    status = result;
    end = absl::Now();
  }
  lease = nullptr;
}

}  // namespace internal

LayeredFetch::LayeredFetch() = default;
LayeredFetch::LayeredFetch(std::unique_ptr<internal::FetchState> state) : state_(std::move(state)) {}
LayeredFetch::LayeredFetch(LayeredFetch&&) noexcept = default;
LayeredFetch& LayeredFetch::operator=(LayeredFetch&& other) noexcept {
  if (this != &other) {
    Stop();
    state_ = std::move(other.state_);
  }
  return *this;
}
LayeredFetch::~LayeredFetch() { Stop(); }

void LayeredFetch::Cancel() {
  if (state_ == nullptr) return;
  absl::MutexLock lock(&state_->mu);
  state_->cancelled = true;
}

void LayeredFetch::Stop() {
  if (state_ == nullptr) return;
  Cancel();
  state_->worker.join();
  state_ = nullptr;
}

size_t LayeredFetch::groups() const { return state_ == nullptr ? 0 : state_->groups.size(); }

absl::Status LayeredFetch::Wait(size_t group, absl::Time until) const {
  if (group >= groups()) return absl::OutOfRangeError(absl::StrCat("group ", group, " of a fetch of ", groups()));
  const auto known = [this, group]()
                         ABSL_EXCLUSIVE_LOCKS_REQUIRED(state_->mu) { return state_->arrived > group || state_->ended; };
  absl::MutexLock lock(&state_->mu);
  if (!state_->mu.AwaitWithDeadline(absl::Condition(&known), until)) {
    return absl::DeadlineExceededError(absl::StrCat("group ", group, " of ", groups(), " is not here yet"));
  }
  return state_->arrived > group ? absl::OkStatus() : state_->status;
}

size_t LayeredFetch::arrived() const {
  if (state_ == nullptr) return 0;
  absl::MutexLock lock(&state_->mu);
  return state_->arrived;
}

std::vector<size_t> LayeredFetch::wrong_planes() const {
  if (state_ == nullptr) return {};
  absl::MutexLock lock(&state_->mu);
  return state_->wrong_planes;
}

absl::Duration LayeredFetch::duration() const {
  if (state_ == nullptr) return absl::ZeroDuration();
  absl::MutexLock lock(&state_->mu);
  return std::min(absl::Now(), state_->end) - state_->started;
}

absl::StatusOr<LayeredFetch> ReadLease::StartFetch(std::vector<std::vector<FetchRequest>> groups) {
  if (state_ == nullptr) return absl::FailedPreconditionError("fetch from an empty lease");
  for (const std::vector<FetchRequest>& group : groups) {
    std::vector<transport::GetTransfer> pieces;
    for (const FetchRequest& request : group) PERIGEE_RETURN_IF_ERROR(state_->Locate(request, &pieces));
  }
  const ClientOptions& options = state_->core->options;
  auto fetch = std::make_unique<internal::FetchState>();
  fetch->lease = state_;
  fetch->groups = std::move(groups);
  fetch->batch_bytes = std::max<size_t>(1, options.fetch_batch_bytes);
  fetch->on_landed = options.on_fetch_landed;
  fetch->started = absl::Now();
  fetch->deadline = fetch->started + options.transfer_deadline;
  fetch->worker = std::thread([state = fetch.get(), request = std::string(CurrentRequest())] {
    const RequestScope scope(request);
    const Span span("store fetch");
    state->Run();
  });
  return LayeredFetch(std::move(fetch));
}

}  // namespace perigee::kvstore
