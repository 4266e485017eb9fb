// The store's client: control calls over gRPC, payload one-sided over the transport.
//
//   auto store = StoreClient::Connect("host:7100", &engine, {});
//   auto batch = (*store)->Reserve(planes);           batch->Put(0, offset, bytes) ...;   batch->Commit(headers);
//   auto lease = (*store)->Acquire(ids);              lease->Fetch(requests);             // verified
//   auto fetch = lease->StartFetch(groups);           fetch->Wait(0) ...;                 // the same, group by group
//
// Errors. UNAVAILABLE: no store answers at the address, or the one that did is gone or was restarted; batches and
// leases of before are lost, the next call of the client connects again by itself. DEADLINE_EXCEEDED: the store is too
// slow; nothing ever waits longer than its deadline. DATA_LOSS: fetched bytes do not match their checksums; the store
// has been told.
#ifndef PERIGEE_KVSTORE_CLIENT_H_
#define PERIGEE_KVSTORE_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/placement.h"
#include "kvstore/plane_id.h"
#include "kvstore/rebalance_stats.h"
#include "kvstore/store.h"
#include "pod/plane_header.h"
#include "transport/context.h"

namespace perigee::kvstore {

struct ClientOptions {
  absl::Duration connect_deadline = absl::Seconds(5);
  absl::Duration call_deadline = absl::Seconds(10);  // of one control call
  // Of the calls that a store answers from its memory (Lookup, Reserve). One that takes longer hangs: its connection is
  // given up, so that nothing under way on it waits for its own deadline, and the next call connects again. Not used
  // where it is not below call_deadline.
  absl::Duration answer_deadline = absl::InfiniteDuration();
  absl::Duration transfer_deadline =
      absl::Seconds(30);  // of one Put, Fetch or LayeredFetch; never past the reservation's or lease's end
  absl::Duration reservation_ttl = absl::Seconds(60);
  absl::Duration lease_ttl = absl::Seconds(60);
  std::string secret;  // What the store's operator gave; empty where the store asks for none.
  std::string tenant;  // Planes of others are misses; empty: not checked.
  // A LayeredFetch joins groups until a batch has this much: less costs round trips, more delays the groups in it.
  size_t fetch_batch_bytes = size_t{1} << 20;
  // Called on a LayeredFetch's thread when a batch has landed, before it is checked, with its first group; an error
  // ends the fetch as one of the wire would. For tests that hold groups back or break them; empty otherwise.
  std::function<absl::Status(size_t group)> on_fetch_landed;
};

// Since Connect.
struct ClientStats {
  uint64_t put_bytes = 0;
  uint64_t fetched_bytes = 0;
  uint64_t grpc_bytes = 0;   // Control messages sent and received, whichever way.
  uint64_t quick_calls = 0;  // Control calls that were answered by message, without gRPC (kvstore/quick_calls.h).
  uint64_t connects = 0;
  uint64_t checksum_failures = 0;
};

namespace internal {
struct ClientCore;
struct WriteState;
struct LeaseState;
struct FetchState;
}  // namespace internal

class JoinedBatch;  // kvstore/shared_reservation.h

// Bytes of one plane of a batch, to be written at offset_bytes of its payload.
struct PutRange {
  size_t plane = 0;
  uint64_t offset_bytes = 0;
  std::span<const std::byte> bytes;
};

// Reserved planes on their way into the store. Any thread may Put, several at once; Commit once, after the last Put was
// called. Destruction without Commit waits for the puts under way (at the latest until their deadline) and gives the
// reservations back.
class WriteBatch {
 public:
  WriteBatch();
  WriteBatch(WriteBatch&&) noexcept;
  WriteBatch& operator=(WriteBatch&& other) noexcept;
  ~WriteBatch();

  size_t size() const;
  // The store has this plane: nothing to put, its header is ignored.
  bool already_committed(size_t plane) const;

  // Starts writing all ranges as one batch, neighbours joined; does not wait for it. The caller keeps the bytes alive
  // and unchanged until Commit or WaitForPuts has returned or this object is gone. Ranges of planes that are committed
  // already are left out. OUT_OF_RANGE past a plane's end: nothing of the call is written.
  absl::Status Put(std::span<const PutRange> ranges);
  absl::Status Put(size_t plane, uint64_t offset_bytes, std::span<const std::byte> bytes);

