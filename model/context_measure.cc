#include "model/context_measure.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/composition_pass.h"
#include "model/plane_cache.h"

namespace perigee::model {
namespace {

using Row = std::vector<float>;  // A position's logits.

int32_t Best(const Row& logits) {
  return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

double LogSumExp(const Row& logits) {
  const double most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(logit - most);
  return most + std::log(sum);
}

double Divergence(const Row& from, const Row& to) {
  const double from_sum = LogSumExp(from), to_sum = LogSumExp(to);
  double kl = 0;
  for (size_t i = 0; i < from.size(); ++i) {
    const double log_p = from[i] - from_sum;
    kl += std::exp(log_p) * (log_p - (to[i] - to_sum));
  }
  return std::max(kl, 0.0);
}

double LargestDifference(const Row& a, const Row& b) {
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i) most = std::max(most, std::fabs(double{a[i]} - double{b[i]}));
  return most;
}

class Question {
 public:
  Question(const ServedModel& served, const ContextSample& sample) : served_(served), sample_(sample) {
    if (served.tokenizer().adds_bos_by_default() && served.tokenizer().bos_id().has_value()) {
      opening_.push_back(*served.tokenizer().bos_id());
    }
  }

  absl::Status AskInFull(RepairFigures& full) {
    PlaneCache cache = NewCache();
    Row logits;
    PERIGEE_RETURN_IF_ERROR(Run(full.repair, cache, &logits, full));
    for (size_t i = 0;;) {
      full_answer_.push_back(Best(logits));
      full_logits_.push_back(std::move(logits));
      if (++i == sample_.answer.size()) break;
      PERIGEE_RETURN_IF_ERROR(
          served_.transformer().Forward(std::span(&full_answer_.back(), 1), cache, Logits::kLast, &logits));
    }
    ++full.agreed;
    full.right += full_answer_ == sample_.answer;
    return absl::OkStatus();
  }

  absl::Status Ask(RepairFigures& figures) {
    PlaneCache cache = NewCache();
    Row first;
    PERIGEE_RETURN_IF_ERROR(Run(figures.repair, cache, &first, figures));
    // Along the plain prompt's answer; where that is wrong, along the right one too.
    const bool differ = full_answer_ != sample_.answer;
    std::optional<PlaneCache> fork;
    if (differ) {
      PERIGEE_ASSIGN_OR_RETURN(PlaneCache other, cache.Fork());
      fork.emplace(std::move(other));
    }
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<Row> rows, Along(full_answer_, first, cache));
    double kl = 0;
    for (size_t i = 0; i < rows.size(); ++i) {
      kl += Divergence(full_logits_[i], rows[i]);
      figures.max_logit = std::max(figures.max_logit, LargestDifference(full_logits_[i], rows[i]));
    }
    figures.kl_sum += kl / static_cast<double>(rows.size());
    const bool agrees = Says(rows, full_answer_);
    figures.agreed += agrees;
    if (!differ) {
      figures.right += agrees;
    } else {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<Row> right, Along(sample_.answer, first, *fork));
      figures.right += Says(right, sample_.answer);
    }
    return absl::OkStatus();
  }

 private:
  PlaneCache NewCache() const {
    const Transformer& transformer = served_.transformer();
    return PlaneCache(&served_.layout(), &transformer.rope(), transformer.config().q_heads, HeapPlanes());
  }

  // A greedy answer is these tokens where each is the best one behind those before it.
  static bool Says(const std::vector<Row>& rows, const std::vector<int32_t>& answer) {
    for (size_t i = 0; i < rows.size(); ++i) {
      if (Best(rows[i]) != answer[i]) return false;
    }
    return true;
  }

  absl::StatusOr<std::vector<Row>> Along(const std::vector<int32_t>& answer, const Row& first,
                                         PlaneCache& cache) const {
    std::vector<Row> rows = {first};
    if (answer.size() == 1) return rows;
    Row all;
    PERIGEE_RETURN_IF_ERROR(
        served_.transformer().Forward(std::span(answer).first(answer.size() - 1), cache, Logits::kAll, &all));
    for (size_t i = 1; i < answer.size(); ++i) {
      const auto begin = all.begin() + static_cast<ptrdiff_t>((i - 1) * first.size());
      rows.emplace_back(begin, begin + static_cast<ptrdiff_t>(first.size()));
    }
    return rows;
  }

