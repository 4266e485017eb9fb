// The DRAM tier's bookkeeping, on one core, each piece in turns with what one would take instead:
//
//   kvstore/index/...     one table of 10 M planes (--planes N) beside an absl::flat_hash_map of as many: bytes per
//                         plane, inserts, the longest single insert, Acquire's part of the work for batches of 64
//                         planes drawn at random (found, checked, pinned, touched, addresses collected), and Release's
//   kvstore/store/...     the same calls through the whole store, and all of its bookkeeping's memory
//   kvstore/slab/...      Allocate and Free beside best fit over trees and beside malloc; how full the memory is when a
//                         request is refused
//   kvstore/headers/...   encoded headers beside std::string
//   kvstore/deadlines/... beside a btree_set and a flat_hash_map
//
//   index_bench [--planes N] [--json FILE] [--repetitions N] [--only TEXT]
//
// Times are processor times. 10 M planes need 5 GB of memory, the peer's included.
#include <sched.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "command_line.h"
#include "index/rows.h"

namespace perigee::bench {
namespace {

int RunAll(const IndexBench& bench, const std::string& json) {
  double load = 0;
  if (getloadavg(&load, 1) == 1 && load > 0.5) {
    std::fprintf(stderr, "index_bench: the machine is busy (load %.1f); look at the ratios, not at the numbers\n",
                 load);
  }
  // One processor, wherever it is now.
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(sched_getcpu()), &one);
  sched_setaffinity(0, sizeof(one), &one);
  Report report;
  TableRows(bench, report);  // First: resident memory is measured in a heap that nobody has used.
  StoreRows(bench, report);
  PieceRows(bench, report);
  const absl::Status written = report.WriteJson(json);
  if (!written.ok()) {
    std::fprintf(stderr, "index_bench: %s\n", written.ToString().c_str());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  perigee::bench::IndexBench bench;
  std::vector<char*> rest = {argv[0]};
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--planes") == 0 && i + 1 < argc && std::atoi(argv[i + 1]) >= 1000) {
      bench.planes = static_cast<uint32_t>(std::atoi(argv[++i]));
    } else {
      rest.push_back(argv[i]);
    }
  }
  perigee::bench::CommandLine options{.repetitions = bench.repetitions};
  if (!perigee::bench::ParseCommandLine(static_cast<int>(rest.size()), rest.data(), "index_bench [--planes N]",
                                        &options)) {
    return 2;
  }
  bench.repetitions = options.repetitions;
  bench.only = options.only;
  return perigee::bench::RunAll(bench, options.json);
}
