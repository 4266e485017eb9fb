// A prompt's stored blocks on their way into this node, the last ones first, while somebody else computes the first
// ones: whoever does so goes on until both meet. For planes that come so slowly that computing helps.
#ifndef PERIGEE_NODE_BACK_FETCH_H_
#define PERIGEE_NODE_BACK_FETCH_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/synchronization/mutex.h"
#include "model/plane_cache.h"
#include "node/node.h"

namespace perigee::node {

// Made and asked by one thread; fetches on one of its own. One that is no longer needed and still under way goes to
// node/abandoned.h.
class BackFetch {
 public:
  // keys: of the blocks of `tokens` tokens, from the prompt's start. The node outlives this object. What is in this
  // node's memory already is not fetched.
  BackFetch(const Node& node, const pod::Identity& identity, std::span<const pod::BlockKey> keys, int64_t tokens);
  // Stops and waits: at the latest until the store's deadlines.
  ~BackFetch();
  // Begins no more transfers. Does not wait for those under way.
  void Stop();

  // All blocks from this one to the last are here. Gets smaller, until it is 0 or something failed.
  size_t first_here() const;
  // Why nothing more will come; OK while something may, or when everything is here.
  absl::Status status() const;
  // Whether something is under way: then destruction waits.
  bool running() const;
  // Puts the blocks from `block` on (at least first_here()) behind those that the cache has.
  absl::Status AddTo(model::PlaneCache& cache, size_t block);

  uint64_t bytes() const { return bytes_; }
  uint32_t planes() const { return planes_; }
  uint32_t planes_from_ssd() const { return planes_from_ssd_; }

 private:
  void Run();
  // Until all is here, or something has failed.
  absl::Status FetchAll();
  // Blocks [begin, end).
  absl::Status FetchRange(size_t begin, size_t end);
  std::vector<kvstore::PlaneId> PlanesOf(size_t block) const;

  const Node& node_;
  const pod::Identity identity_;
  const std::vector<pod::BlockKey> keys_;
  const int64_t tokens_;
  std::vector<model::CachedBlock> blocks_;  // Those from first_here_ on are the owner's to read.
  std::atomic<uint64_t> bytes_{0};
  std::atomic<uint32_t> planes_{0}, planes_from_ssd_{0};
  mutable absl::Mutex mu_;
  size_t first_here_ ABSL_GUARDED_BY(mu_);
  absl::Status status_ ABSL_GUARDED_BY(mu_);
  bool stopping_ ABSL_GUARDED_BY(mu_) = false, running_ ABSL_GUARDED_BY(mu_) = true;
  std::thread thread_;
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_BACK_FETCH_H_
