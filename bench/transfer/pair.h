// Two processes of ours with a connection between them: what the transfer rows measure.
#ifndef PERIGEE_BENCH_TRANSFER_PAIR_H_
#define PERIGEE_BENCH_TRANSFER_PAIR_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "peers/children.h"
#include "transport/context.h"

namespace perigee::bench {

inline constexpr size_t kRegionBytes = size_t{32} << 20;
inline constexpr uint16_t kEchoId = 1;  // the serving process answers with the payload

enum class Direction { kPut, kGet };
const char* Name(Direction direction);

// An extent by its offsets in the two memories.
struct Extent {
  size_t local = 0;
  size_t remote = 0;
  size_t bytes = 0;
};

// The serving process's main: one region of kRegionBytes, an echo handler; ends with its standard input.
int Serve(const std::string& transports);

// Not thread-safe. Ends the program where the transport fails.
class Pair {
 public:
  // `self`: this program, which calls Serve for "--serve TRANSPORTS". The calling thread is pinned from now on.
  Pair(const std::string& self, const std::string& transport);

  const std::string& transport() const { return transport_; }  // "tcp" or "shm"
  const transport::Endpoint& endpoint() const { return endpoint_; }
  // Seconds for `times` batches, one after another, each of all extents.
  double MoveBatches(Direction direction, const std::vector<Extent>& extents, size_t times,
                     bool checksums = false) const;
  // Seconds for all extents, one after another, `times` times.
  double MoveOneByOne(Direction direction, const std::vector<Extent>& extents, size_t times) const;
  // CPU seconds of both processes so far.
  double CpuSeconds() const { return OwnCpuSeconds() + server_.CpuSeconds(); }

 private:
  std::string transport_;
  std::string ucx_transports_;
  Child server_;
  std::unique_ptr<transport::Context> context_;
  transport::Endpoint endpoint_;
  transport::RemoteRegion remote_;
  transport::MemoryRegion local_;
};

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_TRANSFER_PAIR_H_
