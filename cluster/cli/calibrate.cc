// perigee model calibrate: chooses a sharing plan for a model by what it costs on calibration texts.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/command.h"
#include "cluster/cli/exit_code.h"
#include "model/calibration_samples.h"
#include "model/calibration_search.h"
#include "model/calibration_similarity.h"
#include "model/served_model.h"
#include "pod/layout.h"

namespace perigee::cli {
namespace {

using Json = nlohmann::ordered_json;
using model::CalibrationLoss;
using model::CalibrationSample;

struct Options {
  std::string model_folder = DefaultModelFolder();
  std::string method = "measured";
  std::string plan_file;  // With "given".
  std::string text_file;
  std::string out_file;
  std::string sharing = "key";
  std::string codec = "bf16";
  std::string window;  // "SINK+RECENT".
  int sink_tokens = -1;
  int recent_tokens = -1;
  int block_tokens = 64;
  int samples = 8;
  int recall_samples = 8;
  int held_samples = 16;
  int sample_tokens = 0;
  int rows = 64;
  uint64_t seed = 1;
  int64_t tokens = 4096;
  double threshold = 0.5;
  int followers = -1;
  int lead_layers = 0;
  int leads_tried = 2;
  bool no_near_only = false;
  double budget_nll = 0.01;
  double budget_recall_nll = 0.02;
  bool json = false;
};

constexpr size_t kMaxTextBytes = size_t{32} << 20;

// Progress on a terminal, silence in a pipe.
class ProgressLine {
 public:
  ProgressLine() : shown_(::isatty(STDERR_FILENO) != 0) {}
  ~ProgressLine() { Clear(); }
  void Show(const std::string& text) {
    if (!shown_) return;
    std::fprintf(stderr, "\r\033[K%s", text.c_str());
    std::fflush(stderr);
    dirty_ = true;
  }
  void Clear() {
    if (dirty_) std::fprintf(stderr, "\r\033[K");
    dirty_ = false;
  }

 private:
  const bool shown_;
  bool dirty_ = false;
};

std::string SlotName(pod::SlotId id) { return absl::StrCat("L", id.layer, "h", id.kv_head); }

std::string Describe(const model::SearchStep& step) {
  return step.role == pod::Role::kNearOnly ? absl::StrCat(SlotName(step.slot), " near-only")
                                           : absl::StrCat(SlotName(step.slot), " follows ", SlotName(step.lead));
}

absl::Status ParseWindow(const Options& o, pod::Window* window) {
  if (!o.window.empty()) {
    const size_t plus = o.window.find('+');
    const absl::string_view text(o.window);
    if (plus == std::string::npos || !absl::SimpleAtoi(text.substr(0, plus), &window->sink_tokens) ||
        !absl::SimpleAtoi(text.substr(plus + 1), &window->recent_tokens)) {
      return UsageError(absl::StrCat("--window '", o.window, "' is not SINK+RECENT, as in 16+4096"));
    }
  }
  if (o.sink_tokens >= 0) window->sink_tokens = o.sink_tokens;
  if (o.recent_tokens >= 0) window->recent_tokens = o.recent_tokens;
  return pod::ValidateWindow(*window);
}

// Everything that the methods share.
struct Setting {
  std::unique_ptr<model::ServedModel> served;
  pod::Window window;
  pod::Sharing sharing = pod::Sharing::kKey;
  pod::Codec codec = pod::Codec::kBf16;
  int sample_tokens = 0;
  std::vector<CalibrationSample> samples, held;
  std::string text_name;
};

absl::StatusOr<Setting> Prepare(const Options& o, ProgressLine& progress) {
  Setting s;
  progress.Show("reading the model");
  const bool given = o.method == "given";
  if (given == o.plan_file.empty()) {
    return UsageError(given ? "--method given needs --plan FILE" : "--plan is for --method given");
  }
  PERIGEE_ASSIGN_OR_RETURN(s.served, model::ServedModel::Load({.folder = o.model_folder,
                                                               .plan_file = given ? o.plan_file : "identity",
                                                               .block_tokens = o.block_tokens}));
  const model::ModelConfig& config = s.served->transformer().config();
  if (given) {
    s.window = s.served->plan().window();
  } else {
    s.window.recent_tokens = std::clamp(config.max_positions / 32, 1, 4096);
    PERIGEE_RETURN_IF_ERROR(ParseWindow(o, &s.window));
    s.sharing = o.sharing == "score" ? pod::Sharing::kScore : pod::Sharing::kKey;
    s.codec = *pod::CodecFromName(o.codec);
  }
  s.sample_tokens =
      o.sample_tokens > 0
          ? o.sample_tokens
          : static_cast<int>(std::min<int64_t>(config.max_positions, int64_t{8} * s.window.recent_tokens));
  if (s.sample_tokens > config.max_positions) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--sample-tokens ", s.sample_tokens, " is past the model's context of ", config.max_positions, " tokens"));
  }

