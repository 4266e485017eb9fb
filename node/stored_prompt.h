// What is known of a prompt's blocks before any of them is fetched: which planes exist, where, and how long they would
// take to come.
#ifndef PERIGEE_NODE_STORED_PROMPT_H_
#define PERIGEE_NODE_STORED_PROMPT_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "node/node.h"
#include "node/reuse.h"

namespace perigee::node {

struct StoredPrompt {
  std::vector<StoredBlock> blocks;
  // By block, of what a query right behind all tokens reads and this node does not have in its memory.
  std::vector<absl::Duration> fetch;

  absl::Duration EstimateFetch(size_t blocks) const;
};

// What a store says of a block, merged into what is known of it already.
void MergeStored(const kvstore::BlockInfo& info, StoredBlock& block);

enum class Presence {
  kStored,        // In the store: for those that want everything to be there in the end.
  kStoredOrHere,  // Or in this node's memory: for those that only read.
};

// One lookup; none where this node has everything itself and that counts. keys: of the blocks of `tokens` tokens. A
// store that cannot be reached has nothing: the error is then *reached.
StoredPrompt LookUpPrompt(const Node& node, std::span<const pod::BlockKey> keys, int64_t tokens, Presence presence,
                          absl::Status* reached);

}  // namespace perigee::node

#endif  // PERIGEE_NODE_STORED_PROMPT_H_
