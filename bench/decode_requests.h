// What benches ask decode nodes in their own process, and how long the first token takes.
#ifndef PERIGEE_BENCH_DECODE_REQUESTS_H_
#define PERIGEE_BENCH_DECODE_REQUESTS_H_

#include <cstdint>
#include <random>
#include <utility>
#include <vector>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "decode_node/decode_node.h"
#include "peers/fail.h"

namespace perigee::bench {

inline void Check(const absl::Status& status) { Check(status, "a step"); }
template <typename T>
T Check(absl::StatusOr<T> value) {
  return Check(std::move(value), "a step");
}

// Random ids of the random model's vocabulary (peers/random_model.h).
inline std::vector<int32_t> Prompt(int tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 32000);
  return ids;
}

inline v1::GenerateRequest Request(const std::vector<int32_t>& ids, int answer_tokens, uint32_t max_compute_tokens) {
  v1::GenerateRequest request;
  request.mutable_token_ids()->Assign(ids.begin(), ids.end());
  request.set_max_tokens(static_cast<uint32_t>(answer_tokens));
  request.set_ignore_eos(true);
  request.set_max_compute_tokens(max_compute_tokens);
  return request;
}

// Seconds until the first token.
inline double FirstToken(decode_node::DecodeNode& decode, const v1::GenerateRequest& request) {
  const absl::Time start = absl::Now();
  absl::Duration took;
  Check(decode.Generate(request, [&](const v1::GenerateEvent& event) {
    if (event.has_token()) took = absl::Now() - start;
    return true;
  }));
  return absl::ToDoubleSeconds(took);
}

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_DECODE_REQUESTS_H_
