// The parts of index_bench, and what they share.
#ifndef PERIGEE_BENCH_INDEX_ROWS_H_
#define PERIGEE_BENCH_INDEX_ROWS_H_

#include <time.h>

#include <cstdint>
#include <string>

#include "report.h"

namespace perigee::bench {

struct IndexBench {
  uint32_t planes = 10'000'000;
  int repetitions = 5;
  std::string only;
};

// Adds the rows whose names contain `only`.
void TableRows(const IndexBench& bench, Report& report);
void StoreRows(const IndexBench& bench, Report& report);  // Acquire through the whole store.
void PieceRows(const IndexBench& bench, Report& report);  // Slab, header arena, deadlines.

// Cheap numbers that look random: measured loops must not measure their generator.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t operator()() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t n) { return static_cast<uint64_t>(static_cast<unsigned __int128>((*this)()) * n >> 64); }

 private:
  uint64_t state_;
};

// Processor time of this thread: what others do on the machine does not count.
inline double CpuSeconds() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

class Stopwatch {
 public:
  double seconds() const { return CpuSeconds() - start_; }

 private:
  double start_ = CpuSeconds();
};

// So that a result is computed though nobody uses it.
template <typename T>
void Keep(const T& value) {
  asm volatile("" : : "r,m"(value) : "memory");
}

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_INDEX_ROWS_H_
