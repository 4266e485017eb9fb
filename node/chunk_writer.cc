#include "node/chunk_writer.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "absl/time/clock.h"
#include "base/crc32c.h"
#include "base/status.h"
#include "base/trace.h"
#include "pod/plane_header.h"

namespace perigee::node {
namespace {

using pod::PlaneKind;

// How often a chunk's thread looks for finished layers. It is not woken for each: that would cost the computing thread
// tens of microseconds a layer, and often its processor. The last layer is announced, so nothing waits at the end.
constexpr absl::Duration kLookForLayers = absl::Milliseconds(2);

// Adds the time of a scope.
class Stopwatch {
 public:
  explicit Stopwatch(absl::Duration& total) : total_(total) {}
  ~Stopwatch() { total_ += absl::Now() - start_; }

 private:
  absl::Duration& total_;
  const absl::Time start_ = absl::Now();
};

}  // namespace

struct ChunkWriter::Chunk {
  size_t index = 0;
  std::vector<Plane> planes;
  std::vector<kvstore::PlaneRequest> requests;  // By plane.
  // By plane, from when the first layer is done. Read by the thread after it saw that in layers_done.
  std::vector<pod::PlaneHeader> headers;
  std::vector<model::PlaneBuffer> bytes;

  std::atomic<int> layers_done{0};
  std::atomic<bool> given_up{false};
  absl::Mutex mu;  // Guards nothing: to announce the last layer or the end.

  std::thread thread;

  std::span<const std::byte> Payload(size_t plane) const {
    return {bytes[plane].get(), static_cast<size_t>(requests[plane].payload_bytes)};
  }
  void Announce() { absl::MutexLock lock(&mu); }
  // False when the chunk was given up.
  bool AwaitLayer(int layer) {
    const auto known = [this, layer] { return layers_done > layer || given_up; };
    absl::MutexLock lock(&mu);
    while (!mu.AwaitWithTimeout(absl::Condition(&known), kLookForLayers)) {
    }
    return layers_done > layer;
  }
};

ChunkWriter::ChunkWriter(kvstore::ShardedStore* store, const pod::Layout* layout, const pod::Identity* identity,
                         std::span<const pod::BlockKey> keys, int chunks_under_way, const WriteOptions& options)
    : store_(store),
      layout_(layout),
      identity_(identity),
      keys_(keys),
      chunks_under_way_(static_cast<size_t>(std::max(chunks_under_way, 1))),
      options_(options),
      layers_(layout->plan().shape().layers) {}

ChunkWriter::~ChunkWriter() {
  if (!chunks_.empty()) {
    chunks_.back()->given_up = chunks_.back()->layers_done < layers_;
    chunks_.back()->Announce();
  }
  Join(0);
}

// Until at most `still_running` chunks have not ended; forgets those that have.
void ChunkWriter::Join(size_t still_running) {
  size_t ended;
  {
    const auto enough = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return begun_ - ended_ <= still_running; };
    absl::MutexLock lock(&mu_, absl::Condition(&enough));
    ended = ended_;
  }
  while (!chunks_.empty() && chunks_.front()->index < ended) {
    chunks_.front()->thread.join();
    chunks_.pop_front();
  }
}

absl::Status ChunkWriter::Begin(std::vector<Plane> planes) {
  const Stopwatch stopwatch(stalled_);
  Join(chunks_under_way_ - 1);
  {
    absl::MutexLock lock(&mu_);
    PERIGEE_RETURN_IF_ERROR(status_);
  }
  auto chunk = std::make_unique<Chunk>();
  chunk->index = begun_++;
  for (const Plane& plane : planes) {
    chunk->requests.push_back({{keys_[plane.block], plane.kind}, layout_->plane_bytes(plane.kind)});
  }
  chunk->planes = std::move(planes);
  chunk->thread = std::thread([this, c = chunk.get(), request = std::string(CurrentRequest())] {
    const RequestScope scope(request);
    const absl::Status written = Write(*c);
    const absl::Status earlier = AwaitTurn(*c);
    absl::MutexLock lock(&mu_);
    if (earlier.ok()) status_ = written;
    ++ended_;
  });
  chunks_.push_back(std::move(chunk));
  return absl::OkStatus();
}

