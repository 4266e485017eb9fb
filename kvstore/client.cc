#include "kvstore/client.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "kvstore/client_state.h"
#include "kvstore/rebalance_wire.h"
#include "kvstore/shared_reservation.h"
#include "kvstore/wire.h"

namespace perigee::kvstore {

using internal::ClientCore;
using internal::Session;
using internal::Stub;

namespace {

Miss MissFromWire(const v1::Miss& wire) {
  Miss miss;
  if (v1::MissReason_IsValid(wire.reason()) && wire.reason() != v1::MISS_REASON_UNSPECIFIED) {
    miss.reason = static_cast<MissReason>(wire.reason());
  }
  miss.when_unix_us = wire.when_unix_us();
  return miss;
}

Tier TierFromWire(v1::Tier tier) {
  return tier == v1::TIER_SSD ? Tier::kSsd : tier == v1::TIER_REMOTE ? Tier::kRemote : Tier::kDram;
}

std::optional<PlacementGroup> GroupFromWire(const v1::ListResponse::Plane& wire) {
  if (!wire.has_group() || wire.group() > std::numeric_limits<PlacementGroup>::max()) return std::nullopt;
  return static_cast<PlacementGroup>(wire.group());
}

absl::Status WrongAnswer(const ClientCore& core, absl::string_view what) {
  return absl::InternalError(absl::StrCat("the store at ", core.address, " gave an answer that does not fit: ", what));
}

}  // namespace

namespace internal {

absl::StatusOr<CorruptReport> Report(ClientCore& core, Session& session, const PlaneId& id) {
  v1::ReportCorruptRequest request;
  PlaneIdToWire(id, request.mutable_id());
  v1::ReportCorruptResponse response;
  PERIGEE_RETURN_IF_ERROR(core.Call(session, &Stub::ReportCorrupt, request, &response));
  return CorruptReport{response.dram_copy_dropped(), response.ssd_copy_dropped(), response.still_stored()};
}

}  // namespace internal

StoreClient::StoreClient(std::shared_ptr<ClientCore> core) : core_(std::move(core)) {}
StoreClient::~StoreClient() = default;

absl::StatusOr<std::unique_ptr<StoreClient>> StoreClient::Connect(const std::string& address,
                                                                  transport::Context* engine,
                                                                  const ClientOptions& options) {
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<StoreClient> client, Create(address, engine, options));
  bool fresh;
  PERIGEE_RETURN_IF_ERROR(client->core_->GetSession(&fresh).status());
  return client;
}

absl::StatusOr<std::unique_ptr<StoreClient>> StoreClient::Create(const std::string& address, transport::Context* engine,
                                                                 const ClientOptions& options) {
  if (address.rfind(':') == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("store address '", address, "' is not host:port"));
  }
  auto core = std::make_shared<ClientCore>();
  core->address = address;
  core->engine = engine;
  core->options = options;
  return std::unique_ptr<StoreClient>(new StoreClient(std::move(core)));
}

absl::StatusOr<WriteBatch> StoreClient::Reserve(std::span<const PlaneRequest> planes) {
  PERIGEE_RETURN_IF_ERROR(core_->CheckMovesPayload());
  auto state = std::make_unique<internal::WriteState>();
  state->core = core_;
  state->planes.assign(planes.begin(), planes.end());
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) -> absl::Status {
    const absl::Duration ttl = internal::CutTtl(core_->options.reservation_ttl, *session);
    v1::ReserveRequest request;
    request.set_ttl_ms(internal::TtlToWire(ttl));
    for (const PlaneRequest& plane : planes) {
      auto* wire = request.add_planes();
      PlaneIdToWire(plane.id, wire->mutable_id());
      wire->set_payload_bytes(plane.payload_bytes);
    }
    state->expiry = absl::Now() + ttl;  // From before the call: never later than the store's own.
    v1::ReserveResponse response;
    PERIGEE_RETURN_IF_ERROR(
        core_->CheckAnswered(*session, core_->CallQuickly(*session, QuickCall::kReserve, &Stub::Reserve, request,
                                                          &response, core_->answer_deadline())));
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

absl::StatusOr<ReadLease> StoreClient::Acquire(std::span<const PlaneId> planes, absl::Duration within) {
  auto state = std::make_shared<internal::LeaseState>();
  state->core = core_;
  v1::AcquireRequest request;
  for (const PlaneId& id : planes) PlaneIdToWire(id, request.add_planes());
  request.set_tenant(core_->options.tenant);
  v1::AcquireResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) -> absl::Status {
    const absl::Duration ttl = internal::CutTtl(core_->options.lease_ttl, *session);
    request.set_ttl_ms(internal::TtlToWire(ttl));
    state->session = session;
    state->expiry_unix_us = absl::ToUnixMicros(absl::Now() + ttl);
    PERIGEE_RETURN_IF_ERROR(core_->CallQuickly(*session, QuickCall::kAcquire, &Stub::Acquire, request, &response,
                                               std::min(within, core_->options.call_deadline)));
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
        internal::Report(*core_, *s.session, plane.id).status().IgnoreError();
      }
    } else {
      plane.miss = MissFromWire(wire.miss());
    }
    std::vector<uint64_t>& begins = s.section_begins.emplace_back(1, 0);
    for (const pod::SectionSum& section : plane.header.sections) begins.push_back(begins.back() + section.bytes);
    s.planes.push_back(std::move(plane));
    s.addresses.push_back(wire.remote_address());
  }
  return lease;
}

