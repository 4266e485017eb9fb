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

// Rows on their way through the layers: x, and what a layer makes of it.
class Transformer::Pass {
 public:
  Pass(const Transformer& model, size_t rows)
      : x(rows * static_cast<size_t>(model.config_.hidden)),
        normed(x.size()),
        model_(model),
        rows_(rows),
        hidden_(static_cast<size_t>(model.config_.hidden)),
        dim_(static_cast<size_t>(model.config_.head_dim)),
        ffn_(static_cast<size_t>(model.rank_config_.ffn)),
        epsilon_(static_cast<float>(model.config_.rms_norm_eps)) {
    attended.resize(rows * q_width());
  }

  size_t q_width() const { return static_cast<size_t>(model_.rank_config_.q_heads) * dim_; }
  size_t kv_width() const { return static_cast<size_t>(model_.rank_config_.kv_heads) * dim_; }

  void Embed(size_t row, std::span<const int32_t> tokens) {
    for (size_t t = 0; t < tokens.size(); ++t) {
      std::memcpy(&x[(row + t) * hidden_], &model_.weights_.embed[static_cast<size_t>(tokens[t]) * hidden_],
                  hidden_ * sizeof(float));
    }
  }
  void NormInput(int layer) {
    kernels::RmsNorm(x.data(), weights(layer).input_norm.data(), epsilon_, rows_, hidden_, normed.data());
  }
  // Of NormInput's result, rotated.
  void Queries(int layer, std::span<const int64_t> positions, std::vector<float>& q) const {
    const LayerWeights& w = weights(layer);
    Rotated(w.q, w.q_bias, w.q_norm, model_.rank_config_.q_heads, positions, q);
  }
  void Keys(int layer, std::span<const int64_t> positions, std::vector<float>& k) const {
    const LayerWeights& w = weights(layer);
    Rotated(w.k, w.k_bias, w.k_norm, model_.rank_config_.kv_heads, positions, k);
  }
  void Values(int layer, std::vector<float>& v) const {
    v.resize(rows_ * kv_width());
    kernels::Gemm(normed.data(), rows_, hidden_, weights(layer).v.data(), kv_width(), OrNull(weights(layer).v_bias),
                  v.data());
  }
  // The rest of the layer, from `attended` on.
  absl::Status Finish(int layer) {
    const LayerWeights& w = weights(layer);
    delta_.resize(x.size());
    gate_.resize(rows_ * ffn_);
    up_.resize(rows_ * ffn_);
    // The bias is added once, not once per rank.
    const float* o_bias = model_.group_.rank == 0 ? OrNull(w.o_bias) : nullptr;
    kernels::Gemm(attended.data(), rows_, q_width(), w.o.data(), hidden_, o_bias, delta_.data());
    PERIGEE_RETURN_IF_ERROR(AddDelta());
    kernels::RmsNorm(x.data(), w.post_norm.data(), epsilon_, rows_, hidden_, normed.data());
    kernels::Gemm(normed.data(), rows_, hidden_, w.gate.data(), ffn_, nullptr, gate_.data());
    kernels::Gemm(normed.data(), rows_, hidden_, w.up.data(), ffn_, nullptr, up_.data());
    kernels::SwiGlu(gate_.data(), up_.data(), rows_ * ffn_, gate_.data());
    kernels::Gemm(gate_.data(), rows_, ffn_, w.down.data(), hidden_, nullptr, delta_.data());
    return AddDelta();
  }

  std::vector<float> x;         // [row][hidden]
  std::vector<float> normed;    // [row][hidden]
  std::vector<float> attended;  // [row][q_heads * head_dim]

