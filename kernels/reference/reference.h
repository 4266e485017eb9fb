// The oracle: every operation in plain double precision, written for reading, never for speed. Tests hold all backends
// to it.
#ifndef PERIGEE_KERNELS_REFERENCE_REFERENCE_H_
#define PERIGEE_KERNELS_REFERENCE_REFERENCE_H_

#include <cstdint>
#include <vector>

#include "kernels/rope.h"
#include "pod/plan.h"

namespace perigee::kernels::reference {

void RmsNorm(const float* x, const float* weight, double epsilon, size_t rows, size_t columns, double* out);
void SwiGlu(const float* gate, const float* up, size_t n, double* out);
void Gemm(const float* x, size_t rows, size_t k, const float* weight, size_t n, const float* bias, double* out);
void ApplyRope(const Rope& rope, int64_t position, int heads, double* x);

// Near/far attention over a dense cache. keys and values: [layer][kv_head][token][head_dim], token t standing at
// position t, keys rotated there. queries: [layer][query][q_head][head_dim], query i at first_position + i; out:
// [query][q_head][head_dim]. The plan's window is rounded outward to round_tokens (1: exact). Far keys are the lead's,
// the far query the slot's own or the lead's by the plan's sharing form; near-only slots see no far token. An identity
// plan is full causal attention.
struct DenseCache {
  std::vector<std::vector<std::vector<float>>> keys;    // [layer][kv_head][token * head_dim]
  std::vector<std::vector<std::vector<float>>> values;  // the same
};
void Attend(const pod::Plan& plan, int round_tokens, int layer, int q_heads, const DenseCache& cache,
            int64_t first_position, int query_count, const std::vector<const float*>& queries, float* out);

// Attention over a general view, as a list of what is visible in it, in any order. A query sees the tokens at its own
// position and before.
struct ViewToken {
  int64_t position = 0;
  int64_t block_first = 0, block_last = 0;  // Where its block begins and ends: the block is near as a whole.
  bool far_only = false;
  bool context = false;
  std::vector<std::vector<std::vector<double>>> keys,
      values;  // [layer][kv_head][head_dim], keys rotated at `position`.
};

// As Attend, for queries at these positions. Logits of contexts are divided by the temperature; contexts and the rest
// are weighed by exp(scale * log-sum-exp) and exp(log-sum-exp) (arXiv 2502.05431).
void AttendView(const pod::Plan& plan, int layer, int q_heads, const std::vector<ViewToken>& tokens,
                const std::vector<int64_t>& positions, const std::vector<const float*>& queries,
                double context_temperature, double context_scale, float* out);

}  // namespace perigee::kernels::reference

#endif  // PERIGEE_KERNELS_REFERENCE_REFERENCE_H_
