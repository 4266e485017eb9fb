// The two completion routes: from a request's body to the backend, and from its events to an answer or a stream.
// Internal to cluster/gateway.
#ifndef PERIGEE_CLUSTER_GATEWAY_COMPLETION_HANDLER_H_
#define PERIGEE_CLUSTER_GATEWAY_COMPLETION_HANDLER_H_

#include <httplib.h>

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "cluster/gateway/completion_run.h"
#include "cluster/gateway/http_exchange.h"

namespace perigee::cluster {

// Any thread may call.
class CompletionHandler {
 public:
  // All must outlive it.
  CompletionHandler(const HttpServerOptions& options, const FrontModel& model, Backend* backend);

  // `exchange` must live until the answer has been written, which is after this returns for streams.
  void Handle(Endpoint endpoint, const httplib::Request& request, const httplib::ContentReader& content,
              HttpExchange& exchange, httplib::Response& response);

  // Ends what runs and refuses what comes, with UNAVAILABLE.
  void Stop();

 private:
  class Admission;
  class Answer;
  absl::StatusOr<std::unique_ptr<Answer>> Begin(Endpoint endpoint, const httplib::Request& request,
                                                const httplib::ContentReader& content, HttpExchange& exchange);

  const HttpServerOptions& options_;
  const FrontModel& model_;
  Backend* const backend_;
  absl::Mutex mutex_;
  size_t admitted_ ABSL_GUARDED_BY(mutex_) = 0;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_set<CompletionRun*> runs_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_GATEWAY_COMPLETION_HANDLER_H_