absl::Status ChunkWriter::LayerDone(int layer, std::span<const model::CachedBlock> cache) {
  const Stopwatch stopwatch(stalled_);
  Chunk& chunk = *chunks_.back();
  if (layer == 0) {
    for (const Plane& plane : chunk.planes) {
      const model::CachedBlock& block = cache[plane.block];
      chunk.bytes.push_back(block.plane(plane.kind));
      pod::PlaneHeader& header = chunk.headers.emplace_back();
      header.kind = plane.kind;
      header.key = keys_[plane.block];
      header.has_parent = plane.block > 0;
      if (header.has_parent) header.parent = keys_[plane.block - 1];
      header.root = keys_[0];
      header.tenant = identity_->tenant;
      header.model_fingerprint = identity_->model_fingerprint;
      header.plan_id = identity_->plan_id;
      header.shape = layout_->plan().shape();
      header.near_codec = layout_->plan().near_codec();
      header.block_tokens = layout_->block_tokens();
      header.tokens = block.tokens;
      header.shard = identity_->shard;
      header.base_position = block.base_position;
      header.payload_bytes = layout_->plane_bytes(plane.kind);
      header.sections.resize(layout_->sections(plane.kind).size());
    }
  }
  chunk.layers_done = layer + 1;
  if (layer + 1 == layers_) chunk.Announce();
  absl::MutexLock lock(&mu_);
  return status_;
}

absl::Status ChunkWriter::Finish() {
  const Span span("wait for commits");
  const Stopwatch stopwatch(stalled_);
  Join(0);
  absl::MutexLock lock(&mu_);
  return status_;
}

// The error of an earlier chunk, once all of them have ended.
absl::Status ChunkWriter::AwaitTurn(const Chunk& chunk) {
  const auto turn = [&]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_) { return ended_ == chunk.index; };
  absl::MutexLock lock(&mu_, absl::Condition(&turn));
  return status_;
}

absl::Status ChunkWriter::Write(Chunk& chunk) {
  Span span("write chunk");
  span.Set("planes", chunk.planes.size());
  absl::StatusOr<kvstore::ShardedBatch> batch = store_->Reserve(keys_[0], chunk.requests, options_.replicas);
  if (absl::IsResourceExhausted(batch.status()) && chunk.index > 0) {
    // A store with room for one chunk's reservations only: what is committed before can make room.
    PERIGEE_RETURN_IF_ERROR(AwaitTurn(chunk));
    batch = store_->Reserve(keys_[0], chunk.requests, options_.replicas);
  }
  PERIGEE_RETURN_IF_ERROR(batch.status());
  for (int layer = 0; layer < layers_; ++layer) {
    if (!chunk.AwaitLayer(layer)) return absl::CancelledError("the chunk was given up");
    PERIGEE_RETURN_IF_ERROR(Put(chunk, *batch, layer));
  }
  PERIGEE_RETURN_IF_ERROR(AwaitTurn(chunk));
  return Commit(chunk, *batch);
}

// The tiles of a layer are final once it is computed: they travel while the next layers are.
absl::Status ChunkWriter::Put(Chunk& chunk, kvstore::ShardedBatch& batch, int layer) {
  std::vector<kvstore::PutRange> ranges;
  for (size_t i = 0; i < chunk.planes.size(); ++i) {
    for (const pod::Section& range : layout_->layer_ranges(chunk.planes[i].kind, layer)) {
      ranges.push_back({i, range.offset_bytes, chunk.Payload(i).subspan(range.offset_bytes, range.bytes)});
    }
  }
  PERIGEE_RETURN_IF_ERROR(batch.Put(ranges));
  for (size_t i = 0; i < chunk.planes.size(); ++i) {
    const std::vector<pod::Section>& sections = layout_->sections(chunk.planes[i].kind);
    for (size_t s = 0; s < sections.size() && !batch.already_committed(i); ++s) {
      if (sections[s].last_layer != layer) continue;
      chunk.headers[i].sections[s] = {static_cast<uint32_t>(sections[s].bytes),
                                      Crc32c(chunk.Payload(i).subspan(sections[s].offset_bytes, sections[s].bytes))};
    }
  }
  return absl::OkStatus();
}

absl::Status ChunkWriter::Commit(Chunk& chunk, kvstore::ShardedBatch& batch) {
  const Span span("commit");
  uint64_t written = 0, stored = 0;  // Counted before the commit, after which all planes are committed.
  for (size_t i = 0; i < chunk.planes.size(); ++i) {
    stored += chunk.requests[i].payload_bytes;
    written += batch.already_committed(i) ? 0 : chunk.requests[i].payload_bytes;
  }
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<absl::Status> statuses,
                           batch.Commit(chunk.headers, options_.durability, options_.ttl));
  for (size_t i = 0; i < statuses.size(); ++i) {
    PERIGEE_RETURN_IF_ERROR(Annotate(statuses[i], absl::StrCat("commit of ", chunk.requests[i].id.ToString())));
  }
  absl::MutexLock lock(&mu_);
  bytes_stored_ += stored;
  bytes_written_ += written;
  return absl::OkStatus();
}

uint64_t ChunkWriter::bytes_stored() const {
  absl::MutexLock lock(&mu_);
  return bytes_stored_;
}

uint64_t ChunkWriter::bytes_written() const {
  absl::MutexLock lock(&mu_);
  return bytes_written_;
}

}  // namespace perigee::node
