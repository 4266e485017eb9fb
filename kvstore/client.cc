#include "kvstore/client.h"

#include <algorithm>
#include <utility>

#include "base/crc32c.h"
#include "base/parallel.h"
#include "kvstore/session.h"
#include "kvstore/shared_reservation.h"
#include "kvstore/wire.h"

namespace perigee::kvstore {

using internal::ClientCore;
using internal::Session;
using Stub = v1::KvStore::Stub;

namespace internal {

struct WriteState {
  std::shared_ptr<ClientCore> core;
  std::shared_ptr<Session> session;
  std::vector<PlaneRequest> planes;
  std::vector<Reservation> reservations;
  absl::Time expiry;
  bool described = false;  // Others may put too, and this client cannot see when they have ended.

  struct UnderWay {
    transport::TransferBatch handle;
    uint64_t bytes;
  };
  absl::Mutex mu;
  std::vector<UnderWay> puts ABSL_GUARDED_BY(mu);
  absl::Status put_status ABSL_GUARDED_BY(mu);  // The first error.

  void Settle(UnderWay& put) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    const absl::Status status = put.handle.Wait();
    if (status.ok()) {
      core->put_bytes += put.bytes;
    } else {
      put_status.Update(status);
    }
  }
  void DropFinished() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
    std::erase_if(puts, [this](UnderWay& put) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu) {
      if (!put.handle.done()) return false;
      Settle(put);
      return true;
    });
  }
  absl::Status WaitForPuts() {
    absl::MutexLock lock(&mu);
    for (UnderWay& put : puts) Settle(put);
    puts.clear();
    if (!put_status.ok() && !session->connection.connected()) session->lost = true;
    return put_status;
  }
};

struct LeaseState {
  std::shared_ptr<ClientCore> core;
  std::shared_ptr<Session> session;
  uint64_t id = 0;
  std::vector<HeldPlane> planes;
  std::vector<uint64_t> addresses;
  std::atomic<int64_t> expiry_unix_us{0};
  std::atomic<uint64_t> fetched_bytes{0}, fetch_us{0};
};

}  // namespace internal

namespace {

absl::Duration CutTtl(absl::Duration ttl, const Session& s) { return std::min(ttl, s.max_ttl); }
uint64_t TtlToWire(absl::Duration ttl) {
  return static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Milliseconds(ttl)));
}

Miss MissFromWire(const v1::Miss& wire) {
  Miss miss;
  if (wire.reason() >= 1 && wire.reason() <= 6) miss.reason = static_cast<MissReason>(wire.reason());
  miss.when_unix_us = wire.when_unix_us();
  return miss;
}

Tier TierFromWire(v1::Tier tier) { return tier == v1::TIER_SSD ? Tier::kSsd : Tier::kDram; }

absl::Status WrongAnswer(const ClientCore& core, absl::string_view what) {
  return absl::InternalError(absl::StrCat("the store at ", core.address, " gave an answer that does not fit: ", what));
}

absl::StatusOr<CorruptReport> Report(ClientCore& core, Session& session, const PlaneId& id) {
  v1::ReportCorruptRequest request;
  PlaneIdToWire(id, request.mutable_id());
  v1::ReportCorruptResponse response;
  PERIGEE_RETURN_IF_ERROR(core.Call(session, &Stub::ReportCorrupt, request, &response));
  return CorruptReport{response.dram_copy_dropped(), response.ssd_copy_dropped(), response.still_stored()};
}

}  // namespace

// WriteBatch

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