  progress.Show("preparing samples");
  std::string text;
  if (o.text_file.empty()) {
    s.text_name = "generated filler";
    text = model::FillerProse(o.seed, static_cast<size_t>(s.sample_tokens) * 40);
    std::fprintf(stderr, "perigee: no --text: calibrating on generated filler, which says little about real prose\n");
  } else {
    s.text_name = o.text_file;
    PERIGEE_ASSIGN_OR_RETURN(text, ReadFile(o.text_file, kMaxTextBytes));
  }
  text = absl::StrReplaceAll(text, {{"\r", ""}, {"\n", " "}});
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, s.served->tokenizer().Encode(text, /*add_bos=*/false));
  // The last third is held out: what is chosen on the rest is judged there.
  std::span<const int32_t> used(ids), held;
  if (o.held_samples > 0) {
    const size_t cut = ids.size() - ids.size() / 3;
    if (ids.size() - cut < static_cast<size_t>(s.sample_tokens)) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the text has ", ids.size(), " tokens; its last third is held out for the check and must hold a sample of ",
          s.sample_tokens,
          " tokens: give a longer text, take shorter samples, or leave the check out with --held-samples 0"));
    }
    used = std::span(ids).first(cut);
    held = std::span(ids).subspan(cut);
  }
  model::CalibrationSampleOptions options;
  options.prose = o.samples;
  options.recall = o.recall_samples;
  options.sample_tokens = s.sample_tokens;
  options.window = s.window;
  options.block_tokens = o.block_tokens;
  options.seed = o.seed;
  PERIGEE_ASSIGN_OR_RETURN(s.samples, model::MakeCalibrationSamples(s.served->tokenizer(), used, options));
  if (o.held_samples > 0) {
    options.prose = std::max(1, o.held_samples / 4);
    options.recall = o.held_samples;
    options.seed = o.seed ^ 0x68656C64;  // Other names, digits and places.
    PERIGEE_ASSIGN_OR_RETURN(s.held, model::MakeCalibrationSamples(s.served->tokenizer(), held, options));
  }
  return s;
}

Json LossJson(const CalibrationLoss& loss) {
  return {{"prose_nll", loss.prose_nll},
          {"recall_nll", loss.recall_nll},
          {"recall_right", loss.recall_right},
          {"recall_total", loss.recall_total}};
}

Json StepJson(const model::SearchStep& step, double dense_bytes) {
  Json json = {{"layer", step.slot.layer},
               {"kv_head", step.slot.kv_head},
               {"role", step.role == pod::Role::kNearOnly ? "near-only" : "follower"}};
  if (step.role == pod::Role::kFollower) {
    json["lead"] = {step.lead.layer, step.lead.kv_head};
    json["similarity"] = step.similarity;
  }
  json["predicted_saving"] = step.predicted_saving;
  json["bytes_saved"] = static_cast<int64_t>(step.predicted_saving * dense_bytes);
  json["loss"] = LossJson(step.loss);
  json["accepted"] = step.accepted;
  return json;
}

std::string RolesOf(const pod::Plan& plan, int kv_head) {
  std::string text;
  for (int l = 0; l < plan.shape().layers; ++l) {
    const pod::Slot& slot = plan.slot(l, kv_head);
    absl::StrAppend(&text, l == 0 ? "" : " ");
    if (slot.role == pod::Role::kLead) {
      text += "lead";
    } else if (slot.role == pod::Role::kNearOnly) {
      text += "near";
    } else {
      text += SlotName(slot.lead);
    }
  }
  return text;
}

void PrintLossRow(const char* name, double saving, double dense_bytes, const CalibrationLoss& loss,
                  const CalibrationLoss& dense) {
  std::printf("%-28s %7.1f %% %12.0f   %.4f %+.4f   %.4f %+.4f   %2d/%d\n", name, 100 * saving, saving * dense_bytes,
              loss.prose_nll, loss.prose_nll - dense.prose_nll, loss.recall_nll, loss.recall_nll - dense.recall_nll,
              loss.recall_right, loss.recall_total);
}

