#include "model/transformer.h"

#include <algorithm>
#include <cstring>

#include "base/parallel.h"
#include "base/status.h"
#include "kernels/elementwise.h"
#include "kernels/gemm.h"
#include "model/safetensors.h"

namespace perigee::model {
namespace {

kernels::Rope RopeOf(const ModelConfig& config) {
  const RopeConfig& r = config.rope;
  switch (r.scaling) {
    case RopeScaling::kLinear:
      return kernels::MakeLinearRope(config.head_dim, r.theta, r.factor);
    case RopeScaling::kLlama3:
      return kernels::MakeLlama3Rope(config.head_dim, r.theta, r.factor, r.low_freq_factor, r.high_freq_factor,
                                     r.original_max_positions);
    case RopeScaling::kNone:
      break;
  }
  return kernels::MakeRope(config.head_dim, r.theta);
}

const float* OrNull(const std::vector<float>& v) { return v.empty() ? nullptr : v.data(); }

}  // namespace

absl::StatusOr<std::unique_ptr<Transformer>> Transformer::Load(const std::string& folder, TensorParallel group) {
  PERIGEE_ASSIGN_OR_RETURN(ModelConfig config, ModelConfig::Load(folder));
  PERIGEE_ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(folder));
  PERIGEE_ASSIGN_OR_RETURN(LlamaWeights weights, LoadWeights(config, checkpoint, group));
  return std::make_unique<Transformer>(std::move(config), std::move(weights), std::move(group));
}

Transformer::Transformer(ModelConfig config, LlamaWeights weights, TensorParallel group)
    : config_(std::move(config)),
      group_(std::move(group)),
      rank_config_(RankConfig(config_, group_)),
      weights_(std::move(weights)),
      rope_(RopeOf(config_)) {}

absl::Status Transformer::Forward(std::span<const int32_t> tokens, KvCache& cache, Logits which,
                                  std::vector<float>* logits,
                                  const std::function<absl::Status(int layer)>& after_layer) const {
  const size_t n = tokens.size();
  if (n == 0) return absl::InvalidArgumentError("no tokens to run");
  const int64_t first = cache.tokens();
  if (first + static_cast<int64_t>(n) > config_.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("positions up to ", first + static_cast<int64_t>(n) - 1,
                                                   " are past the model's context of ", config_.max_positions,
                                                   " tokens"));
  }
  for (int32_t id : tokens) {
    if (id < 0 || id >= config_.vocab) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", id, " is not in the vocabulary of ", config_.vocab));
    }
  }
  const size_t hidden = static_cast<size_t>(config_.hidden);
  const size_t dim = static_cast<size_t>(config_.head_dim);
  const int q_heads = rank_config_.q_heads, kv_heads = rank_config_.kv_heads;
  const size_t q_width = static_cast<size_t>(q_heads) * dim;
  const size_t kv_width = static_cast<size_t>(kv_heads) * dim;
  const size_t ffn = static_cast<size_t>(rank_config_.ffn);
  const float epsilon = static_cast<float>(config_.rms_norm_eps);

  std::vector<float> x(n * hidden), normed(n * hidden), keys(n * kv_width), values(n * kv_width), attended(n * q_width),
      delta(n * hidden), gate(n * ffn), up(n * ffn);
  // Queries by layer: kept for later layers where the cache asks for them, else dropped after their layer.
  std::vector<std::vector<float>> queries(static_cast<size_t>(config_.layers));
  std::vector<const float*> query_pointers(static_cast<size_t>(config_.layers), nullptr);

  for (size_t t = 0; t < n; ++t) {
    std::memcpy(&x[t * hidden], &weights_.embed[static_cast<size_t>(tokens[t]) * hidden], hidden * sizeof(float));
  }
  for (int l = 0; l < config_.layers; ++l) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(l)];
    std::vector<float>& q = queries[static_cast<size_t>(l)];
    q.resize(n * q_width);
    query_pointers[static_cast<size_t>(l)] = q.data();

    kernels::RmsNorm(x.data(), w.input_norm.data(), epsilon, n, hidden, normed.data());
    kernels::Gemm(normed.data(), n, hidden, w.q.data(), q_width, OrNull(w.q_bias), q.data());
    kernels::Gemm(normed.data(), n, hidden, w.k.data(), kv_width, OrNull(w.k_bias), keys.data());
    kernels::Gemm(normed.data(), n, hidden, w.v.data(), kv_width, OrNull(w.v_bias), values.data());
    if (config_.qk_norm) {
      kernels::RmsNorm(q.data(), w.q_norm.data(), epsilon, n * static_cast<size_t>(q_heads), dim, q.data());
      kernels::RmsNorm(keys.data(), w.k_norm.data(), epsilon, n * static_cast<size_t>(kv_heads), dim, keys.data());
    }
    ParallelFor(n, [&](size_t t) {
      const int64_t position = first + static_cast<int64_t>(t);
      kernels::ApplyRope(rope_, position, q_heads, &q[t * q_width]);
      kernels::ApplyRope(rope_, position, kv_heads, &keys[t * kv_width]);
    });

    PERIGEE_RETURN_IF_ERROR(cache.Append(l, static_cast<int>(n), keys.data(), values.data()));
    PERIGEE_RETURN_IF_ERROR(cache.Attend(l, static_cast<int>(n), query_pointers, attended.data()));
    if (!cache.KeepsQueriesOf(l)) {
      q = {};
      query_pointers[static_cast<size_t>(l)] = nullptr;
    }
    // The bias is added once, not once per rank.
    const float* o_bias = group_.rank == 0 ? OrNull(w.o_bias) : nullptr;
    kernels::Gemm(attended.data(), n, q_width, w.o.data(), hidden, o_bias, delta.data());
    if (group_.size > 1) PERIGEE_RETURN_IF_ERROR(group_.all_reduce_sum(delta));
    kernels::AddInPlace(x.data(), delta.data(), n * hidden);

    kernels::RmsNorm(x.data(), w.post_norm.data(), epsilon, n, hidden, normed.data());
    kernels::Gemm(normed.data(), n, hidden, w.gate.data(), ffn, nullptr, gate.data());
    kernels::Gemm(normed.data(), n, hidden, w.up.data(), ffn, nullptr, up.data());
    kernels::SwiGlu(gate.data(), up.data(), n * ffn, gate.data());
    kernels::Gemm(gate.data(), n, ffn, w.down.data(), hidden, nullptr, delta.data());
    if (group_.size > 1) PERIGEE_RETURN_IF_ERROR(group_.all_reduce_sum(delta));
    kernels::AddInPlace(x.data(), delta.data(), n * hidden);
    if (after_layer) PERIGEE_RETURN_IF_ERROR(after_layer(l));
  }
  cache.Advance(static_cast<int>(n));
  if (which == Logits::kNone) return absl::OkStatus();

  const size_t rows = which == Logits::kAll ? n : 1;
  const float* tail = &x[(n - rows) * hidden];
  kernels::RmsNorm(tail, weights_.final_norm.data(), epsilon, rows, hidden, normed.data());
  logits->resize(rows * static_cast<size_t>(config_.vocab));
  kernels::Gemm(normed.data(), rows, hidden, weights_.head().data(), static_cast<size_t>(config_.vocab), nullptr,
                logits->data());
  return absl::OkStatus();
}

}  // namespace perigee::model
