// A model of random weights in the shape of TinyLlama 1.1B, for benchmarks that need a large model's arithmetic and
// bytes and none of its knowledge.
#ifndef PERIGEE_BENCH_PEERS_RANDOM_MODEL_H_
#define PERIGEE_BENCH_PEERS_RANDOM_MODEL_H_

#include <memory>

#include "absl/status/statusor.h"
#include "model/served_model.h"

namespace perigee::bench {

// 22 layers are the whole: 1.1 billion weights, 4.4 GB as held. Prompts come as token ids below 32,000.
absl::StatusOr<std::shared_ptr<const model::ServedModel>> MakeRandomModel(int layers, int max_positions);

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_PEERS_RANDOM_MODEL_H_
