// The messages, all answered calls with the id kRendezvousMessageId:
//   rank r -> 0   join   who I am and where I listen; the answer is the group's id
//   0 -> r        table  where everyone listens, and the blob. From here on r's inbox takes this group's messages
//   r -> 0        ready  I am connected to everyone
//   0 -> r        go     everyone is
//   0 -> r        abort  the rendezvous has failed
//   r -> 0        leave  I know that I do not fit, and go
// Payload: u32 magic | u16 version | u8 kind | fields.
#include "transport/collective/rendezvous.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "base/bytes.h"
#include "base/status.h"
#include "transport/collective/inbox.h"

namespace perigee::transport {
namespace {

constexpr uint16_t kRendezvousMessageId = 0x4302;
constexpr uint32_t kMagic = 0x56524750;  // "PGRV"
constexpr uint16_t kVersion = 1;
constexpr size_t kMaxNameBytes = 256;
constexpr std::chrono::milliseconds kLook{20};                 // how often a waiting rank looks at connections
constexpr absl::Duration kRetry = absl::Milliseconds(50);      // between attempts to connect
constexpr absl::Duration kAttempt = absl::Seconds(3);          // for one attempt
constexpr absl::Duration kFarewell = absl::Milliseconds(500);  // for telling all others that it has failed

enum class Kind : uint8_t { kJoin = 1, kTable = 2, kReady = 3, kGo = 4, kAbort = 5, kLeave = 6 };

ByteWriter Start(Kind kind) {
  ByteWriter writer;
  writer.U32(kMagic);
  writer.U16(kVersion);
  writer.U8(static_cast<uint8_t>(kind));
  return writer;
}

uint64_t Random64() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

std::string Address(const std::string& host, uint16_t port) { return absl::StrCat(host, ":", port); }

struct Place {
  std::string host;
  uint16_t port = 0;
  uint64_t process = 0;  // a random number per Rendezvous
};

}  // namespace

// What handlers (on the progress thread) and Join (on the caller's) share.
struct internal::RendezvousState {
  absl::StatusOr<std::string> Answer(absl::string_view payload);
  absl::StatusOr<std::string> Joined(ByteReader& reader);
  absl::StatusOr<std::string> TableReceived(ByteReader& reader);
  // Waits until something may have changed, at the latest a little while.
  void Look(std::unique_lock<std::mutex>& lock, absl::Time deadline) {
    const auto left = absl::ToChronoNanoseconds(deadline - absl::Now());
    changed.wait_for(lock, std::min<std::chrono::nanoseconds>(left, kLook));
  }

  // Constant after Open:
  std::string group_name;
  int rank = 0;
  int size = 1;
  uint64_t process = 0;
  std::shared_ptr<Inbox> inbox;

