#include "kvstore/shared_reservation.h"

#include <algorithm>
#include <utility>

#include "base/bytes.h"
#include "base/crc32c.h"
#include "base/status.h"
#include "kvstore/client_state.h"

namespace perigee::kvstore {

namespace {

constexpr char kMagic[] = "PGSHRSV1";
constexpr uint16_t kVersion = 1;
constexpr size_t kPlaneBytes = 1 + 8 + 8;
constexpr uint64_t kMaxRemainingMs = uint64_t{24} * 3600 * 1000;
constexpr uint64_t kMaxPayloadBytes = uint64_t{1} << 40;

}  // namespace

std::string EncodeSharedReservation(const SharedReservation& shared) {
  ByteWriter body;
  body.U64(shared.epoch);
  body.U64(static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Milliseconds(shared.remaining))));
  body.U32(static_cast<uint32_t>(shared.planes.size()));
  for (const SharedReservation::Plane& plane : shared.planes) {
    body.U8(plane.already_committed ? 1 : 0);
    body.U64(plane.address);
    body.U64(plane.payload_bytes);
  }
  ByteWriter out;
  out.Raw(absl::string_view(kMagic, 8));
  out.U16(kVersion);
  out.U32(Crc32c(AsBytes(body.bytes())));
  out.Raw(body.bytes());
  return out.Take();
}

absl::StatusOr<SharedReservation> DecodeSharedReservation(absl::string_view bytes) {
  ByteReader prefix(bytes);
  const absl::string_view magic = prefix.Raw(8);
  if (prefix.ok() && magic != absl::string_view(kMagic, 8)) {
    return absl::FailedPreconditionError("shared reservation: wrong magic; this is not a description of one");
  }
  const uint16_t version = prefix.U16();
  const uint32_t crc = prefix.U32();
  if (!prefix.ok())
    return absl::DataLossError(absl::StrCat("shared reservation: truncated to ", bytes.size(), " bytes"));
  if (version != kVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("shared reservation: version ", version, " is not known; this build reads version ", kVersion));
  }
  const absl::string_view body = prefix.Raw(prefix.remaining());
  if (Crc32c(AsBytes(body)) != crc) return absl::DataLossError("shared reservation: checksum does not match");

  const auto impossible = [](absl::string_view field, uint64_t value) {
    return absl::DataLossError(absl::StrCat("shared reservation: impossible ", field, " ", value));
  };
  ByteReader r(body);
  SharedReservation shared;
  shared.epoch = r.U64();
  const uint64_t remaining_ms = r.U64();
  const uint32_t planes = r.U32();
  if (!r.ok() || r.remaining() != kPlaneBytes * planes) {
    return absl::DataLossError(
        absl::StrCat("shared reservation: body of ", body.size(), " bytes does not fit ", planes, " planes"));
  }
  if (remaining_ms > kMaxRemainingMs) return impossible("time to live", remaining_ms);
  shared.remaining = absl::Milliseconds(static_cast<int64_t>(remaining_ms));
  shared.planes.resize(planes);
  for (SharedReservation::Plane& plane : shared.planes) {
    const uint8_t committed = r.U8();
    plane.address = r.U64();
    plane.payload_bytes = r.U64();
    if (committed > 1) return impossible("commit flag", committed);
    plane.already_committed = committed == 1;
    if (plane.already_committed && plane.address != 0) return impossible("address of a stored plane", plane.address);
    if (plane.payload_bytes > kMaxPayloadBytes) return impossible("payload_bytes", plane.payload_bytes);
  }
  return shared;
}

namespace internal {

struct JoinedState : Puts {
  std::vector<SharedReservation::Plane> planes;
};

}  // namespace internal

JoinedBatch::JoinedBatch() = default;
JoinedBatch::JoinedBatch(std::unique_ptr<internal::JoinedState> state) : state_(std::move(state)) {}
JoinedBatch::JoinedBatch(JoinedBatch&&) noexcept = default;
JoinedBatch& JoinedBatch::operator=(JoinedBatch&&) noexcept = default;
JoinedBatch::~JoinedBatch() = default;

size_t JoinedBatch::size() const { return state_ == nullptr ? 0 : state_->planes.size(); }
bool JoinedBatch::already_committed(size_t plane) const { return state_->planes[plane].already_committed; }

absl::Status JoinedBatch::Put(std::span<const PutRange> ranges) {
  std::vector<transport::PutTransfer> pieces;
  uint64_t total_bytes = 0;
  for (const PutRange& range : ranges) {
    if (range.plane >= size()) {
      return absl::OutOfRangeError(absl::StrCat("plane ", range.plane, " of a batch of ", size()));
    }
    const SharedReservation::Plane& plane = state_->planes[range.plane];
    if (range.offset_bytes > plane.payload_bytes || range.bytes.size() > plane.payload_bytes - range.offset_bytes) {
      return absl::OutOfRangeError(absl::StrCat("bytes [", range.offset_bytes, ", +", range.bytes.size(), ") of plane ",
                                                range.plane, ", which has ", plane.payload_bytes));
    }
    if (plane.already_committed || range.bytes.empty()) continue;
    pieces.push_back(
        {.local = range.bytes, .remote_address = plane.address + range.offset_bytes, .region = &state_->session->slab});
    total_bytes += range.bytes.size();
  }
  return pieces.empty() ? absl::OkStatus() : state_->Start(pieces, total_bytes);
}

absl::Status JoinedBatch::Finish() {
  if (state_ == nullptr) return absl::FailedPreconditionError("finish of an empty batch");
  PERIGEE_RETURN_IF_ERROR(state_->Wait());
  return state_->AwaitNotice();
}

absl::StatusOr<JoinedBatch> StoreClient::Join(absl::string_view description, absl::Time described_after) {
  PERIGEE_RETURN_IF_ERROR(core_->CheckMovesPayload());
  PERIGEE_ASSIGN_OR_RETURN(SharedReservation shared, DecodeSharedReservation(description));
  auto state = std::make_unique<internal::JoinedState>();
  state->core = core_;
  state->expiry = described_after + shared.remaining;
  state->planes = std::move(shared.planes);
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<internal::Session>& session) -> absl::Status {
    PERIGEE_RETURN_IF_ERROR(core_->CheckEpoch(*session, shared.epoch));
    for (const SharedReservation::Plane& plane : state->planes) {
      if (plane.already_committed) continue;
      PERIGEE_RETURN_IF_ERROR(
          Annotate(session->slab.CheckBounds(plane.address, plane.payload_bytes), "a shared reservation"));
    }
    state->session = session;
    return absl::OkStatus();
  }));
  return JoinedBatch(std::move(state));
}

}  // namespace perigee::kvstore
