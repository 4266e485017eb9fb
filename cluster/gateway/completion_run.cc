#include "cluster/gateway/completion_run.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace perigee::cluster {
namespace {
constexpr size_t kEventBytes = 64;  // What an event weighs besides its text.
}  // namespace

absl::StatusOr<std::unique_ptr<CompletionRun>> CompletionRun::Start(Backend* backend,
                                                                    std::vector<BackendRequest> requests,
                                                                    const Options& options) {
  UniqueFd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (event.get() < 0) return absl::ResourceExhaustedError(absl::StrCat("eventfd: ", std::strerror(errno)));
  std::unique_ptr<CompletionRun> run(new CompletionRun(backend, std::move(requests), options, std::move(event)));
  const size_t threads = std::min(run->requests_.size(), std::max<size_t>(options.parallel_prompts, 1));
  for (size_t i = 0; i < threads; ++i) {
    {
      const absl::MutexLock lock(&run->mutex_);
      ++run->running_threads_;
    }
    try {
      run->threads_.emplace_back([run = run.get()] { run->Work(); });
    } catch (const std::system_error& error) {
      const absl::MutexLock lock(&run->mutex_);
      --run->running_threads_;
      if (i == 0) return absl::ResourceExhaustedError(absl::StrCat("no thread can be started: ", error.what()));
      break;  // Those that run take the others' prompts.
    }
  }
  return run;
}

CompletionRun::CompletionRun(Backend* backend, std::vector<BackendRequest> requests, const Options& options,
                             UniqueFd event)
    : backend_(backend), requests_(std::move(requests)), options_(options), event_(std::move(event)) {}

CompletionRun::~CompletionRun() {
  Cancel(absl::CancelledError("the request was given up"));
  for (std::thread& thread : threads_) thread.join();
}

void CompletionRun::Notify() {
  const uint64_t one = 1;
  // Full only when it is readable already.
  (void)!::write(event_.get(), &one, sizeof(one));
}

bool CompletionRun::Cancelled() {
  const absl::MutexLock lock(&mutex_);
  return !failure_.ok();
}

void CompletionRun::Cancel(const absl::Status& reason) {
  const absl::MutexLock lock(&mutex_);
  if (failure_.ok()) failure_ = reason;
}

bool CompletionRun::Push(size_t prompt, const BackendEvent& event) {
  {
    const absl::MutexLock lock(&mutex_);
    const auto may_go_on = [this] {
      mutex_.AssertReaderHeld();
      return queued_bytes_ < options_.max_queued_bytes || !failure_.ok();
    };
    // The reader cancels when its deadline or its client is gone.
    mutex_.AwaitWithDeadline(absl::Condition(&may_go_on), requests_[prompt].deadline);
    if (!may_go_on() && failure_.ok()) failure_ = absl::DeadlineExceededError("the client reads too slowly");
    if (!failure_.ok()) return false;
    queued_bytes_ += event.text.size() + kEventBytes;
    queue_.push_back({.prompt = prompt, .event = event});
  }
  Notify();
  return true;
}

void CompletionRun::Work() {
  for (;;) {
    size_t prompt = 0;
    {
      const absl::MutexLock lock(&mutex_);
      if (!failure_.ok() || next_prompt_ == requests_.size()) break;
      prompt = next_prompt_++;
    }
    const auto usage = backend_->Complete(
        requests_[prompt], [&](const BackendEvent& event) { return Push(prompt, event); }, [&] { return Cancelled(); });
    const absl::MutexLock lock(&mutex_);
    if (usage.ok()) {
      usage_.prompt_tokens += usage->prompt_tokens;
      usage_.cached_tokens += usage->cached_tokens;
      usage_.context_tokens += usage->context_tokens;
      usage_.repaired_tokens += usage->repaired_tokens;
      usage_.completion_tokens += usage->completion_tokens;
    } else if (failure_.ok()) {
      failure_ = usage.status();
    }
  }
  {
    const absl::MutexLock lock(&mutex_);
    --running_threads_;
  }
  Notify();
}

std::optional<CompletionRun::Item> CompletionRun::Take() {
  const absl::MutexLock lock(&mutex_);
  if (queue_.empty()) {
    // Nothing is missed: whoever pushes or ends from here on notifies again.
    uint64_t ignored = 0;
    if (running_threads_ > 0) (void)!::read(event_.get(), &ignored, sizeof(ignored));
    return std::nullopt;
  }
  Item item = std::move(queue_.front());
  queue_.pop_front();
  queued_bytes_ -= item.event.text.size() + kEventBytes;
  return item;
}

std::optional<absl::StatusOr<BackendUsage>> CompletionRun::Result() {
  const absl::MutexLock lock(&mutex_);
  if (running_threads_ > 0 || !queue_.empty()) return std::nullopt;
  if (!failure_.ok()) return absl::StatusOr<BackendUsage>(failure_);
  return absl::StatusOr<BackendUsage>(usage_);
}

}  // namespace perigee::cluster
