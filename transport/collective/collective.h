// A group of ranks that compute one model together: sums, gathers, broadcasts and barriers over all of them.
//
// Every rank calls the same operations in the same order with the same sizes. Implementations: UCX between processors
// (ucx_collective.h), NCCL between CUDA devices (nccl_collective.h). A group is made by a rendezvous (rendezvous.h).
//
// Results: AllReduceSum's are bitwise identical at all ranks. The UCX implementation adds in rank order, element by
// element, whatever the length, so that equal inputs give equal bits at any time and however a tensor was cut up.
// Ownership: buffers are the caller's; none is touched after a call has returned.
// Threads: one thread at a time (one per rank, as a rule). Calls block.
// Errors:
//   INVALID_ARGUMENT     impossible arguments. Nothing was sent and the group is whole, but the other ranks wait
//   UNAVAILABLE          a rank died or left, or gave up (its deadline passed): every rank gets this, as soon as it is
//                        known and by its own deadline at the latest
//   DEADLINE_EXCEEDED    not finished in time, and nobody is known to be dead
//   INTERNAL             the ranks disagree on what they are doing; the message names both sides' operations
//   FAILED_PRECONDITION  an earlier call ended with one of the three above. That breaks the group for good: make a new
//                        one with all ranks. Contents of buffers of failed calls are unspecified
// A call ends by its deadline plus at most 200 ms, in which the other ranks are told.
#ifndef PERIGEE_TRANSPORT_COLLECTIVE_COLLECTIVE_H_
#define PERIGEE_TRANSPORT_COLLECTIVE_COLLECTIVE_H_

#include <cstddef>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace perigee::transport {

class Collective {
 public:
  // Leaves the group: ranks inside a call that needs this one get UNAVAILABLE.
  virtual ~Collective() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  // values[i] becomes the sum of all ranks' values[i].
  virtual absl::Status AllReduceSum(std::span<float> values, absl::Time deadline) = 0;
  // all[rank * mine.size() + i] becomes that rank's mine[i]; all.size() == size() * mine.size(). `mine` may be its own
  // place in `all`, and overlaps it in no other way.
  virtual absl::Status AllGather(std::span<const std::byte> mine, std::span<std::byte> all, absl::Time deadline) = 0;
  // `bytes` becomes the root's. Every rank gives a buffer of the same length. When the root's call returns OK, all
  // ranks have the bytes.
  virtual absl::Status Broadcast(std::span<std::byte> bytes, int root, absl::Time deadline) = 0;
  // The same for a string whose length only the root knows: at most kMaxStringBytes. Always host memory.
  virtual absl::Status BroadcastString(std::string* text, int root, absl::Time deadline) = 0;
  // Returns OK once all ranks have called it.
  virtual absl::Status Barrier(absl::Time deadline) = 0;

  static constexpr size_t kMaxStringBytes = size_t{64} << 20;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_COLLECTIVE_COLLECTIVE_H_
