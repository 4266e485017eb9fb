#include "model/transformer.h"

#include <algorithm>
#include <cstring>
#include <functional>

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

// An item's rows among those of the batch.
struct Rows {
  BatchItem* item = nullptr;
  size_t begin = 0;
  size_t count = 0;
  size_t wanted = 0;  // Rows of logits.
};

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

absl::Status Transformer::Check(std::span<const int32_t> tokens, std::span<const int64_t> positions) const {
  if (tokens.empty()) return absl::InvalidArgumentError("no tokens to run");
  if (positions.size() != tokens.size() || positions.front() < 0 ||
      std::adjacent_find(positions.begin(), positions.end(), std::greater_equal<>()) != positions.end()) {
    return absl::InvalidArgumentError(absl::StrCat(tokens.size(), " tokens need as many positions, ascending from 0"));
  }
  const int64_t end = positions.back() + 1;
  if (end > config_.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("positions up to ", end - 1, " are past the model's context of ",
                                                   config_.max_positions, " tokens"));
  }
  for (int32_t id : tokens) {
    if (id < 0 || id >= config_.vocab) {
      return absl::InvalidArgumentError(absl::StrCat("token id ", id, " is not in the vocabulary of ", config_.vocab));
    }
  }
  return absl::OkStatus();
}

absl::Status Transformer::Forward(std::span<const int32_t> tokens, KvCache& cache, Logits which,
                                  std::vector<float>* logits,
                                  const std::function<absl::Status(int layer)>& after_layer) const {
  BatchItem item{.tokens = tokens, .cache = &cache, .which = which, .logits = logits, .after_layer = after_layer};
  PERIGEE_RETURN_IF_ERROR(ForwardBatch(std::span(&item, 1)));
  return item.status;
}