  std::mutex mutex;
  std::condition_variable changed;
  uint64_t group_id = 0;
  std::vector<Place> places;  // by rank; port 0 while unknown
  std::vector<bool> ready;    // rank 0's
  std::string blob;
  bool has_table = false;
  bool go = false;
  bool complete = false;  // the group stands or has failed: late comers change nothing
  absl::Status failure;
  Place misfit;  // who did not fit, until it knows
};

absl::StatusOr<std::string> internal::RendezvousState::Answer(absl::string_view payload) {
  ByteReader reader(payload);
  const uint32_t magic = reader.U32();
  const uint16_t version = reader.U16();
  const auto kind = static_cast<Kind>(reader.U8());
  if (!reader.ok() || magic != kMagic) return absl::InvalidArgumentError("not a message of a rendezvous");
  if (version != kVersion) {
    return absl::FailedPreconditionError(absl::StrCat("the rendezvous speaks version ", version, ", rank ", rank,
                                                      " speaks ", kVersion, "; run the same release everywhere"));
  }
  const std::lock_guard lock(mutex);
  if (kind == Kind::kJoin) return Joined(reader);
  if (kind == Kind::kTable) return TableReceived(reader);
  if (kind == Kind::kAbort) {
    const uint64_t to = reader.U64();
    const uint32_t code = reader.U32();
    const absl::string_view why = reader.Counted();
    if (!reader.ok() || to != process) return absl::InvalidArgumentError("meant for another process");
    if (failure.ok() && !complete) {
      failure = absl::Status(static_cast<absl::StatusCode>(std::clamp<uint32_t>(code, 1, 16)), why);
    }
    changed.notify_all();
    return "";
  }
  if (kind == Kind::kLeave) {
    if (reader.U64() == misfit.process) misfit = {};
    changed.notify_all();
    return "";
  }
  const uint64_t id = reader.U64();
  const uint32_t from = reader.U32();
  if (!reader.ok() || id != group_id || (kind != Kind::kReady && kind != Kind::kGo)) {
    return absl::InvalidArgumentError("meant for another group");
  }
  if (kind == Kind::kGo) go = true;
  if (kind == Kind::kReady && from < ready.size()) ready[from] = true;
  changed.notify_all();
  return "";
}

absl::StatusOr<std::string> internal::RendezvousState::Joined(ByteReader& reader) {
  const std::string their_group(reader.Counted());
  const uint32_t their_rank = reader.U32();
  const uint32_t their_size = reader.U32();
  Place place;
  place.process = reader.U64();
  place.host = std::string(reader.Counted());
  place.port = reader.U16();
  if (!reader.ok() || reader.remaining() != 0 || their_group.size() > kMaxNameBytes ||
      place.host.size() > kMaxNameBytes || place.port == 0) {
    return absl::InvalidArgumentError("damaged message of a rendezvous");
  }
  if (rank != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("the rendezvous address is that of rank ", rank, " of group '", group_name, "', not of rank 0"));
  }
  const std::string who = Address(place.host, place.port);
  absl::Status misfit_is;
  if (their_group != group_name) {
    misfit_is = absl::FailedPreconditionError(
        absl::StrCat(who, " wants to join group '", their_group, "', but this is group '", group_name, "'"));
  } else if (their_size != static_cast<uint32_t>(size)) {
    misfit_is =
        absl::FailedPreconditionError(absl::StrCat("rank ", their_rank, " at ", who, " was started for a group of ",
                                                   their_size, ", rank 0 for a group of ", size));
  } else if (their_rank == 0 || their_rank >= static_cast<uint32_t>(size)) {
    misfit_is = absl::AlreadyExistsError(absl::StrCat(who, " claims rank ", their_rank, " of ", size,
                                                      "; it must be one of 1 to ", size - 1, ", rank 0 is here"));
  } else if (places[their_rank].port != 0 && places[their_rank].process != place.process) {
    misfit_is = absl::AlreadyExistsError(absl::StrCat(who, " claims rank ", their_rank, ", which ",
                                                      Address(places[their_rank].host, places[their_rank].port),
                                                      " has already"));
  }
  if (!misfit_is.ok()) {
    if (!complete && failure.ok()) {
      failure = misfit_is;
      misfit = std::move(place);
      changed.notify_all();
    }
    return misfit_is;
  }
  places[their_rank] = std::move(place);
  changed.notify_all();
  ByteWriter answer;
  answer.U64(group_id);
  return answer.Take();
}

absl::StatusOr<std::string> internal::RendezvousState::TableReceived(ByteReader& reader) {
  const uint64_t to = reader.U64();
  const uint64_t id = reader.U64();
  const uint32_t count = reader.U32();
  if (!reader.ok() || to != process) return absl::InvalidArgumentError("meant for another process");
  if (count != static_cast<uint32_t>(size)) return absl::InvalidArgumentError("a table of another size");
  std::vector<Place> table(count);
  for (Place& place : table) {
    place.host = std::string(reader.Counted());
    place.port = reader.U16();
  }
  const absl::string_view bytes = reader.Counted();
  if (!reader.ok() || bytes.size() > kMaxGroupBlobBytes) return absl::InvalidArgumentError("damaged table");
  places = std::move(table);
  blob = std::string(bytes);
  group_id = id;
  has_table = true;
  inbox->Open(id, rank, size);
  changed.notify_all();
  return "";
}

Group::Group() = default;
Group::Group(Group&&) noexcept = default;
Group& Group::operator=(Group&&) noexcept = default;
Group::~Group() = default;

