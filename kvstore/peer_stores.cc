#include "kvstore/peer_stores.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "base/status.h"

namespace perigee::kvstore {
namespace {

constexpr size_t kKeysPerCall = 4096;
constexpr absl::Duration kLeaseTtl = absl::Minutes(2);

// What batches have in common: those with the same go together.
struct Terms {
  absl::Duration ttl;  // What is left of it.
  uint32_t replicas = 1;
  PinMode pin = PinMode::kNone;
  friend bool operator==(const Terms&, const Terms&) = default;
};

Terms TermsOf(const ListedPlane& plane, int64_t now_unix_us) {
  absl::Duration ttl = absl::InfiniteDuration();
  if (plane.meta.ttl_s > 0) {
    ttl = absl::Seconds(plane.meta.ttl_s) - absl::Microseconds(now_unix_us - plane.meta.created_unix_us);
    ttl = absl::Ceil(ttl, absl::Seconds(1));
  }
  return {ttl, plane.meta.replicas, plane.pin};
}

std::vector<pod::BlockKey> KeysOf(std::span<const ListedPlane* const> planes) {
  std::vector<pod::BlockKey> keys;
  for (const ListedPlane* plane : planes) keys.push_back(plane->id.key);
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  return keys;
}

// Planes of the own store that stay where they are.
class LocalLease {
 public:
  LocalLease(Store* store, uint64_t id) : store_(store), id_(id) {}
  ~LocalLease() {
    if (id_ != 0) store_->Release(id_, 0, 0).IgnoreError();  // It may have run out.
  }
  LocalLease(const LocalLease&) = delete;

