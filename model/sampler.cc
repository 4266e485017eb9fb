// Built with -ffp-contract=off (see CMakeLists.txt): a fused multiply-add in one compiler and not in another would
// change tokens.
#include "model/sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "base/status.h"

namespace perigee::model {
namespace {

uint64_t SplitMix64(uint64_t x) {
  x += 0x9E3779B97F4A7C15ULL;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBULL;
  return x ^ (x >> 31);
}

// Uniform in [0, 1) with 53 bits. The seed is mixed first: neighbouring seeds must not give shifted copies of one
// stream.
double Uniform(uint64_t seed, uint64_t draw) {
  return static_cast<double>(SplitMix64(SplitMix64(seed) + draw * 0x9E3779B97F4A7C15ULL) >> 11) * 0x1.0p-53;
}

// e^x for x <= 0 from additions and multiplications alone (libm's last bits differ between systems). x = k ln2 + r,
// Taylor in r.
double ExpNonPositive(double x) {
  if (!(x > -700.0)) return 0.0;
  const double k = std::floor(x * 1.4426950408889634 + 0.5);
  const double r =
      (x - k * 0.693145751953125) - k * 1.4286068203094173e-06;  // ln2 in two parts; k * the first is exact
  double sum = 1.0;
  for (int n = 13; n >= 1; --n) sum = 1.0 + sum * r / n;
  return sum * std::bit_cast<double>(static_cast<uint64_t>(static_cast<int64_t>(k) + 1023) << 52);
}

}  // namespace

absl::Status Validate(const SamplingParams& params) {
  if (!(params.temperature >= 0 && params.temperature <= 100)) {
    return absl::InvalidArgumentError(absl::StrCat("temperature is ", params.temperature, "; it must be in [0, 100]"));
  }
  if (params.top_k < 0)
    return absl::InvalidArgumentError(absl::StrCat("top_k is ", params.top_k, "; it must be 0 (all) or more"));
  if (!(params.top_p > 0 && params.top_p <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("top_p is ", params.top_p, "; it must be in (0, 1]"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Sampler> Sampler::Create(const SamplingParams& params, uint64_t first_draw) {
  PERIGEE_RETURN_IF_ERROR(Validate(params));
  return Sampler(params, first_draw);
}

absl::StatusOr<int32_t> Sampler::Sample(std::span<const float> logits) {
  if (logits.empty()) return absl::InvalidArgumentError("there are no logits to sample from");
  size_t best = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i]) || logits[i] == INFINITY) {
      return absl::InternalError(absl::StrCat("the model's logit for token ", i, " is ", logits[i]));
    }
    if (logits[i] > logits[best]) best = i;
  }
  const double top = logits[best];
  if (top == -INFINITY) return absl::InternalError("every logit is -infinity");
  if (params_.temperature == 0.0) {
    ++draws_;
    return static_cast<int32_t>(best);
  }

  weights_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) {
    weights_[i] = ExpNonPositive((static_cast<double>(logits[i]) - top) / params_.temperature);
  }
  candidates_.resize(logits.size());
  std::iota(candidates_.begin(), candidates_.end(), 0);
  // A total order, so that the candidates' order and with it every sum is defined. By logit, not weight: tiny weights
  // may be equal.
  const auto likelier = [&](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  if (params_.top_k > 0 && static_cast<size_t>(params_.top_k) < candidates_.size()) {
    std::nth_element(candidates_.begin(), candidates_.begin() + params_.top_k, candidates_.end(), likelier);
    candidates_.resize(static_cast<size_t>(params_.top_k));
    std::sort(candidates_.begin(), candidates_.end(), likelier);
  }
  double total = 0;
  for (const int32_t id : candidates_) total += weights_[id];
  size_t begin = 0;  // candidates_[begin, size) take part
  if (params_.top_p < 1.0) {
    // Pops the likeliest off a heap until top_p is reached: linear plus a little, where a full sort would cost every
    // token.
    const auto heap_order = [&](int32_t a, int32_t b) { return likelier(b, a); };
    std::make_heap(candidates_.begin(), candidates_.end(), heap_order);
    auto end = candidates_.end();
    double kept = 0;
    while (end != candidates_.begin()) {
      std::pop_heap(candidates_.begin(), end, heap_order);
      --end;
      kept += weights_[*end];
      if (kept >= params_.top_p * total) break;
    }
    begin = static_cast<size_t>(end - candidates_.begin());
    total = kept;
  }
  const double target = Uniform(params_.seed, draws_) * total;
  ++draws_;
  double sum = 0;
  int32_t chosen = static_cast<int32_t>(best);
  for (size_t i = begin; i < candidates_.size(); ++i) {
    const int32_t id = candidates_[i];
    if (weights_[id] == 0.0) continue;
    chosen = id;  // rounding may leave sum just below target at the end: then the last possible token
    sum += weights_[id];
    if (target < sum) break;
  }
  return chosen;
}

}  // namespace perigee::model
