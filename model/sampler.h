// Choosing the next token from logits: greedy, or temperature with top-k and top-p.
//
// The same seed, parameters, draw number and logits give the same token on every platform and compiler: random bits
// come from a counter-based splitmix64 (Steele, Lea, Flood 2014), exp is computed here with plain IEEE double
// operations, and ties are broken by the lower token id. Draw n depends only on (seed, n), so that another node can
// continue a generation where this one stopped.
#ifndef PERIGEE_MODEL_SAMPLER_H_
#define PERIGEE_MODEL_SAMPLER_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace perigee::model {

// Applied in the order temperature, top-k, top-p (as transformers does).
struct SamplingParams {
  double temperature = 0.0;  // 0 = greedy (top_k, top_p and seed then change nothing); at most 100
  int top_k = 0;             // 0 = all
  double top_p = 1.0;        // (0, 1]: the smallest set of most likely tokens whose probabilities reach top_p
  uint64_t seed = 0;
};

// INVALID_ARGUMENT naming the parameter and its value.
absl::Status Validate(const SamplingParams& params);

// One per sequence; not thread-safe.
class Sampler {
 public:
  // `first_draw`: how many tokens were sampled before, when continuing.
  static absl::StatusOr<Sampler> Create(const SamplingParams& params, uint64_t first_draw = 0);

  // logits[vocab]. -infinity forbids a token. INTERNAL if a logit is NaN or +infinity or all are -infinity: a broken
  // model must not speak. A failed call does not count as a draw.
  absl::StatusOr<int32_t> Sample(std::span<const float> logits);

  uint64_t draws() const { return draws_; }

 private:
  Sampler(const SamplingParams& params, uint64_t first_draw) : params_(params), draws_(first_draw) {}
  SamplingParams params_;
  uint64_t draws_;
  std::vector<double> weights_;      // scratch
  std::vector<int32_t> candidates_;  // scratch
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_SAMPLER_H_
