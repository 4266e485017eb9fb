// A prompt's stored planes, or a context's, on their way into a cache, layer by layer: the forward pass starts when the
// first layer's sections are here, and waits in front of each layer for what that layer reads.
//
// Which planes: the distant ones of all blocks, and the proximal ones of the blocks that a query right behind the
// tokens is near to. Sections travel in the order of the first layer that reads them (a follower's layer reads its
// lead's keys, so a group comes with its lead), over all planes of the prompt at once. Each is checked against its
// CRC32C before its layer runs. Planes that this node still has of earlier requests (node/local_planes.h) are not
// fetched.
#ifndef PERIGEE_NODE_PROMPT_FETCH_H_
#define PERIGEE_NODE_PROMPT_FETCH_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "kvstore/client.h"
#include "model/plane_cache.h"
#include "node/node.h"

namespace perigee::node {

// Whether a query right behind `tokens` tokens reads this plane of the block that begins there.
bool Reads(const pod::Layout& layout, pod::PlaneKind kind, int64_t block_begin, int64_t tokens);

// A plane that the store does not have, or that is not what it should be.
struct MissingPlane {
  size_t block = 0;
  kvstore::PlaneId id;
  std::string why;
};

// One thread: the one that runs the cache.
class PromptFetch {
 public:
  // keys: of the blocks of `tokens` tokens, from the prompt's start. If planes are missing nothing is fetched and the
  // cache stays as it is: see missing(). Else the cache holds the blocks, and asks this object for their bytes: keep it
  // until the cache has run one chunk through all layers, or is not run any more. UNAVAILABLE, DEADLINE_EXCEEDED: the
  // store; RESOURCE_EXHAUSTED: this node's pool. give_up: a layer that is not here by then ends the pass with
  // DEADLINE_EXCEEDED.
  static absl::StatusOr<std::unique_ptr<PromptFetch>> Start(const Node& node, const pod::Identity& identity,
                                                            std::span<const pod::BlockKey> keys, int64_t tokens,
                                                            model::PlaneCache& cache,
                                                            absl::Time give_up = absl::InfiniteFuture());
  // A context's blocks, for a cache in which they stand elsewhere: keys are those of a chain that begins with `root`,
  // or of a part of it; `places` says where they stand. They lie in blocks(), and their bytes come as WaitForLayer
  // says. wants_proximal: by block; where that plane is not to be had the block becomes far_only. Nothing is in
  // blocks() where distant planes are missing.
  static absl::StatusOr<std::unique_ptr<PromptFetch>> StartContext(const Node& node, const pod::Identity& identity,
                                                                   const pod::BlockKey& root,
                                                                   std::span<const pod::BlockKey> keys,
                                                                   std::vector<model::CachedBlock> places,
                                                                   const std::vector<bool>& wants_proximal,
                                                                   absl::Time give_up = absl::InfiniteFuture());
  const std::vector<model::CachedBlock>& blocks() const { return view_; }
  // Returns when everything that this layer reads is here, and was checked.
  absl::Status WaitForLayer(int layer);

  // Stops what is still under way and waits for it.
  ~PromptFetch() = default;

  // Known at the start, or found when bytes did not match their checksums: then the pass ended with status().
  const std::vector<MissingPlane>& missing() const { return missing_; }
  // NOT_FOUND, naming the first missing plane, its block and why; OK where none is missing.
  absl::Status status() const;

  // A pass has ended because the rest did not come in time, or its store is gone.
  bool gave_up() const { return gave_up_; }
  // Everything is here: a pass over the cache will not wait.
  bool complete() const { return fetch_.arrived() == fetch_.groups(); }
  // Something is under way: then destruction waits.
  bool running() const;
  // Until it is, or has failed.
  absl::Status WaitForAll();

  uint32_t planes() const { return planes_; }
  uint32_t planes_here() const { return planes_here_; }  // That did not have to be fetched; not among planes().
  uint32_t planes_from_ssd() const { return planes_from_ssd_; }
  uint64_t bytes() const { return bytes_; }
  // Finding the planes and making room for them, before anything could be computed.
  absl::Duration acquire_time() const { return acquire_time_; }
  // From the first read until the last section was checked, or until now.
  absl::Duration fetch_time() const { return fetch_.duration(); }
  // How long the forward pass stood still for planes.
  absl::Duration exposed_time() const { return exposed_time_; }

 private:
  PromptFetch() = default;
  // The planes that the view wants: here already, or to be fetched.
  using Wants = std::function<bool(pod::PlaneKind kind, size_t block)>;
  static absl::StatusOr<std::unique_ptr<PromptFetch>> StartView(
      const Node& node, const pod::Identity& identity, const pod::BlockKey& root, std::span<const pod::BlockKey> keys,
      std::vector<model::CachedBlock> view, const Wants& wants, bool is_context, absl::Time give_up);
  absl::Status StartFetch(const pod::Identity& identity, const pod::BlockKey& root);
  bool Complete(size_t block) const;
  absl::Status Settle(absl::Status arrived);

  const Node* node_ = nullptr;
  absl::Time give_up_;
  bool gave_up_ = false;
  size_t blocks_ = 0;
  std::vector<size_t> block_of_;       // By plane of the lease.
  std::vector<kvstore::PlaneId> ids_;  // By plane of the lease.
  std::vector<MissingPlane> missing_;
  struct Destination {
    model::PlaneBuffer bytes;
    kvstore::PlaneId id;
    bool keep = false;  // Nobody writes into it any more: it may stay for others.
  };
  std::vector<Destination> destinations_;  // The fetch's own hold on them, until everything is here.
  std::vector<model::CachedBlock> view_;
  bool is_context_ = false;
  uint32_t planes_ = 0, planes_from_ssd_ = 0, planes_here_ = 0;
  uint64_t bytes_ = 0;
  absl::Duration acquire_time_, exposed_time_;
  kvstore::ShardedFetch fetch_;  // Goes first: nothing may write into buffers_ when they go.
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_PROMPT_FETCH_H_
