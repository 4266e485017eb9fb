#include "kvstore/service.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <limits>
#include <span>

#include "absl/strings/str_replace.h"
#include "base/clock.h"
#include "base/status.h"
#include "base/trace.h"
#include "kvstore/call_name.h"
#include "kvstore/quick_calls.h"
#include "kvstore/rebalance_wire.h"
#include "kvstore/wire.h"
#include "perigee/v1/kvstore.grpc.pb.h"
#include "proto/grpc_status.h"
#include "transport/context.h"

namespace perigee::kvstore {
namespace {

absl::Duration TtlFromWire(uint64_t ttl_ms) {
  // A hostile ttl must not overflow; the store cuts it further.
  return absl::Milliseconds(std::min<uint64_t>(ttl_ms, std::numeric_limits<int32_t>::max()));
}

template <typename Range>
absl::StatusOr<std::vector<pod::BlockKey>> KeysFromWire(const Range& wire) {
  std::vector<pod::BlockKey> keys;
  keys.reserve(static_cast<size_t>(wire.size()));
  for (const std::string& raw : wire) {
    PERIGEE_ASSIGN_OR_RETURN(pod::BlockKey key, pod::BlockKeyFromBytes(raw));
    keys.push_back(key);
  }
  return keys;
}

template <typename Range>
absl::StatusOr<std::vector<PlaneId>> IdsFromWire(const Range& wire) {
  std::vector<PlaneId> ids;
  ids.reserve(static_cast<size_t>(wire.size()));
  for (const v1::PlaneId& raw : wire) {
    PERIGEE_ASSIGN_OR_RETURN(const PlaneId id, PlaneIdFromWire(raw));
    ids.push_back(id);
  }
  return ids;
}

void MissToWire(pod::PlaneKind kind, const Miss& miss, v1::Miss* wire) {
  wire->set_kind(static_cast<v1::PlaneKind>(kind));
  wire->set_reason(static_cast<v1::MissReason>(miss.reason));
  wire->set_when_unix_us(miss.when_unix_us);
}

constexpr absl::Duration kLongestEventWait = absl::Seconds(10);
constexpr size_t kMaxEvents = 4096;  // in one answer
constexpr int kMaxDataHosts = 32;
constexpr size_t kMaxUntrustedDataHosts = 8;  // the others of its addresses are not let in

// gRPC says "ipv4:10.0.0.1:123" or "ipv6:%5B::1%5D:123". Empty for others (unix sockets).
std::string CallerHost(const std::string& peer) {
  const size_t begin = peer.find(':'), end = peer.rfind(':');
  if ((peer.rfind("ipv4:", 0) != 0 && peer.rfind("ipv6:", 0) != 0) || begin == end) return "";
  std::string host = peer.substr(begin + 1, end - begin - 1);
  host = absl::StrReplaceAll(host, {{"%5B", ""}, {"%5D", ""}, {"[", ""}, {"]", ""}});
  return host.substr(0, host.find('%'));  // a link-local address's device
}

class Service final : public v1::KvStore::Service {
 public:
  Service(Store* store, SessionTable* sessions, const DataPlane& data_plane)
      : store_(store), sessions_(sessions), data_(data_plane) {}