  // The prompt, up to its last token's logits.
  absl::Status Run(const Repair& repair, PlaneCache& cache, Row* logits, RepairFigures& figures) {
    PERIGEE_ASSIGN_OR_RETURN(Composition composition,
                             Composition::Create(sample_.prompt, sample_.documents, opening_, repair));
    for (size_t c = 0; c < composition.contexts().size(); ++c) {
      const Composition::Context& context = composition.contexts()[c];
      if (c == alone_.size()) {
        alone_.push_back(NewCache());
        PERIGEE_RETURN_IF_ERROR(served_.transformer().Forward(context.ids, alone_.back(), Logits::kNone, nullptr));
      }
      for (const CachedBlock& block : composition.Places(context, alone_[c])) {
        PERIGEE_RETURN_IF_ERROR(cache.Place(block));
      }
    }
    const CompositionPass pass{.transformer = &served_.transformer(), .run = [this](BatchItem item) {
                                 const absl::Status status = served_.transformer().ForwardBatch(std::span(&item, 1));
                                 return status.ok() ? item.status : status;
                               }};
    PERIGEE_RETURN_IF_ERROR(RunComposition(pass, composition, cache, logits));
    ++figures.questions;
    figures.prompt_tokens += static_cast<int64_t>(sample_.prompt.size());
    figures.computed_tokens += static_cast<int64_t>(composition.computed().size());
    return absl::OkStatus();
  }

  const ServedModel& served_;
  const ContextSample& sample_;
  std::vector<int32_t> opening_;
  std::vector<PlaneCache> alone_;  // The contexts, by their order in the prompt.
  std::vector<int32_t> full_answer_;
  std::vector<Row> full_logits_;
};

}  // namespace

absl::Status MeasureQuestion(const ServedModel& served, const ContextSample& sample, RepairFigures& full,
                             std::span<RepairFigures> repairs) {
  const int64_t last = static_cast<int64_t>(sample.prompt.size() + sample.answer.size());
  if (sample.prompt.empty() || sample.answer.empty() || last > served.transformer().config().max_positions) {
    return absl::InvalidArgumentError(
        absl::StrCat("a question of ", last, " tokens does not fit the model's context of ",
                     served.transformer().config().max_positions, ": take fewer or shorter documents"));
  }
  full.repair = {.kind = RepairKind::kFull};
  Question question(served, sample);
  PERIGEE_RETURN_IF_ERROR(question.AskInFull(full));
  for (RepairFigures& figures : repairs) {
    PERIGEE_RETURN_IF_ERROR(Annotate(question.Ask(figures), figures.repair.ToString()));
  }
  return absl::OkStatus();
}

Interval WilsonInterval(int64_t count, int64_t of) {
  if (of <= 0) return {};
  constexpr double kZ = 1.959963984540054;
  const double n = static_cast<double>(of), p = static_cast<double>(count) / n;
  const double middle = p + kZ * kZ / (2 * n);
  const double half = kZ * std::sqrt(p * (1 - p) / n + kZ * kZ / (4 * n * n));
  const double scale = 1 + kZ * kZ / n;
  return {std::max(0.0, (middle - half) / scale), std::min(1.0, (middle + half) / scale)};
}

Repair ChooseRepair(const RepairFigures& full, std::span<const RepairFigures> repairs, double threshold) {
  const RepairFigures* best = nullptr;
  if (2 * full.right >= full.questions && full.questions > 0) {
    for (const RepairFigures& figures : repairs) {
      if (figures.accuracy() < threshold * full.accuracy()) continue;
      if (best == nullptr || figures.computed_share() < best->computed_share()) best = &figures;
    }
  }
  return best == nullptr ? Repair{.kind = RepairKind::kFull} : best->repair;
}

}  // namespace perigee::model
