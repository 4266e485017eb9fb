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

namespace {

// A softmax over some tokens: the mean of their values by weight, and the logarithm of the weights' sum.
struct Mean {
  std::vector<double> value;
  double log_sum = -INFINITY;
};

Mean SoftmaxMean(const std::vector<double>& logits, const std::vector<const double*>& values, int dim) {
  Mean mean{std::vector<double>(static_cast<size_t>(dim))};
  if (logits.empty()) return mean;
  const double top = *std::max_element(logits.begin(), logits.end());
  double total = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    const double weight = std::exp(logits[i] - top);
    total += weight;
    for (int d = 0; d < dim; ++d) mean.value[static_cast<size_t>(d)] += weight * values[i][d];
  }
  for (double& x : mean.value) x /= total;
  mean.log_sum = top + std::log(total);
  return mean;
}

}  // namespace

void AttendView(const pod::Plan& plan, int layer, int q_heads, const std::vector<ViewToken>& tokens,
                const std::vector<int64_t>& positions, const std::vector<const float*>& queries,
                double context_temperature, double context_scale, float* out) {
  const int dim = plan.shape().head_dim;
  const int group = q_heads / plan.shape().kv_heads;
  for (size_t i = 0; i < positions.size(); ++i) {
    for (int h = 0; h < q_heads; ++h) {
      const int kv_head = h / group;
      const pod::Slot& slot = plan.slot(layer, kv_head);
      const auto query = [&](int of_layer, int of_head) {
        return queries[static_cast<size_t>(of_layer)] + (static_cast<int64_t>(i) * q_heads + of_head) * dim;
      };
      std::vector<double> logits[2];  // Of the rest, of the contexts.
      std::vector<const double*> values[2];
      for (const ViewToken& token : tokens) {
        if (token.position > positions[i]) continue;
        const bool near = !token.far_only && (token.block_first < plan.window().sink_tokens ||
                                              token.block_last > positions[i] - plan.window().recent_tokens);
        if (!near && slot.role == pod::Role::kNearOnly) continue;
        const pod::SlotId read = near ? pod::SlotId{layer, kv_head} : slot.lead;
        const float* q = query(layer, h);
        if (!near && slot.role == pod::Role::kFollower && plan.sharing() == pod::Sharing::kScore) {
          q = query(slot.lead.layer, slot.lead.kv_head * group + h % group);
        }
        const auto& key = token.keys[static_cast<size_t>(read.layer)][static_cast<size_t>(read.kv_head)];
        double logit = 0;
        for (int d = 0; d < dim; ++d) logit += q[d] * key[static_cast<size_t>(d)];
        logit /= std::sqrt(static_cast<double>(dim));
        logits[token.context].push_back(token.context ? logit / context_temperature : logit);
        values[token.context].push_back(token.values[static_cast<size_t>(layer)][static_cast<size_t>(kv_head)].data());
      }
      const Mean rest = SoftmaxMean(logits[0], values[0], dim), context = SoftmaxMean(logits[1], values[1], dim);
      const double context_log = context_scale * context.log_sum;
      const double top = std::max(rest.log_sum, context_log);
      const double a = std::exp(rest.log_sum - top), b = std::exp(context_log - top);
      float* result = out + (static_cast<int64_t>(i) * q_heads + h) * dim;
      for (int d = 0; d < dim; ++d) {
        const size_t at = static_cast<size_t>(d);
        result[d] = static_cast<float>((a * rest.value[at] + b * context.value[at]) / (a + b));
      }
    }
  }
}

}  // namespace perigee::kernels::reference
