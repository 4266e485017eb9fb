#include "base/trace.h"

#include <algorithm>
#include <atomic>

#include "absl/strings/ascii.h"
#include "base/clock.h"

namespace perigee {
namespace internal {

thread_local const std::string* current_request = nullptr;

uint32_t ThreadNumber() {
  static std::atomic<uint32_t> last{0};
  thread_local const uint32_t number = ++last;
  return number;
}

}  // namespace internal

namespace {

// A request leaves a few dozen spans of some two hundred bytes.
constexpr size_t kProcessSpans = 16384;

int64_t NowUs() { return absl::ToUnixMicros(SteadyNow()); }

}  // namespace

bool IsRequestId(absl::string_view id) {
  return !id.empty() && id.size() <= 128 && std::all_of(id.begin(), id.end(), [](unsigned char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == ':' || c == '-';
  });
}

void TraceRing::Add(TraceSpan span) {
  if (max_spans_ == 0) return;
  absl::MutexLock lock(&mu_);
  if (spans_.size() < max_spans_) {
    spans_.push_back(std::move(span));
  } else {
    spans_[added_ % max_spans_] = std::move(span);
  }
  ++added_;
}

std::vector<TraceSpan> TraceRing::Find(absl::string_view request_id) const {
  std::vector<TraceSpan> found;
  {
    absl::MutexLock lock(&mu_);
    for (const TraceSpan& span : spans_) {
      if (span.request_id == request_id) found.push_back(span);
    }
  }
  std::sort(found.begin(), found.end(), [](const TraceSpan& a, const TraceSpan& b) {
    return a.begin_unix_us != b.begin_unix_us ? a.begin_unix_us < b.begin_unix_us : a.end_unix_us > b.end_unix_us;
  });
  return found;
}

uint64_t TraceRing::forgotten() const {
  absl::MutexLock lock(&mu_);
  return added_ - spans_.size();
}

TraceRing& ProcessTrace() {
  static TraceRing* const ring = new TraceRing(kProcessSpans);  // Threads may record until the very end.
  return *ring;
}

void Span::Begin(absl::string_view name, absl::string_view more) {
  span_.emplace();
  span_->request_id = *internal::current_request;
  span_->name = absl::StrCat(name, more);
  span_->thread = internal::ThreadNumber();
  span_->begin_unix_us = NowUs();
}

void Span::End() {
  if (!span_.has_value()) return;
  span_->end_unix_us = NowUs();
  ProcessTrace().Add(*std::move(span_));
  span_.reset();
}

void TraceInstant(absl::string_view name) {
  if (internal::current_request == nullptr) return;
  const absl::Time now = SteadyNow();
  TracePast(name, now, now);
}

void TracePast(absl::string_view name, absl::Time begin, absl::Time end) {
  if (internal::current_request == nullptr) return;
  ProcessTrace().Add({.request_id = *internal::current_request,
                      .name = std::string(name),
                      .begin_unix_us = absl::ToUnixMicros(begin),
                      .end_unix_us = absl::ToUnixMicros(end),
                      .thread = internal::ThreadNumber(),
                      .attributes = {}});
}

}  // namespace perigee
