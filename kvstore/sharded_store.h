// Many stores as one: a client that finds, by a chain's root, the stores that hold its planes (kvstore/placement.h),
// and goes on with another where one does not answer.
//
//   ShardedStore store(directory, &engine, {});
//   auto batch = store.Reserve(root, planes);         batch->Put(0, offset, bytes) ...;   batch->Commit(headers);
//   auto lease = store.Acquire(root, ids);            lease->Fetch(requests);             // verified
//   auto fetch = lease->StartFetch(groups);           fetch->Wait(0) ...;                 // the same, group by group
//
// The calls are StoreClient's (kvstore/client.h), with the root in front: the key of the chain's first block. Reading
// asks the first of the root's stores, and the next ones for what is missing there. Writing goes to as many as replicas
// are asked for, and succeeds where one store has everything. With one store in the map all results and errors are
// StoreClient's.
//
// Errors. UNAVAILABLE: none of the stores in question answers, or none is known; the one that held a fetch's planes
// died: acquire again, a replica may have them. Others as StoreClient's. A store that does not answer is avoided for a
// while and then tried again by one caller; no caller waits for a store that its root does not lead to.
#ifndef PERIGEE_KVSTORE_SHARDED_STORE_H_
#define PERIGEE_KVSTORE_SHARDED_STORE_H_

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/client.h"
#include "kvstore/placement.h"
#include "pod/block_key.h"
#include "pod/plane_header.h"
#include "transport/context.h"

namespace perigee::kvstore {

struct ShardedStoreOptions {
  ClientOptions client = {};  // on_fetch_landed may be called on several threads at once.
  // Serving stores that are looked at, see StoreMap::Readers: at least the replicas in use, and one more so that planes
  // are found while they move.
  size_t read_stores = 2;
  int replicas = 1;  // Of writes that do not say.
  // A store that did not answer is not asked for so long, where there are others in the map.
  absl::Duration avoid_after_failure = absl::Seconds(1);
};

struct ShardedStats {
  ClientStats clients;        // Summed over all stores, also those that have left.
  uint64_t failovers = 0;     // Calls and batches that went on without a store that should have been in them.
  size_t stores_avoided = 0;  // Did not answer when last asked.
};

namespace internal {
class StoreConnections;
struct ShardedWriteState;
struct ShardedLeaseState;
struct ShardedFetchState;
}  // namespace internal

// Reserved planes on their way into one or more stores. As WriteBatch: any thread may Put, Commit once. A store that
// fails in Put or Commit is left out from then on, as long as another takes what it did not.
class ShardedBatch {
 public:
  ShardedBatch();
  ShardedBatch(ShardedBatch&&) noexcept;
  ShardedBatch& operator=(ShardedBatch&&) noexcept;
  ~ShardedBatch();

  size_t size() const;
  // All of the batch's stores have this plane: nothing to put, its header is ignored.
  bool already_committed(size_t plane) const;
  // That were asked for; fewer stores may have taken the reservation.
  int replicas() const;

  // As WriteBatch's, to all of the batch's stores. OUT_OF_RANGE past a plane's end.
  absl::Status Put(std::span<const PutRange> ranges);
  absl::Status Put(size_t plane, uint64_t offset_bytes, std::span<const std::byte> bytes);
  absl::Status WaitForPuts();

  // One status per plane, OK where at least one store has it.
  absl::StatusOr<std::vector<absl::Status>> Commit(std::span<const pod::PlaneHeader> headers,
                                                   Durability durability = Durability::kBest,
                                                   absl::Duration ttl = absl::InfiniteDuration());
  // After Commit: how many of the batch's stores have the plane.
  int replicas_written(size_t plane) const;

 private:
  friend class ShardedStore;
  explicit ShardedBatch(std::unique_ptr<internal::ShardedWriteState> state);
  std::unique_ptr<internal::ShardedWriteState> state_;
};

// As LayeredFetch; a group is here when all its planes are, whatever stores they come from. Where one store has all of
// them this is that store's LayeredFetch, without threads of its own.
class ShardedFetch {
 public:
  ShardedFetch();
  ShardedFetch(ShardedFetch&&) noexcept;
  ShardedFetch& operator=(ShardedFetch&&) noexcept;
  ~ShardedFetch();

