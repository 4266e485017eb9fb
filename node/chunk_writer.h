// Puts a prompt's fresh planes into the store while later layers and chunks are computed.
//
// The computing thread says which planes a chunk will write, and when each layer is done; it never waits for the store,
// except for a place among the chunks under way. Each chunk has a thread of its own: it reserves room, puts every
// finished layer as one batch, takes the checksum of each section that is complete, and, once all chunks before it are
// committed, commits. So chunks become visible in order: what a failed chunk leaves is a prefix of the prompt (its own
// planes may be committed in part: a reader stops at the first hole), and no chunk after it is committed.
#ifndef PERIGEE_NODE_CHUNK_WRITER_H_
#define PERIGEE_NODE_CHUNK_WRITER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "kvstore/sharded_store.h"
#include "model/plane_cache.h"
#include "pod/block_key.h"
#include "pod/layout.h"

namespace perigee::node {

struct WriteOptions {
  kvstore::Durability durability = kvstore::Durability::kBest;
  absl::Duration ttl = absl::InfiniteDuration();
  int replicas = 0;  // Stores that are to have it; 0: as many as the node writes by default.
};

// For one request; all methods from its computing thread. What the constructor is given outlives the object.
class ChunkWriter {
 public:
  // One plane of a chunk; `block` counts from the prompt's start.
  struct Plane {
    size_t block = 0;
    pod::PlaneKind kind = pod::PlaneKind::kDistant;
  };

  // keys: of all blocks of the prompt. chunks_under_way: at most so many are reserved and not yet committed, the one
  // being computed included (at least 1).
  ChunkWriter(kvstore::ShardedStore* store, const pod::Layout* layout, const pod::Identity* identity,
              std::span<const pod::BlockKey> keys, int chunks_under_way, const WriteOptions& options);
  // A chunk whose last layer was not done is given up; those before it are committed. Waits for that.
  ~ChunkWriter();

  // The next chunk. Waits while too many are under way. An error is that of an earlier chunk: stop computing.
  absl::Status Begin(std::vector<Plane> planes);
  // The chunk's tiles of this layer are final; layers come in order. cache: the prompt's blocks; those of the chunk
  // keep their planes until they are in the store, and nobody writes into the layers that are done.
  absl::Status LayerDone(int layer, std::span<const model::CachedBlock> cache);
  // Until everything is committed. The first chunk's error, in the prompt's order.
  absl::Status Finish();

  // Payload now in the store, and how much of it this object wrote: of committed chunks.
  uint64_t bytes_stored() const;
  uint64_t bytes_written() const;
  // How long the methods above kept the computing thread.
  absl::Duration stalled() const { return stalled_; }

 private:
  struct Chunk;
  absl::Status Write(Chunk& chunk);
  absl::Status Put(Chunk& chunk, kvstore::ShardedBatch& batch, int layer);
  absl::Status Commit(Chunk& chunk, kvstore::ShardedBatch& batch);
  absl::Status AwaitTurn(const Chunk& chunk);
  void Join(size_t still_running);

  kvstore::ShardedStore* const store_;
  const pod::Layout* const layout_;
  const pod::Identity* const identity_;
  const std::span<const pod::BlockKey> keys_;
  const size_t chunks_under_way_;
  const WriteOptions options_;
  const int layers_;
  absl::Duration stalled_;
  size_t begun_ = 0;                           // Chunks.
  std::deque<std::unique_ptr<Chunk>> chunks_;  // Not joined yet.

  mutable absl::Mutex mu_;
  size_t ended_ ABSL_GUARDED_BY(mu_) = 0;     // Chunks, in their order.
  absl::Status status_ ABSL_GUARDED_BY(mu_);  // The first chunk's that failed.
  uint64_t bytes_stored_ ABSL_GUARDED_BY(mu_) = 0, bytes_written_ ABSL_GUARDED_BY(mu_) = 0;
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_CHUNK_WRITER_H_