absl::Status WriteBatch::Put(size_t plane, uint64_t offset_bytes, std::span<const std::byte> bytes) {
  if (plane >= size()) return absl::OutOfRangeError(absl::StrCat("plane ", plane, " of a batch of ", size()));
  internal::WriteState& s = *state_;
  const Reservation& r = s.reservations[plane];
  if (r.already_committed) return absl::OkStatus();
  const uint64_t payload_bytes = s.planes[plane].payload_bytes;
  if (offset_bytes > payload_bytes || bytes.size() > payload_bytes - offset_bytes) {
    return absl::OutOfRangeError(absl::StrCat("bytes [", offset_bytes, ", +", bytes.size(), ") of ",
                                              s.planes[plane].id.ToString(), ", which has ", payload_bytes));
  }
  if (bytes.empty()) return absl::OkStatus();
  // A put past the reservation's end could hit what others have written there since.
  const absl::Time deadline = std::min(absl::Now() + s.core->options.transfer_deadline, s.expiry);
  const transport::PutTransfer piece{
      .local = bytes, .remote_address = r.address + offset_bytes, .region = &s.session->slab};
  absl::StatusOr<transport::TransferBatch> handle =
      s.session->connection.StartPut({&piece, 1}, {.deadline = deadline, .checksums = false});
  absl::MutexLock lock(&s.mu);
  if (!handle.ok()) {
    s.put_status.Update(handle.status());
    return handle.status();
  }
  if (s.puts.size() % 64 == 63) s.DropFinished();
  s.puts.push_back({*std::move(handle), bytes.size()});
  return absl::OkStatus();
}

