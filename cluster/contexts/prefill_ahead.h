// Computes contexts before anybody asks for them: one after the other, on a thread of its own, and remembers how far
// each is. What cannot be done just now (UNAVAILABLE, RESOURCE_EXHAUSTED) is tried again later, behind the others.
#ifndef PERIGEE_CLUSTER_CONTEXTS_PREFILL_AHEAD_H_
#define PERIGEE_CLUSTER_CONTEXTS_PREFILL_AHEAD_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/bytes.h"

namespace perigee::cluster {

// kUnknown: this process has not computed it; it may be in the stores all the same.
enum class ContextState { kUnknown, kPending, kComputing, kReady, kFailed };
const char* ContextStateName(ContextState state);  // "unknown", ...

struct ContextProgress {
  ContextState state = ContextState::kUnknown;
  std::string error;  // kFailed: why. kPending: why it was not done before.
};

struct PrefillAheadOptions {
  absl::Duration first_backoff = absl::Milliseconds(500);  // Doubles with every attempt.
  absl::Duration longest_backoff = absl::Seconds(30);
  size_t remembered = 65536;  // Contexts; beyond, some that are not waiting are forgotten.
};

// Any thread may call.
class PrefillAhead {
 public:
  // One version of a context.
  struct Job {
    std::string tenant, id;
    Digest content{};
  };
  // CANCELLED: there is no such version any more. `cancelled` says when the work is of no use to anybody.
  using Compute = std::function<absl::Status(const Job& job, const std::function<bool()>& cancelled)>;

  explicit PrefillAhead(Compute compute, const PrefillAheadOptions& options = {});
  // Cancels what is being computed, and waits for that.
  ~PrefillAhead();
  PrefillAhead(const PrefillAhead&) = delete;

  // Queues a version, in the place of others of the same context. One that waits or is being computed stays as it is.
  void Add(const Job& job);
  void Remove(const std::string& tenant, const std::string& id);
  ContextProgress Of(const Job& job);

 private:
  using Key = std::pair<std::string, std::string>;  // Tenant and id.
  struct Entry {
    Digest content{};
    ContextProgress progress;
    uint64_t number = 0;  // Of its Add.
    absl::Duration backoff;
    absl::Time not_before = absl::InfinitePast();
  };
  void Run();
  // The first that may be begun now; else *wait_until is when one may.
  bool Next(Key* key, absl::Time* wait_until) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Finish(const Key& key, uint64_t number, const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  bool Current(const Key& key, uint64_t number) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Compute compute_;
  const PrefillAheadOptions options_;
  absl::Mutex mu_;
  absl::CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  uint64_t added_ ABSL_GUARDED_BY(mu_) = 0;
  std::map<Key, Entry> entries_ ABSL_GUARDED_BY(mu_);
  std::deque<Key> queue_ ABSL_GUARDED_BY(mu_);  // Those that are kPending.
  std::thread thread_;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_CONTEXTS_PREFILL_AHEAD_H_