  grpc::Status Hello(grpc::ServerContext* context, const v1::HelloRequest* request,
                     v1::HelloResponse* response) override {
    return Counted(*request, *response, [&]() -> absl::Status {
      const uint32_t newest = std::min(request->protocol_version(), kProtocolVersion);
      const uint32_t oldest =
          request->protocol_version_min() == 0 ? request->protocol_version() : request->protocol_version_min();
      if (newest < oldest || newest < kProtocolVersionMin) {
        return absl::FailedPreconditionError(
            absl::StrCat("the client speaks protocol versions ", oldest, " to ", request->protocol_version(),
                         ", this store ", kProtocolVersionMin, " to ", kProtocolVersion, ": upgrade the older one"));
      }
      if (request->data_hosts_size() > kMaxDataHosts) {
        return absl::InvalidArgumentError(
            absl::StrCat(request->data_hosts_size(), " data_hosts; at most ", kMaxDataHosts));
      }
      PERIGEE_ASSIGN_OR_RETURN(const StoreSession session,
                               sessions_->Open(request->secret(), request->tenant(), request->context_id()));
      const absl::Status admitted = Admit(session, *request, CallerHost(context->peer()));
      if (!admitted.ok()) {
        sessions_->Close(session.token);
        return admitted;
      }
      response->set_protocol_version(newest);
      response->set_session_token(session.token);
      for (const std::string& host : transport::LocalAddresses()) response->add_data_hosts(host);
      response->set_trusted(session.trusted);
      response->set_remote_key(session.trusted ? data_.remote_key : data_.served_key);
      response->set_epoch(data_.epoch);
      response->set_data_host(data_.host);
      response->set_data_port(data_.port);
      response->set_slab_address(data_.slab_address);
      response->set_slab_bytes(data_.slab_bytes);
      response->set_has_ssd(store_->has_ssd());
      response->set_max_ttl_ms(static_cast<uint64_t>(absl::ToInt64Milliseconds(store_->max_ttl())));
      return absl::OkStatus();
    });
  }

  grpc::Status Reserve(grpc::ServerContext* context, const v1::ReserveRequest* request,
                       v1::ReserveResponse* response) override {
    return InSession(*context, *request, *response,
                     [&](const StoreSession& session) { return Reserve(session, *request, response); });
  }

  grpc::Status Commit(grpc::ServerContext* context, const v1::CommitRequest* request,
                      v1::CommitResponse* response) override {
    return InSession(*context, *request, *response,
                     [&](const StoreSession& session) { return Commit(session, *request, response); });
  }

  grpc::Status Abort(grpc::ServerContext* context, const v1::AbortRequest* request,
                     v1::AbortResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      std::vector<uint64_t> ids;
      for (const uint64_t id : request->reservation_ids()) {
        if (sessions_->Owns(session, id)) ids.push_back(id);
      }
      Revoke(session, ids);
      response->set_aborted(store_->Abort(ids, request->writes_may_arrive()));
      return absl::OkStatus();
    });
  }