absl::StatusOr<std::vector<absl::Status>> WriteBatch::Commit(std::span<const pod::PlaneHeader> headers,
                                                             Durability durability) {
  if (state_ == nullptr) return absl::FailedPreconditionError("commit of an empty batch");
  internal::WriteState& s = *state_;
  if (headers.size() != size()) {
    return absl::InvalidArgumentError(absl::StrCat(headers.size(), " headers for a batch of ", size(), " planes"));
  }
  PERIGEE_RETURN_IF_ERROR(Annotate(s.WaitForPuts(), absl::StrCat("writing to the store at ", s.core->address)));
  v1::CommitRequest request;
  request.set_durability(static_cast<v1::Durability>(durability));
  std::vector<size_t> sent;
  for (size_t i = 0; i < size(); ++i) {
    if (s.reservations[i].already_committed) continue;
    auto* wire = request.add_planes();
    wire->set_reservation_id(s.reservations[i].id);
    wire->set_header(pod::EncodePlaneHeader(headers[i]));
    sent.push_back(i);
  }
  std::vector<absl::Status> out(size());
  if (sent.empty()) return out;
  v1::CommitResponse response;
  PERIGEE_RETURN_IF_ERROR(s.core->Call(*s.session, &Stub::Commit, request, &response));
  if (static_cast<size_t>(response.planes_size()) != sent.size())
    return WrongAnswer(*s.core, "Commit's number of planes");
  for (size_t i = 0; i < sent.size(); ++i) {
    const v1::PlaneStatus& wire = response.planes(static_cast<int>(i));
    out[sent[i]] = absl::Status(static_cast<absl::StatusCode>(wire.code()), wire.message());
    if (wire.code() == 0) s.reservations[sent[i]].already_committed = true;
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
  const absl::Status puts = s.WaitForPuts();
  v1::AbortRequest request;
  for (const Reservation& r : s.reservations) {
    if (!r.already_committed) request.add_reservation_ids(r.id);
  }
  request.set_writes_may_arrive(!puts.ok() || s.described);
  if (request.reservation_ids_size() > 0 && !s.session->lost) {
    v1::AbortResponse response;
    // Only a courtesy: the reservation's ttl ends it too.
    const absl::Duration deadline = std::min(absl::Seconds(1), s.core->options.call_deadline);
    s.core->CallWithin(*s.session, &Stub::Abort, request, &response, deadline).IgnoreError();
  }
  state_ = nullptr;
}

// ReadLease

ReadLease::ReadLease(std::unique_ptr<internal::LeaseState> state) : state_(std::move(state)) {}
ReadLease::ReadLease() = default;
ReadLease::ReadLease(ReadLease&&) noexcept = default;
ReadLease& ReadLease::operator=(ReadLease&& other) noexcept {
  if (this != &other) {
    Release();
    state_ = std::move(other.state_);
  }
  return *this;
}
ReadLease::~ReadLease() { Release(); }

const std::vector<HeldPlane>& ReadLease::planes() const {
  static const std::vector<HeldPlane>* const none = new std::vector<HeldPlane>;
  return state_ == nullptr ? *none : state_->planes;
}
absl::Time ReadLease::expiry() const {
  return state_ == nullptr ? absl::InfinitePast() : absl::FromUnixMicros(state_->expiry_unix_us);
}

std::vector<absl::Status> ReadLease::Fetch(std::span<const FetchRequest> requests) {
  std::vector<absl::Status> out(requests.size());
  if (state_ == nullptr) {
    std::fill(out.begin(), out.end(), absl::FailedPreconditionError("fetch from an empty lease"));
    return out;
  }
  internal::LeaseState& s = *state_;
  std::vector<transport::GetTransfer> pieces;
  std::vector<size_t> fetched;  // Requests, in the order of pieces.
  uint64_t total_bytes = 0;
  for (size_t i = 0; i < requests.size(); ++i) {
    const FetchRequest& r = requests[i];
    if (r.plane >= s.planes.size()) {
      out[i] = absl::InvalidArgumentError(absl::StrCat("plane ", r.plane, " of a lease of ", s.planes.size()));
      continue;
    }
    const HeldPlane& plane = s.planes[r.plane];
    if (!plane.found) {
      out[i] =
          absl::NotFoundError(absl::StrCat(plane.id.ToString(), " is not stored: ", MissReasonName(plane.miss.reason)));
      continue;
    }
    const std::vector<pod::SectionSum>& sections = plane.header.sections;
    const size_t begin = std::min(r.first_section, sections.size());
    const size_t end = begin + std::min(r.sections, sections.size() - begin);
    uint64_t offset = 0, bytes = 0;
    for (size_t k = 0; k < begin; ++k) offset += sections[k].bytes;
    for (size_t k = begin; k < end; ++k) bytes += sections[k].bytes;
    if (r.destination.size() != bytes) {
      out[i] = absl::InvalidArgumentError(absl::StrCat("a destination of ", r.destination.size(), " bytes for ", bytes,
                                                       " bytes of ", plane.id.ToString()));
      continue;
    }
    pieces.push_back(
        {.local = r.destination, .remote_address = s.addresses[r.plane] + offset, .region = &s.session->slab});
    fetched.push_back(i);
    total_bytes += bytes;
  }
  if (pieces.empty()) return out;

  const absl::Time started = absl::Now();
  absl::Status got = absl::OkStatus();
  if (started >= expiry()) {
    got = absl::UnavailableError("the lease has expired; acquire again");
  } else {
    got = s.session->connection.Get(pieces, std::min(started + s.core->options.transfer_deadline, expiry()));
  }
  if (!got.ok()) {
    if (!s.session->connection.connected()) s.session->lost = true;
    for (const size_t i : fetched) out[i] = Annotate(got, absl::StrCat("reading from the store at ", s.core->address));
    return out;
  }
  s.fetched_bytes += total_bytes;
  s.fetch_us += static_cast<uint64_t>(std::max<int64_t>(1, absl::ToInt64Microseconds(absl::Now() - started)));
  s.core->fetched_bytes += total_bytes;

  ParallelFor(fetched.size(), [&](size_t n) {
    const size_t i = fetched[n];
    const FetchRequest& r = requests[i];
    const HeldPlane& plane = s.planes[r.plane];
    std::span<std::byte> rest = r.destination;
    for (size_t k = std::min(r.first_section, plane.header.sections.size()); !rest.empty(); ++k) {
      const pod::SectionSum& sum = plane.header.sections[k];
      if (Crc32c(rest.first(sum.bytes)) != sum.crc32c) {
        out[i] = absl::DataLossError(absl::StrCat(plane.id.ToString(), ": the bytes of section ", k,
                                                  " do not match their checksum; the store has been told"));
        return;
      }
      rest = rest.subspan(sum.bytes);
    }
  });
  std::vector<size_t> reported;
  for (const size_t i : fetched) {
    const size_t plane = requests[i].plane;
    if (out[i].ok() || std::find(reported.begin(), reported.end(), plane) != reported.end()) continue;
    reported.push_back(plane);
    ++s.core->checksum_failures;
    Report(*s.core, *s.session, s.planes[plane].id)
        .status()
        .IgnoreError();  // The reader's answer is DATA_LOSS either way.
  }
  return out;
}

absl::Status ReadLease::Renew(absl::Duration ttl) {
  if (state_ == nullptr || state_->id == 0) return absl::FailedPreconditionError("renewal of an empty lease");
  internal::LeaseState& s = *state_;
  const absl::Duration cut = CutTtl(ttl, *s.session);
  const absl::Time asked = absl::Now();
  v1::RenewRequest request;
  request.set_lease_id(s.id);
  request.set_ttl_ms(TtlToWire(cut));
  v1::RenewResponse response;
  PERIGEE_RETURN_IF_ERROR(s.core->Call(*s.session, &Stub::Renew, request, &response));
  s.expiry_unix_us = absl::ToUnixMicros(asked + cut);
  return absl::OkStatus();
}

void ReadLease::Release() {
  if (state_ == nullptr) return;
  internal::LeaseState& s = *state_;
  if (s.id != 0 && !s.session->lost) {
    v1::ReleaseRequest request;
    request.set_lease_id(s.id);
    request.set_fetched_bytes(s.fetched_bytes);
    request.set_fetch_us(s.fetch_us);
    v1::ReleaseResponse response;
    const absl::Duration deadline = std::min(absl::Seconds(1), s.core->options.call_deadline);
    s.core->CallWithin(*s.session, &Stub::Release, request, &response, deadline).IgnoreError();
  }
  state_ = nullptr;
}

// StoreClient

StoreClient::StoreClient(std::shared_ptr<ClientCore> core) : core_(std::move(core)) {}
StoreClient::~StoreClient() = default;

absl::StatusOr<std::unique_ptr<StoreClient>> StoreClient::Connect(const std::string& address,
                                                                  transport::Context* engine,
                                                                  const ClientOptions& options) {
  if (address.rfind(':') == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("store address '", address, "' is not host:port"));
  }
  auto core = std::make_shared<ClientCore>();
  core->address = address;
  core->engine = engine;
  core->options = options;
  bool fresh;
  PERIGEE_RETURN_IF_ERROR(core->GetSession(&fresh).status());
  return std::unique_ptr<StoreClient>(new StoreClient(std::move(core)));
}

