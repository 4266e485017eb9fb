#include "model/dense_cache.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/codec.h"

namespace perigee::model {

DenseCache::DenseCache(const pod::Plan& plan, int round_tokens, int q_heads)
    : plan_(plan), round_tokens_(round_tokens), q_heads_(q_heads) {
  const size_t layers = static_cast<size_t>(plan.shape().layers);
  const size_t heads = static_cast<size_t>(plan.shape().kv_heads);
  cache_.keys.assign(layers, std::vector<std::vector<float>>(heads));
  cache_.values = cache_.keys;
}

bool DenseCache::KeepsQueriesOf(int layer) const { return plan_.sharing() == pod::Sharing::kScore; }

absl::Status DenseCache::Append(int layer, std::span<const int64_t> positions, const float* keys, const float* values) {
  if (positions.front() != tokens_ || positions.back() != tokens_ + static_cast<int64_t>(positions.size()) - 1) {
    return absl::InvalidArgumentError(absl::StrCat("positions ", positions.front(), " to ", positions.back(),
                                                   " do not continue a cache of ", tokens_, " tokens"));
  }
  const size_t dim = static_cast<size_t>(plan_.shape().head_dim);
  const size_t heads = static_cast<size_t>(plan_.shape().kv_heads);
  const auto append = [&](const float* row, std::vector<float>& to) {
    std::vector<float> rounded(row, row + dim);
    kernels::RoundTrip(plan_.near_codec(), rounded.data(), dim);
    to.insert(to.end(), rounded.begin(), rounded.end());
  };
  for (size_t t = 0; t < positions.size(); ++t) {
    for (size_t h = 0; h < heads; ++h) {
      append(keys + (t * heads + h) * dim, cache_.keys[static_cast<size_t>(layer)][h]);
      append(values + (t * heads + h) * dim, cache_.values[static_cast<size_t>(layer)][h]);
    }
  }
  return absl::OkStatus();
}

absl::Status DenseCache::Attend(int layer, std::span<const int64_t> positions, std::span<const float* const> queries,
                                float* out) {
  kernels::reference::Attend(plan_, round_tokens_, layer, q_heads_, cache_, tokens_, static_cast<int>(positions.size()),
                             std::vector<const float*>(queries.begin(), queries.end()), out);
  return absl::OkStatus();
}

}  // namespace perigee::model
