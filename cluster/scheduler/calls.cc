#include "cluster/scheduler/calls.h"

#include <utility>

#include "proto/grpc_status.h"
#include "proto/request_id.h"

namespace perigee::cluster {
namespace {

// Events that were read and not taken: beyond these the node waits, by the transport's flow control.
constexpr size_t kMaxEvents = 256;

void Prepare(grpc::ClientContext& context, const std::string& request_id, absl::Time deadline) {
  context.set_deadline(absl::ToChronoTime(deadline));
  SendRequestId(request_id, context);
}

}  // namespace

PrefillCall::PrefillCall(v1::PrefillNode::Stub& stub, const v1::PrefillRequest& request, const std::string& request_id,
                         absl::Time deadline)
    : request_(request) {
  Prepare(context_, request_id, deadline);
  stub.async()->Prefill(&context_, &request_, &response_, [this](grpc::Status status) {
    absl::MutexLock lock(&mu_);
    status_ = FromGrpc(status);
  });
}

PrefillCall::~PrefillCall() {
  context_.TryCancel();
  const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return status_.has_value(); };
  absl::MutexLock lock(&mu_, absl::Condition(&ended));
}

std::optional<absl::Status> PrefillCall::Wait(absl::Duration within) {
  const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return status_.has_value(); };
  absl::MutexLock lock(&mu_);
  mu_.AwaitWithTimeout(absl::Condition(&ended), within);
  return status_;
}

GenerateCall::GenerateCall(v1::DecodeNode::Stub& stub, const v1::GenerateRequest& request,
                           const std::string& request_id, absl::Time deadline)
    : request_(request) {
  Prepare(context_, request_id, deadline);
  stub.async()->Generate(&context_, &request_, this);
  AddHold();  // Reads are begun from the reader's thread too.
  StartRead(&event_);
  StartCall();
}

GenerateCall::~GenerateCall() {
  context_.TryCancel();
  bool held;
  {
    absl::MutexLock lock(&mu_);
    held = !released_;
    released_ = true;
  }
  if (held) RemoveHold();
  const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return status_.has_value(); };
  absl::MutexLock lock(&mu_, absl::Condition(&ended));
}

void GenerateCall::OnReadDone(bool ok) {
  bool release = false;
  {
    absl::MutexLock lock(&mu_);
    if (ok) {
      events_.push_back(std::move(event_));
      full_ = events_.size() >= kMaxEvents;
      if (full_) return;
    } else {
      release = !std::exchange(released_, true);
    }
  }
  if (release) RemoveHold();
  if (ok) StartRead(&event_);
}

void GenerateCall::OnDone(const grpc::Status& status) {
  absl::MutexLock lock(&mu_);
  status_ = FromGrpc(status);
}

std::optional<v1::GenerateEvent> GenerateCall::Next(absl::Duration within, std::optional<absl::Status>* ended) {
  const auto something = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !events_.empty() || status_.has_value(); };
  std::optional<v1::GenerateEvent> event;
  bool read_on = false;
  {
    absl::MutexLock lock(&mu_);
    mu_.AwaitWithTimeout(absl::Condition(&something), within);
    if (events_.empty()) {
      *ended = status_;
      return std::nullopt;
    }
    event = std::move(events_.front());
    events_.pop_front();
    read_on = full_ && events_.size() < kMaxEvents / 2 && !released_;
    if (read_on) full_ = false;
  }
  if (read_on) StartRead(&event_);
  return event;
}

}  // namespace perigee::cluster