void PrintTableHead() {
  std::printf("%-28s %9s %12s   %-14s   %-14s   %s\n", "", "saved", "bytes saved", "prose nll", "recall nll", "recall");
}

absl::Status Run(const Options& o) {
  ProgressLine progress;
  const absl::Time start = absl::Now();
  PERIGEE_ASSIGN_OR_RETURN(const Setting s, Prepare(o, progress));
  const model::Transformer& transformer = s.served->transformer();
  const pod::KvShape shape = transformer.kv_shape();
  const auto loss_of = [&](const pod::Plan& plan) {
    return model::MeasureLoss(transformer, plan, o.block_tokens, s.samples);
  };

  Json json;
  std::optional<pod::Plan> plan;
  std::optional<model::SearchResult> searched;
  double threshold = o.threshold;
  PERIGEE_ASSIGN_OR_RETURN(const pod::Plan identity,
                           pod::Plan::Identity(shape, s.window, s.served->fingerprint(), s.codec));
  if (o.method == "given") {
    plan = s.served->plan();
  } else {
    progress.Show(absl::StrCat("measuring attention similarity on ", s.samples.size(), " samples"));
    model::SimilarityOptions similarity;
    similarity.window = s.window;
    similarity.block_tokens = o.block_tokens;
    similarity.sharing = s.sharing;
    similarity.codec = s.codec;
    similarity.rows = o.rows;
    PERIGEE_ASSIGN_OR_RETURN(const model::SimilarityTable table,
                             model::MeasureSimilarity(transformer, s.samples, similarity));
    for (int l = 0; l < shape.layers; ++l) {
      for (int h = 0; h < shape.kv_heads; ++h) {
        Json row = {
            {"layer", l}, {"kv_head", h}, {"distant_mass", table.distant_mass({l, h})}, {"leads", Json::array()}};
        for (const pod::SlotId lead : table.LeadsBySimilarity({l, h})) {
          row["leads"].push_back({lead.layer, lead.kv_head, table.at({l, h}, lead)});
        }
        json["similarity"].push_back(std::move(row));
      }
    }
    if (o.method == "similarity") {
      if (o.followers >= 0) {
        PERIGEE_ASSIGN_OR_RETURN(threshold, model::ThresholdForFollowers(table, o.followers, o.lead_layers));
      }
      PERIGEE_ASSIGN_OR_RETURN(plan, pod::Plan::Create(shape, s.window, s.sharing, s.codec,
                                                       model::GreedyRuns(table, threshold, o.lead_layers, s.codec),
                                                       s.served->fingerprint()));
      json["threshold"] = threshold;
    } else {
      model::SearchOptions search;
      search.window = s.window;
      search.block_tokens = o.block_tokens;
      search.sharing = s.sharing;
      search.codec = s.codec;
      search.model_fingerprint = s.served->fingerprint();
      search.saving_at_tokens = o.tokens;
      search.leads_tried = o.leads_tried;
      search.allow_near_only = !o.no_near_only;
      search.budget_nll = o.budget_nll;
      search.budget_recall_nll = o.budget_recall_nll;
      PERIGEE_ASSIGN_OR_RETURN(searched, model::SearchPlan(table, search, loss_of, [&](int done, int total) {
                                 progress.Show(absl::StrFormat("measuring plans: %d of at most %d", done, total));
                               }));
      plan = searched->plan;
    }
  }

  progress.Show("checking the plan");
  PERIGEE_ASSIGN_OR_RETURN(const pod::Layout layout, pod::Layout::Create(*plan, o.block_tokens));
  const double saving = layout.PredictedSaving(o.tokens);
  const double dense_bytes = static_cast<double>(layout.dense_bytes_per_token()) * static_cast<double>(o.tokens);
  CalibrationLoss dense, loss, held_dense, held_loss;
  if (searched) {
    dense = searched->dense;
    loss = searched->loss;
  } else {
    PERIGEE_ASSIGN_OR_RETURN(dense, loss_of(identity));
    PERIGEE_ASSIGN_OR_RETURN(loss, loss_of(*plan));
  }
  if (!s.held.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(held_dense, model::MeasureLoss(transformer, identity, o.block_tokens, s.held));
    PERIGEE_ASSIGN_OR_RETURN(held_loss, model::MeasureLoss(transformer, *plan, o.block_tokens, s.held));
  }
  progress.Clear();
  if (2 * dense.recall_right < dense.recall_total || dense.recall_total == 0) {
    std::fprintf(stderr, "perigee: the dense model answers %d of %d pass keys: recall guards nothing here\n",
                 dense.recall_right, dense.recall_total);
  }
  if (!o.out_file.empty()) PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(o.out_file, plan->ToJson()));
  const double wall_s = absl::ToDoubleSeconds(absl::Now() - start);

  if (o.json) {
    json["model"] = s.served->name();
    json["method"] = o.method;
    json["sharing"] = plan->sharing() == pod::Sharing::kKey ? "key" : "score";
    json["text"] = s.text_name;
    json["seed"] = o.seed;
    json["prose_samples"] = o.samples;
    json["recall_samples"] = o.recall_samples;
    json["sample_tokens"] = s.sample_tokens;
    json["sink_tokens"] = s.window.sink_tokens;
    json["recent_tokens"] = s.window.recent_tokens;
    json["block_tokens"] = o.block_tokens;
    json["tokens"] = o.tokens;
    json["dense_bytes"] = static_cast<int64_t>(dense_bytes);
    json["predicted_saving"] = saving;
    json["leads"] = plan->CountRole(pod::Role::kLead);
    json["followers"] = plan->CountRole(pod::Role::kFollower);
    json["near_only"] = plan->CountRole(pod::Role::kNearOnly);
    json["dense"] = LossJson(dense);
    json["loss"] = LossJson(loss);
    if (!s.held.empty()) {
      json["held_dense"] = LossJson(held_dense);
      json["held_loss"] = LossJson(held_loss);
    }
    if (searched) {
      json["budget_nll"] = o.budget_nll;
      json["budget_recall_nll"] = o.budget_recall_nll;
      json["trials"] = Json::array();
      json["steps"] = Json::array();
      for (const model::SearchStep& trial : searched->trials) json["trials"].push_back(StepJson(trial, dense_bytes));
      for (const model::SearchStep& step : searched->steps) json["steps"].push_back(StepJson(step, dense_bytes));
    }
    json["plan_id"] = ToHex(plan->id());
    json["plan"] = Json::parse(plan->ToJson(), nullptr, /*allow_exceptions=*/false);
    json["wall_s"] = wall_s;
    std::printf("%s\n", json.dump(2).c_str());
    return absl::OkStatus();
  }

  std::printf(
      "%s: %d layers x %d kv heads; window %d + %d, blocks of %d; %s sharing; %d prose and %d recall samples of %d "
      "tokens from %s\n",
      s.served->name().c_str(), shape.layers, shape.kv_heads, s.window.sink_tokens, s.window.recent_tokens,
      o.block_tokens, plan->sharing() == pod::Sharing::kKey ? "key" : "score", o.samples, o.recall_samples,
      s.sample_tokens, s.text_name.c_str());
  if (o.method == "similarity") std::printf("threshold %.3f\n", threshold);
  std::printf("saved: of the dense cache's %.0f bytes at %lld tokens\n\n", dense_bytes,
              static_cast<long long>(o.tokens));
  PrintTableHead();
  PrintLossRow("dense", 0, dense_bytes, dense, dense);
  if (searched) {
    for (const model::SearchStep& step : searched->steps) {
      if (step.accepted) PrintLossRow(Describe(step).c_str(), step.predicted_saving, dense_bytes, step.loss, dense);
    }
    for (const model::SearchStep& step : searched->steps) {
      if (!step.accepted) {
        PrintLossRow(absl::StrCat("refused: ", Describe(step)).c_str(), step.predicted_saving, dense_bytes, step.loss,
                     dense);
      }
    }
  } else {
    PrintLossRow("plan", saving, dense_bytes, loss, dense);
  }
  if (!s.held.empty()) {
    std::printf("\n%zu held-out samples, from the text's last third and other pass keys\n", s.held.size());
    PrintLossRow("dense", 0, dense_bytes, held_dense, held_dense);
    PrintLossRow("plan", saving, dense_bytes, held_loss, held_dense);
    if (held_loss.recall_right < held_dense.recall_right) {
      std::printf("WARNING: the plan answers fewer held-out pass keys than the dense model (%d against %d)\n",
                  held_loss.recall_right, held_dense.recall_right);
    }
  }
  std::printf("\nplan: %d leads, %d followers, %d near-only; predicted saving %.1f %% at %lld tokens\n",
              plan->CountRole(pod::Role::kLead), plan->CountRole(pod::Role::kFollower),
              plan->CountRole(pod::Role::kNearOnly), 100 * saving, static_cast<long long>(o.tokens));
  for (int h = 0; h < shape.kv_heads; ++h) std::printf("  kv head %d: %s\n", h, RolesOf(*plan, h).c_str());
  if (!o.out_file.empty()) std::printf("written to %s\n", o.out_file.c_str());
  std::printf("%.1f s\n", wall_s);
  return absl::OkStatus();
}

}  // namespace

