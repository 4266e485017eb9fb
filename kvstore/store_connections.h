// Internal to the room: one client per store of the map, and what is known of each store's health.
//
// A client is made without connecting; its first call connects, so that a store that is gone delays nobody but its own
// callers. Who gets no answer from a store has it avoided for a while; then one caller tries it again, and the others
// still avoid it until that one has its answer.
#ifndef PERIGEE_KVSTORE_STORE_CONNECTIONS_H_
#define PERIGEE_KVSTORE_STORE_CONNECTIONS_H_

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/status.h"
#include "kvstore/client.h"
#include "kvstore/placement.h"
#include "transport/context.h"

namespace perigee::kvstore::internal {

inline const absl::Status& StatusOf(const absl::Status& status) { return status; }
template <typename T>
const absl::Status& StatusOf(const absl::StatusOr<T>& result) {
  return result.status();
}

// The store did not answer; other errors are answers.
inline bool NoAnswer(const absl::Status& status) {
  return absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status);
}

// body(0) to body(n - 1) at once, the first on the calling thread; returns when all have.
void AtOnce(size_t n, const std::function<void(size_t)>& body);

// Any thread may call.
class StoreConnection {
 public:
  StoreConnection(const StoreEntry& store, transport::Context* engine, const ClientOptions& options,
                  absl::Duration avoid_after_failure);

  // What call(StoreClient&), which returns a Status or a StatusOr, says; the store's health follows from that.
  // UNAVAILABLE, without a call, while the store is avoided; `even_if_avoided` calls all the same.
  template <typename Call>
  std::invoke_result_t<Call, StoreClient&> Try(bool even_if_avoided, Call call) {
    PERIGEE_RETURN_IF_ERROR(Enter(even_if_avoided));
    const absl::Time started = SteadyNow();
    auto result = call(*client_);
    Settle(started, StatusOf(result));
    return result;
  }
  // For batches, leases and fetches of the client, which are called without Try: takes an error's share of it.
  void Note(const absl::Status& status);

  // As long as one lives, calls or transfers that may take long are under way: meanwhile the store is asked now and
  // then whether it lives. Where it does not, its client gives up all that is under way.
  class LongWait {
   public:
    explicit LongWait(StoreConnection* store) : store_(store) { ++store_->long_waits_; }
    ~LongWait() { --store_->long_waits_; }
    LongWait(const LongWait&) = delete;

   private:
    StoreConnection* const store_;
  };
  bool awaited() const { return long_waits_ > 0; }
  void AskWhetherItLives();

  void CountFailover() { ++failovers_; }
  uint64_t failovers() const { return failovers_; }
  bool failing() const;
  ClientStats stats() const;
  const std::string& id() const { return id_; }
  const std::string& address() const { return address_; }

 private:
  absl::Status Enter(bool even_if_avoided);
  void Settle(absl::Time started, const absl::Status& status);
  void Fail(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const std::string id_, address_;
  const absl::Duration avoid_after_failure_;
  std::unique_ptr<StoreClient> client_;  // Null where the address is none.
  absl::Status no_client_;
  std::atomic<uint64_t> failovers_{0};
  std::atomic<int> long_waits_{0};

  mutable absl::Mutex mu_;
  absl::Status failure_ ABSL_GUARDED_BY(mu_);  // Not OK until the store has answered again.
  absl::Time avoid_until_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
  bool tried_again_ ABSL_GUARDED_BY(mu_) = false;  // By a caller that has no answer yet.
  absl::Time last_answer_ ABSL_GUARDED_BY(mu_) = absl::InfinitePast();
};

// A map and its stores' connections, index by index. A value that one call works with from beginning to end.
struct StoreView {
  std::shared_ptr<const StoreMap> map;
  std::vector<std::shared_ptr<StoreConnection>> connections;

  // Avoiding the only store would help nobody.
  bool even_if_avoided() const { return connections.size() == 1; }
  std::vector<std::shared_ptr<StoreConnection>> Pick(const std::vector<size_t>& stores) const;
  absl::Status NoStore() const;  // The error for a map without any that could do it.
};

// Any thread may call.
class StoreConnections {
 public:
  StoreConnections(std::shared_ptr<StoreDirectory> directory, transport::Context* engine, ClientOptions options,
                   absl::Duration avoid_after_failure);
  ~StoreConnections();

  // Of the directory's map of now. A store whose address has changed gets a new client; what was made by the old one
  // lives on.
  std::shared_ptr<const StoreView> Current();

  struct Totals {
    ClientStats clients;
    uint64_t failovers = 0;
    size_t failing = 0;
  };
  // Also of stores that have left.
  Totals Count();

 private:
  // What connections that are gone had counted; outlives this object where leases do.
  struct Gone {
    absl::Mutex mu;
    Totals totals ABSL_GUARDED_BY(mu);
  };
  std::shared_ptr<const StoreView> Rebuild(std::shared_ptr<const StoreMap> map) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  std::shared_ptr<StoreConnection> Make(const StoreEntry& store) const;
  // Asks those that are awaited whether they live.
  void Watch();

  const std::shared_ptr<StoreDirectory> directory_;
  transport::Context* const engine_;
  const ClientOptions options_;
  const absl::Duration avoid_after_failure_;

  const std::shared_ptr<Gone> gone_ = std::make_shared<Gone>();

  absl::Mutex mu_;
  std::shared_ptr<const StoreView> view_ ABSL_GUARDED_BY(mu_);
  std::vector<std::weak_ptr<StoreConnection>> leaving_ ABSL_GUARDED_BY(mu_);  // Kept by leases, batches and calls only.
  bool stopping_ ABSL_GUARDED_BY(mu_) = false;
  std::thread watcher_;  // None where clients do not tell hanging from slow.
};

}  // namespace perigee::kvstore::internal

#endif  // PERIGEE_KVSTORE_STORE_CONNECTIONS_H_
