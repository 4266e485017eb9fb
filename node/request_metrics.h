// What a node counts of its requests, for whoever watches it (cluster/metrics). Recorded without a lock; figures that
// are snapshots anyway (load, pool, passes) are read where they are kept.
#ifndef PERIGEE_NODE_REQUEST_METRICS_H_
#define PERIGEE_NODE_REQUEST_METRICS_H_

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "absl/status/status.h"
#include "base/histogram.h"

namespace perigee::node {

inline constexpr size_t kStatusCodes = 17;  // gRPC's and Abseil's, from OK on.

// Any thread.
struct RequestMetrics {
  void Ended(const absl::Status& status, absl::Duration took) {
    const size_t code = static_cast<size_t>(status.code());
    ++ended[code < kStatusCodes ? code : static_cast<size_t>(absl::StatusCode::kUnknown)];
    duration.Record(took);
  }

  std::array<std::atomic<uint64_t>, kStatusCodes> ended{};  // By status code.
  // Tokens of prompts: computed because they were not stored; stored, and computed because that was faster; neither.
  std::atomic<uint64_t> computed_tokens{0}, recomputed_tokens{0}, reused_tokens{0};
  std::atomic<uint64_t> generated_tokens{0};
  std::atomic<uint64_t> fetched_bytes{0}, written_bytes{0};
  std::atomic<uint64_t> exposed_fetch_us{0};  // How long passes stood still for planes.
  DurationHistogram duration;                 // Of whole requests.
  DurationHistogram queued;                   // Decode nodes, as the next two: until there was a place.
  DurationHistogram first_token;              // After the request came.
  DurationHistogram between_tokens;           // Of one answer.
};

}  // namespace perigee::node

#endif  // PERIGEE_NODE_REQUEST_METRICS_H_