  grpc::Status Lookup(grpc::ServerContext* context, const v1::LookupRequest* request,
                      v1::LookupResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<pod::BlockKey> keys, KeysFromWire(request->keys()));
      PERIGEE_RETURN_IF_ERROR(CheckMapEpoch(request->map_epoch()));
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<BlockInfo> blocks,
                               store_->Lookup(keys, TenantOf(session, request->tenant()),
                                              request->prefix() ? LookupMode::kPrefix : LookupMode::kAll));
      uint64_t total_us = 0;
      for (const BlockInfo& block : blocks) {
        auto* wire = response->add_blocks();
        for (const FoundPlane& plane : block.planes) {
          auto* found = wire->add_planes();
          found->set_kind(static_cast<v1::PlaneKind>(plane.kind));
          found->set_tier(static_cast<v1::Tier>(plane.tier));
          found->set_payload_bytes(plane.payload_bytes);
          found->set_estimated_fetch_us(plane.estimated_fetch_us);
          found->set_replicas(plane.replicas);
          total_us += plane.estimated_fetch_us;
        }
        for (const MissedPlane& missed : block.misses) MissToWire(missed.kind, missed.miss, wire->add_misses());
      }
      response->set_estimated_fetch_us(total_us);
      return absl::OkStatus();
    });
  }

  grpc::Status Acquire(grpc::ServerContext* context, const v1::AcquireRequest* request,
                       v1::AcquireResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) {
      return Acquire(session, *request, response, {.cancelled = [context] { return context->IsCancelled(); }});
    });
  }

  grpc::Status Renew(grpc::ServerContext* context, const v1::RenewRequest* request,
                     v1::RenewResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      PERIGEE_RETURN_IF_ERROR(CheckOwner(session, request->lease_id(), "lease"));
      const absl::Time expiry = Expiry(request->ttl_ms());
      PERIGEE_RETURN_IF_ERROR(store_->Renew(request->lease_id(), TtlFromWire(request->ttl_ms())));
      sessions_->ExtendLease(request->lease_id(), expiry);
      return absl::OkStatus();
    });
  }

  grpc::Status Release(grpc::ServerContext* context, const v1::ReleaseRequest* request,
                       v1::ReleaseResponse* response) override {
    return InSession(*context, *request, *response,
                     [&](const StoreSession& session) { return Release(session, *request, response); });
  }

  grpc::Status Promote(grpc::ServerContext* context, const v1::PromoteRequest* request,
                       v1::PromoteResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<PlaneId> ids, IdsFromWire(request->planes()));
      if (request->drop()) {
        response->set_planes(store_->DropPromotions(ids, TenantOf(session, request->tenant())));
        return absl::OkStatus();
      }
      PERIGEE_ASSIGN_OR_RETURN(const uint32_t planes, store_->Promote(ids, TenantOf(session, request->tenant())));
      response->set_planes(planes);
      return absl::OkStatus();
    });
  }

  grpc::Status Pin(grpc::ServerContext* context, const v1::PinRequest* request, v1::PinResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<pod::BlockKey> keys, KeysFromWire(request->keys()));
      if (request->mode() < v1::PIN_MODE_NONE || request->mode() > v1::PIN_MODE_KEEP) {
        return absl::InvalidArgumentError(
            absl::StrCat("pin mode ", static_cast<int>(request->mode()), " is not known"));
      }
      PERIGEE_ASSIGN_OR_RETURN(const uint32_t planes,
                               store_->Pin(keys, static_cast<PinMode>(request->mode()),
                                           TenantOf(session, request->tenant()), request->replicas()));
      response->set_planes(planes);
      return absl::OkStatus();
    });
  }

  grpc::Status ReportCorrupt(grpc::ServerContext* context, const v1::ReportCorruptRequest* request,
                             v1::ReportCorruptResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      PERIGEE_ASSIGN_OR_RETURN(const PlaneId id, PlaneIdFromWire(request->id()));
      const CorruptReport report = store_->ReportCorrupt(id, session.tenant);
      response->set_dram_copy_dropped(report.dram_copy_dropped);
      response->set_ssd_copy_dropped(report.ssd_copy_dropped);
      response->set_still_stored(report.still_stored);
      return absl::OkStatus();
    });
  }

  grpc::Status Delete(grpc::ServerContext* context, const v1::DeleteRequest* request,
                      v1::DeleteResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<pod::BlockKey> keys, KeysFromWire(request->keys()));
      PERIGEE_ASSIGN_OR_RETURN(const uint32_t deleted, store_->Delete(keys, session.tenant));
      response->set_deleted_planes(deleted);
      return absl::OkStatus();
    });
  }

  grpc::Status List(grpc::ServerContext* context, const v1::ListRequest* request, v1::ListResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      ListFilter filter{.least_replicas = request->least_replicas(), .parents = request->parents()};
      if (request->has_group()) {
        if (request->group() > std::numeric_limits<PlacementGroup>::max()) {
          return absl::InvalidArgumentError(absl::StrCat("placement group ", request->group(), "; at most 65535"));
        }
        filter.group = static_cast<PlacementGroup>(request->group());
      }
      PERIGEE_ASSIGN_OR_RETURN(const ListPage page, store_->List(request->page_token(), request->limit(),
                                                                 TenantOf(session, request->tenant()), filter));
      for (const ListedPlane& plane : page.planes) {
        auto* wire = response->add_planes();
        PlaneIdToWire(plane.id, wire->mutable_id());
        wire->set_tenant(plane.meta.tenant);
        wire->set_tokens(plane.meta.tokens);
        wire->set_base_position(plane.meta.base_position);
        wire->set_payload_bytes(plane.meta.payload_bytes);
        wire->set_tier(static_cast<v1::Tier>(plane.tier));
        wire->set_on_ssd(plane.on_ssd);
        wire->set_created_unix_us(plane.meta.created_unix_us);
        wire->set_last_used_unix_us(plane.last_used_unix_us);
        wire->set_on_remote(plane.on_remote);
        wire->set_pin(static_cast<v1::PinMode>(plane.pin));
        wire->set_ttl_s(plane.meta.ttl_s);
        if (plane.meta.group) wire->set_group(*plane.meta.group);
        wire->set_replicas(plane.meta.replicas);
        if (plane.parent_known) wire->set_parent("");
        if (plane.meta.parent) {
          wire->set_parent(plane.meta.parent->digest.data(), plane.meta.parent->digest.size());
        }
      }
      response->set_next_page_token(page.next_page_token);
      return absl::OkStatus();
    });
  }

  grpc::Status Events(grpc::ServerContext* context, const v1::EventsRequest* request,
                      v1::EventsResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      const bool known = request->epoch() == data_.epoch;
      const absl::Duration wait = std::min(absl::Milliseconds(request->wait_ms()), kLongestEventWait);
      const size_t limit = request->limit() == 0 ? kMaxEvents : std::min<size_t>(request->limit(), kMaxEvents);
      // Of another start: nothing to wait for.
      const EventPage page =
          store_->events().Read(known ? request->after() : 0, limit, TenantOf(session, request->tenant()),
                                known ? absl::Now() + wait : absl::InfinitePast());
      response->set_epoch(data_.epoch);
      response->set_gap(page.gap || !known);
      response->set_up_to(page.up_to);
      for (const Event& event : page.events) {
        auto* wire = response->add_events();
        wire->set_sequence(event.sequence);
        wire->set_kind(static_cast<v1::EventKind>(event.kind));
        PlaneIdToWire(event.id, wire->mutable_id());
        wire->set_payload_bytes(event.payload_bytes);
        wire->set_reason(static_cast<v1::MissReason>(event.reason));
        wire->set_when_unix_us(event.when_unix_us);
        wire->set_tenant(event.tenant);
      }
      return absl::OkStatus();
    });
  }

  grpc::Status Stat(grpc::ServerContext* context, const v1::StatRequest* request, v1::StatResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      const StoreStats s = store_->Stats();
      response->set_epoch(data_.epoch);
      response->set_slab_bytes(s.slab_bytes);
      response->set_slab_used_bytes(s.slab_used_bytes);
      response->set_slab_fragmentation(s.slab_fragmentation);
      response->set_reserved_bytes(s.reserved_bytes);
      response->set_leased_bytes(s.leased_bytes);
      response->set_ssd_capacity_bytes(s.ssd_capacity_bytes);
      response->set_ssd_used_bytes(s.ssd.used_bytes);
      response->set_ssd_live_bytes(s.ssd.live_bytes);
      response->set_ssd_segments(s.ssd.segments);
      for (int tier = 1; tier <= 3; ++tier) {
        for (int kind = 1; kind <= 3; ++kind) {
          const TierCount& count = s.counts[tier - 1][kind - 1];
          if (count.planes == 0) continue;
          auto* wire = response->add_counts();
          wire->set_tier(static_cast<v1::Tier>(tier));
          wire->set_kind(static_cast<v1::PlaneKind>(kind));
          wire->set_planes(count.planes);
          wire->set_payload_bytes(count.payload_bytes);
        }
      }
      response->set_reservations(s.reservations);
      response->set_leases(s.leases);
      response->set_hits_dram(s.hits_dram);
      response->set_hits_ssd(s.hits_ssd);
      response->set_misses(s.misses);
      response->set_dram_evictions(s.dram_evictions);
      response->set_dram_only_evictions(s.dram_only_evictions);
      response->set_ssd_evictions(s.ssd_evictions);
      response->set_checksum_failures(s.checksum_failures);
      response->set_refused_commits(s.refused_commits);
      response->set_expired_reservations(s.expired_reservations);
      response->set_expired_leases(s.expired_leases);
      response->set_lost_at_start(s.ssd.lost_at_start);
      response->set_committed_bytes(s.committed_bytes);
      response->set_leased_payload_bytes(s.leased_payload_bytes);
      response->set_fetched_bytes(s.fetched_bytes);
      response->set_grpc_message_bytes(message_bytes_.load());
      response->set_dram_bytes_per_s(s.dram_bytes_per_s);
      response->set_ssd_bytes_per_s(s.ssd_bytes_per_s);
      for (const SsdPathStats& path : s.ssd.paths) {
        auto* wire = response->add_ssd_paths();
        wire->set_path(path.path);
        wire->set_health(static_cast<uint32_t>(path.health));
        wire->set_message(path.message);
        wire->set_used_bytes(path.used_bytes);
        wire->set_live_bytes(path.live_bytes);
        wire->set_segments(path.segments);
        wire->set_scrubbing(path.scrubbing);
        wire->set_scrub_pass_bytes(path.scrub_pass_bytes);
      }
      const SsdCounters& ssd = s.ssd.counters;
      response->set_ssd_written_bytes(ssd.written_bytes);
      response->set_ssd_compacted_bytes(ssd.compacted_bytes);
      response->set_ssd_scrubbed_bytes(ssd.scrubbed_bytes);
      response->set_ssd_scrub_passes(ssd.scrub_passes);
      response->set_ssd_wrong_records(ssd.wrong_records);
      response->set_ssd_unreadable_records(ssd.unreadable_records);
      response->set_has_remote(s.has_remote);
      response->set_remote_reachable(s.remote.reachable);
      response->set_remote_message(s.remote.message);
      response->set_remote_bytes_per_s(s.remote_bytes_per_s);
      response->set_hits_remote(s.hits_remote);
      response->set_demoted_to_ssd(s.demoted_to_ssd);
      response->set_demoted_to_remote(s.demoted_to_remote);
      response->set_promoted_ahead(s.promoted_ahead);
      response->set_cancelled_reads(s.cancelled_reads);
      response->set_unadmitted_reads(s.unadmitted_reads);
      response->set_expired_planes(s.expired_planes);
      response->set_over_quota(s.over_quota);
      response->set_hard_pinned_bytes(s.hard_pinned_bytes);
      response->set_index_bytes(s.index_bytes);
      if (const std::optional<RebalanceStats> rebalance = data_.rebalance()) {
        RebalanceToWire(*rebalance, response->mutable_rebalance());
      }
      return absl::OkStatus();
    });
  }

  grpc::Status Evict(grpc::ServerContext* context, const v1::EvictRequest* request,
                     v1::EvictResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<pod::BlockKey> keys, KeysFromWire(request->keys()));
      const std::string tenant = TenantOf(session, request->tenant());
      PERIGEE_ASSIGN_OR_RETURN(const Evicted evicted, store_->Evict({.keys = keys,
                                                                     .tenant = tenant,
                                                                     .idle = TtlFromWire(request->idle_ms()),
                                                                     .dry_run = request->dry_run()}));
      response->set_planes(evicted.planes);
      response->set_payload_bytes(evicted.payload_bytes);
      return absl::OkStatus();
    });
  }

  grpc::Status Scrub(grpc::ServerContext* context, const v1::ScrubRequest* request,
                     v1::ScrubResponse* response) override {
    return InSession(*context, *request, *response, [&](const StoreSession& session) -> absl::Status {
      if (!session.tenant.empty()) {
        return absl::PermissionDeniedError(
            absl::StrCat("the session is tenant '", session.tenant, "'s; scrubbing is the operator's"));
      }
      return store_->Scrub();
    });
  }

  // ---- The same by messages, see quick_calls.h ----

  absl::StatusOr<std::string> Quick(absl::string_view header, absl::string_view payload) {
    if (header.empty() || payload.size() > kMaxQuickBytes) return absl::InvalidArgumentError("not a quick call");
    const absl::string_view token = header.substr(1);
    switch (static_cast<QuickCall>(header[0])) {
      case QuickCall::kReserve:
        return Quickly<v1::ReserveRequest, v1::ReserveResponse>(
            token, payload, [this](const StoreSession& session, const v1::ReserveRequest& request, auto* response) {
              PERIGEE_RETURN_IF_ERROR(CheckQuick(request.planes_size() <= static_cast<int>(kMaxQuickPlanes)));
              return Reserve(session, request, response);
            });
      case QuickCall::kCommit:
        return Quickly<v1::CommitRequest, v1::CommitResponse>(
            token, payload, [this](const StoreSession& session, const v1::CommitRequest& request, auto* response) {
              PERIGEE_RETURN_IF_ERROR(CheckQuick(session.trusted && !store_->has_ssd() && !store_->has_remote() &&
                                                 request.planes_size() <= static_cast<int>(kMaxQuickPlanes) &&
                                                 UnsummedBytes(request) <= kMaxQuickSumBytes));
              return Commit(session, request, response);
            });
      case QuickCall::kAcquire:
        return Quickly<v1::AcquireRequest, v1::AcquireResponse>(
            token, payload,
            [this](const StoreSession& session, const v1::AcquireRequest& request,
                   v1::AcquireResponse* response) -> absl::Status {
              PERIGEE_RETURN_IF_ERROR(CheckQuick(request.planes_size() <= static_cast<int>(kMaxQuickPlanes)));
              PERIGEE_RETURN_IF_ERROR(Acquire(session, request, response, {.resident_only = true}));
              if (response->ByteSizeLong() <= kMaxQuickBytes) return absl::OkStatus();
              if (response->lease_id() != 0) {
                sessions_->Revoke(response->lease_id());
                store_->Release(response->lease_id(), 0, 0).IgnoreError();
              }
              return CheckQuick(false);
            });
      case QuickCall::kRelease:
        return Quickly<v1::ReleaseRequest, v1::ReleaseResponse>(
            token, payload, [this](const StoreSession& session, const v1::ReleaseRequest& request, auto* response) {
              PERIGEE_RETURN_IF_ERROR(CheckQuick(session.trusted));
              return Release(session, request, response);
            });
    }
    return EncodeAnswer(absl::UnimplementedError("not a quick call"), "");
  }

 private:
  absl::Status Reserve(const StoreSession& session, const v1::ReserveRequest& request, v1::ReserveResponse* response) {
    std::vector<PlaneRequest> planes;
    for (const auto& wire : request.planes()) {
      PERIGEE_ASSIGN_OR_RETURN(const PlaneId id, PlaneIdFromWire(wire.id()));
      planes.push_back({id, wire.payload_bytes()});
    }
    const absl::Time expiry = Expiry(request.ttl_ms());  // before the store's own, which starts now
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<Reservation> reserved,
                             store_->Reserve(planes, TtlFromWire(request.ttl_ms()), session.tenant));
    response->set_epoch(data_.epoch);
    for (size_t i = 0; i < reserved.size(); ++i) {
      const Reservation& r = reserved[i];
      if (!r.already_committed) {
        data_.forget_puts(Bytes(r.address, planes[i].payload_bytes));
        sessions_->GrantReservation(session, r.id, r.address, planes[i].payload_bytes, expiry);
      }
      auto* wire = response->add_planes();
      wire->set_already_committed(r.already_committed);
      wire->set_reservation_id(r.id);
      wire->set_remote_address(r.address);
    }
    return absl::OkStatus();
  }

  absl::Status Commit(const StoreSession& session, const v1::CommitRequest& request, v1::CommitResponse* response) {
    std::vector<CommitItem> items;
    for (const auto& wire : request.planes()) {
      items.push_back({wire.reservation_id(), wire.header(), request.ttl_s(), request.replicas()});
    }
    Durability durability;
    switch (request.durability()) {
      case v1::DURABILITY_UNSPECIFIED:
        durability = Durability::kBest;
        break;
      case v1::DURABILITY_SYNCED:
        durability = Durability::kSynced;
        break;
      case v1::DURABILITY_DRAM:
        durability = Durability::kDram;
        break;
      case v1::DURABILITY_REPLICATED:
        durability = Durability::kReplicated;
        break;
      default:
        return absl::InvalidArgumentError(
            absl::StrCat("durability ", static_cast<int>(request.durability()), " is not known"));
    }
    // Planes of other sessions' reservations are refused one by one, as unknown ones are.
    std::vector<absl::Status> statuses(items.size());
    std::vector<CommitItem> own;
    std::vector<uint64_t> ids;
    for (size_t i = 0; i < items.size(); ++i) {
      statuses[i] = CheckOwner(session, items[i].reservation_id, "reservation");
      if (statuses[i].ok()) statuses[i] = CheckTenant(session, items[i].header);
      if (!statuses[i].ok()) continue;
      ids.push_back(items[i].reservation_id);
      own.push_back(std::move(items[i]));
    }
    // Before the payload is checked: what was checked must not change any more.
    Revoke(session, ids);
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<absl::Status> committed, store_->Commit(own, durability));
    auto next = committed.begin();
    for (absl::Status& status : statuses) {
      if (status.ok()) status = *next++;
      auto* wire = response->add_planes();
      wire->set_code(status.raw_code());
      wire->set_message(std::string(status.message()));
    }
    return absl::OkStatus();
  }

  absl::Status Acquire(const StoreSession& session, const v1::AcquireRequest& request, v1::AcquireResponse* response,
                       AcquireOptions options) {
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<PlaneId> ids, IdsFromWire(request.planes()));
    const absl::Time expiry = Expiry(request.ttl_ms());  // before the store's own, which starts now
    const std::string tenant = TenantOf(session, request.tenant());
    options.tenant = tenant;
    PERIGEE_ASSIGN_OR_RETURN(Lease lease, store_->Acquire(ids, TtlFromWire(request.ttl_ms()), options));
    response->set_epoch(data_.epoch);
    response->set_lease_id(lease.id);
    if (lease.id != 0 && !session.trusted) {
      std::vector<SessionTable::Range> ranges;
      for (const LeasedPlane& plane : lease.planes) {
        if (plane.found) ranges.push_back({plane.address, plane.payload_bytes});
      }
      sessions_->GrantLease(session, lease.id, ranges, expiry);
    }
    for (size_t i = 0; i < ids.size(); ++i) {
      LeasedPlane& plane = lease.planes[i];
      auto* wire = response->add_planes();
      wire->set_found(plane.found);
      if (!plane.found) {
        MissToWire(ids[i].kind, plane.miss, wire->mutable_miss());
        continue;
      }
      wire->set_remote_address(plane.address);
      wire->set_payload_bytes(plane.payload_bytes);
      wire->set_header(std::move(plane.header));
      wire->set_tier(static_cast<v1::Tier>(plane.tier));
      wire->set_estimated_fetch_us(plane.estimated_fetch_us);
    }
    return absl::OkStatus();
  }

  absl::Status Release(const StoreSession& session, const v1::ReleaseRequest& request, v1::ReleaseResponse* response) {
    PERIGEE_RETURN_IF_ERROR(CheckOwner(session, request.lease_id(), "lease"));
    if (!session.trusted) Revoke(session, std::array{request.lease_id()});
    return store_->Release(request.lease_id(), request.fetched_bytes(), request.fetch_us());
  }

  static std::span<const std::byte> Bytes(uint64_t address, uint64_t bytes) {
    return {reinterpret_cast<const std::byte*>(address), static_cast<size_t>(bytes)};
  }

  uint64_t UnsummedBytes(const v1::CommitRequest& request) const {
    uint64_t bytes = 0;
    for (const auto& plane : request.planes()) {
      const SessionTable::Range range = sessions_->Reserved(plane.reservation_id());
      if (range.bytes > 0) bytes += data_.unsummed_bytes(Bytes(range.address, range.bytes));
    }
    return bytes;
  }

  static absl::Status CheckQuick(bool quick) {
    return quick ? absl::OkStatus() : absl::UnimplementedError("not answered at once: ask over gRPC");
  }

  static std::string EncodeAnswer(const absl::Status& status, absl::string_view response) {
    std::string answer(1, static_cast<char>(status.raw_code()));
    absl::StrAppend(&answer, status.ok() ? response : status.message());
    return answer;
  }

  template <typename Request, typename Response, typename Body>
  std::string Quickly(absl::string_view token, absl::string_view payload, Body body) {
    Request request;
    if (!request.ParseFromArray(payload.data(), static_cast<int>(payload.size()))) {
      return EncodeAnswer(absl::InvalidArgumentError("the request is not a protobuf message of its call"), "");
    }
    const absl::StatusOr<StoreSession> session = sessions_->Find(token);
    if (!session.ok()) return EncodeAnswer(session.status(), "");
    Response response;
    const absl::Status status = body(*session, request, &response);
    const std::string answer = EncodeAnswer(status, status.ok() ? response.SerializeAsString() : "");
    message_bytes_ += payload.size() + answer.size();
    return answer;
  }

  template <typename Request, typename Response, typename Body>
  grpc::Status Counted(const Request& request, Response& response, Body body) {
    const Span span("serve ", CallName<Request>());
    message_bytes_ += request.ByteSizeLong();
    const absl::Status status = body();
    if (!status.ok()) response.Clear();
    message_bytes_ += response.ByteSizeLong();
    return ToGrpc(status);
  }

  template <typename Request, typename Response, typename Body>
  grpc::Status InSession(const grpc::ServerContext& context, const Request& request, Response& response, Body body) {
    return Counted(request, response, [&]() -> absl::Status {
      const auto token = context.client_metadata().find(kSessionMetadata);
      if (token == context.client_metadata().end()) {
        return absl::UnauthenticatedError("the call names no session: say Hello first");
      }
      PERIGEE_ASSIGN_OR_RETURN(const StoreSession session,
                               sessions_->Find({token->second.data(), token->second.size()}));
      return body(session);
    });
  }

  // Until the session ends.
  absl::Status Admit(const StoreSession& session, const v1::HelloRequest& request, const std::string& caller) const {
    std::vector<std::string> hosts(request.data_hosts().begin(), request.data_hosts().end());
    if (!session.trusted && hosts.size() > kMaxUntrustedDataHosts) hosts.resize(kMaxUntrustedDataHosts);
    if (!caller.empty()) hosts.push_back(caller);
    for (const std::string& host : hosts) {
      PERIGEE_RETURN_IF_ERROR(data_.admit(host));
      sessions_->AddHost(session.token, host);
    }
    return absl::OkStatus();
  }

  absl::Status CheckMapEpoch(uint64_t asked) const {
    if (asked == 0) return absl::OkStatus();
    const std::optional<RebalanceStats> here = data_.rebalance();
    if (here && here->map_epoch == asked) return absl::OkStatus();
    return absl::FailedPreconditionError(
        absl::StrCat("the caller places planes by the map of stores of epoch ", asked, ", this store ",
                     here ? absl::StrCat("by that of epoch ", here->map_epoch, ": ask again") : "by none"));
  }

  // As the store will cut it.
  absl::Time Expiry(uint64_t ttl_ms) const { return SteadyNow() + std::min(TtlFromWire(ttl_ms), store_->max_ttl()); }

  absl::Status CheckOwner(const StoreSession& session, uint64_t id, absl::string_view what) const {
    if (sessions_->Owns(session, id)) return absl::OkStatus();
    return absl::NotFoundError(absl::StrCat(what, " ", id, " is unknown, has ended or is another session's"));
  }

  static absl::Status CheckTenant(const StoreSession& session, const std::string& header) {
    if (session.tenant.empty()) return absl::OkStatus();
    const absl::StatusOr<pod::PlaneHeader> decoded = pod::DecodePlaneHeader(header);
    if (!decoded.ok() || decoded->tenant == session.tenant) return absl::OkStatus();  // the store refuses wrong ones
    return absl::PermissionDeniedError(absl::StrCat("the session is tenant '", session.tenant,
                                                    "'s and commits a plane of tenant '", decoded->tenant, "'"));
  }

  static std::string TenantOf(const StoreSession& session, const std::string& asked) {
    return session.tenant.empty() ? asked : session.tenant;
  }

  // Trusted sessions have waited for their own transfers; for the others', nothing may be under way.
  void Revoke(const StoreSession& session, std::span<const uint64_t> ids) {
    for (const uint64_t id : ids) sessions_->Revoke(id);
    if (!session.trusted) data_.quiesce();
  }

  Store* const store_;
  SessionTable* const sessions_;
  const DataPlane data_;
  std::atomic<uint64_t> message_bytes_{0};
};

}  // namespace

StoreService MakeStoreService(Store* store, SessionTable* sessions, const DataPlane& data_plane) {
  auto service = std::make_unique<Service>(store, sessions, data_plane);
  transport::MessageHandler quick = [service = service.get()](absl::string_view header, absl::string_view payload) {
    return service->Quick(header, payload);
  };
  return {std::move(service), std::move(quick)};
}

}  // namespace perigee::kvstore
