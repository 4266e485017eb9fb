#include "base/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace perigee {
namespace {

thread_local bool inside_parallel_for = false;

struct Job {
  size_t n;
  const std::function<void(size_t)>* body;
  std::atomic<size_t> next{0};
  size_t helpers = 0;  // Pool threads inside Work; guarded by the pool's mutex.

  void Work() {
    inside_parallel_for = true;
    for (size_t i; (i = next.fetch_add(1)) < n;) (*body)(i);
    inside_parallel_for = false;
  }
};

int CoreCount() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1u, std::thread::hardware_concurrency());
}

class Pool {
 public:
  static Pool& Get() {
    static Pool* pool = new Pool;  // Never destroyed: its threads may outlive main's statics.
    return *pool;
  }

  int threads() const { return threads_; }

  void Run(size_t n, const std::function<void(size_t)>& body) {
    Job job{n, &body};
    {
      std::lock_guard<std::mutex> lock(mutex_);
      jobs_.push_back(&job);
    }
    work_.notify_all();
    job.Work();
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), &job), jobs_.end());
    done_.wait(lock, [&] { return job.helpers == 0; });
  }

 private:
  Pool() : threads_(CoreCount()) {
    for (int i = 1; i < threads_; ++i) std::thread([this] { Loop(); }).detach();
  }

  void Loop() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_.wait(lock, [&] { return !jobs_.empty(); });
      Job* job = jobs_.front();
      ++job->helpers;
      lock.unlock();
      job->Work();
      lock.lock();
      // All indices are taken: no other thread should start on it.
      jobs_.erase(std::remove(jobs_.begin(), jobs_.end(), job), jobs_.end());
      if (--job->helpers == 0) done_.notify_all();
    }
  }

  const int threads_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::condition_variable done_;
  std::deque<Job*> jobs_;
};

}  // namespace

void ParallelFor(size_t n, const std::function<void(size_t)>& body) {
  if (n <= 1 || inside_parallel_for || ParallelThreads() == 1) {
    for (size_t i = 0; i < n; ++i) body(i);
    return;
  }
  Pool::Get().Run(n, body);
}

int ParallelThreads() { return Pool::Get().threads(); }

}  // namespace perigee
