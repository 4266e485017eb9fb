#include "node/batch_engine.h"

#include <algorithm>
#include <utility>

#include "absl/synchronization/notification.h"
#include "absl/time/clock.h"

namespace perigee::node {
namespace {

// A pass over fewer tokens says little about how fast prompts go.
constexpr size_t kMeasuredTokens = 32;

}  // namespace

BatchEngine::BatchEngine(const model::Transformer* transformer, int max_tokens)
    : transformer_(transformer),
      max_tokens_(static_cast<size_t>(std::max(max_tokens, 1))),
      thread_([this] { Loop(); }) {}

BatchEngine::~BatchEngine() {
  {
    absl::MutexLock lock(&mu_);
    stopping_ = true;
  }
  thread_.join();
}

void BatchEngine::Submit(model::BatchItem item, Done done) {
  {
    absl::MutexLock lock(&mu_);
    if (!stopping_) {
      (item.tokens.size() == 1 ? singles_ : stretches_).push_back({std::move(item), std::move(done)});
      return;
    }
  }
  done(absl::CancelledError("the node is stopping"));
}

absl::Status BatchEngine::Run(model::BatchItem item) {
  absl::Notification ended;
  absl::Status result;
  Submit(std::move(item), [&](const absl::Status& status) {
    result = status;
    ended.Notify();
  });
  ended.WaitForNotification();
  return result;
}

bool BatchEngine::idle() const {
  absl::MutexLock lock(&mu_);
  return !running_ && singles_.empty() && stretches_.empty();
}

BatchEngineStats BatchEngine::stats() const {
  absl::MutexLock lock(&mu_);
  BatchEngineStats stats = stats_;
  stats.waiting = singles_.size() + stretches_.size();
  return stats;
}

std::vector<BatchEngine::Work> BatchEngine::Next() {
  std::vector<Work> pass;
  size_t tokens = 0;
  while (!singles_.empty() && pass.size() < max_tokens_) {
    pass.push_back(std::move(singles_.front()));
    singles_.pop_front();
    ++tokens;
  }
  bool first = true;
  while (!stretches_.empty() && (first || tokens + stretches_.front().item.tokens.size() <= max_tokens_)) {
    tokens += stretches_.front().item.tokens.size();
    pass.push_back(std::move(stretches_.front()));
    stretches_.pop_front();
    first = false;
  }
  return pass;
}

void BatchEngine::RunPass(std::vector<Work>& pass) {
  std::vector<model::BatchItem> items;
  size_t tokens = 0, singles = 0;
  double positions = 0;
  for (Work& work : pass) {
    const size_t count = work.item.tokens.size();
    const int64_t begin = work.item.cache->tokens();
    tokens += count;
    singles += count == 1 ? 1 : 0;
    positions += SumOfPositions(begin, begin + static_cast<int64_t>(count));
    items.push_back(std::move(work.item));
  }
  const absl::Time start = absl::Now();
  const absl::Status group = transformer_->ForwardBatch(items);
  const absl::Duration took = absl::Now() - start;
  if (tokens - singles >= kMeasuredTokens) rate_.Record(static_cast<double>(tokens), positions, took);
  {
    absl::MutexLock lock(&mu_);
    ++stats_.passes;
    stats_.tokens += tokens;
    stats_.answers += singles;
    stats_.largest_pass = std::max<uint64_t>(stats_.largest_pass, pass.size());
    stats_.busy += took;
    // With whatever shared the pass: that is how long an answer waited for its token.
    if (singles > 0) {
      stats_.answer_token = stats_.answer_token == absl::ZeroDuration() ? took : stats_.answer_token * 0.9 + took * 0.1;
    }
  }
  for (size_t i = 0; i < pass.size(); ++i) pass[i].done(group.ok() ? items[i].status : group);
}

void BatchEngine::Loop() {
  for (;;) {
    std::vector<Work> pass;
    bool stopping;
    {
      const auto something = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) {
        return stopping_ || !singles_.empty() || !stretches_.empty();
      };
      absl::MutexLock lock(&mu_, absl::Condition(&something));
      stopping = stopping_;
      if (stopping) {
        for (auto* queue : {&singles_, &stretches_}) {
          for (Work& work : *queue) pass.push_back(std::move(work));
          queue->clear();
        }
      } else {
        pass = Next();
        running_ = true;
      }
    }
    if (stopping) {
      for (Work& work : pass) work.done(absl::CancelledError("the node is stopping"));
      return;
    }
    RunPass(pass);
    absl::MutexLock lock(&mu_);
    running_ = false;
  }
}

}  // namespace perigee::node
