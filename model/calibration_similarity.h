// Plans by attention similarity: which slots look at distant tokens alike.
//
// Source: arXiv 2412.02252 (PoD), section 2.1: similarity of two slots is the mean of 1 - JS divergence of their
// attention rows, and a greedy walk upward joins a layer to the run below while it is similar enough. Ours where the
// source leaves it open: base 2 (so that the divergence spans [0, 1]), rows over *distant* tokens only, renormalised
// (only those are shared), the comparison with the run's lowest layer (whose keys would be used), per kv head with the
// mean over the query heads of its group.
//
// Under key sharing the row compared is what would be served: softmax(own query . lead's keys). It foretold the damage
// of key sharing better than the comparison of the two slots' own rows (the paper's, here that of score sharing):
// docs/calibration.md.
#ifndef PERIGEE_MODEL_CALIBRATION_SIMILARITY_H_
#define PERIGEE_MODEL_CALIBRATION_SIMILARITY_H_

#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/calibration_samples.h"
#include "model/transformer.h"
#include "pod/plan.h"

namespace perigee::model {

// Jensen-Shannon divergence, base 2, of two distributions of equal length: 0 for equal ones, 1 for disjoint ones.
double JsDivergence(std::span<const float> p, std::span<const float> q);

class SimilarityTable {
 public:
  explicit SimilarityTable(const pod::KvShape& shape);

  const pod::KvShape& shape() const { return shape_; }
  // In [0, 1]; only for leads that the follower may have: of a lower layer, or of another head of its own layer.
  double at(pod::SlotId follower, pod::SlotId lead) const { return similarity_[Index(follower, lead)]; }
  void set(pod::SlotId follower, pod::SlotId lead, double value) { similarity_[Index(follower, lead)] = value; }
  // The share of a slot's attention that falls on distant tokens.
  double distant_mass(pod::SlotId slot) const { return mass_[Slot(slot)]; }
  void set_distant_mass(pod::SlotId slot, double value) { mass_[Slot(slot)] = value; }

  // Every lead that the slot may have, the most similar first.
  std::vector<pod::SlotId> LeadsBySimilarity(pod::SlotId follower) const;

 private:
  size_t Slot(pod::SlotId id) const { return static_cast<size_t>(id.layer * shape_.kv_heads + id.kv_head); }
  size_t Index(pod::SlotId a, pod::SlotId b) const { return Slot(a) * static_cast<size_t>(shape_.slots()) + Slot(b); }
  pod::KvShape shape_;
  std::vector<double> similarity_;
  std::vector<double> mass_;
};

struct SimilarityOptions {
  pod::Window window;
  int block_tokens = 64;
  pod::Sharing sharing = pod::Sharing::kKey;
  pod::Codec codec = pod::Codec::kBf16;
  int rows = 64;  // The last query positions of each sample.
};

// Runs the dense model over the samples. Parallel over samples.
absl::StatusOr<SimilarityTable> MeasureSimilarity(const Transformer& transformer,
                                                  std::span<const CalibrationSample> samples,
                                                  const SimilarityOptions& options);

// Runs of consecutive layers of one kv head: a layer joins the run below it if its similarity to the run's lowest layer
// is at least `threshold`, else it begins a run. Layers below `lead_layers` always begin one; layer 0 always does.
std::vector<pod::Slot> GreedyRuns(const SimilarityTable& table, double threshold, int lead_layers, pod::Codec codec);

// The highest threshold by which exactly `followers` slots follow. NOT_FOUND naming the nearest counts that can be had.
absl::StatusOr<double> ThresholdForFollowers(const SimilarityTable& table, int followers, int lead_layers);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_CALIBRATION_SIMILARITY_H_
