// Whatever the bytes, an accepted trace is the same after it was written and read again, and can be replayed.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "replay/simulate.h"
#include "replay/trace.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace perigee::bench;
  const auto trace = ParseTrace({reinterpret_cast<const char*>(data), size});
  if (!trace.ok()) return 0;
  const auto again = ParseTrace(FormatTrace(*trace));
  if (!again.ok() || *again != *trace) std::abort();
  const auto result = Replay(*trace, "default", {.dram_blocks = 2, .ssd_blocks = 2});
  if (!result.ok() || result->tokens != trace->total_tokens()) std::abort();
  return 0;
}
