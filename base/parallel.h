// Data-parallel loops over the process's cores.
#ifndef PERIGEE_BASE_PARALLEL_H_
#define PERIGEE_BASE_PARALLEL_H_

#include <cstddef>
#include <functional>

namespace perigee {

// Calls body(i) for every i in [0, n), on the calling thread and on a process-wide pool of (cores - 1) threads; returns
// when all calls have returned. Indices are handed out one by one, so uneven work balances. Any thread may call; calls
// from several threads share the pool. A nested call runs on the calling thread alone. `body` must not throw.
void ParallelFor(size_t n, const std::function<void(size_t)>& body);

// Threads that a ParallelFor can use, the caller included.
int ParallelThreads();

}  // namespace perigee

#endif  // PERIGEE_BASE_PARALLEL_H_
