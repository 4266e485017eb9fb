#include "kvstore/event_log.h"

#include <algorithm>
#include <utility>

namespace perigee::kvstore {

void EventLog::Stored(const PlaneId& id, uint64_t payload_bytes, const std::string& tenant, int64_t when_unix_us) {
  Append({.kind = EventKind::kStored,
          .id = id,
          .when_unix_us = when_unix_us,
          .payload_bytes = payload_bytes,
          .tenant = tenant});
}

void EventLog::Removed(const PlaneId& id, MissReason reason, const std::string& tenant, int64_t when_unix_us) {
  Append({.kind = EventKind::kRemoved, .id = id, .reason = reason, .when_unix_us = when_unix_us, .tenant = tenant});
}

void EventLog::Append(Event event) {
  absl::MutexLock lock(&mu_);
  event.sequence = ++newest_;
  if (capacity_ > 0) {
    if (events_.size() == capacity_) events_.pop_front();
    events_.push_back(std::move(event));
  }
  changed_.SignalAll();
}

EventPage EventLog::Read(uint64_t after, size_t limit, const std::string& tenant, absl::Time until) const {
  EventPage page;
  absl::MutexLock lock(&mu_);
  while (!Look(after, limit, tenant, &page) && !closed_) {
    after = page.up_to;  // what is another tenant's need not be looked at again
    if (changed_.WaitWithDeadline(&mu_, until)) {
      Look(after, limit, tenant, &page);
      break;
    }
  }
  return page;
}

// True where there is something to tell.
bool EventLog::Look(uint64_t after, size_t limit, const std::string& tenant, EventPage* page) const {
  page->up_to = newest_;
  // A number from the future is one of another start's.
  if (after > newest_) {
    page->gap = true;
    after = 0;
  }
  const uint64_t first = newest_ - events_.size() + 1;
  if (after + 1 < first) page->gap = true;
  for (size_t i = after + 1 < first ? 0 : after + 1 - first; i < events_.size() && page->events.size() < limit; ++i) {
    if (tenant.empty() || events_[i].tenant == tenant) page->events.push_back(events_[i]);
  }
  if (page->events.size() == limit) page->up_to = page->events.back().sequence;
  return page->gap || !page->events.empty();
}

void EventLog::Close() {
  absl::MutexLock lock(&mu_);
  closed_ = true;
  changed_.SignalAll();
}

}  // namespace perigee::kvstore
