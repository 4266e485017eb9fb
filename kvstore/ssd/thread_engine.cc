#include <unistd.h>

#include <cerrno>
#include <deque>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/ssd/io_engine.h"

namespace perigee::kvstore {
namespace {

class ThreadEngine : public IoEngine {
 public:
  explicit ThreadEngine(unsigned threads) {
    for (unsigned i = 0; i < std::max(threads, 1u); ++i) threads_.emplace_back([this] { Work(); });
  }
  ~ThreadEngine() override {
    {
      absl::MutexLock lock(&mu_);
      stop_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
  }

  void Start(std::vector<std::unique_ptr<IoJob>> jobs) override {
    absl::MutexLock lock(&mu_);
    for (auto& job : jobs) waiting_.push_back(std::move(job));
  }
  std::string Describe() const override { return absl::StrCat(threads_.size(), " threads"); }

 private:
  void Work() {
    for (;;) {
      std::unique_ptr<IoJob> job;
      {
        absl::MutexLock lock(&mu_);
        const auto ready = [this]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return stop_ || !waiting_.empty(); };
        mu_.Await(absl::Condition(&ready));
        if (waiting_.empty()) return;
        job = std::move(waiting_.front());
        waiting_.pop_front();
      }
      absl::Status status;
      while (!job->Advance(Call(*job), &status)) {
      }
      job->transfer.done(std::move(status));
    }
  }

  static int64_t Call(IoJob& job) {
    int64_t n;
    if (job.is_sync()) {
      n = ::fdatasync(job.fd);
    } else if (job.is_write()) {
      n = ::pwritev(job.fd, job.first_piece(), job.piece_count(), static_cast<off_t>(job.offset_bytes));
    } else {
      n = ::preadv(job.fd, job.first_piece(), job.piece_count(), static_cast<off_t>(job.offset_bytes));
    }
    return n < 0 ? -errno : n;
  }

  absl::Mutex mu_;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::deque<std::unique_ptr<IoJob>> waiting_ ABSL_GUARDED_BY(mu_);
  std::vector<std::thread> threads_;
};

}  // namespace

std::unique_ptr<IoEngine> MakeThreadEngine(unsigned threads) { return std::make_unique<ThreadEngine>(threads); }

}  // namespace perigee::kvstore
