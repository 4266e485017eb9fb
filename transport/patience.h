// Inside of transport/: how long a driver polls UCX before it sleeps. To sleep and be woken costs both sides tens of
// microseconds, on virtual machines a hundred and more, so polling pays where the next movement mostly comes within
// about as much; where it mostly does not, polling only burns the processor. So it is learned: each silence that was
// longer than the standing limit says whether the long one would have spanned it.
//
// Any thread; races cost a guess.
#ifndef PERIGEE_TRANSPORT_PATIENCE_H_
#define PERIGEE_TRANSPORT_PATIENCE_H_

#include <algorithm>
#include <atomic>

#include "absl/time/time.h"

namespace perigee::transport::internal {

class Patience {
 public:
  // The long limit; measured, see bench/store_bench.
  static constexpr absl::Duration kLong = absl::Microseconds(500);

  explicit Patience(absl::Duration standing) : standing_(standing) {}

  absl::Duration standing() const { return standing_; }
  absl::Duration limit() const {
    return score_.load(std::memory_order_relaxed) > 0 ? std::max(standing_, kLong) : standing_;
  }
  // Nothing had moved for so long when something did.
  void Note(absl::Duration silence) {
    if (silence <= standing_) return;
    // Two that it spans pay for one that it does not.
    const int score = score_.load(std::memory_order_relaxed) + (silence <= kLong ? 1 : -2);
    score_.store(std::clamp(score, -kFirm, kFirm), std::memory_order_relaxed);
  }

 private:
  static constexpr int kFirm = 4;
  const absl::Duration standing_;
  std::atomic<int> score_{0};
};

}  // namespace perigee::transport::internal

#endif  // PERIGEE_TRANSPORT_PATIENCE_H_
