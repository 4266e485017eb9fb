// Who is served next, when there are more requests than places: tenants take turns by what their requests cost, so that
// one who sends much does not make the others wait (start-time fair queueing, Goyal, Vin and Cheng 1996).
//
// A request whose wait cannot end well is refused at once, instead of when its time is over: the queue is full, or the
// places have been given up so slowly lately that its turn would come too late.
#ifndef PERIGEE_CLUSTER_SCHEDULER_FAIR_QUEUE_H_
#define PERIGEE_CLUSTER_SCHEDULER_FAIR_QUEUE_H_

#include <cstddef>
#include <cstdint>
#include <list>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace perigee::cluster {

struct FairQueueOptions {
  size_t max_waiting = 1024;
  absl::Duration max_wait = absl::Seconds(30);  // Expected longer waits are refused.
};

// Any thread may call.
class FairQueue {
 public:
  // A request being served; destruction gives its place to the next.
  class Turn {
   public:
    Turn() = default;
    Turn(Turn&& other) noexcept;
    Turn& operator=(Turn&& other) noexcept;
    ~Turn();

   private:
    friend class FairQueue;
    FairQueue* queue_ = nullptr;
    absl::Time begun_;
  };

  explicit FairQueue(const FairQueueOptions& options) : options_(options) {}

  // How many may be served at once; may change at any time.
  void SetPlaces(size_t places);

  // Waits for a place. cost: of the request, in whatever unit all use, above 0. RESOURCE_EXHAUSTED: see above;
  // DEADLINE_EXCEEDED; CANCELLED when `cancelled`, asked now and then, says so.
  absl::StatusOr<Turn> Enter(const std::string& tenant, double cost, absl::Time deadline,
                             absl::FunctionRef<bool()> cancelled);

  size_t waiting() const;
  size_t serving() const;

 private:
  struct Waiter {
    double start = 0;  // Virtual time at which its service would begin if all tenants were served at once.
    bool called = false;
  };
  absl::Status Admit(absl::Time deadline) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void CallNext() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Leave(absl::Time begun);

  const FairQueueOptions options_;
  mutable absl::Mutex mu_;
  size_t places_ ABSL_GUARDED_BY(mu_) = 1, serving_ ABSL_GUARDED_BY(mu_) = 0;
  std::list<Waiter> waiting_ ABSL_GUARDED_BY(mu_);
  double now_ ABSL_GUARDED_BY(mu_) = 0;                                   // Virtual time.
  absl::flat_hash_map<std::string, double> finish_ ABSL_GUARDED_BY(mu_);  // By tenant: its last request's end.
  absl::Duration service_ ABSL_GUARDED_BY(mu_);                           // Of a request, lately.
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_FAIR_QUEUE_H_
