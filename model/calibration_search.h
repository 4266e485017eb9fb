// Plans by measured loss: which slots may give up their distant keys, or everything distant, at what price.
//
// Every slot's candidates are: follow one of the leads most similar to it, or keep nothing distant (near-only). Each is
// first tried alone, then they are taken up one by one, the most bytes per rise of loss first, each measured on top of
// those accepted before it and kept while the rises of loss against the dense model stay within the budgets. Two losses
// are watched, because prose hardly notices a lost retrieval head: nll per token of prose, and of the digits of pass
// keys. Followers of a slot that begins to follow go to its lead.
#ifndef PERIGEE_MODEL_CALIBRATION_SEARCH_H_
#define PERIGEE_MODEL_CALIBRATION_SEARCH_H_

#include <functional>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/calibration_samples.h"
#include "model/calibration_similarity.h"
#include "model/transformer.h"
#include "pod/plan.h"

namespace perigee::model {

struct CalibrationLoss {
  double prose_nll = 0;   // Nats per scored token; 0 without prose samples.
  double recall_nll = 0;  // Nats per digit token; 0 without recall samples.
  int recall_right = 0;   // Samples whose every digit is the model's first choice, given the digits before it.
  int recall_total = 0;
};

// Serves every sample under the plan, from planes as a node would hold them. Parallel over samples.
absl::StatusOr<CalibrationLoss> MeasureLoss(const Transformer& transformer, const pod::Plan& plan, int block_tokens,
                                            std::span<const CalibrationSample> samples);

struct SearchOptions {
  pod::Window window;
  int block_tokens = 64;
  pod::Sharing sharing = pod::Sharing::kKey;
  pod::Codec codec = pod::Codec::kBf16;
  Digest model_fingerprint{};
  int64_t saving_at_tokens = 4096;  // Where a plan's predicted saving is stated.
  int leads_tried = 2;              // Per slot, the most similar first.
  bool allow_near_only = true;
  double budget_nll = 0.01;         // Rise of prose_nll over the dense model's.
  double budget_recall_nll = 0.02;  // Rise of recall_nll.
};

struct SearchStep {
  pod::SlotId slot;
  pod::Role role = pod::Role::kLead;  // What the slot becomes.
  pod::SlotId lead;
  double similarity = 0;        // To the lead; 0 for near-only.
  CalibrationLoss loss;         // Of the whole plan with this step.
  double predicted_saving = 0;  // The same plan's.
  bool accepted = false;
};

struct SearchResult {
  pod::Plan plan;
  CalibrationLoss dense;
  CalibrationLoss loss;            // The plan's.
  std::vector<SearchStep> trials;  // Each alone, in the order of slots.
  std::vector<SearchStep> steps;   // In the order of acceptance or refusal.
};

using LossOf = std::function<absl::StatusOr<CalibrationLoss>(const pod::Plan&)>;
// done of (at most) total measurements; called on the searching thread.
using SearchProgress = std::function<void(int done, int total)>;

// The plan rule that the search follows when one slot changes: nullopt where the change makes no valid plan (the lead
// keeps nothing distant, lies above the slot or above one of the slot's followers, or the slot has followers and
// becomes near-only).
std::optional<std::vector<pod::Slot>> WithSlot(const pod::KvShape& shape, std::vector<pod::Slot> slots,
                                               pod::SlotId slot, pod::Role role, pod::SlotId lead);

// `loss_of` is called on the calling thread, for plans with the options' window, sharing and codec.
absl::StatusOr<SearchResult> SearchPlan(const SimilarityTable& table, const SearchOptions& options,
                                        const LossOf& loss_of, const SearchProgress& progress = nullptr);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_CALIBRATION_SEARCH_H_