absl::StatusOr<LookupResult> StoreClient::Lookup(std::span<const pod::BlockKey> keys, LookupMode mode,
                                                 uint64_t map_epoch) {
  v1::LookupRequest request;
  request.set_map_epoch(map_epoch);
  request.set_prefix(mode == LookupMode::kPrefix);
  for (const pod::BlockKey& key : keys) request.add_keys(key.digest.data(), key.digest.size());
  request.set_tenant(core_->options.tenant);
  v1::LookupResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) {
    return core_->CheckAnswered(
        *session, core_->CallWithin(*session, &Stub::Lookup, request, &response, core_->answer_deadline()));
  }));
  const auto answered = static_cast<size_t>(response.blocks_size());
  if (answered > keys.size() || (mode == LookupMode::kAll && answered < keys.size()))
    return WrongAnswer(*core_, "Lookup's number of blocks");
  LookupResult out;
  out.estimated_fetch_us = response.estimated_fetch_us();
  for (const auto& wire : response.blocks()) {
    BlockInfo& block = out.blocks.emplace_back();
    for (const auto& plane : wire.planes()) {
      PERIGEE_ASSIGN_OR_RETURN(const pod::PlaneKind kind, KindFromWire(plane.kind()));
      block.planes.push_back({kind, TierFromWire(plane.tier()), plane.payload_bytes(), plane.estimated_fetch_us(),
                              std::clamp(plane.replicas(), 1u, kMaxReplicas)});
    }
    for (const auto& miss : wire.misses()) {
      PERIGEE_ASSIGN_OR_RETURN(const pod::PlaneKind kind, KindFromWire(miss.kind()));
      block.misses.push_back({kind, MissFromWire(miss)});
    }
  }
  return out;
}

absl::StatusOr<StoreClient::Events> StoreClient::ReadEvents(uint64_t epoch, uint64_t after, absl::Duration wait) {
  v1::EventsRequest request;
  request.set_epoch(epoch);
  request.set_after(after);
  request.set_tenant(core_->options.tenant);
  request.set_wait_ms(static_cast<uint32_t>(std::clamp<int64_t>(absl::ToInt64Milliseconds(wait), 0, 10000)));
  v1::EventsResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) {
    return core_->CallWithin(*session, &Stub::Events, request, &response, core_->options.call_deadline + wait);
  }));
  Events out{.epoch = response.epoch(), .page = {.events = {}, .gap = response.gap(), .up_to = response.up_to()}};
  for (const auto& wire : response.events()) {
    Event event;
    if (wire.kind() != v1::EVENT_KIND_STORED && wire.kind() != v1::EVENT_KIND_REMOVED) {
      return WrongAnswer(*core_, "kind of event");
    }
    PERIGEE_ASSIGN_OR_RETURN(event.id, PlaneIdFromWire(wire.id()));
    event.sequence = wire.sequence();
    event.kind = static_cast<EventKind>(wire.kind());
    event.reason = static_cast<MissReason>(wire.reason());
    event.when_unix_us = wire.when_unix_us();
    event.payload_bytes = wire.payload_bytes();
    event.tenant = wire.tenant();
    out.page.events.push_back(std::move(event));
  }
  return out;
}

absl::StatusOr<uint32_t> StoreClient::Promote(std::span<const PlaneId> planes, bool drop) {
  v1::PromoteRequest request;
  for (const PlaneId& id : planes) PlaneIdToWire(id, request.add_planes());
  request.set_tenant(core_->options.tenant);
  request.set_drop(drop);
  v1::PromoteResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) {
    return core_->Call(*session, &Stub::Promote, request, &response);
  }));
  return response.planes();
}

absl::StatusOr<uint32_t> StoreClient::Pin(std::span<const pod::BlockKey> keys, PinMode mode, uint32_t replicas) {
  v1::PinRequest request;
  for (const pod::BlockKey& key : keys) request.add_keys(key.digest.data(), key.digest.size());
  request.set_mode(static_cast<v1::PinMode>(mode));
  request.set_replicas(replicas);
  request.set_tenant(core_->options.tenant);
  v1::PinResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession(
      [&](const std::shared_ptr<Session>& session) { return core_->Call(*session, &Stub::Pin, request, &response); }));
  return response.planes();
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