absl::StatusOr<std::unique_ptr<Rendezvous>> Rendezvous::Open(const GroupOptions& options) {
  if (options.size < 1 || options.size > kMaxGroupSize) {
    return absl::InvalidArgumentError(absl::StrCat("a group of ", options.size, " ranks; use 1 to ", kMaxGroupSize));
  }
  if (options.rank < 0 || options.rank >= options.size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", options.rank, " in a group of ", options.size, "; use 0 to ", options.size - 1));
  }
  if (options.group_name.empty() || options.group_name.size() > kMaxNameBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a group name of ", options.group_name.size(), " bytes; use 1 to ", kMaxNameBytes));
  }
  if (options.blob.size() > kMaxGroupBlobBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("a blob of ", options.blob.size(), " bytes; at most ", kMaxGroupBlobBytes, " are possible"));
  }
  if (options.rank != 0 && options.rendezvous_port == 0) {
    return absl::InvalidArgumentError("rendezvous_port is 0; only rank 0 may leave its choice to the system");
  }
  std::unique_ptr<Rendezvous> self(new Rendezvous);
  self->options_ = options;
  Group& group = self->group_;
  group.rank = options.rank;
  group.size = options.size;
  group.endpoints.resize(options.size);
  group.inbox = std::make_shared<internal::Inbox>();
  self->state_ = std::make_shared<internal::RendezvousState>();
  internal::RendezvousState& state = *self->state_;
  state.group_name = options.group_name;
  state.rank = options.rank;
  state.size = options.size;
  state.process = Random64();
  state.inbox = group.inbox;
  state.places.resize(options.size);
  state.ready.resize(options.size);
  if (options.rank == 0) {
    state.group_id = Random64() | 1;
    group.inbox->Open(state.group_id, 0, options.size);
  }
  PERIGEE_ASSIGN_OR_RETURN(group.context, Context::Create(options.transport));
  group.context->SetHandler(
      internal::kCollectiveMessageId,
      [inbox = group.inbox](absl::string_view header, absl::string_view payload) -> absl::StatusOr<std::string> {
        inbox->Deliver(header, payload);
        return "";
      });
  group.context->SetHandler(kRendezvousMessageId, [state = self->state_](absl::string_view, absl::string_view payload) {
    return state->Answer(payload);
  });
  const auto authenticator = [secret = options.secret](absl::string_view token,
                                                       absl::string_view) -> absl::StatusOr<PeerIdentity> {
    if (token != secret) return absl::PermissionDeniedError("not this group's secret");
    return PeerIdentity{"a rank", 0, /*trusted=*/true};
  };
  if (options.rank == 0) {
    PERIGEE_ASSIGN_OR_RETURN(group.listener,
                             group.context->Listen(options.rendezvous_host, options.rendezvous_port, authenticator));
  } else {
    PERIGEE_ASSIGN_OR_RETURN(group.listener, group.context->Listen(options.own_host, 0, authenticator));
  }
  return self;
}

Rendezvous::~Rendezvous() = default;

uint16_t Rendezvous::port() const { return group_.listener.port(); }

absl::StatusOr<Group> Rendezvous::Join(absl::Time deadline) {
  if (group_.context == nullptr) return absl::FailedPreconditionError("this Rendezvous has been used; open another");
  const absl::Status status = options_.rank == 0 ? Gather(deadline) : Introduce(deadline);
  {
    const std::lock_guard lock(state_->mutex);
    state_->complete = true;
    group_.id = state_->group_id;
    group_.blob = options_.rank == 0 ? options_.blob : state_->blob;
  }
  if (!status.ok()) {
    if (options_.rank == 0) TellAll(status);
    group_ = Group();
    return Annotate(status, absl::StrCat("rank ", options_.rank, " of group '", options_.group_name, "'"));
  }
  return std::move(group_);
}

// Tries again while nobody listens.
absl::StatusOr<Endpoint> Rendezvous::ConnectTo(const std::string& host, uint16_t port, absl::Time deadline) {
  while (true) {
    absl::StatusOr<Endpoint> endpoint =
        group_.context->Connect(host, port, std::min(deadline, absl::Now() + kAttempt), options_.secret);
    if (endpoint.ok() || (!absl::IsUnavailable(endpoint.status()) && !absl::IsDeadlineExceeded(endpoint.status()))) {
      return endpoint;
    }
    std::unique_lock lock(state_->mutex);
    const absl::Time again = absl::Now() + kRetry;
    while (absl::Now() < again) {
      if (!state_->failure.ok()) return state_->failure;
      if (absl::Now() >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat("nobody answered at ", Address(host, port),
                                                        " by the deadline: ", endpoint.status().message()));
      }
      state_->Look(lock, std::min(again, deadline));
    }
  }
}

