// The backend's side of one HTTP request: its prompts are completed by threads of their own, a few at a time, and what
// they say is taken from a bounded queue, so that the connection's thread can watch its client meanwhile.
#ifndef PERIGEE_CLUSTER_GATEWAY_COMPLETION_RUN_H_
#define PERIGEE_CLUSTER_GATEWAY_COMPLETION_RUN_H_

#include <cstdint>
#include <deque>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "base/file.h"
#include "cluster/gateway/backend.h"

namespace perigee::cluster {

class CompletionRun {
 public:
  struct Options {
    size_t parallel_prompts = 8;
    // A backend that is this far ahead of its reader waits.
    size_t max_queued_bytes = size_t{256} << 10;
  };
  struct Item {
    size_t prompt = 0;
    BackendEvent event;
  };

  // `backend` must outlive it. Starts at once. RESOURCE_EXHAUSTED when the process is out of descriptors or threads.
  static absl::StatusOr<std::unique_ptr<CompletionRun>> Start(Backend* backend, std::vector<BackendRequest> requests,
                                                              const Options& options);
  // Cancels what still runs and waits for it: as long as the backend takes to ask whether it is cancelled.
  ~CompletionRun();

  // Readable when Take() may have something, or the run has ended. Never read from it.
  int event_fd() const { return event_.get(); }

  // The oldest event; of one sample in their order.
  std::optional<Item> Take();

  // When all has ended and every event was taken: the sums, or the first failure, after which the other prompts were
  // cancelled. Empty before.
  std::optional<absl::StatusOr<BackendUsage>> Result();

  // Ends the run; its result is `reason` unless it already has one. May be called from any thread.
  void Cancel(const absl::Status& reason);

 private:
  CompletionRun(Backend* backend, std::vector<BackendRequest> requests, const Options& options, UniqueFd event);
  void Work();
  bool Push(size_t prompt, const BackendEvent& event);
  bool Cancelled();
  void Notify();

  Backend* const backend_;
  const std::vector<BackendRequest> requests_;
  const Options options_;
  const UniqueFd event_;

  absl::Mutex mutex_;
  std::deque<Item> queue_ ABSL_GUARDED_BY(mutex_);
  size_t queued_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t next_prompt_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t running_threads_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  BackendUsage usage_ ABSL_GUARDED_BY(mutex_);

  std::vector<std::thread> threads_;  // Last: they use everything above.
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_COMPLETION_RUN_H_
