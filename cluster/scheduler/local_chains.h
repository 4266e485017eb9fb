// Which blocks each decode node probably still has in its own memory: what it was given lately. A guess that costs
// nothing when it is wrong, but for a fetch that was not expected.
#ifndef PERIGEE_CLUSTER_SCHEDULER_LOCAL_CHAINS_H_
#define PERIGEE_CLUSTER_SCHEDULER_LOCAL_CHAINS_H_

#include <cstddef>
#include <list>
#include <map>
#include <span>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/synchronization/mutex.h"
#include "pod/block_key.h"

namespace perigee::cluster {

// Any thread may call.
class LocalChains {
 public:
  // max_blocks: remembered of each node; beyond, the least recently used are forgotten.
  explicit LocalChains(size_t max_blocks) : max_blocks_(max_blocks) {}

  void Add(const std::string& node, std::span<const pod::BlockKey> chain);
  // How many of the chain's leading blocks the node was given.
  size_t Leading(const std::string& node, std::span<const pod::BlockKey> chain) const;
  // The node was restarted, or has left.
  void Forget(const std::string& node);
  // The node has let the chain go.
  void Forget(const std::string& node, std::span<const pod::BlockKey> chain);

 private:
  struct Blocks {
    std::list<pod::BlockKey> order;  // Least recently used first.
    absl::flat_hash_map<pod::BlockKey, std::list<pod::BlockKey>::iterator> known;
  };
  const size_t max_blocks_;
  mutable absl::Mutex mu_;
  std::map<std::string, Blocks> nodes_ ABSL_GUARDED_BY(mu_);
};

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_LOCAL_CHAINS_H_
