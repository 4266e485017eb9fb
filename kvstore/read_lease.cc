#include <algorithm>
#include <utility>

#include "base/trace.h"
#include "kvstore/client_state.h"

namespace perigee::kvstore {

namespace internal {

LeaseState::~LeaseState() {
  if (id == 0 || session->lost) return;
  v1::ReleaseRequest request;
  request.set_lease_id(id);
  request.set_fetched_bytes(fetched_bytes);
  request.set_fetch_us(fetch_us);
  v1::ReleaseResponse response;
  const absl::Duration deadline = std::min(absl::Seconds(1), core->options.call_deadline);
  if (session->trusted) {
    core->CallQuickly(*session, QuickCall::kRelease, &Stub::Release, request, &response, deadline).IgnoreError();
  } else {
    core->CallWithin(*session, &Stub::Release, request, &response, deadline).IgnoreError();
  }
}

absl::Status CheckHeld(std::span<const HeldPlane> planes, size_t plane) {
  if (plane >= planes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("plane ", plane, " of a lease of ", planes.size()));
  }
  const HeldPlane& held = planes[plane];
  if (held.found) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat(held.id.ToString(), " is not stored: ", MissReasonName(held.miss.reason)));
}

absl::Status LeaseState::Locate(const FetchRequest& r, std::vector<transport::GetTransfer>* pieces) const {
  PERIGEE_RETURN_IF_ERROR(CheckHeld(planes, r.plane));
  const HeldPlane& plane = planes[r.plane];
  const std::vector<uint64_t>& begins = section_begins[r.plane];
  const size_t sections = begins.size() - 1;
  const size_t first = std::min(r.first_section, sections);
  const size_t end = first + std::min(r.sections, sections - first);
  if (r.destination.size() != begins[end] - begins[first]) {
    return absl::InvalidArgumentError(absl::StrCat("a destination of ", r.destination.size(), " bytes for ",
                                                   begins[end] - begins[first], " bytes of ", plane.id.ToString()));
  }
  for (size_t k = first; k < end; ++k) {
    pieces->push_back({.local = r.destination.subspan(begins[k] - begins[first], begins[k + 1] - begins[k]),
                       .remote_address = addresses[r.plane] + begins[k],
                       .region = &session->slab});
  }
  return absl::OkStatus();
}

absl::StatusOr<transport::TransferBatch> LeaseState::StartGet(std::vector<transport::GetTransfer> pieces,
                                                              absl::Time deadline) {
  PERIGEE_RETURN_IF_ERROR(core->CheckMovesPayload());
  if (absl::Now() >= expiry()) return absl::UnavailableError("the lease has expired; acquire again");
  return session->connection.StartGet(pieces, {.deadline = std::min(deadline, expiry())});
}

absl::Status LeaseState::WireError(const absl::Status& status) {
  if (core->Severed(*session)) session->lost = true;
  return Annotate(status, absl::StrCat("reading from the store at ", core->address));
}

void LeaseState::CountFetched(uint64_t bytes, absl::Duration took) {
  fetched_bytes += bytes;
  fetch_us += static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Microseconds(took)));
  core->fetched_bytes += bytes;
}

absl::Status LeaseState::Verify(const FetchRequest& r, const transport::TransferBatch& batch, size_t* extent) const {
  const HeldPlane& plane = planes[r.plane];
  const size_t sections = plane.header.sections.size();
  const size_t first = std::min(r.first_section, sections);
  const size_t end = first + std::min(r.sections, sections - first);
  const size_t begin_extent = *extent;
  *extent += end - first;
  for (size_t k = first; k < end; ++k) {
    if (batch.extent_crc32c(begin_extent + k - first) != plane.header.sections[k].crc32c) {
      return absl::DataLossError(absl::StrCat(plane.id.ToString(), ": the bytes of section ", k,
                                              " do not match their checksum; the store has been told"));
    }
  }
  return absl::OkStatus();
}

void LeaseState::ReportWrong(size_t plane) {
  ++core->checksum_failures;
  Report(*core, *session, planes[plane].id).status().IgnoreError();
}

}  // namespace internal

ReadLease::ReadLease(std::shared_ptr<internal::LeaseState> state) : state_(std::move(state)) {}
ReadLease::ReadLease() = default;
ReadLease::ReadLease(ReadLease&&) noexcept = default;
ReadLease& ReadLease::operator=(ReadLease&& other) noexcept = default;
ReadLease::~ReadLease() = default;

const std::vector<HeldPlane>& ReadLease::planes() const {
  static const std::vector<HeldPlane>* const none = new std::vector<HeldPlane>;
  return state_ == nullptr ? *none : state_->planes;
}
absl::Time ReadLease::expiry() const { return state_ == nullptr ? absl::InfinitePast() : state_->expiry(); }

std::vector<absl::Status> ReadLease::Fetch(std::span<const FetchRequest> requests) {
  const Span span("store fetch");
  std::vector<absl::Status> out(requests.size());
  if (state_ == nullptr) {
    std::fill(out.begin(), out.end(), absl::FailedPreconditionError("fetch from an empty lease"));
    return out;
  }
  internal::LeaseState& s = *state_;
  std::vector<transport::GetTransfer> pieces;
  std::vector<size_t> fetched;  // Requests.
  uint64_t total_bytes = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    out[i] = s.Locate(requests[i], &pieces);
    if (!out[i].ok()) continue;
    total_bytes += requests[i].destination.size();
    fetched.push_back(i);
  }
  if (pieces.empty()) return out;

  const absl::Time started = absl::Now();
  absl::StatusOr<transport::TransferBatch> batch =
      s.StartGet(std::move(pieces), started + s.core->options.transfer_deadline);
  const absl::Status got = batch.ok() ? batch->Wait() : batch.status();
  if (!got.ok()) {
    const absl::Status error = s.WireError(got);
    for (const size_t i : fetched) out[i] = error;
    return out;
  }
  s.CountFetched(total_bytes, absl::Now() - started);

  std::vector<size_t> reported;
  size_t extent = 0;
  for (const size_t i : fetched) {
    out[i] = s.Verify(requests[i], *batch, &extent);
    const size_t plane = requests[i].plane;
    if (out[i].ok() || std::find(reported.begin(), reported.end(), plane) != reported.end()) continue;
    reported.push_back(plane);
    s.ReportWrong(plane);
  }
  return out;
}

absl::Status ReadLease::Renew(absl::Duration ttl) {
  if (state_ == nullptr || state_->id == 0) return absl::FailedPreconditionError("renewal of an empty lease");
  internal::LeaseState& s = *state_;
  const absl::Duration cut = internal::CutTtl(ttl, *s.session);
  const absl::Time asked = absl::Now();
  v1::RenewRequest request;
  request.set_lease_id(s.id);
  request.set_ttl_ms(internal::TtlToWire(cut));
  v1::RenewResponse response;
  PERIGEE_RETURN_IF_ERROR(s.core->Call(*s.session, &internal::Stub::Renew, request, &response));
  s.expiry_unix_us = absl::ToUnixMicros(asked + cut);
  return absl::OkStatus();
}

}  // namespace perigee::kvstore
