// Where a request's time goes: named spans, kept in a bounded ring of this process until newer ones push them out.
//
// A thread works for one request at a time, or for none. RequestScope says for which; Span and log lines (base/log.h)
// look there, so that nobody hands ids around. A thread that is started for a request opens a scope of its own:
//
//   std::thread([id = std::string(CurrentRequest())] { const RequestScope scope(id); ... });
//
// Where a thread works for no request, a span costs one look at a thread's variable. Spans of one thread nest.
#ifndef PERIGEE_BASE_TRACE_H_
#define PERIGEE_BASE_TRACE_H_

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace perigee {

// 1 to 128 of A-Z a-z 0-9 . _ : -
bool IsRequestId(absl::string_view id);

struct TraceSpan {
  std::string request_id;
  std::string name;
  int64_t begin_unix_us = 0;  // By SteadyNow (base/clock.h).
  int64_t end_unix_us = 0;    // The same as the beginning: something that happened at once.
  uint32_t thread = 0;        // A number of this process's.
  std::vector<std::pair<std::string, std::string>> attributes;
};

// Any thread may call.
class TraceRing {
 public:
  explicit TraceRing(size_t max_spans) : max_spans_(max_spans) {}

  void Add(TraceSpan span);
  // By their beginning; of spans that began together, the longest first.
  std::vector<TraceSpan> Find(absl::string_view request_id) const;
  // Spans that were pushed out.
  uint64_t forgotten() const;

 private:
  const size_t max_spans_;
  mutable absl::Mutex mu_;
  std::vector<TraceSpan> spans_ ABSL_GUARDED_BY(mu_);
  uint64_t added_ ABSL_GUARDED_BY(mu_) = 0;
};

// This process's.
TraceRing& ProcessTrace();

namespace internal {
extern thread_local const std::string* current_request;
uint32_t ThreadNumber();
}  // namespace internal

// "" for none. Valid as long as the scope.
inline absl::string_view CurrentRequest() {
  return internal::current_request == nullptr ? absl::string_view() : *internal::current_request;
}

// This thread works for that request ("": for none) until the end of the object, on the same thread; then again for
// whom it worked before.
class RequestScope {
 public:
  explicit RequestScope(absl::string_view request_id)
      : id_(request_id), before_(std::exchange(internal::current_request, request_id.empty() ? nullptr : &id_)) {}
  ~RequestScope() { internal::current_request = before_; }
  RequestScope(const RequestScope&) = delete;
  RequestScope& operator=(const RequestScope&) = delete;

 private:
  const std::string id_;
  const std::string* const before_;
};

// From here to the end of the object. One thread.
class Span {
 public:
  // Its name is the two together: the second part is for names that are made.
  explicit Span(absl::string_view name, absl::string_view more = {}) {
    if (internal::current_request != nullptr) Begin(name, more);
  }
  ~Span() { End(); }
  Span(const Span&) = delete;
  Span& operator=(const Span&) = delete;

  template <typename Value>
  void Set(absl::string_view key, const Value& value) {
    if (span_.has_value()) span_->attributes.emplace_back(key, absl::StrCat(value));
  }
  // For attributes that cost something to find out.
  bool recording() const { return span_.has_value(); }
  void End();

 private:
  void Begin(absl::string_view name, absl::string_view more);
  std::optional<TraceSpan> span_;
};

// Something that happens at once.
void TraceInstant(absl::string_view name);
// What is known only when it is over, as a part of the thread's request.
void TracePast(absl::string_view name, absl::Time begin, absl::Time end);

}  // namespace perigee

#endif  // PERIGEE_BASE_TRACE_H_
