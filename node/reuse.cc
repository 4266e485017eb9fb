#include "node/reuse.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace perigee::node {

Reuse LongestUsablePrefix(const pod::Layout& layout, int64_t tokens, const std::vector<StoredBlock>& blocks) {
  const int block_tokens = layout.block_tokens();
  const pod::Window& window = layout.plan().window();
  Reuse reuse;
  size_t& distant = reuse.distant_blocks;
  while (distant < blocks.size() && blocks[distant].distant) ++distant;
  if (distant < blocks.size()) reuse.ended_because = absl::StrCat("block ", distant, ": ", blocks[distant].missing);

  for (size_t n = distant; n > 0; --n) {
    const int64_t end = std::min(static_cast<int64_t>(n) * block_tokens, tokens);
    if (end % block_tokens != 0 && end != tokens) continue;
    // The near blocks of a query at `end`: the sinks, and those from the recent window's begin on.
    const size_t sinks = std::min(n, static_cast<size_t>(pod::SinkEnd(window, block_tokens) / block_tokens));
    const size_t recent = std::min(n, static_cast<size_t>(pod::RecentBegin(window, block_tokens, end) / block_tokens));
    size_t absent = n;
    for (size_t b = 0; b < n && absent == n; ++b) {
      if (b == sinks) b = std::max(sinks, recent);
      if (b < n && !blocks[b].proximal) absent = b;
    }
    if (absent == n) {
      reuse.blocks = n;
      return reuse;
    }
    reuse.ended_because = absl::StrCat("block ", absent, ": ", blocks[absent].missing);
  }
  return reuse;
}

bool KeepsProximal(const pod::Layout& layout, int64_t block_begin, const std::vector<int64_t>& branch_points) {
  const int block_tokens = layout.block_tokens();
  const pod::Window& window = layout.plan().window();
  if (block_begin < pod::SinkEnd(window, block_tokens)) return true;
  return std::any_of(branch_points.begin(), branch_points.end(), [&](int64_t point) {
    return block_begin < point && pod::IsNear(window, block_tokens, block_begin, point / block_tokens * block_tokens);
  });
}

}  // namespace perigee::node
