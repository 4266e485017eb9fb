// How long this node needs to compute a stretch of a prompt, learned from the passes that it has run.
//
// A pass over tokens costs about a seconds a token (the matrix products) and b seconds a token and position before it
// (attention): both are fitted by least squares, with old passes weighing less and less. Any thread may call.
#ifndef PERIGEE_NODE_COMPUTE_RATE_H_
#define PERIGEE_NODE_COMPUTE_RATE_H_

#include <cstdint>
#include <optional>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace perigee::node {

struct ComputeCost {
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
  double tt_ ABSL_GUARDED_BY(mu_) = 0, tp_ ABSL_GUARDED_BY(mu_) = 0, pp_ ABSL_GUARDED_BY(mu_) = 0;
  double ty_ ABSL_GUARDED_BY(mu_) = 0, py_ ABSL_GUARDED_BY(mu_) = 0;
};

// The sum of the positions of the tokens at [begin, end).
inline double SumOfPositions(int64_t begin, int64_t end) {
  return static_cast<double>(end - begin) * (static_cast<double>(begin) + static_cast<double>(end - 1)) / 2;
}

}  // namespace perigee::node

#endif  // PERIGEE_NODE_COMPUTE_RATE_H_
