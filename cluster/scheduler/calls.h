// Calls to nodes that can be waited for in small steps, so that the waiting thread can look at other things too:
// whether its own caller is still there, whether the node is still alive.
#ifndef PERIGEE_CLUSTER_SCHEDULER_CALLS_H_
#define PERIGEE_CLUSTER_SCHEDULER_CALLS_H_

#include <grpcpp/grpcpp.h>

#include <deque>
#include <memory>
#include <optional>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "perigee/v1/decode.grpc.pb.h"
#include "perigee/v1/prefill.grpc.pb.h"

namespace perigee::cluster {

// One prefill. Destruction cancels it and waits for its end, which is at once then.
class PrefillCall {
 public:
  PrefillCall(v1::PrefillNode::Stub& stub, const v1::PrefillRequest& request, const std::string& request_id,
              absl::Time deadline);
  ~PrefillCall();

  // Nothing: not ended yet after so long.
  std::optional<absl::Status> Wait(absl::Duration within);
  const v1::PrefillResponse& response() const { return response_; }  // After OK.

 private:
  grpc::ClientContext context_;
  v1::PrefillRequest request_;
  v1::PrefillResponse response_;
  absl::Mutex mu_;
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mu_);
};

// One answer, or several, on the way. As above.
class GenerateCall : private grpc::ClientReadReactor<v1::GenerateEvent> {
 public:
  GenerateCall(v1::DecodeNode::Stub& stub, const v1::GenerateRequest& request, const std::string& request_id,
               absl::Time deadline);
  ~GenerateCall() override;

  // The next event; nothing when none came within that time, or when the call has ended: then *ended has its status.
  std::optional<v1::GenerateEvent> Next(absl::Duration within, std::optional<absl::Status>* ended);

 private:
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  grpc::ClientContext context_;
  const v1::GenerateRequest request_;
  v1::GenerateEvent event_;  // Being read.
  absl::Mutex mu_;
  std::deque<v1::GenerateEvent> events_ ABSL_GUARDED_BY(mu_);
  bool full_ ABSL_GUARDED_BY(mu_) = false;      // Reading waits for the reader.
  bool released_ ABSL_GUARDED_BY(mu_) = false;  // No read will be begun any more.
  std::optional<absl::Status> status_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_CALLS_H_
