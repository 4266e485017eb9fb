// The remote tier's operations, begun and waited for. What is refused at once and what fails later look alike here.
#ifndef PERIGEE_TESTS_KVSTORE_REMOTE_AWAIT_H_
#define PERIGEE_TESTS_KVSTORE_REMOTE_AWAIT_H_

#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "../planes.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "kvstore/remote/remote_tier.h"

namespace perigee::kvstore {

// Longer than anything here should take, restarts of a backend apart.
inline constexpr absl::Duration kLong = absl::Seconds(90);

// How late a deadline may be on a busy machine.
inline constexpr absl::Duration kGrace = absl::Seconds(2);

// A result that arrives once. Two results are a failure.
template <typename T>
class Pending {
 public:
  void Set(T value) {
    absl::MutexLock lock(&mu_);
    EXPECT_FALSE(value_.has_value()) << "done was called twice";
    value_ = std::move(value);
  }
  bool ready() const {
    absl::MutexLock lock(&mu_);
    return value_.has_value();
  }
  // Fails the test, and waits no longer, after `limit`.
  std::optional<T> Wait(absl::Duration limit = 2 * kLong) {
    absl::MutexLock lock(&mu_);
    const auto set = [this] { return value_.has_value(); };
    if (!mu_.AwaitWithTimeout(absl::Condition(&set), limit)) {
      ADD_FAILURE() << "done was not called within " << limit;
      return std::nullopt;
    }
    return *value_;
  }

 private:
  mutable absl::Mutex mu_;
  std::optional<T> value_;
};

template <typename T>
struct Begun {
  std::shared_ptr<Pending<T>> pending = std::make_shared<Pending<T>>();
  absl::StatusOr<RemoteTier::OperationId> id = absl::UnknownError("not begun");
  // as_result: what T says where there is only a status.
  template <typename AsResult>
  T Wait(AsResult as_result) {
    if (!id.ok()) return as_result(id.status());
    auto value = pending->Wait();
    return value ? *std::move(value) : as_result(absl::InternalError("done was not called"));
  }
};

inline RemotePut PutOf(const TestPlane& plane, int64_t created = 1234567) {
  return {.id = plane.id, .encoded_header = plane.encoded(), .payload = plane.payload, .created_unix_us = created};
}

inline Begun<absl::StatusOr<PutOutcome>> BeginPut(RemoteTier& tier, const RemotePut& put,
                                                  absl::Duration limit = kLong) {
  Begun<absl::StatusOr<PutOutcome>> begun;
  begun.id = tier.Put(put, absl::Now() + limit, [p = begun.pending](auto value) { p->Set(std::move(value)); });
  return begun;
}
inline Begun<absl::StatusOr<RecordHead>> BeginGet(RemoteTier& tier, const RemoteGet& get,
                                                  absl::Duration limit = kLong) {
  Begun<absl::StatusOr<RecordHead>> begun;
  begun.id = tier.Get(get, absl::Now() + limit, [p = begun.pending](auto value) { p->Set(std::move(value)); });
  return begun;
}
template <typename T>
T Wait(Begun<T> begun) {
  return begun.Wait([](const absl::Status& status) { return T(status); });
}

inline absl::StatusOr<PutOutcome> Put(RemoteTier& tier, const RemotePut& put, absl::Duration limit = kLong) {
  return Wait(BeginPut(tier, put, limit));
}
inline absl::StatusOr<PutOutcome> Put(RemoteTier& tier, const TestPlane& plane, absl::Duration limit = kLong) {
  return Put(tier, PutOf(plane), limit);
}
inline absl::StatusOr<RecordHead> Get(RemoteTier& tier, const RemoteGet& get, absl::Duration limit = kLong) {
  return Wait(BeginGet(tier, get, limit));
}
// OK when the whole plane came, byte for byte; INTERNAL when other bytes came as if they were right.
inline absl::Status GetAndCompare(RemoteTier& tier, const TestPlane& plane, absl::Duration limit = kLong) {
  std::vector<std::byte> got(plane.payload.size(), std::byte{0xA5});
  const auto head = Get(tier, {plane.id, got.size(), 0, got}, limit);
  if (!head.ok()) return head.status();
  if (got != plane.payload || head->header != plane.header) return absl::InternalError("OK with other bytes");
  return absl::OkStatus();
}
inline std::vector<absl::Status> Delete(RemoteTier& tier, std::vector<PlaneId> ids, absl::Duration limit = kLong) {
  Begun<std::vector<absl::Status>> begun;
  const size_t n = ids.size();
  begun.id = tier.Delete(std::move(ids), absl::Now() + limit, [p = begun.pending](auto value) { p->Set(value); });
  return begun.Wait([n](const absl::Status& status) { return std::vector<absl::Status>(n, status); });
}
inline std::vector<absl::StatusOr<RecordHead>> Stat(RemoteTier& tier, std::vector<PlaneId> ids,
                                                    absl::Duration limit = kLong) {
  using Heads = std::vector<absl::StatusOr<RecordHead>>;
  Begun<Heads> begun;
  const size_t n = ids.size();
  begun.id = tier.Stat(std::move(ids), absl::Now() + limit, [p = begun.pending](auto value) { p->Set(value); });
  return begun.Wait([n](const absl::Status& status) { return Heads(n, status); });
}
inline absl::StatusOr<RemoteListPage> List(RemoteTier& tier, const std::string& token, size_t max,
                                           absl::Duration limit = kLong) {
  Begun<absl::StatusOr<RemoteListPage>> begun;
  begun.id = tier.List(token, max, absl::Now() + limit, [p = begun.pending](auto value) { p->Set(std::move(value)); });
  return Wait(begun);
}

// Asks again and again, until true or the time is over.
inline bool Eventually(const std::function<bool()>& is_so, absl::Duration limit = kLong) {
  for (const absl::Time deadline = absl::Now() + limit; absl::Now() < deadline;
       absl::SleepFor(absl::Milliseconds(10))) {
    if (is_so()) return true;
  }
  return is_so();
}

}  // namespace perigee::kvstore

#endif  // PERIGEE_TESTS_KVSTORE_REMOTE_AWAIT_H_