  // Until everything put so far is in the store's memory; the first error of any put.
  absl::Status WaitForPuts();

  // Waits until all puts are in the store's memory, then makes the planes visible: one status per plane. headers: one
  // per plane. ttl: of the planes, in whole seconds, rounded up. replicas: how many stores are to have them, 1 to
  // kMaxReplicas. An error of the whole call leaves open which of them are visible.
  absl::StatusOr<std::vector<absl::Status>> Commit(std::span<const pod::PlaneHeader> headers,
                                                   Durability durability = Durability::kBest,
                                                   absl::Duration ttl = absl::InfiniteDuration(),
                                                   uint32_t replicas = 1);

  // What other clients of the store need to put into these planes as well: for StoreClient::Join
  // (kvstore/shared_reservation.h). FAILED_PRECONDITION for an empty batch.
  absl::StatusOr<std::string> Describe();

 private:
  friend class StoreClient;
  explicit WriteBatch(std::unique_ptr<internal::WriteState> state);
  void Abort();
  std::unique_ptr<internal::WriteState> state_;
};

// One plane of a lease, as the client sees it.
struct HeldPlane {
  PlaneId id;
  bool found = false;
  Miss miss;                // Where not found.
  pod::PlaneHeader header;  // Decoded, and of this id.
  Tier tier = Tier::kDram;
  uint64_t estimated_fetch_us = 0;
};

struct FetchRequest {
  size_t plane = 0;
  std::span<std::byte> destination;  // Exactly the sections' bytes. In any memory.
  size_t first_section = 0;
  size_t sections = SIZE_MAX;  // Cut to what the plane has.
};

// A fetch under way: groups of sections that land, and are checked, in their order, so that the first can be used while
// the last still travels. A thread of its own keeps at most two batches on the wire. Any thread may call.
//
// The caller keeps the destinations alive until the fetch has ended (Wait of the last group returned, or Wait of any
// returned an error) or this object is gone: destruction stops it and waits for the batches that are on the wire, at
// the latest until the transfer deadline.
class LayeredFetch {
 public:
  LayeredFetch();
  LayeredFetch(LayeredFetch&&) noexcept;
  LayeredFetch& operator=(LayeredFetch&& other) noexcept;
  ~LayeredFetch();

  size_t groups() const;
  // Until groups 0..group are here and match their checksums. DATA_LOSS when this group's or an earlier one's bytes do
  // not; else the wire's or the store's error. Nothing more arrives after an error.
  // DEADLINE_EXCEEDED: not here yet at `until`; the fetch goes on.
  absl::Status Wait(size_t group, absl::Time until = absl::InfiniteFuture()) const;
  // Ends it early: what Wait does not have yet is CANCELLED, as soon as nothing moves any more. Does not wait for that.
  void Cancel();
  // How many groups, from the first on, are here and right.
  size_t arrived() const;
  // After DATA_LOSS: which of the lease's planes were wrong. The store has been told.
  std::vector<size_t> wrong_planes() const;
  // From the start to the last group's check, or to now.
  absl::Duration duration() const;

 private:
  friend class ReadLease;
  explicit LayeredFetch(std::unique_ptr<internal::FetchState> state);
  void Stop();
  std::unique_ptr<internal::FetchState> state_;
};

// Planes that stay where they are. Any thread may fetch, several at once. Destruction releases, once no LayeredFetch
// reads any more (one short call; errors are ignored: the lease's ttl ends it anyway).
class ReadLease {
 public:
  ReadLease();
  ReadLease(ReadLease&&) noexcept;
  ReadLease& operator=(ReadLease&& other) noexcept;
  ~ReadLease();

  const std::vector<HeldPlane>& planes() const;
  absl::Time expiry() const;

  // One batch of one-sided reads; then every section is checked against its checksum. One status per request: NOT_FOUND
  // for a plane that the lease does not have, INVALID_ARGUMENT for a destination of another size, DATA_LOSS for wrong
  // bytes (do not use them).
  std::vector<absl::Status> Fetch(std::span<const FetchRequest> requests);

  // The same, group after group, while the caller does something else. NOT_FOUND and INVALID_ARGUMENT as above: nothing
  // was started then. The lease may be dropped meanwhile; it is released when the fetch has ended.
  absl::StatusOr<LayeredFetch> StartFetch(std::vector<std::vector<FetchRequest>> groups);

