// The transport between two processes, beside what others reach over the same wire in turns with it: ucx_perftest,
// Redis.
//   transfer_bench [--json FILE] [--repetitions N] [--only TEXT]   (TEXT: part of a row's name)
// The rows are explained in transfer/rows.h.
#include <stdlib.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "command_line.h"
#include "peers/fail.h"
#include "report.h"
#include "transfer/pair.h"
#include "transfer/rows.h"

namespace perigee::bench {

std::string SizeName(size_t bytes) {
  return bytes >= (1 << 20) ? absl::StrCat(bytes >> 20, "MiB") : absl::StrCat(bytes >> 10, "KiB");
}

size_t CountOf(size_t bytes, const std::string& transport) {
  const size_t total = transport == "tcp" ? size_t{512} << 20 : size_t{2} << 30;
  return std::max<size_t>(total / bytes, 8);
}

namespace {

int RunAll(const std::string& json, int repetitions, const std::string& only) {
  double load = 0;
  if (getloadavg(&load, 1) == 1 && load > 0.5) {
    std::fprintf(stderr, "transfer_bench: the machine is busy (load %.1f on %ld processors); the ratios mean little\n",
                 load, sysconf(_SC_NPROCESSORS_ONLN));
  }
  PinnedProcessors();  // before anything is pinned
  Report report;
  const Run run{&report, repetitions, only};
  for (const std::string transport : {"tcp", "shm"}) {
    const Pair pair("/proc/self/exe", transport);
    AddOneExtentRows(run, pair);
    AddScatteredRows(run, pair);
    AddChecksumRows(run, pair);
    if (transport != "tcp") continue;
    AddCallRows(run, pair);
    AddCpuRows(run, pair);
  }
  Check(report.WriteJson(json), "report");
  return 0;
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "--serve") return perigee::bench::Serve(argv[2]);
  perigee::bench::CommandLine options{.repetitions = 5};
  if (!perigee::bench::ParseCommandLine(argc, argv, "transfer_bench", &options)) return 2;
  return perigee::bench::RunAll(options.json, options.repetitions, options.only);
}
