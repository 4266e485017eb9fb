// Internal: how likely an entry is used again, learned from what happened to entries like it.
//
// Entries are sorted into classes by how often they were used, whether they were ever continued (a prompt's last block
// hardly ever comes back) and whether they are proximal planes. In a class the chance of a use in the next moment falls
// with the age a since the last one, as weight / (a + scale): heavy tails, as measured on traces of prompts, and with
// one number a class to learn. Its maximum-likelihood estimate is
//
//   weight = uses seen / sum over entries watched of ln((age when watching ended + scale) / (age when it began +
//   scale))
//
// with a small prior, proportional to the number of uses, so that the first thousand calls are no lottery. Old
// observations fade. Ages are counted in the tier's own calls, not in seconds: nothing here has a time constant.
#ifndef PERIGEE_KVSTORE_POLICY_REUSE_MODEL_H_
#define PERIGEE_KVSTORE_POLICY_REUSE_MODEL_H_

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "pod/layout.h"

namespace perigee::kvstore {

class ReuseModel {
 public:
  static constexpr int kUseClasses = 6;
  static constexpr int kClasses = 2 * kUseClasses;

  static int ClassOf(pod::PlaneKind kind, uint8_t uses, bool continued) {
    const int by_uses = uses == 0 ? (continued ? 1 : 0) : uses == 1 ? 2 : uses <= 3 ? 3 : uses <= 7 ? 4 : 5;
    return kind == pod::PlaneKind::kProximal ? kUseClasses + by_uses : by_uses;
  }

  ReuseModel() { Update(0); }

  // One entry of the class was watched from one age to the other, and not used in between.
  void Watched(int group, float from_age, float to_age) {
    watched_[group] += std::log((to_age + scale_) / (from_age + scale_));
  }
  // ... and was used then.
  void Used(int group) { used_[group] += 1; }

  double RateAt(int group, float age) const { return weights_[group] / (age + scale_); }
  double ProbabilityBefore(int group, float age) const {
    return 1 - std::pow(scale_ / (age + scale_), weights_[group]);
  }
  float scale() const { return scale_; }
  double weight(int group) const { return weights_[group]; }

  // An entry that is there, unused since that age; `times` such.
  void StillWatched(int group, float age, double times) { watched_now_[group] += times * std::log1p(age / scale_); }

  // To be called once in about resident / 4 calls, after StillWatched for those present (a sample will do): turns what
  // was seen into weights.
  void Update(size_t resident) {
    // The prior weighs as much as a hundredth of the entries. Weights of entries never used and never continued, never
    // used, used once, 2-3, 4-7, 8 times and more; relative to the mean of all classes.
    constexpr std::array<double, kUseClasses> kPrior = {0.1, 0.3, 1.3, 2.5, 5, 8};
    const double prior = 4 + 0.01 * static_cast<double>(resident);
    double used = prior, watched = prior;
    for (int i = 0; i < kClasses; ++i) {
      used += used_[i];
      watched += watched_[i] + watched_now_[i];
    }
    for (int i = 0; i < kClasses; ++i) {
      weights_[i] =
          (used_[i] + prior * used / watched * kPrior[i % kUseClasses]) / (watched_[i] + watched_now_[i] + prior);
      used_[i] *= kFade;
      watched_[i] *= kFade;
      watched_now_[i] = 0;
    }
    scale_ = 16 + 0.25f * static_cast<float>(resident);
  }

 private:
  static constexpr double kFade = 0.98;

  std::array<double, kClasses> used_{}, watched_{}, watched_now_{}, weights_{};
  float scale_ = 16;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_POLICY_REUSE_MODEL_H_
