// The oracle's cache: dense arrays and the double-precision reference attention. Slow; for tests, calibration and
// comparison.
//
// With an identity plan this is the single process's full attention; with a real plan it is the in-process PoD
// reference. Keys and values are rounded through the plan's near codec when they are appended, as any 16-bit cache
// would.
#ifndef PERIGEE_MODEL_DENSE_CACHE_H_
#define PERIGEE_MODEL_DENSE_CACHE_H_

#include "kernels/reference/reference.h"
#include "model/kv_cache.h"
#include "pod/plan.h"

namespace perigee::model {

class DenseCache : public KvCache {
 public:
  // round_tokens: what the window is rounded outward to; the block size, or 1 for the exact window.
  DenseCache(const pod::Plan& plan, int round_tokens, int q_heads);

  int64_t tokens() const override { return tokens_; }
  bool KeepsQueriesOf(int layer) const override;
  // INVALID_ARGUMENT for positions that are not the next ones.
  absl::Status Append(int layer, std::span<const int64_t> positions, const float* keys, const float* values) override;
  absl::Status Attend(int layer, std::span<const int64_t> positions, std::span<const float* const> queries,
                      float* out) override;
  void Advance(std::span<const int64_t> positions) override { tokens_ += static_cast<int64_t>(positions.size()); }

 private:
  const pod::Plan plan_;
  const int round_tokens_;
  const int q_heads_;
  kernels::reference::DenseCache cache_;
  int64_t tokens_ = 0;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_DENSE_CACHE_H_
