// perigee model inspect|fingerprint: what a model folder holds, what its plan saves, and what its blocks are named by.
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/status.h"
#include "cluster/cli/command.h"
#include "model/config.h"
#include "model/fingerprint.h"
#include "model/safetensors.h"
#include "model/served_model.h"

namespace perigee::cli {
namespace {

struct Options {
  model::ServedModelOptions model;
  std::vector<int64_t> tokens = {1024, 4096, 32768, 131072};
  bool json = false;
};

absl::Status Inspect(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<model::ServedModel> served, model::ServedModel::Load(o.model));
  const model::ModelConfig& c = served->transformer().config();
  const pod::Layout& layout = served->layout();
  const pod::Plan& plan = layout.plan();
  nlohmann::ordered_json json = {
      {"name", served->name()},
      {"family", std::string(model::FamilyName(c.family))},
      {"fingerprint", ToHex(served->fingerprint())},
      {"layers", c.layers},
      {"hidden", c.hidden},
      {"q_heads", c.q_heads},
      {"kv_heads", c.kv_heads},
      {"head_dim", c.head_dim},
      {"vocab", c.vocab},
      {"max_positions", c.max_positions},
      {"plan_id", ToHex(plan.id())},
      {"leads", plan.CountRole(pod::Role::kLead)},
      {"followers", plan.CountRole(pod::Role::kFollower)},
      {"near_only", plan.CountRole(pod::Role::kNearOnly)},
      {"sharing", plan.sharing() == pod::Sharing::kKey ? "key" : "score"},
      {"sink_tokens", plan.window().sink_tokens},
      {"recent_tokens", plan.window().recent_tokens},
      {"block_tokens", layout.block_tokens()},
      {"dense_bytes_per_token", layout.dense_bytes_per_token()},
      {"distant_plane_bytes", layout.plane_bytes(pod::PlaneKind::kDistant)},
      {"proximal_plane_bytes", layout.plane_bytes(pod::PlaneKind::kProximal)},
      {"summary_plane_bytes", layout.plane_bytes(pod::PlaneKind::kSummary)},
  };
  nlohmann::ordered_json savings = nlohmann::ordered_json::array();
  for (int64_t n : o.tokens) {
    if (n > 0) savings.push_back({{"tokens", n}, {"saving", layout.PredictedSaving(n)}});
  }
  json["predicted_savings"] = savings;
  if (o.json) {
    std::printf("%s\n", json.dump(2).c_str());
    return absl::OkStatus();
  }
  for (const auto& [name, value] : json.items()) {
    if (name == "predicted_savings") continue;
    std::printf("%-22s %s\n", name.c_str(),
                value.is_string() ? value.get<std::string>().c_str() : value.dump().c_str());
  }
  for (const auto& s : savings) {
    std::printf("predicted saving       %.1f %% of a dense cache's bytes at %lld tokens\n",
                100 * s["saving"].get<double>(), static_cast<long long>(s["tokens"].get<int64_t>()));
  }
  return absl::OkStatus();
}

absl::Status Fingerprint(const Options& o) {
  PERIGEE_ASSIGN_OR_RETURN(const model::ModelConfig config, model::ModelConfig::Load(o.model.folder));
  PERIGEE_ASSIGN_OR_RETURN(const model::Checkpoint checkpoint, model::Checkpoint::Open(o.model.folder));
  PERIGEE_ASSIGN_OR_RETURN(const model::FingerprintResult result, model::FingerprintOf(config, checkpoint));
  if (o.json) {
    std::printf("%s\n", nlohmann::ordered_json({{"folder", o.model.folder},
                                                {"fingerprint", ToHex(result.fingerprint)},
                                                {"remembered", result.remembered}})
                            .dump(2)
                            .c_str());
  } else {
    std::printf("%s\n", ToHex(result.fingerprint).c_str());
  }
  return absl::OkStatus();
}

}  // namespace

void AddModel(CLI::App& app, Action& action) {
  CLI::App* model = app.add_subcommand("model", "Look at models, and choose their sharing plans");
  model->require_subcommand(1);
  CLI::App* inspect = model->add_subcommand("inspect", "Shapes, fingerprint, plan and what the plan saves");
  auto o = std::make_shared<Options>();
  o->model.folder = DefaultModelFolder();
  inspect->add_option("folder", o->model.folder, "Model folder (Hugging Face files)")->capture_default_str();
  inspect->add_option("--plan", o->model.plan_file,
                      "Plan file, or 'identity' (default: plan.json in the folder, else identity)");
  inspect->add_option("--block-tokens", o->model.block_tokens, "16, 32, 64 or 128")->capture_default_str();
  inspect->add_option("--tokens", o->tokens, "Predict the saving at these lengths")->capture_default_str();
  inspect->add_flag("--json", o->json, "Print JSON");
  inspect->callback([o, &action] { action = [o] { return Inspect(*o); }; });
  CLI::App* fingerprint = model->add_subcommand("fingerprint", "What blocks' keys know the model by");
  fingerprint->add_option("folder", o->model.folder, "Model folder (Hugging Face files)")->capture_default_str();
  fingerprint->add_flag("--json", o->json, "Print JSON");
  fingerprint->callback([o, &action] { action = [o] { return Fingerprint(*o); }; });
  AddCalibrate(*model, action);
}

}  // namespace perigee::cli
