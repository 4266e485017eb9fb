#include "cluster/scheduler/local_chains.h"

namespace perigee::cluster {

void LocalChains::Add(const std::string& node, std::span<const pod::BlockKey> chain) {
  absl::MutexLock lock(&mu_);
  Blocks& blocks = nodes_[node];
  // The chain's beginning is used last, so that it is forgotten last: without it the rest is worth nothing.
  for (size_t i = chain.size(); i-- > 0;) {
    const auto found = blocks.known.find(chain[i]);
    if (found != blocks.known.end()) {
      blocks.order.splice(blocks.order.end(), blocks.order, found->second);
      continue;
    }
    blocks.order.push_back(chain[i]);
    blocks.known.emplace(chain[i], std::prev(blocks.order.end()));
  }
  while (blocks.order.size() > max_blocks_) {
    blocks.known.erase(blocks.order.front());
    blocks.order.pop_front();
  }
}

size_t LocalChains::Leading(const std::string& node, std::span<const pod::BlockKey> chain) const {
  absl::MutexLock lock(&mu_);
  const auto found = nodes_.find(node);
  if (found == nodes_.end()) return 0;
  size_t leading = 0;
  while (leading < chain.size() && found->second.known.contains(chain[leading])) ++leading;
  return leading;
}

void LocalChains::Forget(const std::string& node) {
  absl::MutexLock lock(&mu_);
  nodes_.erase(node);
}

void LocalChains::Forget(const std::string& node, std::span<const pod::BlockKey> chain) {
  absl::MutexLock lock(&mu_);
  const auto blocks = nodes_.find(node);
  if (blocks == nodes_.end()) return;
  for (const pod::BlockKey& key : chain) {
    const auto found = blocks->second.known.find(key);
    if (found == blocks->second.known.end()) continue;
    blocks->second.order.erase(found->second);
    blocks->second.known.erase(found);
  }
}

}  // namespace perigee::cluster
