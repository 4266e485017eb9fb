// A cluster that says known words, at once or at a signal. What it does is asked for by the request's salt, so that
// tests over HTTP can (cache_salt):
//   ""         counts from "one" to "eight" and stops
//   "hang"     says nothing until it is cancelled
//   "deaf"     the same, and has no eye on its deadline
//   "slow"     waits before each word, until told to go on (Release) or cancelled
//   "endless"  goes on to max_tokens
//   "overload", "down", "broken"  RESOURCE_EXHAUSTED, UNAVAILABLE, INTERNAL before the first word
//   "late"     UNAVAILABLE after two words
#ifndef PERIGEE_TESTS_CLUSTER_FAKE_BACKEND_H_
#define PERIGEE_TESTS_CLUSTER_FAKE_BACKEND_H_

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "cluster/gateway/backend.h"

namespace perigee::cluster {

class FakeBackend final : public Backend {
 public:
  absl::StatusOr<BackendUsage> Complete(const BackendRequest& request,
                                        absl::FunctionRef<bool(const BackendEvent&)> emit,
                                        absl::FunctionRef<bool()> cancelled) override {
    {
      const absl::MutexLock lock(&mutex_);
      seen_.push_back(request);
      ++running_;
      most_running_ = std::max(most_running_, running_);
    }
    const auto result = Say(request, emit, cancelled);
    const absl::MutexLock lock(&mutex_);
    --running_;
    if (absl::IsCancelled(result.status())) ++cancelled_;
    return result;
  }

  absl::Status Ready() override {
    const absl::MutexLock lock(&mutex_);
    return ready_;
  }

  // ---- For tests.
  void SetReady(const absl::Status& ready) {
    const absl::MutexLock lock(&mutex_);
    ready_ = ready;
  }
  void Release(int words) {
    const absl::MutexLock lock(&mutex_);
    released_ += words;
  }
  std::vector<BackendRequest> seen() {
    const absl::MutexLock lock(&mutex_);
    return seen_;
  }
  // True once so many requests run; false when they do not within the deadline.
  bool WaitRunning(int count, absl::Duration deadline = absl::Seconds(20)) {
    const absl::MutexLock lock(&mutex_);
    const auto reached = [&] { return running_ == count; };
    return mutex_.AwaitWithTimeout(absl::Condition(&reached), deadline);
  }
  int cancelled() {
    const absl::MutexLock lock(&mutex_);
    return cancelled_;
  }
  int most_running() {
    const absl::MutexLock lock(&mutex_);
    return most_running_;
  }

  int64_t words_said() const { return words_said_.load(); }

  static std::string Word(uint32_t i) {
    static const char* const kWords[] = {"one", "two", "three", "four", "five", "six", "seven", "eight"};
    return absl::StrCat(i == 0 ? "" : " ", kWords[i % 8]);
  }

 private:
  absl::StatusOr<BackendUsage> Say(const BackendRequest& request, absl::FunctionRef<bool(const BackendEvent&)> emit,
                                   absl::FunctionRef<bool()> cancelled) {
    const std::string& how = request.salt;
    if (how == "overload") return absl::ResourceExhaustedError("every node is busy");
    if (how == "down") return absl::UnavailableError("no decode node is there");
    if (how == "broken") return absl::InternalError("a wrong turn");
    BackendUsage usage{.prompt_tokens = static_cast<uint32_t>(request.token_ids.size()),
                       .cached_tokens = static_cast<uint32_t>(request.token_ids.size() / 2)};
    for (const ContextSpan& span : request.contexts) usage.context_tokens += static_cast<uint32_t>(span.tokens);
    const uint32_t natural = how == "endless" || request.ignore_eos ? request.max_tokens : 8;
    const uint32_t words = std::min(natural, request.max_tokens);
    for (uint32_t i = 0; i < words || how == "hang" || how == "deaf"; ++i) {
      if (how == "late" && i == 2) return absl::UnavailableError("the decode node died");
      if (absl::Status waited = Wait(how, request.deadline, cancelled); !waited.ok()) return waited;
      for (uint32_t sample = 0; sample < request.samples; ++sample) {
        const bool last = i + 1 == words;
        BackendEvent event{.sample = sample, .text = Word(i), .tokens = 1, .finish_reason = ""};
        if (sample > 0 && i == 0) event.text = absl::StrCat(sample, ":", event.text);
        const bool stopped = std::find(request.stop.begin(), request.stop.end(), Word(i)) != request.stop.end();
        if (stopped) event.text.clear();
        if (last || stopped) event.finish_reason = stopped || words < request.max_tokens ? "stop" : "length";
        ++usage.completion_tokens;
        words_said_.fetch_add(1);
        if (!emit(event)) return absl::CancelledError("the caller is gone");
        if (stopped && sample + 1 == request.samples) return usage;
      }
    }
    return usage;
  }

  absl::Status Wait(const std::string& how, absl::Time deadline, absl::FunctionRef<bool()> cancelled) {
    while (!cancelled()) {
      if (how != "deaf" && absl::Now() >= deadline) return absl::DeadlineExceededError("the request's time is over");
      if (how != "hang" && how != "deaf" && how != "slow") return absl::OkStatus();
      const absl::MutexLock lock(&mutex_);
      const auto may_go_on = [&] { return how == "slow" && released_ > 0; };
      if (!mutex_.AwaitWithTimeout(absl::Condition(&may_go_on), absl::Milliseconds(5))) continue;
      --released_;
      return absl::OkStatus();
    }
    return absl::CancelledError("the caller is gone");
  }

  std::atomic<int64_t> words_said_ = 0;
  absl::Mutex mutex_;
  absl::Status ready_;
  std::vector<BackendRequest> seen_;
  int running_ = 0;
  int most_running_ = 0;
  int cancelled_ = 0;
  int released_ = 0;
};

}  // namespace perigee::cluster

#endif  // PERIGEE_TESTS_CLUSTER_FAKE_BACKEND_H_
