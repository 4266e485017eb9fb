// How the ranks of a group find each other: rank 0 listens at an address that all know; the others tell it who they are
// and where they listen; rank 0 checks, and gives everyone the table. In the end every rank is connected to every
// other.
//
// Rank 0 may start last: the others try again until their deadline. Ranks that do not fit together (another group name,
// another size, a rank twice) end the rendezvous with an error that names both sides' values, at rank 0, at the rank
// that does not fit and at those that wait. Once a group stands, late comers are refused and the group goes on.
//
// A group has an engine (Context) of its own, so that several groups in one process do not meet.
#ifndef PERIGEE_TRANSPORT_COLLECTIVE_RENDEZVOUS_H_
#define PERIGEE_TRANSPORT_COLLECTIVE_RENDEZVOUS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "transport/context.h"

namespace perigee::transport {

namespace internal {
class Inbox;
struct RendezvousState;
}  // namespace internal

struct GroupOptions {
  std::string group_name = {};  // the same at all ranks, at most 256 bytes
  // The same at all ranks: who does not have it is not let in. Empty: everybody is.
  std::string secret = {};
  int rank = 0;
  int size = 1;  // the same at all ranks, at most kMaxGroupSize
  // Where rank 0 listens; the same at all ranks. Port 0 takes a free one (rank 0 only).
  std::string rendezvous_host = "127.0.0.1";
  uint16_t rendezvous_port = 0;
  // An address of this machine by which the other ranks reach it; this rank's listener takes a free port there. Rank 0
  // uses rendezvous_host.
  std::string own_host = "127.0.0.1";
  // Of the group's engine.
  Options transport = {};
  // Rank 0's reaches all ranks (Group::blob), at most kMaxGroupBlobBytes: an ncclUniqueId, for instance.
  std::string blob = {};
};

inline constexpr int kMaxGroupSize = 64;  // every rank is connected to every other
inline constexpr size_t kMaxGroupBlobBytes = 128;

// What a rendezvous gives. Move-only; destruction leaves the group.
struct Group {
  Group();
  Group(Group&&) noexcept;
  Group& operator=(Group&&) noexcept;
  ~Group();

  uint64_t id = 0;  // random; equal at all ranks of this group and of no other
  int rank = 0;
  int size = 1;
  std::string blob;
  // Destroyed last to first: the context closes the listener.
  std::shared_ptr<internal::Inbox> inbox;
  Listener listener;
  std::unique_ptr<Context> context;
  std::vector<Endpoint> endpoints;  // by rank; the own one is empty
};

// One rank's part of one rendezvous. One thread.
class Rendezvous {
 public:
  // Starts to listen. INVALID_ARGUMENT for impossible options, ALREADY_EXISTS when rank 0's port is taken, else as
  // Context::Create and Listen.
  static absl::StatusOr<std::unique_ptr<Rendezvous>> Open(const GroupOptions& options);
  ~Rendezvous();
  Rendezvous(const Rendezvous&) = delete;
  Rendezvous& operator=(const Rendezvous&) = delete;

  // Where this rank listens.
  uint16_t port() const;

  // Waits for all ranks. Once; afterwards this object is empty. Errors:
  //   FAILED_PRECONDITION  another group name, size or release: the message names both
  //   ALREADY_EXISTS       two processes claim one rank
  //   UNAVAILABLE          a rank died during the rendezvous, or gave up; try again, all ranks
  //   DEADLINE_EXCEEDED    somebody did not come in time; the message says who, where that is known
  absl::StatusOr<Group> Join(absl::Time deadline);

 private:
  Rendezvous() = default;
  absl::Status Gather(absl::Time deadline);
  absl::Status Introduce(absl::Time deadline);
  absl::StatusOr<Endpoint> ConnectTo(const std::string& host, uint16_t port, absl::Time deadline);
  absl::Status AwaitTable(absl::Time deadline);
  void TellAll(const absl::Status& why);

  GroupOptions options_;
  Group group_;
  std::shared_ptr<internal::RendezvousState> state_;
};

}  // namespace perigee::transport

#endif  // PERIGEE_TRANSPORT_COLLECTIVE_RENDEZVOUS_H_
