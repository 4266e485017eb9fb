// Which stored blocks a prefill can stand on, and which of its own planes it should leave for others. Pure decisions.
#ifndef PERIGEE_NODE_REUSE_H_
#define PERIGEE_NODE_REUSE_H_

#include <cstdint>
#include <string>
#include <vector>

#include "pod/layout.h"

namespace perigee::node {

// What the store says of one block of the prompt. Planes that are empty by the layout count as present.
struct StoredBlock {
  bool distant = false;
  bool proximal = false;
  std::string missing;  // Why not, for people.
  uint64_t bytes = 0;   // Payload of the planes that are there.

  // Of a distant or a proximal plane.
  bool& has(pod::PlaneKind kind) { return kind == pod::PlaneKind::kDistant ? distant : proximal; }
  bool has(pod::PlaneKind kind) const { return kind == pod::PlaneKind::kDistant ? distant : proximal; }
};

struct Reuse {
  size_t blocks = 0;  // Leading blocks to fetch instead of computing.
  size_t distant_blocks =
      0;  // Leading blocks whose distant planes are there: what the prompt has in common with others.
  std::string ended_because;
};

// The longest prefix that the rest can be computed from. `tokens` are to be cached, blocks[i] covers tokens
// [i * block_tokens, min((i + 1) * block_tokens, tokens)). To continue at position p all distant planes before p are
// needed, and the proximal planes of the blocks that a query at p is near to; a block that is not full is reused only
// when nothing follows it.
Reuse LongestUsablePrefix(const pod::Layout& layout, int64_t tokens, const std::vector<StoredBlock>& blocks);

// Whether the block's proximal plane is needed by the request's own decoding or by a request that continues from one of
// the branch points: each is rounded down to a block border, because that is where a continuation starts computing.
// Blocks behind a point are not kept for its sake: what a continuation has there is its own.
bool KeepsProximal(const pod::Layout& layout, int64_t block_begin, const std::vector<int64_t>& branch_points);

}  // namespace perigee::node

#endif  // PERIGEE_NODE_REUSE_H_
