#include "model/weights.h"

#include <cmath>
#include <string>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "base/parallel.h"
#include "base/status.h"

namespace perigee::model {
namespace {

// Which part of a tensor a tensor-parallel rank has.
enum class Split { kWhole, kRows, kColumns };

struct Wanted {
  std::string name;
  std::vector<int64_t> shape;  // In the checkpoint: whole.
  std::vector<float>* out;
  Split split = Split::kWhole;
};

std::vector<Wanted> WantedTensors(const ModelConfig& config, LlamaWeights& weights) {
  std::vector<Wanted> wanted;
  const int64_t hidden = config.hidden, ffn = config.ffn, vocab = config.vocab;
  const int64_t q_rows = int64_t{config.q_heads} * config.head_dim,
                kv_rows = int64_t{config.kv_heads} * config.head_dim;
  wanted.push_back({"model.embed_tokens.weight", {vocab, hidden}, &weights.embed});
  wanted.push_back({"model.norm.weight", {hidden}, &weights.final_norm});
  if (!config.tied_embeddings) wanted.push_back({"lm_head.weight", {vocab, hidden}, &weights.lm_head});
  for (int l = 0; l < config.layers; ++l) {
    LayerWeights& layer = weights.layers[static_cast<size_t>(l)];
    const std::string prefix = absl::StrCat("model.layers.", l, ".");
    const auto add = [&](const char* name, std::vector<int64_t> shape, std::vector<float>& out,
                         Split split = Split::kWhole) {
      wanted.push_back({prefix + name, std::move(shape), &out, split});
    };
    add("input_layernorm.weight", {hidden}, layer.input_norm);
    add("self_attn.q_proj.weight", {q_rows, hidden}, layer.q, Split::kRows);
    add("self_attn.k_proj.weight", {kv_rows, hidden}, layer.k, Split::kRows);
    add("self_attn.v_proj.weight", {kv_rows, hidden}, layer.v, Split::kRows);
    add("self_attn.o_proj.weight", {hidden, q_rows}, layer.o, Split::kColumns);
    if (config.qkv_bias) {
      add("self_attn.q_proj.bias", {q_rows}, layer.q_bias, Split::kRows);
      add("self_attn.k_proj.bias", {kv_rows}, layer.k_bias, Split::kRows);
      add("self_attn.v_proj.bias", {kv_rows}, layer.v_bias, Split::kRows);
    }
    if (config.o_bias) add("self_attn.o_proj.bias", {hidden}, layer.o_bias);
    if (config.qk_norm) {
      add("self_attn.q_norm.weight", {config.head_dim}, layer.q_norm);
      add("self_attn.k_norm.weight", {config.head_dim}, layer.k_norm);
    }
    add("post_attention_layernorm.weight", {hidden}, layer.post_norm);
    add("mlp.gate_proj.weight", {ffn, hidden}, layer.gate, Split::kRows);
    add("mlp.up_proj.weight", {ffn, hidden}, layer.up, Split::kRows);
    add("mlp.down_proj.weight", {hidden, ffn}, layer.down, Split::kColumns);
  }
  return wanted;
}

// A rank's part of a tensor: `rows` runs of `columns` elements, the first at element `first`, `stride` apart.
struct Part {
  int64_t rows, columns, first, stride;

  int64_t elements() const { return rows * columns; }
  int64_t IndexInTensor(int64_t i) const { return first + i / columns * stride + i % columns; }
};

Part PartOf(const Wanted& tensor, const TensorParallel& group) {
  int64_t elements = 1;
  for (const int64_t extent : tensor.shape) elements *= extent;
  switch (tensor.split) {
    case Split::kWhole:
      break;
    case Split::kRows:
      return {1, elements / group.size, elements / group.size * group.rank, elements};
    case Split::kColumns: {
      const int64_t width = tensor.shape.back(), columns = width / group.size;
      return {elements / width, columns, columns * group.rank, width};
    }
  }
  return {1, elements, 0, elements};
}

// out[part.elements()].
void LoadPart(const TensorView& view, const Part& part, std::span<float> out) {
  const size_t element_bytes = DtypeBytes(view.dtype), columns = static_cast<size_t>(part.columns);
  TensorView run = view;
  run.shape = {part.columns};
  run.elements = part.columns;
  for (int64_t r = 0; r < part.rows; ++r) {
    run.bytes =
        view.bytes.subspan(static_cast<size_t>(part.first + r * part.stride) * element_bytes, columns * element_bytes);
    ConvertToFloat(run, out.subspan(static_cast<size_t>(r) * columns, columns));
  }
}

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

}  // namespace

absl::StatusOr<LlamaWeights> LoadWeights(const ModelConfig& config, const Checkpoint& checkpoint,
                                         const TensorParallel& group) {
  PERIGEE_RETURN_IF_ERROR(Validate(config));
  PERIGEE_RETURN_IF_ERROR(Validate(config, group));
  LlamaWeights weights;
  weights.layers.resize(static_cast<size_t>(config.layers));
  const std::vector<Wanted> wanted = WantedTensors(config, weights);

  // Everything is checked before anything is allocated: a config that promises more than the file holds costs nothing.
  absl::flat_hash_set<std::string> known;
  std::vector<std::string> missing;
  for (const Wanted& tensor : wanted) {
    known.insert(tensor.name);
    const TensorView* view = checkpoint.Find(tensor.name);
    if (view == nullptr) {
      missing.push_back(tensor.name);
    } else if (view->shape != tensor.shape) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor \"", tensor.name, "\" has shape ",
                                                     ShapeText(view->shape), "; by config.json it must be ",
                                                     ShapeText(tensor.shape)));
    }
  }
  if (!missing.empty()) {
    const size_t count = missing.size();
    if (count > 8) missing.resize(8);
    return absl::InvalidArgumentError(absl::StrCat(
        checkpoint.folder(), " lacks ", count, " tensor(s) that config.json asks for: ", absl::StrJoin(missing, ", "),
        count > missing.size() ? ", ..." : ""));
  }
  for (const auto& [name, view] : checkpoint.tensors()) {
    // Old exports carry rope's frequencies; tied models may carry the head once more.
    if (known.contains(name) || absl::EndsWith(name, "rotary_emb.inv_freq")) continue;
    if (config.tied_embeddings && name == "lm_head.weight") continue;
    return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor \"", name, "\" ",
                                                   ShapeText(view.shape),
                                                   " has no place in the model that config.json describes"));
  }

  std::vector<int64_t> bad_index(wanted.size(), -1);
  ParallelFor(wanted.size(), [&](size_t i) {
    const TensorView& view = *checkpoint.Find(wanted[i].name);
    std::vector<float>& out = *wanted[i].out;
    const Part part = PartOf(wanted[i], group);
    out.resize(static_cast<size_t>(part.elements()));
    LoadPart(view, part, out);
    for (size_t j = 0; j < out.size(); ++j) {
      if (!std::isfinite(out[j])) {
        bad_index[i] = static_cast<int64_t>(j);
        break;
      }
    }
  });
  for (size_t i = 0; i < wanted.size(); ++i) {
    if (bad_index[i] >= 0) {
      return absl::InvalidArgumentError(absl::StrCat(checkpoint.folder(), ": tensor \"", wanted[i].name, "\" holds ",
                                                     (*wanted[i].out)[static_cast<size_t>(bad_index[i])],
                                                     " at element ",
                                                     PartOf(wanted[i], group).IndexInTensor(bad_index[i])));
    }
  }
  return weights;
}

}  // namespace perigee::model