 private:
  Store* const store_;
  const uint64_t id_;
};

}  // namespace

PeerStores::PeerStores(Store* own, transport::Context* engine, ClientOptions options, size_t planes_in_flight,
                       uint64_t bytes_in_flight, std::function<bool()> stopping)
    : own_(own),
      engine_(engine),
      options_(std::move(options)),
      planes_in_flight_(planes_in_flight),
      bytes_in_flight_(bytes_in_flight),
      stopping_(std::move(stopping)) {}

void PeerStores::BeginRound(const StoreMap& map) {
  absl::erase_if(peers_, [&](const auto& peer) {
    return std::none_of(map.stores.begin(), map.stores.end(),
                        [&](const StoreEntry& entry) { return entry.address == peer.first; });
  });
  for (auto& [address, peer] : peers_) peer.down = peer.full = false;
}

StoreClient* PeerStores::Connected(const StoreEntry& entry) {
  Peer& peer = peers_[entry.address];
  if (peer.down) return nullptr;
  if (peer.client == nullptr) {
    auto client = StoreClient::Connect(entry.address, engine_, options_);
    if (!Went(entry, client.status(), "connecting")) return nullptr;
    peer.client = *std::move(client);
  }
  return peer.client.get();
}

bool PeerStores::Went(const StoreEntry& entry, const absl::Status& status, const char* what) {
  if (status.ok()) return true;
  ++failures_;
  Peer& peer = peers_[entry.address];
  if (absl::IsResourceExhausted(status)) {
    peer.full = true;
  } else {
    peer.down = true;
  }
  Note(absl::StrCat("store ", entry.id, " at ", entry.address, ": ", what, ": ", status.message()));
  return false;
}

void PeerStores::Note(const std::string& failure) {
  spdlog::warn("rebalancing: {}; tried again in the next round", failure);
  last_failure_ = failure;
}

std::vector<PeerStores::Answer> PeerStores::Ask(const StoreEntry& entry, std::span<const ListedPlane* const> planes,
                                                uint64_t map_epoch) {
  std::vector<Answer> answers(planes.size());
  StoreClient* const client = Connected(entry);
  if (client == nullptr) return answers;
  const std::vector<pod::BlockKey> keys = KeysOf(planes);
  absl::flat_hash_map<PlaneId, FoundPlane> found;
  absl::flat_hash_map<PlaneId, Miss> missed;
  for (size_t begin = 0; begin < keys.size(); begin += kKeysPerCall) {
    const auto some = std::span(keys).subspan(begin, std::min(kKeysPerCall, keys.size() - begin));
    const absl::StatusOr<LookupResult> looked = client->Lookup(some, LookupMode::kAll, map_epoch);
    if (map_epoch != 0 && absl::IsFailedPrecondition(looked.status())) {  // Not yet, or not any more.
      ++failures_;
      last_failure_ = absl::StrCat("store ", entry.id, ": ", looked.status().message());
      return std::vector<Answer>(planes.size());
    }
    if (!Went(entry, looked.status(), "asking what it has")) return std::vector<Answer>(planes.size());
    for (size_t i = 0; i < some.size(); ++i) {
      for (const FoundPlane& plane : looked->blocks[i].planes) found.emplace(PlaneId{some[i], plane.kind}, plane);
      for (const MissedPlane& plane : looked->blocks[i].misses)
        missed.emplace(PlaneId{some[i], plane.kind}, plane.miss);
    }
  }
  for (size_t i = 0; i < planes.size(); ++i) {
    if (const auto there = found.find(planes[i]->id); there != found.end()) {
      answers[i] = {OwnersCopy::kThere, there->second.replicas};
    } else if (const auto miss = missed.find(planes[i]->id); miss != missed.end()) {
      answers[i].copy = CopyOf(miss->second, planes[i]->meta.created_unix_us);
    }
  }
  return answers;
}

PeerStores::Sent PeerStores::Send(const StoreEntry& entry, std::span<const ListedPlane* const> planes,
                                  int64_t now_unix_us, const std::function<bool(uint64_t bytes)>& before_batch) {
  Sent sent;
  for (size_t begin = 0, end = 0; begin < planes.size(); begin = end) {
    const Terms terms = TermsOf(*planes[begin], now_unix_us);
    uint64_t bytes = 0;
    for (; end < planes.size() && end - begin < planes_in_flight_; ++end) {
      const uint64_t more = planes[end]->meta.payload_bytes;
      if (TermsOf(*planes[end], now_unix_us) != terms || (end > begin && bytes + more > bytes_in_flight_)) break;
      bytes += more;
    }
    if (terms.ttl <= absl::ZeroDuration()) continue;  // Its time has passed.
    StoreClient* const client = Connected(entry);
    if (client == nullptr || peers_[entry.address].full) {
      sent.failed += planes.size() - begin;
      return sent;
    }
    if (!before_batch(bytes)) return sent;
    const auto some = planes.subspan(begin, end - begin);
    const size_t failed_before = sent.failed;
    if (!Went(entry, SendBatch(*client, some, terms.ttl, &sent), "sending planes")) {
      sent.failed = failed_before + some.size();
      continue;
    }
    if (terms.pin == PinMode::kNone) continue;
    const absl::Status pinned = client->Pin(KeysOf(some), terms.pin).status();
    if (!pinned.ok()) spdlog::warn("rebalancing: a pin stays behind: {}", std::string(pinned.message()));
  }
  return sent;
}

absl::Status PeerStores::SendBatch(StoreClient& client, std::span<const ListedPlane* const> planes, absl::Duration ttl,
                                   Sent* sent) {
  std::vector<PlaneId> ids;
  for (const ListedPlane* plane : planes) ids.push_back(plane->id);
  const absl::StatusOr<Lease> lease = own_->Acquire(ids, kLeaseTtl, {.background = true, .cancelled = stopping_});
  if (!lease.ok()) {  // This store's trouble, not the other's.
    sent->failed += planes.size();
    Note(std::string(lease.status().message()));
    return absl::OkStatus();
  }
  const LocalLease held(own_, lease->id);
  std::vector<PlaneRequest> requests;
  std::vector<pod::PlaneHeader> headers;
  std::vector<std::span<const std::byte>> payloads;
  for (size_t i = 0; i < ids.size(); ++i) {
    const LeasedPlane& plane = lease->planes[i];
    absl::StatusOr<pod::PlaneHeader> header = absl::NotFoundError("gone");
    if (plane.found) header = pod::DecodePlaneHeader(plane.header);
    if (!header.ok()) continue;
    requests.push_back({ids[i], plane.payload_bytes});
    headers.push_back(*std::move(header));
    payloads.push_back({reinterpret_cast<const std::byte*>(plane.address), plane.payload_bytes});
  }
  if (requests.empty()) return absl::OkStatus();
  PERIGEE_ASSIGN_OR_RETURN(WriteBatch batch, client.Reserve(requests));
  std::vector<PutRange> puts;
  std::vector<bool> is_new;
  for (size_t i = 0; i < requests.size(); ++i) {
    puts.push_back({i, 0, payloads[i]});
    is_new.push_back(!batch.already_committed(i));
  }
  PERIGEE_RETURN_IF_ERROR(batch.Put(puts));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<absl::Status> statuses,
                           batch.Commit(headers, Durability::kBest, ttl, planes[0]->meta.replicas));
  for (size_t i = 0; i < statuses.size(); ++i) {
    if (!statuses[i].ok()) {
      ++sent->failed;
      Note(absl::StrCat(requests[i].id.ToString(), " was refused: ", statuses[i].message()));
      if (absl::IsDataLoss(statuses[i])) own_->ReportCorrupt(requests[i].id);
    } else if (is_new[i]) {
      ++sent->planes;
      sent->bytes += requests[i].payload_bytes;
    }
  }
  return absl::OkStatus();
}

void PeerStores::SetReplicas(const StoreEntry& entry, std::span<const pod::BlockKey> keys, uint32_t replicas) {
  StoreClient* const client = Connected(entry);
  if (client != nullptr) Went(entry, client->Pin(keys, PinMode::kKeep, replicas).status(), "telling of replicas");
}

}  // namespace perigee::kvstore
