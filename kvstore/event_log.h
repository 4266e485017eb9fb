// What happened to the store's planes, for those who keep an index of it elsewhere (routers, schedulers): the last so
// many events, numbered from 1 without gaps. A reader that remembers the number it has seen goes on from there, after
// a broken connection too; one that was away for longer than the log reaches is told so, and lists the store instead
// (Store::List). Numbers begin anew with each start of the store: they mean something only with its epoch.
//
// Events are of planes as the store as a whole has them: one that moves from DRAM to SSD neither comes nor goes.
//
// Any thread may call.
#ifndef PERIGEE_KVSTORE_EVENT_LOG_H_
#define PERIGEE_KVSTORE_EVENT_LOG_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/miss_history.h"
#include "kvstore/plane_id.h"

namespace perigee::kvstore {

// The values are those of proto's EventKind.
enum class EventKind : uint8_t { kStored = 1, kRemoved = 2 };

struct Event {
  uint64_t sequence = 0;
  EventKind kind{};
  PlaneId id;
  MissReason reason{};  // Of a removal.
  int64_t when_unix_us = 0;
  uint64_t payload_bytes = 0;
  std::string tenant;
};

struct EventPage {
  std::vector<Event> events;
  // Events after the reader's number have been forgotten: what it knows of the store is no longer complete.
  bool gap = false;
  uint64_t up_to = 0;  // Up to this number all is told, or is another tenant's.
};

class EventLog {
 public:
  explicit EventLog(size_t capacity) : capacity_(capacity) {}
  EventLog(const EventLog&) = delete;
  EventLog& operator=(const EventLog&) = delete;

  void Stored(const PlaneId& id, uint64_t payload_bytes, const std::string& tenant, int64_t when_unix_us);
  void Removed(const PlaneId& id, MissReason reason, const std::string& tenant, int64_t when_unix_us);

  // The events after number `after`, at most `limit` and the oldest first, those of other tenants left out (empty
  // tenant: of all). Waits for one, or for a gap, until `until`; none then, or when the log is closed.
  EventPage Read(uint64_t after, size_t limit, const std::string& tenant, absl::Time until) const;

  // Waits no longer, and not again.
  void Close();

 private:
  void Append(Event event);
  bool Look(uint64_t after, size_t limit, const std::string& tenant, EventPage* page) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const size_t capacity_;
  mutable absl::Mutex mu_;
  mutable absl::CondVar changed_;
  std::deque<Event> events_ ABSL_GUARDED_BY(mu_);
  uint64_t newest_ ABSL_GUARDED_BY(mu_) = 0;
  bool closed_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_EVENT_LOG_H_
