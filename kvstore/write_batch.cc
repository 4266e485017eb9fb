#include <algorithm>
#include <utility>

#include "kvstore/client_state.h"
#include "kvstore/shared_reservation.h"

namespace perigee::kvstore {

namespace internal {

void Puts::Settle(UnderWay& put) {
  const absl::Status ended = put.handle.Wait();
  if (ended.ok()) {
    core->put_bytes += put.bytes;
  } else {
    status.Update(ended);
  }
}

void Puts::DropFinished() {
  std::erase_if(under_way, [this](UnderWay& put) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    if (!put.handle.done()) return false;
    Settle(put);
    return true;
  });
}

absl::Status Puts::Start(std::span<const transport::PutTransfer> pieces, uint64_t bytes) {
  if (pieces.empty()) return absl::OkStatus();
  // A put past the reservation's end could hit what others have written there since.
  const absl::Time deadline = std::min(absl::Now() + core->options.transfer_deadline, expiry);
  absl::StatusOr<transport::TransferBatch> handle =
      session->connection.StartPut(pieces, {.deadline = deadline, .checksums = false});
  absl::MutexLock lock(&mu);
  if (!handle.ok()) {
    status.Update(handle.status());
    return handle.status();
  }
  if (under_way.size() % 64 == 63) DropFinished();
  under_way.push_back({*std::move(handle), bytes});
  return absl::OkStatus();
}

absl::Status Puts::Wait() {
  absl::MutexLock lock(&mu);
  for (UnderWay& put : under_way) Settle(put);
  under_way.clear();
  if (!status.ok() && !session->connection.connected()) session->lost = true;
  return Annotate(status, absl::StrCat("writing to the store at ", core->address));
}

absl::Status Puts::AwaitNotice() {
  if (session->slab.path() != "shared memory") return absl::OkStatus();  // elsewhere the store itself has ended them
  const absl::Status came = session->connection.Send(kQuickCallId, "", "", absl::Now() + core->options.call_deadline);
  if (!came.ok() && !session->connection.connected()) session->lost = true;
  return Annotate(came, absl::StrCat("writing to the store at ", core->address));
}

absl::Status WriteState::Commit(std::span<const size_t> some, std::span<const pod::PlaneHeader> headers,
                                Durability durability, uint32_t ttl_s, uint32_t replicas, bool quick,
                                std::vector<absl::Status>* statuses) {
  v1::CommitRequest request;
  request.set_durability(static_cast<v1::Durability>(durability));
  request.set_ttl_s(ttl_s);
  request.set_replicas(replicas);
  for (const size_t plane : some) {
    auto* wire = request.add_planes();
    wire->set_reservation_id(reservations[plane].id);
    wire->set_header(pod::EncodePlaneHeader(headers[plane]));
  }
  if (!quick) PERIGEE_RETURN_IF_ERROR(AwaitNotice());
  v1::CommitResponse response;
  const absl::Duration deadline = core->options.call_deadline;
  PERIGEE_RETURN_IF_ERROR(
      quick ? core->CallQuickly(*session, QuickCall::kCommit, &Stub::Commit, request, &response, deadline)
            : core->CallWithin(*session, &Stub::Commit, request, &response, deadline));
  if (static_cast<size_t>(response.planes_size()) != some.size())
    return absl::InternalError(absl::StrCat("the store at ", core->address, " answered for ", response.planes_size(),
                                            " of ", some.size(), " planes"));
  for (size_t i = 0; i < some.size(); ++i) {
    const v1::PlaneStatus& wire = response.planes(static_cast<int>(i));
    (*statuses)[some[i]] = absl::Status(static_cast<absl::StatusCode>(wire.code()), wire.message());
    if (wire.code() == 0) reservations[some[i]].already_committed = true;
  }
  return absl::OkStatus();
}

}  // namespace internal

WriteBatch::WriteBatch(std::unique_ptr<internal::WriteState> state) : state_(std::move(state)) {}
WriteBatch::WriteBatch() = default;
WriteBatch::WriteBatch(WriteBatch&&) noexcept = default;
WriteBatch& WriteBatch::operator=(WriteBatch&& other) noexcept {
  if (this != &other) {
    Abort();
    state_ = std::move(other.state_);
  }
  return *this;
}
WriteBatch::~WriteBatch() { Abort(); }

size_t WriteBatch::size() const { return state_ == nullptr ? 0 : state_->planes.size(); }
bool WriteBatch::already_committed(size_t plane) const { return state_->reservations[plane].already_committed; }

