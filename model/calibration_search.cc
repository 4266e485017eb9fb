#include "model/calibration_search.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "base/parallel.h"
#include "base/status.h"
#include "model/plane_cache.h"
#include "pod/layout.h"

namespace perigee::model {
namespace {

using pod::Role;
using pod::SlotId;

struct SampleLoss {
  double nll = 0;
  int64_t tokens = 0;
  bool all_first_choice = true;
};

absl::StatusOr<SampleLoss> ServeSample(const Transformer& transformer, const pod::Layout& layout,
                                       const CalibrationSample& sample) {
  const std::span<const int32_t> tokens(sample.tokens);
  if (sample.scored_begin < 1 || sample.scored_begin >= tokens.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("a sample of ", tokens.size(), " tokens is scored from token ", sample.scored_begin));
  }
  PlaneCache cache(&layout, &transformer.rope(), transformer.config().q_heads, HeapPlanes());
  // The query at scored_begin - 1 is the first whose logits matter; the last token's matter to nobody.
  const size_t body = sample.scored_begin - 1;
  const auto tail = tokens.subspan(body, tokens.size() - 1 - body);
  if (body > 0) PERIGEE_RETURN_IF_ERROR(transformer.Forward(tokens.first(body), cache, Logits::kNone, nullptr));
  std::vector<float> logits;
  PERIGEE_RETURN_IF_ERROR(transformer.Forward(tail, cache, Logits::kAll, &logits));
  const size_t vocab = static_cast<size_t>(transformer.config().vocab);
  SampleLoss loss;
  for (size_t i = 0; i < tail.size(); ++i) {
    const float* row = &logits[i * vocab];
    const size_t target = static_cast<size_t>(tokens[body + i + 1]);
    const float top = *std::max_element(row, row + vocab);
    double sum = 0;
    for (size_t v = 0; v < vocab; ++v) sum += std::exp(row[v] - top);
    loss.nll += std::log(sum) + top - row[target];
    loss.all_first_choice = loss.all_first_choice && row[target] == top;
    ++loss.tokens;
  }
  return loss;
}

absl::StatusOr<pod::Plan> MakePlan(const pod::KvShape& shape, const SearchOptions& o, std::vector<pod::Slot> slots) {
  return pod::Plan::Create(shape, o.window, o.sharing, o.codec, std::move(slots), o.model_fingerprint);
}

// Rises in units of their budgets. Rises below a ten-thousandth of a nat are not told apart, so that a zero budget
// divides too.
double Damage(const SearchOptions& o, const CalibrationLoss& dense, const CalibrationLoss& loss) {
  constexpr double kResolution = 1e-4;
  return std::max(0.0, loss.prose_nll - dense.prose_nll) / std::max(o.budget_nll, kResolution) +
         std::max(0.0, loss.recall_nll - dense.recall_nll) / std::max(o.budget_recall_nll, kResolution);
}

bool WithinBudget(const SearchOptions& o, const CalibrationLoss& dense, const CalibrationLoss& loss) {
  return loss.prose_nll - dense.prose_nll <= o.budget_nll &&
         loss.recall_nll - dense.recall_nll <= o.budget_recall_nll && loss.recall_right >= dense.recall_right;
}

// Below this share of the budgets rises are noise: there the bytes saved decide.
constexpr double kNoiseDamage = 0.02;

class Search {
 public:
  Search(const SimilarityTable& table, const SearchOptions& options, const LossOf& loss_of,
         const SearchProgress& progress)
      : table_(table), options_(options), loss_of_(loss_of), progress_(progress), shape_(table.shape()) {}

