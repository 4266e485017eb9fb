#include "cluster/contexts/prefill_ahead.h"

#include <algorithm>

#include "absl/time/clock.h"

namespace perigee::cluster {

const char* ContextStateName(ContextState state) {
  switch (state) {
    case ContextState::kPending:
      return "pending";
    case ContextState::kComputing:
      return "computing";
    case ContextState::kReady:
      return "ready";
    case ContextState::kFailed:
      return "failed";
    case ContextState::kUnknown:
      break;
  }
  return "unknown";
}

PrefillAhead::PrefillAhead(Compute compute, const PrefillAheadOptions& options)
    : compute_(std::move(compute)), options_(options), thread_([this] { Run(); }) {}

PrefillAhead::~PrefillAhead() {
  {
    const absl::MutexLock lock(&mu_);
    stopping_ = true;
    changed_.SignalAll();
  }
  thread_.join();
}

void PrefillAhead::Add(const Job& job) {
  const Key key(job.tenant, job.id);
  const absl::MutexLock lock(&mu_);
  if (const auto at = entries_.find(key); at != entries_.end()) {
    const ContextState state = at->second.progress.state;
    const bool under_way = state == ContextState::kPending || state == ContextState::kComputing;
    if (under_way && at->second.content == job.content) return;
    std::erase(queue_, key);
  } else if (entries_.size() >= options_.remembered) {
    const auto idle = std::find_if(entries_.begin(), entries_.end(), [](const auto& entry) {
      const ContextState state = entry.second.progress.state;
      return state == ContextState::kReady || state == ContextState::kFailed;
    });
    if (idle != entries_.end()) entries_.erase(idle);
  }
  entries_[key] = {.content = job.content,
                   .progress = {.state = ContextState::kPending, .error = ""},
                   .number = ++added_,
                   .backoff = options_.first_backoff};
  queue_.push_back(key);
  changed_.SignalAll();
}

void PrefillAhead::Remove(const std::string& tenant, const std::string& id) {
  const Key key(tenant, id);
  const absl::MutexLock lock(&mu_);
  entries_.erase(key);
  std::erase(queue_, key);
}

ContextProgress PrefillAhead::Of(const Job& job) {
  const absl::MutexLock lock(&mu_);
  const auto at = entries_.find(Key(job.tenant, job.id));
  if (at == entries_.end() || at->second.content != job.content) return {};
  return at->second.progress;
}

bool PrefillAhead::Next(Key* key, absl::Time* wait_until) {
  *wait_until = absl::InfiniteFuture();
  const absl::Time now = absl::Now();
  for (auto at = queue_.begin(); at != queue_.end(); ++at) {
    const absl::Time not_before = entries_[*at].not_before;
    if (not_before <= now) {
      *key = std::move(*at);
      queue_.erase(at);
      return true;
    }
    *wait_until = std::min(*wait_until, not_before);
  }
  return false;
}

bool PrefillAhead::Current(const Key& key, uint64_t number) {
  const auto at = entries_.find(key);
  return !stopping_ && at != entries_.end() && at->second.number == number;
}

void PrefillAhead::Finish(const Key& key, uint64_t number, const absl::Status& status) {
  if (!Current(key, number)) return;
  Entry& entry = entries_[key];
  if (absl::IsCancelled(status)) {
    entries_.erase(key);
  } else if (absl::IsUnavailable(status) || absl::IsResourceExhausted(status)) {
    entry.progress = {.state = ContextState::kPending, .error = std::string(status.message())};
    entry.not_before = absl::Now() + entry.backoff;
    entry.backoff = std::min(entry.backoff * 2, options_.longest_backoff);
    queue_.push_back(key);
  } else {
    entry.progress = {.state = status.ok() ? ContextState::kReady : ContextState::kFailed,
                      .error = std::string(status.message())};
  }
}

void PrefillAhead::Run() {
  mu_.Lock();
  while (!stopping_) {
    Key key;
    absl::Time wait_until;
    if (!Next(&key, &wait_until)) {
      changed_.WaitWithDeadline(&mu_, wait_until);
      continue;
    }
    Entry& entry = entries_[key];
    entry.progress.state = ContextState::kComputing;
    const uint64_t number = entry.number;
    const Job job{.tenant = key.first, .id = key.second, .content = entry.content};
    mu_.Unlock();
    const absl::Status status = compute_(job, [&] {
      const absl::MutexLock lock(&mu_);
      return !Current(key, number);
    });
    mu_.Lock();
    Finish(key, number, status);
  }
  mu_.Unlock();
}

}  // namespace perigee::cluster
