// What is stored for one request only. A prompt whose chunks are all seen for the first time goes through the stores as
// any other, from prefill to decode node; but nobody finds these planes again: who comes with the same chunks again has
// them as contexts. Left there, a stream of such prompts pushes out what is asked for again and again, for a plane that
// was stored and read just now looks as good to a store as one that is read every minute. So they go with their
// request.
#ifndef PERIGEE_CLUSTER_SCHEDULER_PASSING_BLOCKS_H_
#define PERIGEE_CLUSTER_SCHEDULER_PASSING_BLOCKS_H_

#include <algorithm>
#include <span>

#include "cluster/gateway/backend.h"
#include "pod/block_key.h"

namespace perigee::cluster {

// Of `keys`, the blocks of the request's prompt: those from its first chunk on. What stands before it others share.
inline std::span<const pod::BlockKey> PassingBlocks(const BackendRequest& request, std::span<const pod::BlockKey> keys,
                                                    int block_tokens) {
  if (request.chunks.empty() || !request.contexts.empty()) return {};
  return keys.subspan(std::min(keys.size(), static_cast<size_t>(request.chunks.front().begin / block_tokens)));
}

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_SCHEDULER_PASSING_BLOCKS_H_
