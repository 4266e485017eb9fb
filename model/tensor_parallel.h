// A forward pass split over the ranks of a tensor-parallel group (arXiv 1909.08053, section 3).
//
// Rank r of n holds the r-th n-th of the query and key-value heads (rows of q, k, v and their biases, columns of o) and
// of the MLP (rows of gate and up, columns of down). Embedding, norms (QK-norm too: its weights are per channel, not
// per head) and the LM head are whole on every rank. After o and after down the ranks' partial sums are added: two
// all-reduces a layer, of [token][hidden] floats. Every rank ends with the same residual and the same logits.
//
// All ranks run the same passes over the same tokens in the same order, one at a time. A rank that fails leaves the
// others waiting in all_reduce_sum until its deadline.
#ifndef PERIGEE_MODEL_TENSOR_PARALLEL_H_
#define PERIGEE_MODEL_TENSOR_PARALLEL_H_

#include <functional>
#include <span>

#include "absl/status/status.h"
#include "model/config.h"

namespace perigee::model {

struct TensorParallel {
  int rank = 0;
  int size = 1;
  // Replaces the values by their sums over all ranks, the same bits on every rank. Called by the thread of Forward;
  // never with size 1. Its error ends the pass.
  std::function<absl::Status(std::span<float>)> all_reduce_sum;
};

// INVALID_ARGUMENT for a rank that is none, and where kv heads or the MLP's width do not divide by the size.
absl::Status Validate(const ModelConfig& config, const TensorParallel& group);

// The widths of one rank: q_heads, kv_heads and ffn by the size. The group is valid for the config.
ModelConfig RankConfig(const ModelConfig& config, const TensorParallel& group);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_TENSOR_PARALLEL_H_
