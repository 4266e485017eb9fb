// Internal to kernels/: merging partial softmax states by their largest scores: exact, in any order (arXiv 2412.02252,
// section 2.2 uses the same identity for the near and the far part).
#ifndef PERIGEE_KERNELS_CPU_MERGE_H_
#define PERIGEE_KERNELS_CPU_MERGE_H_

#include <cmath>

namespace perigee::kernels::internal {

// Factor that brings sums relative to `m` to sums relative to `target`. Equal (also both -inf) is 1, so an empty state
// stays empty.
inline float Rescale(float m, float target, float exponent_scale) {
  return m == target ? 1.0f : std::exp2((m - target) * exponent_scale);
}

// (m, l, o) += (m2, l2, o2). o, o2: [head_dim].
inline void MergeState(float exponent_scale, int head_dim, float* m, float* l, float* o, float m2, float l2,
                       const float* o2) {
  const float top = m2 > *m ? m2 : *m;
  const float a = Rescale(*m, top, exponent_scale);
  const float b = Rescale(m2, top, exponent_scale);
  *m = top;
  *l = *l * a + l2 * b;
  for (int d = 0; d < head_dim; ++d) o[d] = o[d] * a + o2[d] * b;
}

}  // namespace perigee::kernels::internal

#endif  // PERIGEE_KERNELS_CPU_MERGE_H_