absl::Status Transformer::ForwardBatch(std::span<BatchItem> items) const {
  std::vector<Rows> live;
  size_t n = 0;
  std::vector<int64_t> positions;
  for (BatchItem& item : items) {
    if (item.positions.empty()) {
      for (size_t t = 0; t < item.tokens.size(); ++t) {
        positions.push_back(item.cache->tokens() + static_cast<int64_t>(t));
      }
    } else {
      positions.insert(positions.end(), item.positions.begin(), item.positions.end());
    }
    item.status = Check(item.tokens, std::span(positions).subspan(n));
    positions.resize(n + (item.status.ok() ? item.tokens.size() : 0));
    if (!item.status.ok()) continue;
    live.push_back({.item = &item, .begin = n, .count = item.tokens.size()});
    n += item.tokens.size();
  }
  if (live.empty()) return absl::OkStatus();
  const size_t hidden = static_cast<size_t>(config_.hidden);
  const size_t dim = static_cast<size_t>(config_.head_dim);
  const int q_heads = rank_config_.q_heads, kv_heads = rank_config_.kv_heads;
  const size_t q_width = static_cast<size_t>(q_heads) * dim;
  const size_t kv_width = static_cast<size_t>(kv_heads) * dim;
  const size_t ffn = static_cast<size_t>(rank_config_.ffn);
  const float epsilon = static_cast<float>(config_.rms_norm_eps);

  std::vector<float> x(n * hidden), normed(n * hidden), keys(n * kv_width), values(n * kv_width), attended(n * q_width),
      delta(n * hidden), gate(n * ffn), up(n * ffn);
  // Queries by layer: kept for later layers where a cache asks for them, else dropped after their layer.
  std::vector<std::vector<float>> queries(static_cast<size_t>(config_.layers));
  std::vector<const float*> query_pointers(static_cast<size_t>(config_.layers), nullptr);

  for (const Rows& rows : live) {
    for (size_t t = 0; t < rows.count; ++t) {
      std::memcpy(&x[(rows.begin + t) * hidden], &weights_.embed[static_cast<size_t>(rows.item->tokens[t]) * hidden],
                  hidden * sizeof(float));
    }
  }
  for (int l = 0; l < config_.layers; ++l) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(l)];
    std::vector<float>& q = queries[static_cast<size_t>(l)];
    q.resize(n * q_width);

    kernels::RmsNorm(x.data(), w.input_norm.data(), epsilon, n, hidden, normed.data());
    kernels::Gemm(normed.data(), n, hidden, w.q.data(), q_width, OrNull(w.q_bias), q.data());
    kernels::Gemm(normed.data(), n, hidden, w.k.data(), kv_width, OrNull(w.k_bias), keys.data());
    kernels::Gemm(normed.data(), n, hidden, w.v.data(), kv_width, OrNull(w.v_bias), values.data());
    if (config_.qk_norm) {
      kernels::RmsNorm(q.data(), w.q_norm.data(), epsilon, n * static_cast<size_t>(q_heads), dim, q.data());
      kernels::RmsNorm(keys.data(), w.k_norm.data(), epsilon, n * static_cast<size_t>(kv_heads), dim, keys.data());
    }
    ParallelFor(n, [&](size_t t) {
      kernels::ApplyRope(rope_, positions[t], q_heads, &q[t * q_width]);
      kernels::ApplyRope(rope_, positions[t], kv_heads, &keys[t * kv_width]);
    });

    bool keeps_queries = false;
    for (const Rows& rows : live) {
      if (!rows.item->status.ok()) continue;
      KvCache& cache = *rows.item->cache;
      for (size_t below = 0; below <= static_cast<size_t>(l); ++below) {
        query_pointers[below] = queries[below].empty() ? nullptr : &queries[below][rows.begin * q_width];
      }
      const std::span<const int64_t> at = std::span(positions).subspan(rows.begin, rows.count);
      absl::Status& status = rows.item->status;
      status = cache.Append(l, at, &keys[rows.begin * kv_width], &values[rows.begin * kv_width]);
      if (status.ok()) status = cache.Attend(l, at, query_pointers, &attended[rows.begin * q_width]);
      keeps_queries = keeps_queries || cache.KeepsQueriesOf(l);
    }
    if (!keeps_queries) q = {};
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
    for (const Rows& rows : live) {
      if (rows.item->status.ok() && rows.item->after_layer) rows.item->status = rows.item->after_layer(l);
    }
    // A group's ranks must stay in step, whatever became of this rank's items.
    if (group_.size == 1 && std::none_of(live.begin(), live.end(), [](const Rows& r) { return r.item->status.ok(); })) {
      return absl::OkStatus();
    }
  }

  // The rows that logits are wanted of, moved together, so that the head is read once.
  size_t wanted = 0;
  for (Rows& rows : live) {
    if (!rows.item->status.ok()) continue;
    rows.item->cache->Advance(std::span(positions).subspan(rows.begin, rows.count));
    rows.wanted = rows.item->which == Logits::kAll ? rows.count : rows.item->which == Logits::kLast ? 1 : 0;
    std::memmove(&x[wanted * hidden], &x[(rows.begin + rows.count - rows.wanted) * hidden],
                 rows.wanted * hidden * sizeof(float));
    wanted += rows.wanted;
  }
  if (wanted == 0) return absl::OkStatus();
  const size_t vocab = static_cast<size_t>(config_.vocab);
  kernels::RmsNorm(x.data(), weights_.final_norm.data(), epsilon, wanted, hidden, normed.data());
  std::vector<float> logits(wanted * vocab);
  kernels::Gemm(normed.data(), wanted, hidden, weights_.head().data(), vocab, nullptr, logits.data());
  size_t row = 0;
  for (const Rows& rows : live) {
    if (rows.wanted == 0) continue;
    rows.item->logits->assign(&logits[row * vocab], &logits[row * vocab] + rows.wanted * vocab);
    row += rows.wanted;
  }
  return absl::OkStatus();
}

}  // namespace perigee::model
