// Inside of transport/: something happens once, and threads wait for it. absl::Notification would do, but Debian's is
// not instrumented: ThreadSanitizer sees std::mutex and takes absl's for a race.
#ifndef PERIGEE_TRANSPORT_EVENT_H_
#define PERIGEE_TRANSPORT_EVENT_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace perigee::transport::internal {

class Event {
 public:
  void Notify() {
    // Under the lock, so that a waiter who sees it in Wait may destroy the event.
    std::lock_guard<std::mutex> lock(mutex_);
    happened_.store(true, std::memory_order_release);
    condition_.notify_all();
  }
  // Cheap enough to poll. Who sees true here must call Wait before destroying the event.
  bool Happened() const { return happened_.load(std::memory_order_acquire); }
  // False when `until` comes first.
  bool Wait(absl::Time until = absl::InfiniteFuture()) const {
    std::unique_lock<std::mutex> lock(mutex_);
    while (!Happened()) {
      const absl::Time now = absl::Now();
      if (now >= until) return false;
      // In slices: far deadlines do not fit chrono's types.
      condition_.wait_for(lock, absl::ToChronoMicroseconds(std::min(until - now, absl::Seconds(60))));
    }
    return true;
  }

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable condition_;
  std::atomic<bool> happened_{false};
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_EVENT_H_
