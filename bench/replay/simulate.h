// What a store of one or two tiers would have answered to a trace, without its bytes.
//
// A request finds the longest stored prefix of its blocks (in either tier), and its tokens count as hits; the rest is
// computed and stored, block by block. The blocks of the request under way are pinned. A block that a full store cannot
// take, because everything in it is pinned, ends what is stored of that request.
#ifndef PERIGEE_BENCH_REPLAY_SIMULATE_H_
#define PERIGEE_BENCH_REPLAY_SIMULATE_H_

#include <cstdint>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "replay/trace.h"

namespace perigee::bench {

struct StoreShape {
  uint64_t dram_blocks = 0;
  uint64_t ssd_blocks = 0;                    // 0: no SSD tier
  uint64_t block_bytes = uint64_t{64} << 20;  // 512 tokens of Llama-3.1-8B in bf16
  double compute_us_per_token = 100;          // 10,000 tokens/s
  double ssd_bytes_per_us = 3000;             // 3 GB/s, both ways
  double ssd_busy = 0;                        // The part of a write's time that it costs others.
};

struct ReplayResult {
  uint64_t tokens = 0;
  uint64_t dram_hit_tokens = 0, ssd_hit_tokens = 0;
  uint64_t blocks = 0, hit_blocks = 0;  // Asked for, and found.
  uint64_t dram_evictions = 0, ssd_evictions = 0;
  uint64_t dram_peak_blocks = 0, ssd_peak_blocks = 0;
  uint64_t ssd_written_blocks = 0;

  double token_hit_ratio() const {
    return static_cast<double>(dram_hit_tokens + ssd_hit_tokens) / static_cast<double>(tokens);
  }
};

// policy: a name of kvstore's MakeEvictionPolicy, in both tiers.
absl::StatusOr<ReplayResult> Replay(const Trace& trace, absl::string_view policy, const StoreShape& shape);

// The most blocks that any store of that many could have found, knowing the future.
//
// It is Belady's rule with bypass over the requests' blocks, one after the other: what is needed farthest ahead goes,
// or is not taken at all. For blocks of one size that maximises hits where every block counts alone, so no policy that
// obeys the prefix rule finds more blocks. And it obeys that rule itself: whoever asks for a block asks for its parent
// first, so a parent's next use always is nearer than its child's, and it never goes before the child or is refused
// where the child is taken. So in blocks it is the optimum, not just a bound. In tokens it may be missed by partial
// last blocks, which count less than the whole ones that it treats like them: 512 times its hits is a bound in tokens,
// and on Mooncake's synthetic trace at most 0.1 % of the tokens above the ratio given here.
ReplayResult Belady(const Trace& trace, uint64_t capacity_blocks);

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_REPLAY_SIMULATE_H_
