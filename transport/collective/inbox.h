// Inside of the UCX collective: messages of other ranks that have arrived and not been taken yet, and the check that
// all ranks are in the same operation. Not for other rooms.
//
// Every message carries the group's id, the sender's rank, the operation that the sender is in (its number in the
// group's life, kind, root and size) and the step inside it. Messages of other groups are dropped: their group is gone.
//
// Bounded: no rank ends an operation before all have begun it, except that a broadcast's receivers may be one operation
// farther. So a sender is at most two operations ahead, and an operation has a few pieces under way per pair of ranks.
// kMaxWaiting messages per sender are far above that, and passing it breaks the group.
// Threads: Deliver from the progress thread, the rest from the group's one caller.
#ifndef PERIGEE_TRANSPORT_COLLECTIVE_INBOX_H_
#define PERIGEE_TRANSPORT_COLLECTIVE_INBOX_H_

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <tuple>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace perigee::transport::internal {

inline constexpr uint16_t kCollectiveMessageId = 0x4301;

enum class OperationKind : uint8_t {
  kAllReduceSum = 1,
  kAllGather = 2,
  kBroadcast = 3,
  kBroadcastString = 4,
  kBarrier = 5,
};

struct Operation {
  uint64_t sequence = 0;  // 1 for a group's first
  OperationKind kind = OperationKind::kBarrier;
  uint32_t root = 0;   // broadcasts
  uint64_t bytes = 0;  // this rank's share: what must be equal everywhere
  bool operator==(const Operation&) const = default;
};
// "operation 7, AllReduceSum of 4096 bytes"
std::string Describe(const Operation& operation);

// A message's header; the payload follows it as the transport message's payload.
std::string EncodeStep(uint64_t group_id, int from, const Operation& operation, uint32_t step);
// Tells other ranks that the sender has given up in operation `sequence`, and why.
std::string EncodeAbort(uint64_t group_id, int from, uint64_t sequence, const absl::Status& why);

class Inbox {
 public:
  // Before the group is known, everything is dropped.
  void Open(uint64_t group_id, int rank, int size);

  // One message from the transport. Never an error: a message that makes no sense has no one to tell.
  void Deliver(absl::string_view header, absl::string_view payload);

  // From now on this rank is in `operation`. INTERNAL when a rank is known to be in another one; the abort's status
  // when one has arrived.
  absl::Status Begin(const Operation& operation);

  // Whether Take would return at once.
  bool Ready(int from, uint32_t step) const;
  // Takes rank `from`'s payload of `step` of the operation. `connected` says whether the rank is still there; when it
  // is not, messages on their way get kGrace to arrive. UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL as in collective.h.
  absl::StatusOr<std::string> Take(int from, uint32_t step, absl::Time deadline, absl::FunctionRef<bool()> connected);

  // OK, or why the group is broken as far as messages tell.
  absl::Status status() const;

 private:
  static constexpr size_t kMaxWaiting = 256;

  struct Message {
    Operation operation;
    std::string payload;
  };
  void CheckAgreement(int from, const Operation& theirs);
  void Break(absl::string_view disagreement);
  const absl::Status& Broken() const;  // as of the current operation

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  uint64_t group_id_ = 0;
  int rank_ = 0;
  int size_ = 0;
  Operation current_;
  absl::Status broken_;
  uint64_t broken_from_ = 0;  // this operation on; those before can still end well
  std::map<std::tuple<int, uint64_t, uint32_t>, Message> waiting_;  // by sender, operation's number, step
  std::map<int, size_t> waiting_of_;                                // messages by sender
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_COLLECTIVE_INBOX_H_