absl::StatusOr<ListPage> StoreClient::List(const std::string& page_token, uint32_t limit, const std::string& tenant,
                                           const ListFilter& filter) {
  if (filter.placed) return absl::InvalidArgumentError("a store over the wire cannot ask the caller what to list");
  v1::ListRequest request;
  if (filter.group) request.set_group(*filter.group);
  request.set_least_replicas(filter.least_replicas);
  request.set_page_token(page_token);
  request.set_limit(limit);
  request.set_tenant(tenant);
  request.set_parents(filter.parents);
  v1::ListResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession(
      [&](const std::shared_ptr<Session>& session) { return core_->Call(*session, &Stub::List, request, &response); }));
  ListPage page;
  for (const auto& wire : response.planes()) {
    ListedPlane plane;
    PERIGEE_ASSIGN_OR_RETURN(plane.id, PlaneIdFromWire(wire.id()));
    plane.meta = {.payload_bytes = wire.payload_bytes(),
                  .created_unix_us = wire.created_unix_us(),
                  .ttl_s = wire.ttl_s(),
                  .base_position = wire.base_position(),
                  .tokens = wire.tokens(),
                  .tenant = wire.tenant(),
                  .parent = {},
                  .group = GroupFromWire(wire),
                  .replicas = static_cast<uint8_t>(std::clamp(wire.replicas(), 1u, kMaxReplicas))};
    plane.tier = TierFromWire(wire.tier());
    plane.on_ssd = wire.on_ssd();
    plane.on_remote = wire.on_remote();
    plane.pin = static_cast<PinMode>(std::clamp<int>(wire.pin(), 0, static_cast<int>(PinMode::kHard)));
    plane.last_used_unix_us = wire.last_used_unix_us();
    plane.parent_known = wire.has_parent();
    if (!wire.parent().empty()) {
      PERIGEE_ASSIGN_OR_RETURN(plane.meta.parent, pod::BlockKeyFromBytes(wire.parent()));
    }
    page.planes.push_back(std::move(plane));
  }
  page.next_page_token = response.next_page_token();
  return page;
}

absl::StatusOr<Evicted> StoreClient::Evict(const EvictFilter& filter) {
  v1::EvictRequest request;
  for (const pod::BlockKey& key : filter.keys) request.add_keys(key.digest.data(), key.digest.size());
  request.set_tenant(std::string(filter.tenant));
  request.set_idle_ms(static_cast<uint64_t>(std::max<int64_t>(0, absl::ToInt64Milliseconds(filter.idle))));
  request.set_dry_run(filter.dry_run);
  v1::EvictResponse response;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) {
    return core_->Call(*session, &Stub::Evict, request, &response);
  }));
  return Evicted{response.planes(), response.payload_bytes()};
}

absl::Status StoreClient::Scrub() {
  v1::ScrubResponse response;
  return core_->WithSession([&](const std::shared_ptr<Session>& session) {
    return core_->Call(*session, &Stub::Scrub, v1::ScrubRequest(), &response);
  });
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
           .lost_at_start = r.lost_at_start(),
           .counters = {.written_bytes = r.ssd_written_bytes(),
                        .compacted_bytes = r.ssd_compacted_bytes(),
                        .scrubbed_bytes = r.ssd_scrubbed_bytes(),
                        .scrub_passes = r.ssd_scrub_passes(),
                        .wrong_records = r.ssd_wrong_records(),
                        .unreadable_records = r.ssd_unreadable_records()}};
  for (const auto& path : r.ssd_paths()) {
    const auto health =
        static_cast<SsdHealth>(std::min<uint32_t>(path.health(), static_cast<uint32_t>(SsdHealth::kLost)));
    s.ssd.health = std::max(s.ssd.health, health);
    s.ssd.paths.push_back({.path = path.path(),
                           .health = health,
                           .message = path.message(),
                           .used_bytes = path.used_bytes(),
                           .live_bytes = path.live_bytes(),
                           .segments = path.segments(),
                           .scrubbing = path.scrubbing(),
                           .scrub_pass_bytes = path.scrub_pass_bytes()});
  }
  for (const auto& count : r.counts()) {
    if (count.tier() < 1 || count.tier() > 3 || count.kind() < 1 || count.kind() > 3) continue;
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
  s.has_remote = r.has_remote();
  s.remote.reachable = r.remote_reachable();
  s.remote.message = r.remote_message();
  s.remote_bytes_per_s = r.remote_bytes_per_s();
  s.hits_remote = r.hits_remote();
  s.demoted_to_ssd = r.demoted_to_ssd();
  s.demoted_to_remote = r.demoted_to_remote();
  s.promoted_ahead = r.promoted_ahead();
  s.cancelled_reads = r.cancelled_reads();
  s.unadmitted_reads = r.unadmitted_reads();
  s.expired_planes = r.expired_planes();
  s.over_quota = r.over_quota();
  s.hard_pinned_bytes = r.hard_pinned_bytes();
  s.index_bytes = r.index_bytes();
  if (r.has_rebalance()) out.rebalance = RebalanceFromWire(r.rebalance());
  return out;
}

absl::StatusOr<CorruptReport> StoreClient::ReportCorrupt(const PlaneId& id) {
  CorruptReport out;
  PERIGEE_RETURN_IF_ERROR(core_->WithSession([&](const std::shared_ptr<Session>& session) -> absl::Status {
    PERIGEE_ASSIGN_OR_RETURN(out, internal::Report(*core_, *session, id));
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
          .quick_calls = core_->quick_calls,
          .connects = core_->connects,
          .checksum_failures = core_->checksum_failures};
}

}  // namespace perigee::kvstore
