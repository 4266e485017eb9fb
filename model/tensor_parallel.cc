#include "model/tensor_parallel.h"

#include "absl/strings/str_cat.h"

namespace perigee::model {

absl::Status Validate(const ModelConfig& config, const TensorParallel& group) {
  if (group.size < 1 || group.rank < 0 || group.rank >= group.size) {
    return absl::InvalidArgumentError(absl::StrCat("rank ", group.rank, " of a tensor-parallel group of ", group.size));
  }
  const auto refuse = [&](const char* what, int value) {
    return absl::InvalidArgumentError(absl::StrCat("the model's ", value, " ", what, " do not divide by ", group.size,
                                                   " tensor-parallel ranks: choose a size that divides its ",
                                                   config.kv_heads, " kv heads and its MLP's width of ", config.ffn));
  };
  if (config.kv_heads % group.size != 0) return refuse("kv heads", config.kv_heads);  // q_heads is a multiple of them.
  if (config.ffn % group.size != 0) return refuse("MLP channels", config.ffn);
  if (group.size > 1 && !group.all_reduce_sum) {
    return absl::InvalidArgumentError(absl::StrCat("a tensor-parallel group of ", group.size, " needs an all-reduce"));
  }
  return absl::OkStatus();
}

ModelConfig RankConfig(const ModelConfig& config, const TensorParallel& group) {
  ModelConfig rank = config;
  rank.q_heads /= group.size;
  rank.kv_heads /= group.size;
  rank.ffn /= group.size;
  return rank;
}

}  // namespace perigee::model