absl::StatusOr<WriteBatch> StoreClient::Reserve(std::span<const PlaneRequest> planes) {
  auto state = std::make_unique<internal::WriteState>();
  state->core = core_;
  state->planes.assign(planes.begin(), planes.end());
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) -> absl::Status {
    const absl::Duration ttl = CutTtl(core_->options.reservation_ttl, *session);
    v1::ReserveRequest request;
    request.set_ttl_ms(TtlToWire(ttl));
    for (const PlaneRequest& plane : planes) {
      auto* wire = request.add_planes();
      PlaneIdToWire(plane.id, wire->mutable_id());
      wire->set_payload_bytes(plane.payload_bytes);
    }
    state->expiry = absl::Now() + ttl;  // From before the call: never later than the store's own.
    v1::ReserveResponse response;
    PERIGEE_RETURN_IF_ERROR(core_->Call(*session, &Stub::Reserve, request, &response));
    PERIGEE_RETURN_IF_ERROR(core_->CheckEpoch(*session, response.epoch()));
    if (static_cast<size_t>(response.planes_size()) != planes.size())
      return WrongAnswer(*core_, "Reserve's number of planes");
    state->reservations.clear();
    for (const auto& wire : response.planes()) {
      state->reservations.push_back({wire.already_committed(), wire.reservation_id(), wire.remote_address()});
    }
    state->session = session;
    return absl::OkStatus();
  }));
  return WriteBatch(std::move(state));
}

