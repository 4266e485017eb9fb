#include "node/abandoned.h"

#include <utility>

namespace perigee::node {

Abandoned::~Abandoned() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void Abandoned::Take(std::shared_ptr<void> what) {
  absl::MutexLock lock(&mu_);
  waiting_.push_back(std::move(what));
}

size_t Abandoned::waiting() const {
  absl::MutexLock lock(&mu_);
  return waiting_.size() + (busy_ ? 1 : 0);
}

void Abandoned::Loop() {
  for (;;) {
    std::shared_ptr<void> next;
    {
      const auto something = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return stopping_ || !waiting_.empty(); };
      absl::MutexLock lock(&mu_, absl::Condition(&something));
      if (waiting_.empty()) return;
      next = std::move(waiting_.front());
      waiting_.pop_front();
      busy_ = true;
    }
    next = nullptr;
    absl::MutexLock lock(&mu_);
    busy_ = false;
  }
}

}  // namespace perigee::node
