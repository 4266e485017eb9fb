#include "kernels/reference/reference.h"

#include <algorithm>
#include <cmath>

#include "pod/window.h"

namespace perigee::kernels::reference {

void RmsNorm(const float* x, const float* weight, double epsilon, size_t rows, size_t columns, double* out) {
  for (size_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (size_t c = 0; c < columns; ++c) squares += double{x[r * columns + c]} * x[r * columns + c];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(columns) + epsilon);
    for (size_t c = 0; c < columns; ++c) out[r * columns + c] = x[r * columns + c] * scale * weight[c];
  }
}

void SwiGlu(const float* gate, const float* up, size_t n, double* out) {
  for (size_t i = 0; i < n; ++i) out[i] = gate[i] / (1 + std::exp(-double{gate[i]})) * up[i];
}

void Gemm(const float* x, size_t rows, size_t k, const float* weight, size_t n, const float* bias, double* out) {
  for (size_t r = 0; r < rows; ++r) {
    for (size_t j = 0; j < n; ++j) {
      double sum = bias == nullptr ? 0.0 : bias[j];
      for (size_t i = 0; i < k; ++i) sum += double{x[r * k + i]} * weight[j * k + i];
      out[r * n + j] = sum;
    }
  }
}

void ApplyRope(const Rope& rope, int64_t position, int heads, double* x) {
  const size_t half = rope.inverse_frequency.size();
  for (int h = 0; h < heads; ++h) {
    double* head = x + static_cast<size_t>(h) * 2 * half;
    for (size_t j = 0; j < half; ++j) {
      const double angle = static_cast<double>(position) * rope.inverse_frequency[j];
      const double a = head[j], b = head[j + half];
      head[j] = a * std::cos(angle) - b * std::sin(angle);
      head[j + half] = b * std::cos(angle) + a * std::sin(angle);
    }
  }
}

void Attend(const pod::Plan& plan, int round_tokens, int layer, int q_heads, const DenseCache& cache,
            int64_t first_position, int query_count, const std::vector<const float*>& queries, float* out) {
  const int dim = plan.shape().head_dim;
  const int group = q_heads / plan.shape().kv_heads;
  for (int i = 0; i < query_count; ++i) {
    const int64_t position = first_position + i;
    for (int h = 0; h < q_heads; ++h) {
      const int kv_head = h / group;
      const pod::Slot& slot = plan.slot(layer, kv_head);
      const auto query = [&](int of_layer, int of_head) {
        return queries[static_cast<size_t>(of_layer)] + (int64_t{i} * q_heads + of_head) * dim;
      };
      const auto key = [&](pod::SlotId id) {
        return cache.keys[static_cast<size_t>(id.layer)][static_cast<size_t>(id.kv_head)].data();
      };
      const float* near_query = query(layer, h);
      const float* far_query = near_query;
      if (plan.sharing() == pod::Sharing::kScore && slot.role == pod::Role::kFollower) {
        far_query = query(slot.lead.layer, slot.lead.kv_head * group + h % group);
      }
      std::vector<int64_t> tokens;
      std::vector<double> logits;
      double top = -INFINITY;
      for (int64_t t = 0; t <= position; ++t) {
        const bool near = pod::IsNear(plan.window(), round_tokens, t / round_tokens * round_tokens, position);
        if (!near && slot.role == pod::Role::kNearOnly) continue;
        const float* q = near ? near_query : far_query;
        const float* k = key(near ? pod::SlotId{layer, kv_head} : slot.lead) + t * dim;
        double score = 0;
        for (int d = 0; d < dim; ++d) score += double{q[d]} * k[d];
        score /= std::sqrt(static_cast<double>(dim));
        tokens.push_back(t);
        logits.push_back(score);
        top = std::max(top, score);
      }
      std::vector<double> sum(static_cast<size_t>(dim));
      double total = 0;
      const float* values = cache.values[static_cast<size_t>(layer)][static_cast<size_t>(kv_head)].data();
      for (size_t j = 0; j < tokens.size(); ++j) {
        const double p = std::exp(logits[j] - top);
        total += p;
        for (int d = 0; d < dim; ++d) sum[static_cast<size_t>(d)] += p * values[tokens[j] * dim + d];
      }
      float* result = out + (int64_t{i} * q_heads + h) * dim;
      for (int d = 0; d < dim; ++d) result[d] = static_cast<float>(sum[static_cast<size_t>(d)] / total);
    }
  }
}

}  // namespace perigee::kernels::reference
