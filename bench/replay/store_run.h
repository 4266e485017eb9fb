// A trace replayed through a real store in this process: planes are reserved, written, committed, acquired, compared
// byte by byte and released. What simulate.h works out without bytes, measured.
//
// A block of the trace is one plane, the distant one, of block_bytes, with a true header: its tokens, its place in its
// prompt, the block before. Its bytes follow from its hash id, so that any plane can be checked at any time.
//
// A request looks its blocks up as one chain, acquires the prefix that was found, compares it and releases it, like a
// prefill node; then all other blocks are reserved, written and committed together. Where the store has no room for all
// of them, the chain's end is left out.
//
// The store's memory is exactly dram_blocks planes and its index as many (with an SSD: those of both tiers), so that
// capacities, and what policies remember, are those of the simulation; planes of up to 64 KiB that do not divide 1 MiB
// lose up to 3.6 % of it to the allocator's runs. Without an SSD nothing is freed ahead of demand, and planes are
// committed with DRAM durability: two replays are equal. With one, planes are committed to it (Durability::kBest), so
// that what is in DRAM is there too, and the store's own watermarks hold: it fills four fifths of the SSD's capacity.
// The simulation's SSD takes only what leaves DRAM, and fills: its ratios are higher.
//
// Without an SSD, LRU finds the same blocks as in the simulation. Other policies' ratios differ from it by a point or
// two of the tokens, for the store
//   - weighs a block further back in a prompt more (StoreOptions::recompute_us_per_token), the simulation all alike:
//     nearly all of the default policy's difference;
//   - lets all of a request's victims go before its blocks come, and its prefix, released by then, may be among them;
//   - remembers what it evicted under other hashes.
#ifndef PERIGEE_BENCH_REPLAY_STORE_RUN_H_
#define PERIGEE_BENCH_REPLAY_STORE_RUN_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "replay/simulate.h"
#include "replay/trace.h"

namespace perigee::bench {

struct RealShape {
  uint64_t dram_blocks = 0;
  uint64_t block_bytes = uint64_t{16} << 10;
  uint64_t ssd_blocks = 0;  // 0: no SSD tier
  std::string ssd_path{};   // A folder of its own is made below it, and removed in the end.
};

struct StoreRun {
  ReplayResult result;
  double seconds = 0;              // Of the whole replay: payload is made, checked and compared in it.
  uint64_t bytes_moved = 0;        // Payload written to the store, and read from it.
  uint64_t wrong_planes = 0;       // Found, but other bytes or another header than were written.
  uint64_t ssd_written_bytes = 0;  // With records' heads, and what compaction moved.
  uint64_t demoted_to_ssd = 0;     // Planes.
  uint64_t refused_blocks = 0;     // The store had no room for them.
};

// policy: a name of kvstore's MakeEvictionPolicy, in both tiers. Errors are the store's.
absl::StatusOr<StoreRun> ReplayThroughStore(const Trace& trace, absl::string_view policy, const RealShape& shape);

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_REPLAY_STORE_RUN_H_