void AddCalibrate(CLI::App& model, Action& action) {
  CLI::App* verb = model.add_subcommand(
      "calibrate", "Choose which slots of a model share or drop distant keys, by what it costs on texts");
  auto o = std::make_shared<Options>();
  verb->add_option("--model", o->model_folder, "Model folder")->capture_default_str();
  verb->add_option(
          "--method", o->method,
          "measured: by the rise of loss; similarity: by attention similarity, the paper's; given: only measure --plan")
      ->capture_default_str()
      ->check(CLI::IsMember({"measured", "similarity", "given"}));
  verb->add_option("--text", o->text_file,
                   "Prose to calibrate on; without it, generated filler, which gives poor figures");
  verb->add_option("--out", o->out_file, "Write the plan to this file");
  verb->add_option("--plan", o->plan_file, "With --method given: a plan file, or 'identity'");
  verb->add_option("--sharing", o->sharing,
                   "key: a follower's own query meets its lead's keys; score: the lead's query does")
      ->capture_default_str()
      ->check(CLI::IsMember({"key", "score"}));
  verb->add_option("--codec", o->codec, "bf16 or fp16")->capture_default_str()->check(CLI::IsMember({"bf16", "fp16"}));
  verb->add_option("--window", o->window,
                   "SINK+RECENT tokens; default: 16 + a 32nd of the model's context, at most 4096");
  verb->add_option("--sink-tokens", o->sink_tokens, "The window's first part")->check(CLI::NonNegativeNumber);
  verb->add_option("--recent-tokens", o->recent_tokens, "The window's last part")->check(CLI::PositiveNumber);
  verb->add_option("--block-tokens", o->block_tokens, "As served: 16, 32, 64 or 128")->capture_default_str();
  verb->add_option("--samples", o->samples, "Prose samples")->capture_default_str()->check(CLI::Range(1, 4096));
  verb->add_option("--recall-samples", o->recall_samples, "Pass-key samples")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  verb->add_option("--held-samples", o->held_samples,
                   "Pass-key samples of the final check (and a quarter as many of prose), from the text's last third; "
                   "0: no check")
      ->capture_default_str()
      ->check(CLI::Range(0, 4096));
  verb->add_option("--sample-tokens", o->sample_tokens,
                   "Tokens of a sample; default: 8 times the recent window, within the context")
      ->check(CLI::PositiveNumber);
  verb->add_option("--rows", o->rows, "Query positions of a sample that enter the similarity: the last so many")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  verb->add_option("--seed", o->seed, "Of the samples")->capture_default_str();
  verb->add_option("--tokens", o->tokens, "State the saving at this many tokens")
      ->capture_default_str()
      ->check(CLI::PositiveNumber);
  CLI::Option* threshold =
      verb->add_option("--threshold", o->threshold, "similarity: least similarity to a run's lowest layer")
          ->capture_default_str()
          ->check(CLI::Range(0.0, 1.0));
  verb->add_option("--followers", o->followers, "similarity: find the threshold that makes so many slots follow")
      ->check(CLI::NonNegativeNumber)
      ->excludes(threshold);
  verb->add_option("--lead-layers", o->lead_layers, "similarity: layers below this one never follow")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--leads-tried", o->leads_tried, "measured: leads tried for a slot, the most similar first")
      ->capture_default_str()
      ->check(CLI::Range(0, 1 << 20));
  verb->add_flag("--no-near-only", o->no_near_only, "measured: only sharing, no slot that keeps nothing distant");
  verb->add_option("--budget-nll", o->budget_nll, "measured: rise of nll per prose token that may be spent")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb->add_option("--budget-recall-nll", o->budget_recall_nll,
                   "measured: rise of nll per pass-key digit that may be spent")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb->add_flag("--json", o->json, "Print one JSON object instead of text");
  verb->callback([o, &action] { action = [o] { return Run(*o); }; });
}

}  // namespace perigee::cli