absl::Status WriteBatch::Put(std::span<const PutRange> ranges) {
  if (ranges.empty()) return absl::OkStatus();
  if (state_ == nullptr) return absl::FailedPreconditionError("put into an empty batch");
  internal::WriteState& s = *state_;
  std::vector<transport::PutTransfer> pieces;
  uint64_t total_bytes = 0;
  for (const PutRange& range : ranges) {
    if (range.plane >= size())
      return absl::OutOfRangeError(absl::StrCat("plane ", range.plane, " of a batch of ", size()));
    const Reservation& r = s.reservations[range.plane];
    if (r.already_committed) continue;
    const uint64_t payload_bytes = s.planes[range.plane].payload_bytes;
    if (range.offset_bytes > payload_bytes || range.bytes.size() > payload_bytes - range.offset_bytes) {
      return absl::OutOfRangeError(absl::StrCat("bytes [", range.offset_bytes, ", +", range.bytes.size(), ") of ",
                                                s.planes[range.plane].id.ToString(), ", which has ", payload_bytes));
    }
    pieces.push_back(
        {.local = range.bytes, .remote_address = r.address + range.offset_bytes, .region = &s.session->slab});
    total_bytes += range.bytes.size();
  }
  return s.Start(pieces, total_bytes);
}

absl::Status WriteBatch::Put(size_t plane, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  const PutRange range{plane, offset_bytes, bytes};
  return Put({&range, 1});
}

absl::Status WriteBatch::WaitForPuts() {
  if (state_ == nullptr) return absl::FailedPreconditionError("an empty batch has no puts");
  return state_->Wait();
}

absl::StatusOr<std::vector<absl::Status>> WriteBatch::Commit(std::span<const pod::PlaneHeader> headers,
                                                             Durability durability, absl::Duration ttl,
                                                             uint32_t replicas) {
  if (state_ == nullptr) return absl::FailedPreconditionError("commit of an empty batch");
  internal::WriteState& s = *state_;
  if (headers.size() != size()) {
    return absl::InvalidArgumentError(absl::StrCat(headers.size(), " headers for a batch of ", size(), " planes"));
  }
  if (replicas < 1 || replicas > kMaxReplicas) {
    return absl::InvalidArgumentError(absl::StrCat(replicas, " replicas; 1 to ", kMaxReplicas, " are possible"));
  }
  uint32_t ttl_s = 0;
  if (ttl != absl::InfiniteDuration()) {
    const int64_t seconds = absl::ToInt64Seconds(absl::Ceil(ttl, absl::Seconds(1)));
    if (seconds < 1 || seconds > kMaxTtlSeconds) {
      return absl::InvalidArgumentError(absl::StrCat("a time to live of ", absl::FormatDuration(ttl), "; 1 s to ",
                                                     kMaxTtlSeconds, " s are possible"));
    }
    ttl_s = static_cast<uint32_t>(seconds);
  }
  PERIGEE_RETURN_IF_ERROR(WaitForPuts());
  std::vector<size_t> open;
  for (size_t i = 0; i < size(); ++i) {
    if (!s.reservations[i].already_committed) open.push_back(i);
  }
  std::vector<absl::Status> out(size());
  // By message as many as the store checks at once; one that is too large goes over gRPC, with all after it.
  const bool quick = s.session->trusted && !s.session->has_ssd;
  for (size_t begin = 0, end = 0; begin < open.size(); begin = end) {
    uint64_t bytes = 0;
    while (quick && end < open.size() && end - begin < kMaxQuickPlanes &&
           bytes + s.planes[open[end]].payload_bytes <= kMaxQuickCommitBytes) {
      bytes += s.planes[open[end++]].payload_bytes;
    }
    const bool over_grpc = end == begin;
    if (over_grpc) end = open.size();
    PERIGEE_RETURN_IF_ERROR(
        s.Commit(std::span(open).subspan(begin, end - begin), headers, durability, ttl_s, replicas, !over_grpc, &out));
  }
  return out;
}

absl::StatusOr<std::string> WriteBatch::Describe() {
  if (state_ == nullptr) return absl::FailedPreconditionError("an empty batch has no description");
  internal::WriteState& s = *state_;
  s.described = true;
  SharedReservation shared{.epoch = s.session->epoch, .remaining = s.expiry - absl::Now(), .planes = {}};
  for (size_t i = 0; i < size(); ++i) {
    const Reservation& r = s.reservations[i];
    shared.planes.push_back({r.already_committed, r.already_committed ? 0 : r.address, s.planes[i].payload_bytes});
  }
  return EncodeSharedReservation(shared);
}

void WriteBatch::Abort() {
  if (state_ == nullptr) return;
  internal::WriteState& s = *state_;
  const absl::Status puts = s.Wait();
  v1::AbortRequest request;
  for (const Reservation& r : s.reservations) {
    if (!r.already_committed) request.add_reservation_ids(r.id);
  }
  request.set_writes_may_arrive(!puts.ok() || s.described);
  if (request.reservation_ids_size() > 0 && !s.session->lost) {
    v1::AbortResponse response;
    // Only a courtesy: the reservation's ttl ends it too.
    const absl::Duration deadline = std::min(absl::Seconds(1), s.core->options.call_deadline);
    s.core->CallWithin(*s.session, &internal::Stub::Abort, request, &response, deadline).IgnoreError();
  }
  state_ = nullptr;
}

}  // namespace perigee::kvstore