  size_t groups() const;
  // After an error of any store the fetch has ended for all of them. UNAVAILABLE: a store has died; acquire again.
  absl::Status Wait(size_t group, absl::Time until = absl::InfiniteFuture()) const;
  size_t arrived() const;
  std::vector<size_t> wrong_planes() const;
  absl::Duration duration() const;

 private:
  friend class ShardedLease;
  explicit ShardedFetch(std::unique_ptr<internal::ShardedFetchState> state);
  std::unique_ptr<internal::ShardedFetchState> state_;
};

// As ReadLease, over the stores that have the planes. Any thread may fetch, several at once.
class ShardedLease {
 public:
  ShardedLease();
  ShardedLease(ShardedLease&&) noexcept;
  ShardedLease& operator=(ShardedLease&&) noexcept;
  ~ShardedLease();

  // In the order of Acquire's ids. A plane that nobody has is kUnreachable where a store that might have it did not
  // answer.
  const std::vector<HeldPlane>& planes() const;
  absl::Time expiry() const;  // The earliest.

  std::vector<absl::Status> Fetch(std::span<const FetchRequest> requests);
  absl::StatusOr<ShardedFetch> StartFetch(std::vector<std::vector<FetchRequest>> groups);
  absl::Status Renew(absl::Duration ttl);

 private:
  friend class ShardedStore;
  explicit ShardedLease(std::unique_ptr<internal::ShardedLeaseState> state);
  std::unique_ptr<internal::ShardedLeaseState> state_;
};

// Any thread may call. Batches, leases and fetches may outlive it; all of them must go before the engine.
class ShardedStore {
 public:
  // No store needs to answer yet. engine: outlives everything made here; null as StoreClient's.
  ShardedStore(std::shared_ptr<StoreDirectory> directory, transport::Context* engine, ShardedStoreOptions options);
  ~ShardedStore();

  // replicas: 0 for the default. Stores that do not answer or have no room are left out as long as one of the root's
  // owners takes it; where none answers, the next in the root's order takes it, as it will once the map has lost them.
  // RESOURCE_EXHAUSTED where an owner answers and none has room.
  absl::StatusOr<ShardedBatch> Reserve(const pod::BlockKey& root, std::span<const PlaneRequest> planes,
                                       int replicas = 0);
  absl::StatusOr<ShardedLease> Acquire(const pod::BlockKey& root, std::span<const PlaneId> planes,
                                       absl::Duration within = absl::InfiniteDuration());
  // One call where the first store has everything. A block of which it has the distant plane, and never had what it
  // misses, counts as complete: most blocks have no proximal plane anywhere. (Acquire asks the next stores for those
  // too.) Misses are kUnreachable where a store that was asked for them did not answer.
  absl::StatusOr<LookupResult> Lookup(const pod::BlockKey& root, std::span<const pod::BlockKey> keys,
                                      LookupMode mode = LookupMode::kAll);

  // At all stores that the root is read from. The numbers count copies: a plane at two stores counts twice. Promote and
  // Pin pass over stores that do not answer, unless none does; Delete does not: an error means that some may be left.
  absl::StatusOr<uint32_t> Promote(const pod::BlockKey& root, std::span<const PlaneId> planes, bool drop = false);
  absl::StatusOr<uint32_t> Pin(const pod::BlockKey& root, std::span<const pod::BlockKey> keys, PinMode mode);
  absl::StatusOr<uint32_t> Delete(const pod::BlockKey& root, std::span<const pod::BlockKey> keys);

  // For tools that look at every store, also avoided ones: visit(store, client) for each, at once and on threads of its
  // own. Its statuses, in the order of the map's stores.
  struct Visited {
    StoreEntry store;
    absl::Status status;
  };
  std::vector<Visited> ForEachStore(const std::function<absl::Status(const StoreEntry&, StoreClient&)>& visit);

  ShardedStats stats() const;

 private:
  absl::StatusOr<LookupResult> LookupAll(const pod::BlockKey& root, std::span<const pod::BlockKey> keys);
  absl::StatusOr<LookupResult> LookupPrefix(const pod::BlockKey& root, std::span<const pod::BlockKey> keys);
  // Adds up what call says at the root's readers.
  absl::StatusOr<uint32_t> AtReaders(const pod::BlockKey& root, bool all_must_answer,
                                     const std::function<absl::StatusOr<uint32_t>(StoreClient&)>& call);

  const ShardedStoreOptions options_;
  const std::unique_ptr<internal::StoreConnections> connections_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SHARDED_STORE_H_
