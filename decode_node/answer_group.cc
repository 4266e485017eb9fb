#include "decode_node/answer_group.h"

#include <utility>

#include "absl/time/clock.h"

namespace perigee::decode_node {

AnswerGroup::AnswerGroup(node::BatchEngine* engine, int block_tokens, std::vector<Answer> answers,
                         node::RequestMetrics* metrics)
    : engine_(engine),
      block_tokens_(block_tokens),
      answers_(std::move(answers)),
      logits_(answers_.size()),
      last_token_(answers_.size(), absl::InfinitePast()),
      metrics_(metrics) {}

AnswerGroup::~AnswerGroup() {
  const auto ended = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return running_ == 0; };
  absl::MutexLock lock(&mu_);
  stopping_ = true;
  mu_.Await(absl::Condition(&ended));
}

void AnswerGroup::Start(std::span<const float> logits) {
  {
    absl::MutexLock lock(&mu_);
    running_ = answers_.size();
  }
  for (size_t i = 0; i < answers_.size(); ++i) Take(i, logits);
}

void AnswerGroup::End(const absl::Status& status) {
  absl::MutexLock lock(&mu_);
  if (status_.ok()) status_ = status;
  if (!status.ok()) stopping_ = true;
  --running_;
}

// On the request's thread for the first token, then on the engine's.
void AnswerGroup::Take(size_t i, std::span<const float> logits) {
  v1::GenerateEvent event;
  const absl::StatusOr<bool> goes_on = answers_[i].Take(logits, event.mutable_token());
  if (!goes_on.ok()) return End(goes_on.status());
  ++metrics_->generated_tokens;
  const absl::Time before = std::exchange(last_token_[i], absl::Now());
  if (before != absl::InfinitePast()) metrics_->between_tokens.Record(last_token_[i] - before);
  {
    absl::MutexLock lock(&mu_);
    events_.push_back(std::move(event));
    if (!*goes_on) {
      answers_[i].Finish(events_.emplace_back().mutable_finished());
      --running_;
      return;
    }
    if (stopping_) {
      --running_;
      return;
    }
  }
  Step(i);
}

void AnswerGroup::Step(size_t i) {
  engine_->Submit({.tokens = std::span(answers_[i].ids()).last(1),
                   .cache = &answers_[i].cache(),
                   .which = model::Logits::kLast,
                   .logits = &logits_[i]},
                  [this, i](const absl::Status& status) {
                    if (!status.ok()) return End(status);
                    // What a next turn continues from is a block's border: the window of that one is kept.
                    model::PlaneCache& cache = answers_[i].cache();
                    cache.RetireProximal(cache.tokens() / block_tokens_ * block_tokens_);
                    Take(i, logits_[i]);
                  });
}

absl::Status AnswerGroup::Drain(const std::function<bool(const v1::GenerateEvent&)>& emit, absl::Time deadline) {
  for (;;) {
    std::deque<v1::GenerateEvent> events;
    absl::Status end;
    bool ended;
    {
      const auto something = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return !events_.empty() || running_ == 0; };
      absl::MutexLock lock(&mu_);
      if (!mu_.AwaitWithDeadline(absl::Condition(&something), deadline)) {
        return absl::DeadlineExceededError("the request's time is over; its answer was not complete");
      }
      events.swap(events_);
      ended = running_ == 0;
      end = status_;
    }
    for (const v1::GenerateEvent& event : events) {
      if (!emit(event)) return absl::CancelledError("the caller is gone");
    }
    if (ended) return end;
  }
}

}  // namespace perigee::decode_node
