// A trace of requests in Mooncake's format: a JSON object a line with `timestamp` (ms), `input_length`, `output_length`
// (tokens) and `hash_ids`, one id per 512 tokens of input, the last block perhaps partial. An id stands for its block
// and all blocks before it, so an id always follows the same one; a trace where it does not is refused.
#ifndef PERIGEE_BENCH_REPLAY_TRACE_H_
#define PERIGEE_BENCH_REPLAY_TRACE_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::bench {

inline constexpr uint32_t kTraceBlockTokens = 512;
inline constexpr uint32_t kNoBlock = ~uint32_t{0};

struct TraceRequest {
  int64_t timestamp_ms = 0;
  uint32_t input_tokens = 0;
  uint32_t output_tokens = 0;
  std::vector<uint32_t> blocks;  // Dense numbers, by first appearance in the trace.

  uint32_t TokensOf(size_t i) const {
    return i + 1 < blocks.size() ? kTraceBlockTokens : input_tokens - static_cast<uint32_t>(i) * kTraceBlockTokens;
  }
  friend bool operator==(const TraceRequest&, const TraceRequest&) = default;
};

struct Trace {
  std::vector<TraceRequest> requests;  // In order of time.
  std::vector<uint64_t> hash_ids;      // [block]
  std::vector<uint32_t> parents;       // [block]; kNoBlock for a first one

  uint64_t total_tokens() const;
  friend bool operator==(const Trace&, const Trace&) = default;
};

// Appends requests and gives blocks their numbers. INVALID_ARGUMENT for a request that breaks the format's rules.
class TraceBuilder {
 public:
  TraceBuilder();
  ~TraceBuilder();
  absl::Status Add(int64_t timestamp_ms, uint64_t input_tokens, uint64_t output_tokens,
                   const std::vector<uint64_t>& hash_ids);
  Trace Build() &&;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// Errors name the line.
absl::StatusOr<Trace> ParseTrace(absl::string_view text);
std::string FormatTrace(const Trace& trace);

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_REPLAY_TRACE_H_
