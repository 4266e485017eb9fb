// perigee context eval: what the reuse of contexts costs in answers, by each repair, and which one a model's contexts
// get where a request does not say. In this process, without a cluster.
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/command.h"
#include "cluster/cli/console.h"
#include "cluster/cli/exit_code.h"
#include "model/calibration_samples.h"
#include "model/context_measure.h"
#include "model/context_samples.h"
#include "model/measured_repair.h"
#include "model/served_model.h"

namespace perigee::cli {
namespace {

using model::Repair;
using model::RepairFigures;

struct Options {
  std::string model_folder = DefaultModelFolder();
  std::string plan_file;
  std::string text_file;
  std::string out_file;
  std::string document_tokens = "160-400";
  std::string documents = "2-8";
  std::vector<std::string> repairs = {
      "none",          "prefix:8",       "prefix:16",     "prefix:32",        "deviation:0.05",
      "deviation:0.1", "deviation:0.15", "deviation:0.3", "parallel:0.9:0.9", "parallel:1:1"};
  model::ContextSampleOptions samples;
  int block_tokens = 64;
  double threshold = 0.95;
  bool write_default = false;
  bool json = false;
};

constexpr size_t kMaxTextBytes = size_t{32} << 20;

absl::Status ParseRange(const char* option, const std::string& text, int* low, int* high) {
  const std::vector<std::string> ends = absl::StrSplit(text, '-');
  if (ends.size() > 2 || !absl::SimpleAtoi(ends.front(), low) || !absl::SimpleAtoi(ends.back(), high)) {
    return UsageError(absl::StrCat(option, " '", text, "' is not LOW-HIGH, as in 2-8"));
  }
  return absl::OkStatus();
}

// "full" is measured anyway: it is what the others are compared with.
absl::StatusOr<std::vector<RepairFigures>> ParseRepairs(const std::vector<std::string>& texts) {
  std::vector<RepairFigures> figures;
  for (const std::string& text : texts) {
    const absl::StatusOr<Repair> repair = Repair::Parse(text);
    if (!repair.ok()) return UsageError(std::string(repair.status().message()));
    if (repair->kind == model::RepairKind::kFull) continue;
    for (const RepairFigures& before : figures) {
      if (before.repair == *repair) return UsageError(absl::StrCat("the repair ", text, " is given twice"));
    }
    figures.push_back({.repair = *repair});
  }
  return figures;
}

absl::StatusOr<std::string> Prose(const Options& o) {
  if (!o.text_file.empty()) return ReadFile(o.text_file, kMaxTextBytes);
  std::fprintf(stderr, "perigee: no --text: documents of generated filler, which is easier to read than real prose\n");
  return model::FillerProse(o.samples.seed, 200000);
}

std::string Rate(int64_t count, int64_t of) {
  const model::Interval interval = model::WilsonInterval(count, of);
  return absl::StrFormat("%5.1f %% (%.1f-%.1f)",
                         of > 0 ? 100.0 * static_cast<double>(count) / static_cast<double>(of) : 0.0,
                         100 * interval.low, 100 * interval.high);
}

Json IntervalJson(int64_t count, int64_t of) {
  const model::Interval interval = model::WilsonInterval(count, of);
  return Json::array({interval.low, interval.high});
}

Json RowJson(const RepairFigures& row) {
  return {{"repair", row.repair.ToString()},
          {"right", row.right},
          {"accuracy", row.accuracy()},
          {"accuracy_95", IntervalJson(row.right, row.questions)},
          {"agreed", row.agreed},
          {"agreement", row.agreement()},
          {"agreement_95", IntervalJson(row.agreed, row.questions)},
          {"kl", row.kl()},
          {"max_logit_difference", row.max_logit},
          {"prompt_tokens", row.prompt_tokens},
          {"computed_tokens", row.computed_tokens},
          {"computed_share", row.computed_share()}};
}

absl::Status Run(Options o) {
  const absl::Time start = absl::Now();
  PERIGEE_RETURN_IF_ERROR(
      ParseRange("--document-tokens", o.document_tokens, &o.samples.min_tokens, &o.samples.max_tokens));
  PERIGEE_RETURN_IF_ERROR(ParseRange("--documents", o.documents, &o.samples.min_documents, &o.samples.max_documents));
  PERIGEE_ASSIGN_OR_RETURN(std::vector<RepairFigures> rows, ParseRepairs(o.repairs));
  PERIGEE_ASSIGN_OR_RETURN(
      const std::unique_ptr<model::ServedModel> served,
      model::ServedModel::Load({.folder = o.model_folder, .plan_file = o.plan_file, .block_tokens = o.block_tokens}));
  PERIGEE_ASSIGN_OR_RETURN(const std::string prose, Prose(o));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<model::ContextSample> samples,
                           model::MakeContextSamples(served->tokenizer(), prose, o.samples));
  RepairFigures full;
  {
    ProgressBar bar("questions");
    for (size_t i = 0; i < samples.size(); ++i) {
      bar.Set(i, samples.size());
      PERIGEE_RETURN_IF_ERROR(
          Annotate(model::MeasureQuestion(*served, samples[i], full, rows), absl::StrCat("question ", i)));
    }
    bar.Set(samples.size(), samples.size());
  }
  const Repair chosen = model::ChooseRepair(full, rows, o.threshold);
  rows.push_back(full);