// Rank 0's part.
absl::Status Rendezvous::Gather(absl::Time deadline) {
  internal::RendezvousState& state = *state_;
  // Everyone's introduction, in whatever order they come.
  std::set<int> missing;
  for (int i = 1; i < options_.size; ++i) missing.insert(i);
  while (!missing.empty()) {
    int next = 0;
    Place place;
    {
      std::unique_lock lock(state.mutex);
      if (!state.failure.ok()) return state.failure;
      for (int i = 1; i < options_.size; ++i) {
        if (missing.contains(i)) {
          if (next == 0 && state.places[i].port != 0) next = i;
        } else if (!group_.endpoints[i].connected()) {
          return absl::UnavailableError(absl::StrCat("rank ", i, " died or gave up during the rendezvous"));
        }
      }
      if (next == 0) {
        if (absl::Now() >= deadline) {
          return absl::DeadlineExceededError(
              absl::StrCat("missing at the deadline: rank ", absl::StrJoin(missing, ", "), " of ", options_.size));
        }
        state.Look(lock, deadline);
        continue;
      }
      place = state.places[next];
    }
    PERIGEE_ASSIGN_OR_RETURN(group_.endpoints[next], ConnectTo(place.host, place.port, deadline));
    missing.erase(next);
  }

  ByteWriter table;
  {
    const std::lock_guard lock(state.mutex);
    state.places[0] = {options_.rendezvous_host, port(), state.process};
    for (const Place& place : state.places) {
      table.Counted(place.host);
      table.U16(place.port);
    }
  }
  table.Counted(options_.blob);
  for (int i = 1; i < options_.size; ++i) {
    ByteWriter message = Start(Kind::kTable);
    {
      const std::lock_guard lock(state.mutex);
      message.U64(state.places[i].process);
      message.U64(state.group_id);
    }
    message.U32(static_cast<uint32_t>(options_.size));
    message.Raw(table.bytes());
    PERIGEE_RETURN_IF_ERROR(
        Annotate(group_.endpoints[i].Call(kRendezvousMessageId, "", message.bytes(), deadline).status(),
                 absl::StrCat("rank ", i, " did not take the table of ranks")));
  }

  {
    std::unique_lock lock(state.mutex);
    for (int i = 1; i < options_.size;) {
      if (!state.failure.ok()) return state.failure;
      if (state.ready[i]) {
        ++i;
      } else if (!group_.endpoints[i].connected()) {
        return absl::UnavailableError(absl::StrCat("rank ", i, " died or gave up during the rendezvous"));
      } else if (absl::Now() >= deadline) {
        return absl::DeadlineExceededError(absl::StrCat("rank ", i, " was not connected to all by the deadline"));
      } else {
        state.Look(lock, deadline);
      }
    }
    state.complete = true;
  }
  ByteWriter go = Start(Kind::kGo);
  go.U64(state.group_id);
  go.U32(0);
  for (int i = 1; i < options_.size; ++i) {
    PERIGEE_RETURN_IF_ERROR(Annotate(group_.endpoints[i].Call(kRendezvousMessageId, "", go.bytes(), deadline).status(),
                                     absl::StrCat("rank ", i, " was lost at the end of the rendezvous")));
  }
  return absl::OkStatus();
}

