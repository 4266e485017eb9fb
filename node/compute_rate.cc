#include "node/compute_rate.h"

#include <algorithm>

namespace perigee::node {
namespace {

constexpr double kMemory = 0.9;  // Of what came before, with each pass.

}  // namespace

void ComputeRate::Record(double tokens, double positions, absl::Duration took) {
  if (tokens <= 0 || took <= absl::ZeroDuration()) return;
  const double seconds = absl::ToDoubleSeconds(took);
  absl::MutexLock lock(&mu_);
  tt_ = kMemory * tt_ + tokens * tokens;
  tp_ = kMemory * tp_ + tokens * positions;
  pp_ = kMemory * pp_ + positions * positions;
  ty_ = kMemory * ty_ + tokens * seconds;
  py_ = kMemory * py_ + positions * seconds;
}

absl::Duration ComputeCost::Of(int64_t begin, int64_t end) const {
  if (end <= begin) return absl::ZeroDuration();
  return absl::Seconds(token_s * static_cast<double>(end - begin) + position_s * SumOfPositions(begin, end));
}

std::optional<absl::Duration> ComputeRate::Estimate(int64_t begin, int64_t end) const {
  const std::optional<ComputeCost> cost = Fit();
  if (!cost.has_value()) return std::nullopt;
  return cost->Of(begin, end);
}

std::optional<ComputeCost> ComputeRate::Fit() const {
  absl::MutexLock lock(&mu_);
  if (tt_ == 0) return std::nullopt;
  // Passes that were all alike cannot tell the two costs apart, and noise can make one negative: then all is the
  // tokens'.
  double a = ty_ / tt_, b = 0;
  const double determinant = tt_ * pp_ - tp_ * tp_;
  if (determinant > 1e-9 * tt_ * pp_) {
    const double fitted_a = (ty_ * pp_ - py_ * tp_) / determinant;
    const double fitted_b = (py_ * tt_ - ty_ * tp_) / determinant;
    if (fitted_a > 0 && fitted_b >= 0) {
      a = fitted_a;
      b = fitted_b;
    }
  }
  return ComputeCost{a, b};
}

}  // namespace perigee::node