absl::StatusOr<ReadLease> StoreClient::Acquire(std::span<const PlaneId> planes) {
  auto state = std::make_unique<internal::LeaseState>();
  state->core = core_;
  v1::AcquireRequest request;
  for (const PlaneId& id : planes) PlaneIdToWire(id, request.add_planes());
  request.set_tenant(core_->options.tenant);
  v1::AcquireResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) -> absl::Status {
    const absl::Duration ttl = CutTtl(core_->options.lease_ttl, *session);
    request.set_ttl_ms(TtlToWire(ttl));
    state->session = session;
    state->expiry_unix_us = absl::ToUnixMicros(absl::Now() + ttl);
    PERIGEE_RETURN_IF_ERROR(core_->Call(*session, &Stub::Acquire, request, &response));
    return core_->CheckEpoch(*session, response.epoch());
  }));
  state->id = response.lease_id();
  ReadLease lease(std::move(state));  // From here on an error releases.
  if (static_cast<size_t>(response.planes_size()) != planes.size())
    return WrongAnswer(*core_, "Acquire's number of planes");
  internal::LeaseState& s = *lease.state_;
  for (size_t i = 0; i < planes.size(); ++i) {
    const auto& wire = response.planes(static_cast<int>(i));
    HeldPlane plane;
    plane.id = planes[i];
    plane.found = wire.found();
    plane.tier = TierFromWire(wire.tier());
    plane.estimated_fetch_us = wire.estimated_fetch_us();
    if (plane.found) {
      absl::StatusOr<pod::PlaneHeader> header = pod::DecodePlaneHeader(wire.header());
      if (header.ok() && header->key == plane.id.key && header->kind == plane.id.kind &&
          header->payload_bytes == wire.payload_bytes()) {
        plane.header = *std::move(header);
      } else {
        plane.found = false;
        plane.miss = {MissReason::kChecksum, 0};
        ++core_->checksum_failures;
        Report(*core_, *s.session, plane.id).status().IgnoreError();
      }
    } else {
      plane.miss = MissFromWire(wire.miss());
    }
    s.planes.push_back(std::move(plane));
    s.addresses.push_back(wire.remote_address());
  }
  return lease;
}

absl::StatusOr<LookupResult> StoreClient::Lookup(std::span<const pod::BlockKey> keys) {
  v1::LookupRequest request;
  for (const pod::BlockKey& key : keys) request.add_keys(key.digest.data(), key.digest.size());
  request.set_tenant(core_->options.tenant);
  v1::LookupResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) {
    return core_->Call(*session, &Stub::Lookup, request, &response);
  }));
  if (static_cast<size_t>(response.blocks_size()) != keys.size())
    return WrongAnswer(*core_, "Lookup's number of blocks");
  LookupResult out;
  out.estimated_fetch_us = response.estimated_fetch_us();
  for (const auto& wire : response.blocks()) {
    BlockInfo& block = out.blocks.emplace_back();
    for (const auto& plane : wire.planes()) {
      PERIGEE_ASSIGN_OR_RETURN(const pod::PlaneKind kind, KindFromWire(plane.kind()));
      block.planes.push_back({kind, TierFromWire(plane.tier()), plane.payload_bytes(), plane.estimated_fetch_us()});
    }
    for (const auto& miss : wire.misses()) {
      PERIGEE_ASSIGN_OR_RETURN(const pod::PlaneKind kind, KindFromWire(miss.kind()));
      block.misses.push_back({kind, MissFromWire(miss)});
    }
  }
  return out;
}

absl::StatusOr<uint32_t> StoreClient::Delete(std::span<const pod::BlockKey> keys) {
  v1::DeleteRequest request;
  for (const pod::BlockKey& key : keys) request.add_keys(key.digest.data(), key.digest.size());
  v1::DeleteResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) {
    return core_->Call(*session, &Stub::Delete, request, &response);
  }));
  return response.deleted_planes();
}

