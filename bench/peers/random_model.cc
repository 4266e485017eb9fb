#include "peers/random_model.h"

#include <cmath>
#include <utility>
#include <vector>

#include "base/parallel.h"
#include "base/status.h"

namespace perigee::bench {
namespace {

// Every id is a dot: nothing here reads text.
class DotTokenizer : public model::Tokenizer {
 public:
  explicit DotTokenizer(int vocab) { tokens_.assign(static_cast<size_t>(vocab), {.bytes = ".", .used = true}); }

 protected:
  absl::Status EncodePlain(absl::string_view text, std::vector<int32_t>& ids) const override {
    return absl::UnimplementedError("prompts come as token ids");
  }
};

std::vector<float> Random(size_t rows, size_t columns) {
  std::vector<float> out(rows * columns);
  const float scale = 1 / std::sqrt(static_cast<float>(columns));
  ParallelFor(rows, [&](size_t r) {
    uint64_t state = 0x9E3779B97F4A7C15 * (r + 1) + columns;
    for (size_t c = 0; c < columns; ++c) {
      state ^= state << 13;  // xorshift64
      state ^= state >> 7;
      state ^= state << 17;
      out[r * columns + c] = scale * (static_cast<float>(state >> 40) / (1 << 23) - 1);
    }
  });
  return out;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const model::ServedModel>> MakeRandomModel(int layers, int max_positions) {
  model::ModelConfig config;
  config.layers = layers;
  config.hidden = 2048;
  config.ffn = 5632;
  config.q_heads = 32;
  config.kv_heads = 4;
  config.head_dim = 64;
  config.vocab = 32000;
  config.max_positions = max_positions;
  PERIGEE_RETURN_IF_ERROR(model::Validate(config));
  const auto width = [](int n) { return static_cast<size_t>(n); };
  const size_t hidden = width(config.hidden), ffn = width(config.ffn), vocab = width(config.vocab);
  const size_t q = width(config.q_heads * config.head_dim), kv = width(config.kv_heads * config.head_dim);
  model::LlamaWeights weights;
  weights.embed = Random(vocab, hidden);
  weights.lm_head = Random(vocab, hidden);
  weights.final_norm.assign(hidden, 1);
  for (int l = 0; l < config.layers; ++l) {
    model::LayerWeights& w = weights.layers.emplace_back();
    w.input_norm.assign(hidden, 1);
    w.post_norm.assign(hidden, 1);
    w.q = Random(q, hidden);
    w.k = Random(kv, hidden);
    w.v = Random(kv, hidden);
    w.o = Random(hidden, q);
    w.gate = Random(ffn, hidden);
    w.up = Random(ffn, hidden);
    w.down = Random(hidden, ffn);
  }
  auto transformer = std::make_unique<model::Transformer>(config, std::move(weights));
  PERIGEE_ASSIGN_OR_RETURN(const pod::Plan plan,
                           pod::Plan::Identity(transformer->kv_shape(), pod::Window{}, Sha256("random")));
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<model::ServedModel> model,
                           model::ServedModel::Create("random", std::move(transformer),
                                                      std::make_unique<DotTokenizer>(config.vocab), plan, 64));
  return std::shared_ptr<const model::ServedModel>(std::move(model));
}

}  // namespace perigee::bench
