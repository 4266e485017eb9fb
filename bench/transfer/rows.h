// The transport's rows, a file for each kind. Everything is measured in turns, ours and its peer's; a value and a limit
// are medians over the repetitions.
#ifndef PERIGEE_BENCH_TRANSFER_ROWS_H_
#define PERIGEE_BENCH_TRANSFER_ROWS_H_

#include <cstddef>
#include <string>

#include "report.h"
#include "transfer/pair.h"

namespace perigee::bench {

struct Run {
  Report* report = nullptr;
  int repetitions = 5;
  std::string only;  // part of a row's name

  bool Wants(const std::string& row) const { return row.find(only) != std::string::npos; }
};

std::string SizeName(size_t bytes);  // "64KiB", "1MiB"
// How many of them make a run of a fraction of a second.
size_t CountOf(size_t bytes, const std::string& transport);

// transfer/{put,get}/TRANSPORT/{1MiB,4MiB,32MiB}: one extent after another, beside ucx_perftest.
void AddOneExtentRows(const Run& run, const Pair& pair);
// transfer/{put,get}/TRANSPORT/256x{64KiB,4KiB}: a batch of scattered extents, beside one extent of 1 MiB, and beside
// the same extents one by one.
void AddScatteredRows(const Run& run, const Pair& pair);
// transfer/call/TRANSPORT/{p50,p99}: the round trip of a small message, beside ucx_perftest.
void AddCallRows(const Run& run, const Pair& pair);
// transfer/crc/TRANSPORT/{1MiB,32MiB}: a batch of Gets with every extent's CRC32C taken, beside the same without.
void AddChecksumRows(const Run& run, const Pair& pair);
// transfer/cpu/TRANSPORT/get/{1MiB,16MiB}: CPU seconds for a GiB, beside Redis.
void AddCpuRows(const Run& run, const Pair& pair);

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_TRANSFER_ROWS_H_
