// Planes that lie in this node's own memory: those in use, and those of earlier requests for as long as there is room,
// so that the next turn of a conversation, or another question about the same document, finds them here.
//
// What is kept is in the store as well (or can be computed again): dropping it loses nothing. Only planes of full
// blocks are kept, because sequences share them: nobody writes into them any more. Any thread may call.
#ifndef PERIGEE_NODE_LOCAL_PLANES_H_
#define PERIGEE_NODE_LOCAL_PLANES_H_

#include <cstdint>
#include <list>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "kvstore/plane_id.h"
#include "kvstore/registered_pool.h"
#include "model/plane_cache.h"

namespace perigee::node {

struct LocalPlanesStats {
  uint64_t planes = 0;
  uint64_t bytes = 0;  // Of the pool, for kept planes, in use or not.
  uint64_t hits = 0;   // Planes that were asked for and here.
  uint64_t evictions = 0;
};

class LocalPlanes {
 public:
  // `pool` outlives this object, not the planes. Without `keep`, Keep keeps nothing.
  LocalPlanes(kvstore::RegisteredPool* pool, bool keep) : pool_(pool), keep_(keep) {}

  // Memory from the pool; where it is full, the least recently used planes that no sequence uses make room.
  // RESOURCE_EXHAUSTED when that is not enough.
  absl::StatusOr<model::PlaneBuffer> Allocate(
      size_t bytes, kvstore::RegisteredPool::Contents contents = kvstore::RegisteredPool::Contents::kZeroed);

  bool Has(const kvstore::PlaneId& id) const;
  // Null where the plane is not here.
  model::PlaneBuffer Find(const kvstore::PlaneId& id);
  void Keep(const kvstore::PlaneId& id, model::PlaneBuffer buffer, size_t bytes);

  // Bytes that requests could get: free ones, and those of kept planes that no sequence uses.
  uint64_t available_bytes() const;
  LocalPlanesStats stats() const;

 private:
  struct Entry {
    kvstore::PlaneId id;
    model::PlaneBuffer buffer;
    size_t bytes = 0;
  };
  // Drops the least recently used plane that nobody else holds; false where all are in use.
  bool EvictOne();

  kvstore::RegisteredPool* const pool_;
  const bool keep_;
  mutable absl::Mutex mu_;
  std::list<Entry> order_ ABSL_GUARDED_BY(mu_);  // Least recently used first.
  absl::flat_hash_map<kvstore::PlaneId, std::list<Entry>::iterator> entries_ ABSL_GUARDED_BY(mu_);
  LocalPlanesStats stats_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_LOCAL_PLANES_H_