absl::StatusOr<ListPage> StoreClient::List(const std::string& page_token, uint32_t limit, const std::string& tenant) {
  v1::ListRequest request;
  request.set_page_token(page_token);
  request.set_limit(limit);
  request.set_tenant(tenant);
  v1::ListResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession(
      [&](const std::shared_ptr<Session>& session) { return core_->Call(*session, &Stub::List, request, &response); }));
  ListPage page;
  for (const auto& wire : response.planes()) {
    ListedPlane plane;
    PERIGEE_ASSIGN_OR_RETURN(plane.id, PlaneIdFromWire(wire.id()));
    plane.meta = {.payload_bytes = wire.payload_bytes(),
                  .created_unix_us = wire.created_unix_us(),
                  .base_position = wire.base_position(),
                  .tokens = wire.tokens(),
                  .tenant = wire.tenant()};
    plane.tier = TierFromWire(wire.tier());
    plane.on_ssd = wire.on_ssd();
    plane.last_used_unix_us = wire.last_used_unix_us();
    page.planes.push_back(std::move(plane));
  }
  page.next_page_token = response.next_page_token();
  return page;
}

absl::StatusOr<StoreClient::Stat> StoreClient::GetStat() {
  v1::StatRequest request;
  v1::StatResponse r;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession(
      [&](const std::shared_ptr<Session>& session) { return core_->Call(*session, &Stub::Stat, request, &r); }));
  Stat out;
  out.epoch = r.epoch();
  out.grpc_message_bytes = r.grpc_message_bytes();
  StoreStats& s = out.store;
  s.slab_bytes = r.slab_bytes();
  s.slab_used_bytes = r.slab_used_bytes();
  s.slab_fragmentation = r.slab_fragmentation();
  s.reserved_bytes = r.reserved_bytes();
  s.leased_bytes = r.leased_bytes();
  s.ssd_capacity_bytes = r.ssd_capacity_bytes();
  s.ssd = {.used_bytes = r.ssd_used_bytes(),
           .live_bytes = r.ssd_live_bytes(),
           .segments = r.ssd_segments(),
           .lost_at_start = r.lost_at_start()};
  for (const auto& count : r.counts()) {
    if (count.tier() < 1 || count.tier() > 2 || count.kind() < 1 || count.kind() > 3) continue;
    s.counts[count.tier() - 1][count.kind() - 1] = {count.planes(), count.payload_bytes()};
  }
  s.reservations = r.reservations();
  s.leases = r.leases();
  s.hits_dram = r.hits_dram();
  s.hits_ssd = r.hits_ssd();
  s.misses = r.misses();
  s.dram_evictions = r.dram_evictions();
  s.dram_only_evictions = r.dram_only_evictions();
  s.ssd_evictions = r.ssd_evictions();
  s.checksum_failures = r.checksum_failures();
  s.refused_commits = r.refused_commits();
  s.expired_reservations = r.expired_reservations();
  s.expired_leases = r.expired_leases();
  s.committed_bytes = r.committed_bytes();
  s.leased_payload_bytes = r.leased_payload_bytes();
  s.fetched_bytes = r.fetched_bytes();
  s.dram_bytes_per_s = r.dram_bytes_per_s();
  s.ssd_bytes_per_s = r.ssd_bytes_per_s();
  return out;
}

absl::StatusOr<CorruptReport> StoreClient::ReportCorrupt(const PlaneId& id) {
  CorruptReport out;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(out, Report(*core_, *session, id));
    return absl::OkStatus();
  }));
  return out;
}

const std::string& StoreClient::address() const { return core_->address; }
uint64_t StoreClient::epoch() const { return core_->last_epoch; }
ClientStats StoreClient::stats() const {
  return {.put_bytes = core_->put_bytes,
          .fetched_bytes = core_->fetched_bytes,
          .grpc_bytes = core_->grpc_bytes,
          .connects = core_->connects,
          .checksum_failures = core_->checksum_failures};
}

}  // namespace perigee::kvstore