  absl::Status Renew(absl::Duration ttl);

 private:
  friend class StoreClient;
  explicit ReadLease(std::shared_ptr<internal::LeaseState> state);
  std::shared_ptr<internal::LeaseState> state_;
};

struct LookupResult {
  std::vector<BlockInfo> blocks;  // In the keys' order.
  uint64_t estimated_fetch_us = 0;
};

// Any thread may call. Batches and leases may outlive the client object; all of them must go before the engine.
class StoreClient {
 public:
  // address: "host:port" of the store's control plane. engine: outlives everything made here. Null, for tools that only
  // ask and tell: nothing but gRPC is used; Reserve, Join and fetches are FAILED_PRECONDITION (Acquire shows headers).
  static absl::StatusOr<std::unique_ptr<StoreClient>> Connect(const std::string& address, transport::Context* engine,
                                                              const ClientOptions& options);
  // The same, but the first call connects; no store needs to answer now. INVALID_ARGUMENT for what is no address.
  static absl::StatusOr<std::unique_ptr<StoreClient>> Create(const std::string& address, transport::Context* engine,
                                                             const ClientOptions& options);
  ~StoreClient();

  absl::StatusOr<WriteBatch> Reserve(std::span<const PlaneRequest> planes);
  // Another client's reservation, to put into. described_after: a time by this process's clock, not later than when the
  // description was made; the time to live counts from there, because clocks of two machines cannot be compared.
  // UNAVAILABLE when the store was restarted since; as DecodeSharedReservation for bytes that are no description;
  // OUT_OF_RANGE for addresses that are not the store's.
  absl::StatusOr<JoinedBatch> Join(absl::string_view description, absl::Time described_after);
  // within: how long planes in slower tiers may take, at most call_deadline; then DEADLINE_EXCEEDED.
  absl::StatusOr<ReadLease> Acquire(std::span<const PlaneId> planes, absl::Duration within = absl::InfiniteDuration());
  // map_epoch: FAILED_PRECONDITION where the store places planes by another map of stores; 0: not asked.
  absl::StatusOr<LookupResult> Lookup(std::span<const pod::BlockKey> keys, LookupMode mode = LookupMode::kAll,
                                      uint64_t map_epoch = 0);
  // What was stored and removed after event number `after` of the store's start `epoch` (0 for both at first: the page
  // says gap then, and the planes that are there are List's to tell). Waits for something, at most so long; the next
  // call goes on from page.up_to and this epoch.
  struct Events {
    uint64_t epoch = 0;
    EventPage page;
  };
  absl::StatusOr<Events> ReadEvents(uint64_t epoch, uint64_t after, absl::Duration wait);
  // See Store::Promote and Store::Pin.
  absl::StatusOr<uint32_t> Promote(std::span<const PlaneId> planes, bool drop = false);
  absl::StatusOr<uint32_t> Pin(std::span<const pod::BlockKey> keys, PinMode mode, uint32_t replicas = 0);
  absl::StatusOr<uint32_t> Delete(std::span<const pod::BlockKey> keys);
  // ListFilter::placed cannot be sent.
  absl::StatusOr<ListPage> List(const std::string& page_token, uint32_t limit, const std::string& tenant,
                                const ListFilter& filter = {});
  // Also the store's epoch and the bytes of its control messages, which the core does not know.
  struct Stat {
    StoreStats store;
    uint64_t epoch = 0;
    uint64_t grpc_message_bytes = 0;
    std::optional<RebalanceStats> rebalance;  // Where the store knows others.
  };
  absl::StatusOr<Stat> GetStat();
  // See Store::Evict and Store::Scrub. A client of a tenant evicts its own planes only, and may not scrub.
  absl::StatusOr<Evicted> Evict(const EvictFilter& filter);
  absl::Status Scrub();
  absl::StatusOr<CorruptReport> ReportCorrupt(const PlaneId& id);

  const std::string& address() const;
  // Of the store that was reached last.
  uint64_t epoch() const;
  ClientStats stats() const;

 private:
  explicit StoreClient(std::shared_ptr<internal::ClientCore> core);
  std::shared_ptr<internal::ClientCore> core_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_CLIENT_H_
