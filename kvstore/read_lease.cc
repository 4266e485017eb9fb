#include <algorithm>
#include <utility>

#include "base/crc32c.h"
#include "base/parallel.h"
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
  core->CallWithin(*session, &Stub::Release, request, &response, deadline).IgnoreError();
}

absl::StatusOr<transport::GetTransfer> LeaseState::Locate(const FetchRequest& r) const {
  if (r.plane >= planes.size()) {
    return absl::InvalidArgumentError(absl::StrCat("plane ", r.plane, " of a lease of ", planes.size()));
  }
  const HeldPlane& plane = planes[r.plane];
  if (!plane.found) {
    return absl::NotFoundError(
        absl::StrCat(plane.id.ToString(), " is not stored: ", MissReasonName(plane.miss.reason)));
  }
  const std::vector<uint64_t>& begins = section_begins[r.plane];
  const size_t sections = begins.size() - 1;
  const size_t first = std::min(r.first_section, sections);
  const uint64_t offset = begins[first];
  const uint64_t bytes = begins[first + std::min(r.sections, sections - first)] - offset;
  if (r.destination.size() != bytes) {
    return absl::InvalidArgumentError(absl::StrCat("a destination of ", r.destination.size(), " bytes for ", bytes,
                                                   " bytes of ", plane.id.ToString()));
  }
  return transport::GetTransfer{
      .local = r.destination, .remote_address = addresses[r.plane] + offset, .region = &session->slab};
}

absl::StatusOr<transport::TransferBatch> LeaseState::StartGet(std::vector<transport::GetTransfer> pieces,
                                                              absl::Time deadline) {
  if (absl::Now() >= expiry()) return absl::UnavailableError("the lease has expired; acquire again");
  return session->connection.StartGet(Joined(std::move(pieces)), std::min(deadline, expiry()));
}

absl::Status LeaseState::WireError(const absl::Status& status) {
  if (!session->connection.connected()) session->lost = true;
  return Annotate(status, absl::StrCat("reading from the store at ", core->address));
}

void LeaseState::CountFetched(uint64_t bytes, absl::Duration took) {
  fetched_bytes += bytes;
  fetch_us += static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Microseconds(took)));
  core->fetched_bytes += bytes;
}

absl::Status LeaseState::Verify(const FetchRequest& r) const {
  const HeldPlane& plane = planes[r.plane];
  std::span<const std::byte> rest = r.destination;
  for (size_t k = std::min(r.first_section, plane.header.sections.size()); !rest.empty(); ++k) {
    const pod::SectionSum& sum = plane.header.sections[k];
    if (Crc32c(rest.first(sum.bytes)) != sum.crc32c) {
      return absl::DataLossError(absl::StrCat(plane.id.ToString(), ": the bytes of section ", k,
                                              " do not match their checksum; the store has been told"));
    }
    rest = rest.subspan(sum.bytes);
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
    absl::StatusOr<transport::GetTransfer> piece = s.Locate(requests[i]);
    if (!piece.ok()) {
      out[i] = piece.status();
      continue;
    }
    total_bytes += piece->local.size();
    pieces.push_back(*piece);
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

  ParallelFor(fetched.size(), [&](size_t n) { out[fetched[n]] = s.Verify(requests[fetched[n]]); });
  std::vector<size_t> reported;
  for (const size_t i : fetched) {
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
