// What the reuse of contexts costs in quality: questions answered over contexts that were computed alone, by each
// repair, beside the same questions over the plain prompt.
#ifndef PERIGEE_MODEL_CONTEXT_MEASURE_H_
#define PERIGEE_MODEL_CONTEXT_MEASURE_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/context_samples.h"
#include "model/repair.h"
#include "model/served_model.h"

namespace perigee::model {

// One repair's figures over many questions. "full" is the plain prompt: what the others are compared with.
struct RepairFigures {
  Repair repair = {};
  int64_t questions = 0;
  int64_t right = 0;     // Answers that are wholly the right one.
  int64_t agreed = 0;    // Answers that are wholly the plain prompt's, right or wrong.
  double kl_sum = 0;     // Over questions: mean, over the answer's positions, of KL(plain prompt || this), in nats. The
                         // positions' contexts are the plain prompt's answer.
  double max_logit = 0;  // Largest difference of a logit at any of these positions.
  int64_t prompt_tokens = 0;
  int64_t computed_tokens = 0;  // Of these: texts, and what of contexts was repaired.

  double accuracy() const { return Rate(right); }
  double agreement() const { return Rate(agreed); }
  double kl() const { return questions > 0 ? kl_sum / static_cast<double>(questions) : 0; }
  double computed_share() const {
    return prompt_tokens > 0 ? static_cast<double>(computed_tokens) / static_cast<double>(prompt_tokens) : 0;
  }

 private:
  double Rate(int64_t count) const {
    return questions > 0 ? static_cast<double>(count) / static_cast<double>(questions) : 0;
  }
};

// Asks one question over the plain prompt and by each repair, and adds what came out to that one's figures. Contexts
// are computed once, and stand between texts as in any request. Answers are greedy, as long as the right one.
absl::Status MeasureQuestion(const ServedModel& served, const ContextSample& sample, RepairFigures& full,
                             std::span<RepairFigures> repairs);

// 95 % interval of a rate (Wilson's), [0, 1] of nothing.
struct Interval {
  double low = 0, high = 1;
};
Interval WilsonInterval(int64_t count, int64_t of);

// The repair that computes least of those whose accuracy is at least `threshold` of the plain prompt's. "full" where
// there is none, and where the plain prompt answers fewer than half of the questions: then they tell nothing.
Repair ChooseRepair(const RepairFigures& full, std::span<const RepairFigures> repairs, double threshold);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_CONTEXT_MEASURE_H_