// The other ranks' part.
absl::Status Rendezvous::Introduce(absl::Time deadline) {
  internal::RendezvousState& state = *state_;
  ByteWriter join = Start(Kind::kJoin);
  join.Counted(options_.group_name);
  join.U32(static_cast<uint32_t>(options_.rank));
  join.U32(static_cast<uint32_t>(options_.size));
  join.U64(state.process);
  join.Counted(options_.own_host);
  join.U16(port());
  while (true) {
    PERIGEE_ASSIGN_OR_RETURN(group_.endpoints[0],
                             ConnectTo(options_.rendezvous_host, options_.rendezvous_port, deadline));
    const absl::Status joined = group_.endpoints[0].Call(kRendezvousMessageId, "", join.bytes(), deadline).status();
    if (joined.ok()) break;
    if (!absl::IsUnavailable(joined)) {
      ByteWriter leave = Start(Kind::kLeave);
      leave.U64(state.process);
      group_.endpoints[0]
          .Call(kRendezvousMessageId, "", leave.bytes(), std::min(deadline, absl::Now() + kFarewell))
          .IgnoreError();
    }
    const std::lock_guard lock(state.mutex);
    if (!state.failure.ok()) return state.failure;
    if (absl::IsNotFound(joined)) {
      return absl::FailedPreconditionError(absl::StrCat("what listens at ",
                                                        Address(options_.rendezvous_host, options_.rendezvous_port),
                                                        " holds no rendezvous; check the address"));
    }
    if (!absl::IsUnavailable(joined)) return joined;  // else rank 0 was lost in between: try again
  }
  PERIGEE_RETURN_IF_ERROR(AwaitTable(deadline));
  for (int i = 1; i < options_.size; ++i) {
    if (i == options_.rank) continue;
    Place place;
    {
      const std::lock_guard lock(state.mutex);
      place = state.places[i];
    }
    PERIGEE_ASSIGN_OR_RETURN(group_.endpoints[i], ConnectTo(place.host, place.port, deadline));
  }
  ByteWriter ready = Start(Kind::kReady);
  {
    const std::lock_guard lock(state.mutex);
    ready.U64(state.group_id);
  }
  ready.U32(static_cast<uint32_t>(options_.rank));
  PERIGEE_RETURN_IF_ERROR(
      Annotate(group_.endpoints[0].Call(kRendezvousMessageId, "", ready.bytes(), deadline).status(), "tell rank 0"));
  std::unique_lock lock(state.mutex);
  while (!state.go) {
    if (!state.failure.ok()) return state.failure;
    if (!group_.endpoints[0].connected()) return absl::UnavailableError("rank 0 died during the rendezvous");
    if (absl::Now() >= deadline) return absl::DeadlineExceededError("the other ranks were not ready by the deadline");
    state.Look(lock, deadline);
  }
  return absl::OkStatus();
}

absl::Status Rendezvous::AwaitTable(absl::Time deadline) {
  std::unique_lock lock(state_->mutex);
  while (!state_->has_table) {
    if (!state_->failure.ok()) return state_->failure;
    if (!group_.endpoints[0].connected()) return absl::UnavailableError("rank 0 died or gave up during the rendezvous");
    if (absl::Now() >= deadline) {
      return absl::DeadlineExceededError("rank 0 had not gathered all ranks by the deadline");
    }
    state_->Look(lock, deadline);
  }
  return absl::OkStatus();
}

// Rank 0 has failed: those who have come, and the one that did not fit, learn why. As well as that is possible.
void Rendezvous::TellAll(const absl::Status& why) {
  const absl::Time until = absl::Now() + kFarewell;
  std::vector<Place> places;
  {
    const std::lock_guard lock(state_->mutex);
    places = state_->places;
  }
  // What is wrong with one's arguments is wrong with the other's.
  const bool same_code = absl::IsFailedPrecondition(why) || absl::IsAlreadyExists(why);
  for (int i = 1; i < options_.size; ++i) {
    if (places[i].port == 0) continue;
    ByteWriter message = Start(Kind::kAbort);
    message.U64(places[i].process);
    message.U32(static_cast<uint32_t>(same_code ? why.code() : absl::StatusCode::kUnavailable));
    message.Counted(same_code ? std::string(why.message())
                              : absl::StrCat("rank 0 gave up the rendezvous: ", why.message()));
    if (!group_.endpoints[i].connected()) {
      absl::StatusOr<Endpoint> endpoint =
          group_.context->Connect(places[i].host, places[i].port, until, options_.secret);
      if (!endpoint.ok()) continue;
      group_.endpoints[i] = *std::move(endpoint);
    }
    group_.endpoints[i].Call(kRendezvousMessageId, "", message.bytes(), until).IgnoreError();
  }
  // Its join was answered with the reason; the answer must not be lost with this side's engine.
  std::unique_lock lock(state_->mutex);
  while (state_->misfit.port != 0 && absl::Now() < until) state_->Look(lock, until);
}

}  // namespace perigee::transport