 private:
  const LayerWeights& weights(int layer) const { return model_.weights_.layers[static_cast<size_t>(layer)]; }
  void Rotated(const std::vector<float>& weight, const std::vector<float>& bias, const std::vector<float>& norm,
               int heads, std::span<const int64_t> positions, std::vector<float>& out) const {
    const size_t width = static_cast<size_t>(heads) * dim_;
    out.resize(rows_ * width);
    kernels::Gemm(normed.data(), rows_, hidden_, weight.data(), width, OrNull(bias), out.data());
    if (model_.config_.qk_norm) {
      kernels::RmsNorm(out.data(), norm.data(), epsilon_, rows_ * static_cast<size_t>(heads), dim_, out.data());
    }
    ParallelFor(rows_, [&](size_t t) { kernels::ApplyRope(model_.rope_, positions[t], heads, &out[t * width]); });
  }
  absl::Status AddDelta() {
    if (model_.group_.size > 1) PERIGEE_RETURN_IF_ERROR(model_.group_.all_reduce_sum(delta_));
    kernels::AddInPlace(x.data(), delta_.data(), x.size());
    return absl::OkStatus();
  }

  const Transformer& model_;
  const size_t rows_, hidden_, dim_, ffn_;
  const float epsilon_;
  std::vector<float> delta_, gate_, up_;
};

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

  Pass pass(*this, n);
  const size_t q_width = pass.q_width(), kv_width = pass.kv_width();
  std::vector<float> keys, values;
  // Queries by layer: kept for later layers where a cache asks for them, else dropped after their layer.
  std::vector<std::vector<float>> queries(static_cast<size_t>(config_.layers));
  std::vector<const float*> query_pointers(static_cast<size_t>(config_.layers), nullptr);

  for (const Rows& rows : live) pass.Embed(rows.begin, rows.item->tokens);
  for (int l = 0; l < config_.layers; ++l) {
    std::vector<float>& q = queries[static_cast<size_t>(l)];
    pass.NormInput(l);
    pass.Queries(l, positions, q);
    pass.Keys(l, positions, keys);
    pass.Values(l, values);

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
      if (status.ok()) status = cache.Attend(l, at, query_pointers, &pass.attended[rows.begin * q_width]);
      keeps_queries = keeps_queries || cache.KeepsQueriesOf(l);
    }
    if (!keeps_queries) q = {};
    PERIGEE_RETURN_IF_ERROR(pass.Finish(l));
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
    std::memmove(&pass.x[wanted * hidden], &pass.x[(rows.begin + rows.count - rows.wanted) * hidden],
                 rows.wanted * hidden * sizeof(float));
    wanted += rows.wanted;
  }
  if (wanted == 0) return absl::OkStatus();
  const size_t vocab = static_cast<size_t>(config_.vocab);
  kernels::RmsNorm(pass.x.data(), weights_.final_norm.data(), static_cast<float>(config_.rms_norm_eps), wanted, hidden,
                   pass.normed.data());
  std::vector<float> logits(wanted * vocab);
  kernels::Gemm(pass.normed.data(), wanted, hidden, weights_.head().data(), vocab, nullptr, logits.data());
  size_t row = 0;
  for (const Rows& rows : live) {
    if (rows.wanted == 0) continue;
    rows.item->logits->assign(&logits[row * vocab], &logits[row * vocab] + rows.wanted * vocab);
    row += rows.wanted;
  }
  return absl::OkStatus();
}

absl::Status Transformer::SecondLayerValues(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                                            KvCache& cache, std::vector<float>* values) const {
  PERIGEE_RETURN_IF_ERROR(Check(tokens, positions));
  if (config_.layers < 2) return absl::FailedPreconditionError("the model has one layer");
  Pass pass(*this, tokens.size());
  std::vector<float> queries;
  pass.Embed(0, tokens);
  pass.NormInput(0);
  pass.Queries(0, positions, queries);
  const float* of_layer = queries.data();
  PERIGEE_RETURN_IF_ERROR(cache.Attend(0, positions, std::span(&of_layer, 1), pass.attended.data()));
  PERIGEE_RETURN_IF_ERROR(pass.Finish(0));
  pass.NormInput(1);
  pass.Values(1, *values);
  return absl::OkStatus();
}

}  // namespace perigee::model
