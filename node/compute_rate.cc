#include "node/compute_rate.h"

#include <cmath>
#include <initializer_list>
#include <span>
#include <utility>

namespace perigee::node {
namespace {

constexpr double kMemory = 0.9;  // Of what came before, with each pass.
// Of what is left of a sum of squares when the earlier terms have explained what they can; with less, what the term
// costs would be read out of noise.
constexpr double kDistinct = 0.02;

using Sums = std::array<std::array<double, 3>, 3>;

// The costs of these terms, the others' being 0; nothing where the passes do not tell them apart or noise makes one
// negative.
std::optional<std::array<double, 3>> Solve(const Sums& sums, const std::array<double, 3>& seconds,
                                           std::initializer_list<size_t> terms) {
  Sums m = sums;
  std::array<double, 3> y = seconds;
  const std::span<const size_t> order(terms.begin(), terms.size());
  for (size_t k = 0; k < order.size(); ++k) {
    const size_t pivot = order[k];
    if (m[pivot][pivot] <= kDistinct * sums[pivot][pivot]) return std::nullopt;
    for (const size_t row : order.subspan(k + 1)) {
      const double factor = m[row][pivot] / m[pivot][pivot];
      for (const size_t column : order) m[row][column] -= factor * m[pivot][column];
      y[row] -= factor * y[pivot];
    }
  }
  std::array<double, 3> cost = {};
  for (size_t k = order.size(); k-- > 0;) {
    double rest = y[order[k]];
    for (const size_t later : order.subspan(k + 1)) rest -= m[order[k]][later] * cost[later];
    cost[order[k]] = rest / m[order[k]][order[k]];
    if (!(cost[order[k]] >= 0)) return std::nullopt;
  }
  return cost;
}

}  // namespace

void ComputeRate::Record(double tokens, double positions, absl::Duration took) {
  if (tokens <= 0 || took <= absl::ZeroDuration()) return;
  const double seconds = absl::ToDoubleSeconds(took);
  const std::array<double, 3> terms = {1, tokens, positions};
  absl::MutexLock lock(&mu_);
  for (size_t i = 0; i < 3; ++i) {
    for (size_t j = 0; j < 3; ++j) sums_[i][j] = kMemory * sums_[i][j] + terms[i] * terms[j];
    seconds_[i] = kMemory * seconds_[i] + terms[i] * seconds;
  }
}

absl::Duration ComputeCost::Of(int64_t begin, int64_t end) const {
  if (end <= begin) return absl::ZeroDuration();
  const auto passes = static_cast<double>((end - begin + kPassTokens - 1) / kPassTokens);
  return absl::Seconds(pass_s * passes + token_s * static_cast<double>(end - begin) +
                       position_s * SumOfPositions(begin, end));
}

std::optional<absl::Duration> ComputeRate::Estimate(int64_t begin, int64_t end) const {
  const std::optional<ComputeCost> cost = Fit();
  if (!cost.has_value()) return std::nullopt;
  return cost->Of(begin, end);
}

std::optional<ComputeCost> ComputeRate::Fit() const {
  absl::MutexLock lock(&mu_);
  if (sums_[0][0] == 0) return std::nullopt;
  // Passes that were all alike cannot tell the costs apart: then the fewer terms.
  for (const std::initializer_list<size_t> terms : {std::initializer_list<size_t>{1, 2, 0}, {1, 2}, {1, 0}, {1}}) {
    const auto cost = Solve(sums_, seconds_, terms);
    if (cost.has_value() && (*cost)[1] > 0) return ComputeCost{(*cost)[0], (*cost)[1], (*cost)[2]};
  }
  return std::nullopt;
}

}  // namespace perigee::node