  absl::StatusOr<SearchResult> Run() {
    std::vector<pod::Slot> slots(static_cast<size_t>(shape_.slots()));
    for (int l = 0; l < shape_.layers; ++l) {
      for (int h = 0; h < shape_.kv_heads; ++h) slots[Index({l, h})] = {Role::kLead, {l, h}, options_.codec};
    }
    const std::vector<SearchStep> candidates = Candidates();
    total_ = 1 + 2 * static_cast<int>(candidates.size());
    PERIGEE_ASSIGN_OR_RETURN(pod::Plan identity, MakePlan(shape_, options_, slots));
    PERIGEE_ASSIGN_OR_RETURN(const CalibrationLoss dense, LossOfPlan(identity));
    SearchResult result{.plan = std::move(identity), .dense = dense, .loss = dense, .trials = {}, .steps = {}};

    for (SearchStep trial : candidates) {
      PERIGEE_RETURN_IF_ERROR(Measure(*WithSlot(shape_, slots, trial.slot, trial.role, trial.lead), trial).status());
      trial.accepted = WithinBudget(options_, dense, trial.loss);
      result.trials.push_back(trial);
    }
    std::vector<SearchStep> order;
    for (const SearchStep& trial : result.trials) {
      if (trial.accepted) order.push_back(trial);
    }
    total_ = done_ + static_cast<int>(order.size());
    const auto gain = [&](const SearchStep& s) {
      return s.predicted_saving / std::max(kNoiseDamage, Damage(options_, dense, s.loss));
    };
    const auto mass = [&](const SearchStep& s) { return table_.distant_mass(s.slot); };
    std::stable_sort(order.begin(), order.end(), [&](const SearchStep& a, const SearchStep& b) {
      if (gain(a) != gain(b)) return gain(a) > gain(b);
      if (a.role == Role::kNearOnly && b.role == Role::kNearOnly) return mass(a) < mass(b);
      return a.similarity > b.similarity;
    });

    double saving = 0;
    for (SearchStep step : order) {
      // A lead that became a follower hands its place to its own lead.
      if (step.role == Role::kFollower && slots[Index(step.lead)].role == Role::kFollower) {
        step.lead = slots[Index(step.lead)].lead;
        step.similarity = step.lead == step.slot ? 0 : table_.at(step.slot, step.lead);
      }
      std::optional<std::vector<pod::Slot>> changed;
      // What was decided for a slot may be replaced by something that saves more (near-only after following), never
      // undone.
      const Role now = slots[Index(step.slot)].role;
      if (now == Role::kLead || (now == Role::kFollower && step.role == Role::kNearOnly)) {
        changed = WithSlot(shape_, slots, step.slot, step.role, step.lead);
      }
      if (!changed) {
        Progress();
        continue;
      }
      PERIGEE_ASSIGN_OR_RETURN(pod::Plan plan, Measure(*changed, step));
      step.accepted = WithinBudget(options_, dense, step.loss) && step.predicted_saving > saving;
      result.steps.push_back(step);
      if (!step.accepted) continue;
      saving = step.predicted_saving;
      slots = *std::move(changed);
      result.plan = std::move(plan);
      result.loss = step.loss;
    }
    return result;
  }

 private:
  size_t Index(SlotId id) const { return static_cast<size_t>(id.layer * shape_.kv_heads + id.kv_head); }

  // Trials of every slot: near-only, then its most similar leads.
  std::vector<SearchStep> Candidates() const {
    std::vector<SearchStep> candidates;
    for (int l = 0; l < shape_.layers; ++l) {
      for (int h = 0; h < shape_.kv_heads; ++h) {
        const SlotId slot{l, h};
        SearchStep step;
        step.slot = slot;
        if (options_.allow_near_only) {
          step.role = Role::kNearOnly;
          step.lead = slot;
          candidates.push_back(step);
        }
        std::vector<SlotId> leads = table_.LeadsBySimilarity(slot);
        leads.resize(std::min(leads.size(), static_cast<size_t>(options_.leads_tried)));
        for (const SlotId lead : leads) {
          step.role = Role::kFollower;
          step.lead = lead;
          step.similarity = table_.at(slot, lead);
          candidates.push_back(step);
        }
      }
    }
    return candidates;
  }