  Json json = {{"model", served->name()},
               {"model_fingerprint", ToHex(served->fingerprint())},
               {"plan_id", ToHex(served->plan().id())},
               {"text", o.text_file.empty() ? "generated filler" : o.text_file},
               {"questions", o.samples.questions},
               {"seed", o.samples.seed},
               {"documents", {o.samples.min_documents, o.samples.max_documents}},
               {"document_tokens", {o.samples.min_tokens, o.samples.max_tokens}},
               {"cut_share", o.samples.cut_share},
               {"titles", o.samples.titles},
               {"block_tokens", o.block_tokens},
               {"threshold", o.threshold},
               {"repair", chosen.ToString()},
               {"measured", Json::array()},
               {"wall_s", absl::ToDoubleSeconds(absl::Now() - start)}};
  Table table({"REPAIR", ">RIGHT (95 %)", ">AS IN FULL (95 %)", ">KL", ">LOGIT", ">COMPUTED"});
  for (const RepairFigures& row : rows) {
    json["measured"].push_back(RowJson(row));
    table.Add({row.repair.ToString(), Rate(row.right, row.questions), Rate(row.agreed, row.questions),
               absl::StrFormat("%.4f", row.kl()), absl::StrFormat("%.2f", row.max_logit),
               absl::StrFormat("%.1f %%", 100 * row.computed_share())});
  }
  if (!o.out_file.empty()) PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(o.out_file, absl::StrCat(json.dump(2), "\n")));
  std::string written;
  if (o.write_default) {
    written = absl::StrCat(o.model_folder, "/", model::kMeasuredRepairFile);
    const model::MeasuredRepair measured{.model_fingerprint = served->fingerprint(),
                                         .plan_id = served->plan().id(),
                                         .repair = chosen,
                                         .threshold = o.threshold,
                                         .questions = full.questions,
                                         .seed = o.samples.seed,
                                         .measured = rows};
    PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(written, measured.ToJson()));
  }
  if (2 * full.right < full.questions) {
    std::fprintf(stderr, "perigee: the model answers %lld of %lld questions over the plain prompt: they tell nothing\n",
                 static_cast<long long>(full.right), static_cast<long long>(full.questions));
  }
  if (o.json) {
    PrintJson(json);
    return absl::OkStatus();
  }
  std::printf("%s: %lld questions over %s documents of about %s tokens, seed %llu\n\n", served->name().c_str(),
              static_cast<long long>(full.questions), o.documents.c_str(), o.document_tokens.c_str(),
              static_cast<unsigned long long>(o.samples.seed));
  table.Print();
  std::printf("\ndefault at %.0f %% of full's right answers: %s\n", 100 * o.threshold, chosen.ToString().c_str());
  if (!written.empty()) std::printf("written to %s\n", written.c_str());
  return absl::OkStatus();
}

}  // namespace

void AddContextEval(CLI::App& context_group, Action& action) {
  CLI::App* verb = context_group.add_subcommand(
      "eval", "Measure what the reuse of contexts costs in answers, and choose a model's default repair");
  auto o = std::make_shared<Options>();
  o->samples.cut_share = 0.25;
  verb->add_option("--model", o->model_folder, "Model folder")->capture_default_str();
  verb->add_option("--plan", o->plan_file, "A plan file, or 'identity' (default: the model's plan.json)");
  verb->add_option("--block-tokens", o->block_tokens, "As served")->capture_default_str();
  verb->add_option("--text", o->text_file, "Prose for the documents; without it, generated filler");
  verb->add_option("--questions", o->samples.questions, "How many")
      ->capture_default_str()
      ->check(CLI::Range(1, 100000));
  verb->add_option("--documents", o->documents, "A question's, LOW-HIGH")->capture_default_str();
  verb->add_option("--document-tokens", o->document_tokens, "Of each document, about, LOW-HIGH")->capture_default_str();
  verb->add_flag("--titles", o->samples.titles, "Put 'Document 1:' and so on in front of each, as text");
  verb->add_option("--cut", o->samples.cut_share,
                   "Share of the questions whose answer begins a document and is named at the end of the one before")
      ->capture_default_str()
      ->check(CLI::Range(0.0, 1.0));
  verb->add_option("--repair", o->repairs, "What to measure (repeat it)")->capture_default_str();
  verb->add_option("--threshold", o->threshold, "Share of the plain prompt's right answers that a default must keep")
      ->capture_default_str()
      ->check(CLI::Range(0.5, 1.0));
  verb->add_option("--seed", o->samples.seed, "Of documents, keys and places")
      ->capture_default_str()
      ->check(CLI::Range(uint64_t{0}, uint64_t{1} << 62));
  verb->add_flag("--write-default", o->write_default, "Write context_repair.json into the model folder");
  verb->add_option("--out", o->out_file, "Write the figures to this file, as JSON");
  verb->add_flag("--json", o->json, "Print the figures as JSON");
  verb->callback([o, &action] { action = [o] { return Run(*o); }; });
}

}  // namespace perigee::cli
