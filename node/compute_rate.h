// How long this node needs to compute a stretch of a prompt, learned from the passes that it has run.
//
// A pass over tokens costs about a constant (the weights are read once), a seconds a token (the matrix products) and b
// seconds a token and position before it (attention). They are fitted by least squares, with old passes weighing less
// and less. Any thread may call.
#ifndef PERIGEE_NODE_COMPUTE_RATE_H_
#define PERIGEE_NODE_COMPUTE_RATE_H_

#include <array>
#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace perigee::node {

inline constexpr int64_t kPassTokens = 512;  // Long stretches are computed in passes of about so many.

struct ComputeCost {
  double pass_s = 0;      // A pass.
  double token_s = 0;     // A token.
  double position_s = 0;  // A token and position before it.

  // The tokens at [begin, end), one stretch at a time.
  absl::Duration Of(int64_t begin, int64_t end) const;
};

class ComputeRate {
 public:
  // A pass over so many tokens, whose positions add up to `positions`.
  void Record(double tokens, double positions, absl::Duration took);
  // Nothing before the first Record.
  std::optional<ComputeCost> Fit() const;
  std::optional<absl::Duration> Estimate(int64_t begin, int64_t end) const;

 private:
  mutable absl::Mutex mu_;
  // The sums of least squares over (1, tokens, positions).
  std::array<std::array<double, 3>, 3> sums_ ABSL_GUARDED_BY(mu_) = {};
  std::array<double, 3> seconds_ ABSL_GUARDED_BY(mu_) = {};
};

// The sum of the positions of the tokens at [begin, end).
inline double SumOfPositions(int64_t begin, int64_t end) {
  return static_cast<double>(end - begin) * (static_cast<double>(begin) + static_cast<double>(end - 1)) / 2;
}

}  // namespace perigee::node

#endif  // PERIGEE_NODE_COMPUTE_RATE_H_