  absl::StatusOr<pod::Plan> Measure(const std::vector<pod::Slot>& slots, SearchStep& step) {
    PERIGEE_ASSIGN_OR_RETURN(pod::Plan plan, MakePlan(shape_, options_, slots));
    PERIGEE_ASSIGN_OR_RETURN(const pod::Layout layout, pod::Layout::Create(plan, options_.block_tokens));
    step.predicted_saving = layout.PredictedSaving(options_.saving_at_tokens);
    PERIGEE_ASSIGN_OR_RETURN(step.loss, LossOfPlan(plan));
    return plan;
  }

  absl::StatusOr<CalibrationLoss> LossOfPlan(const pod::Plan& plan) {
    Progress();
    return loss_of_(plan);
  }

  void Progress() {
    if (progress_) progress_(done_, total_);
    ++done_;
  }

  const SimilarityTable& table_;
  const SearchOptions& options_;
  const LossOf& loss_of_;
  const SearchProgress& progress_;
  const pod::KvShape shape_;
  int done_ = 0;
  int total_ = 0;
};

}  // namespace

absl::StatusOr<CalibrationLoss> MeasureLoss(const Transformer& transformer, const pod::Plan& plan, int block_tokens,
                                            std::span<const CalibrationSample> samples) {
  PERIGEE_ASSIGN_OR_RETURN(const pod::Layout layout, pod::Layout::Create(plan, block_tokens));
  std::vector<absl::StatusOr<SampleLoss>> losses(samples.size());
  ParallelFor(samples.size(), [&](size_t i) { losses[i] = ServeSample(transformer, layout, samples[i]); });
  CalibrationLoss sum;
  int64_t prose_tokens = 0, recall_tokens = 0;
  for (size_t i = 0; i < samples.size(); ++i) {
    PERIGEE_RETURN_IF_ERROR(losses[i].status());
    (samples[i].recall ? sum.recall_nll : sum.prose_nll) += losses[i]->nll;
    (samples[i].recall ? recall_tokens : prose_tokens) += losses[i]->tokens;
    sum.recall_total += samples[i].recall;
    sum.recall_right += samples[i].recall && losses[i]->all_first_choice;
  }
  if (prose_tokens > 0) sum.prose_nll /= static_cast<double>(prose_tokens);
  if (recall_tokens > 0) sum.recall_nll /= static_cast<double>(recall_tokens);
  return sum;
}

std::optional<std::vector<pod::Slot>> WithSlot(const pod::KvShape& shape, std::vector<pod::Slot> slots, SlotId slot,
                                               Role role, SlotId lead) {
  const auto index = [&](SlotId id) { return static_cast<size_t>(id.layer * shape.kv_heads + id.kv_head); };
  if (role == Role::kFollower) {
    if (lead == slot || lead.layer > slot.layer || slots[index(lead)].role != Role::kLead) return std::nullopt;
  }
  for (pod::Slot& other : slots) {
    if (other.role != Role::kFollower || other.lead != slot) continue;
    if (role == Role::kNearOnly) return std::nullopt;
    if (role == Role::kFollower) other.lead = lead;  // Lies no higher than `slot`, so it is a valid lead of these too.
  }
  slots[index(slot)].role = role;
  slots[index(slot)].lead = role == Role::kFollower ? lead : slot;
  return slots;
}

absl::StatusOr<SearchResult> SearchPlan(const SimilarityTable& table, const SearchOptions& options,
                                        const LossOf& loss_of, const SearchProgress& progress) {
  if (options.leads_tried < 0) return absl::InvalidArgumentError(absl::StrCat("leads_tried is ", options.leads_tried));
  if (!(options.budget_nll >= 0) || !(options.budget_recall_nll >= 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("budgets of loss must not be negative: ", options.budget_nll, " and ", options.budget_recall_nll));
  }
  return Search(table, options, loss_of, progress).Run();
}

}  // namespace perigee::model
