// perigee demo: the main job, end to end, with real processes and a real (small) model.
//
// A long text with pass keys hidden in it is asked about twice, and once more after the store's process was killed and
// started again. Then documents are registered, and asked about in other orders. Every figure is measured on the way;
// the same go to a JSON report.
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/cli/command.h"
#include "cluster/cli/demo_rag.h"
#include "cluster/client.h"
#include "cluster/local_cluster.h"
#include "pod/layout.h"
#include "pod/plan.h"

namespace perigee::cli {
namespace {

using Json = nlohmann::ordered_json;

struct Options {
  std::string model_folder = DefaultModelFolder();
  std::string plan_file;
  std::string prose_file;
  std::string state_folder = "build/demo/state";
  std::string report_file;
  std::string transports;
  size_t prose_bytes = 9600;
};

struct PassKey {
  const char* name;
  const char* digits;
  double depth;  // Where in the prose, 0..1.
};
// Asked about: the first two. All lie outside the window of the question.
constexpr PassKey kPassKeys[] = {{"Torvek", "48213", 0.31},
                                 {"Braimel", "90756", 0.62},
                                 {"Plosun", "15384", 0.12},
                                 {"Gadrin", "62907", 0.47},
                                 {"Melkot", "33591", 0.80}};

// The prose with every statement put in at the first sentence end after its depth.
absl::StatusOr<std::string> HideKeys(std::string prose, size_t bytes) {
  prose = absl::StrReplaceAll(prose, {{"\r", ""}, {"\n", " "}});
  if (prose.size() < bytes) {
    return absl::InvalidArgumentError(absl::StrCat("the prose has ", prose.size(), " bytes; the demo needs ", bytes));
  }
  prose.resize(prose.rfind('.', bytes) + 1);
  std::vector<PassKey> keys(std::begin(kPassKeys), std::end(kPassKeys));
  std::sort(keys.begin(), keys.end(), [](const PassKey& a, const PassKey& b) { return a.depth > b.depth; });
  for (const PassKey& key : keys) {  // From the back, so that earlier places stay where they are.
    const size_t end = prose.find('.', static_cast<size_t>(key.depth * static_cast<double>(prose.size())));
    if (end == std::string::npos)
      return absl::InvalidArgumentError("the prose has no sentence end where a pass key should go");
    prose.insert(end + 1, absl::StrCat(" The pass key for ", key.name, " is ", key.digits, "."));
  }
  return prose;
}

std::string Thousands(uint64_t n) {
  std::string digits = absl::StrCat(n);
  for (int i = static_cast<int>(digits.size()) - 3; i > 0; i -= 3) digits.insert(static_cast<size_t>(i), ",");
  return digits;
}

struct Question {
  const char* label;
  const char* report_name;
  PassKey key;
};

Json Report(const cluster::GenerateResult& r, const std::string& answer, const char* expected) {
  return {{"prompt_tokens", r.prefill.token_ids_size()},
          {"prefilled_tokens", r.prefill.prefilled_tokens()},
          {"fetched_tokens", r.started.fetched_tokens()},
          {"bytes_full", r.prefill.bytes_full()},
          {"bytes_stored", r.prefill.bytes_stored()},
          {"bytes_fetched", r.started.bytes_fetched()},
          {"bytes_fetched_by_prefill", r.prefill.bytes_fetched()},
          {"ttft_ms", absl::ToDoubleMilliseconds(r.time_to_first_token)},
          {"decode_tokens_per_s", r.tokens_per_s},
          {"answer", answer},
          {"expected", expected}};
}

absl::StatusOr<Json> Ask(cluster::ClusterClient& client, const std::string& context, const Question& question) {
  cluster::GenerateOptions request;
  request.segments = {context, absl::StrCat(" What is the pass key for ", question.key.name, "? ")};
  request.max_tokens = 48;
  request.ignore_eos = true;
  PERIGEE_ASSIGN_OR_RETURN(const cluster::GenerateResult r, client.Generate(request));
  const std::string answer = r.text.substr(0, r.text.find('.'));
  const auto& p = r.prefill;
  const double full = static_cast<double>(p.bytes_full());
  std::printf("\n%s\n  question        What is the pass key for %s?\n", question.label, question.key.name);
  std::printf("  answer          %s   (expected %s: %s)\n", answer.c_str(), question.key.digits,
              answer == question.key.digits ? "right" : "WRONG");
  std::printf("  prompt          %s tokens: %s computed by the prefill node, %s reused from the store\n",
              Thousands(static_cast<uint64_t>(p.token_ids_size())).c_str(), Thousands(p.prefilled_tokens()).c_str(),
              Thousands(p.reused_tokens()).c_str());
  std::printf(
      "  bytes           dense cache %s; stored %s (%.1f %% less); fetched by the decode node %s (%.1f %% less)\n",
      Thousands(p.bytes_full()).c_str(), Thousands(p.bytes_stored()).c_str(),
      100 * (1 - static_cast<double>(p.bytes_stored()) / full), Thousands(r.started.bytes_fetched()).c_str(),
      100 * (1 - static_cast<double>(r.started.bytes_fetched()) / full));
  std::printf("  fetched         %s tokens in %u planes, %u from memory, %u from disk\n",
              Thousands(r.started.fetched_tokens()).c_str(), r.started.planes_fetched(), r.started.planes_from_dram(),
              r.started.planes_from_ssd());
  if (p.bytes_fetched() > 0) {
    std::printf("  continued       from %s bytes that the prefill node fetched for itself\n",
                Thousands(p.bytes_fetched()).c_str());
  }
  std::printf("  near window     tokens 0..%" PRId64 " and %" PRId64 "..%d, after rounding to blocks\n",
              r.started.near_sink_end() - 1, r.started.near_recent_begin(), p.token_ids_size() - 1);
  std::printf("  speed           first token after %.1f ms, then %.0f tokens/s\n",
              absl::ToDoubleMilliseconds(r.time_to_first_token), r.tokens_per_s);
  std::fflush(stdout);
  return Report(r, answer, question.key.digits);
}

absl::Status Run(const Options& options) {
  PERIGEE_ASSIGN_OR_RETURN(std::string prose, ReadFile(options.prose_file, 64 << 20));
  PERIGEE_ASSIGN_OR_RETURN(const std::string context, HideKeys(prose, options.prose_bytes));

  // A demo starts from nothing: what an earlier run stored would turn its miss into a hit.
  std::error_code error;
  std::filesystem::remove_all(options.state_folder, error);
  cluster::LocalClusterOptions cluster_options;
  cluster_options.keep_planes = false;  // It shows what is fetched.
  cluster_options.gateway = true;
  cluster_options.model_folder = options.model_folder;
  cluster_options.plan_file = options.plan_file;
  cluster_options.state_folder = options.state_folder;
  cluster_options.transports = options.transports;
  PERIGEE_ASSIGN_OR_RETURN(const std::unique_ptr<cluster::LocalCluster> running,
                           cluster::LocalCluster::Start(cluster_options));
  cluster::ClusterClient client(running->addresses());
  PERIGEE_ASSIGN_OR_RETURN(const v1::NodeInfo info, client.PrefillInfo());
  PERIGEE_ASSIGN_OR_RETURN(const pod::Plan plan, pod::Plan::Parse(info.plan_json()));

  std::printf("Perigee demo: store (pid %d), prefill node (pid %d) and decode node (pid %d) are running\n",
              running->store_pid(), running->prefill_pid(), running->decode_pid());
  const int block_tokens = static_cast<int>(info.block_tokens());
  std::printf(
      "  model           %s, %d layers x %d kv heads x %d dims (its retrieval circuit was seeded: "
      "models/podling/README.md)\n",
      info.model_name().c_str(), plan.shape().layers, plan.shape().kv_heads, plan.shape().head_dim);
  std::printf(
      "  plan            %d leads, %d followers, %d near-only of %d slots; %s sharing; window %d + %d tokens, blocks "
      "of %d\n",
      plan.CountRole(pod::Role::kLead), plan.CountRole(pod::Role::kFollower), plan.CountRole(pod::Role::kNearOnly),
      plan.shape().slots(), plan.sharing() == pod::Sharing::kKey ? "key" : "score", plan.window().sink_tokens,
      plan.window().recent_tokens, block_tokens);

  const Question questions[] = {{"1. First question: nothing is stored yet", "miss", kPassKeys[0]},
                                {"2. Another question about the same text: its cache is reused", "hit", kPassKeys[1]}};
  Json report = {{"model", info.model_name()}, {"plan_saving", nullptr}, {"window", nullptr}};
  for (const Question& question : questions) {
    PERIGEE_ASSIGN_OR_RETURN(report[question.report_name], Ask(client, context, question));
  }
  const int64_t cached = report["miss"]["prompt_tokens"].get<int64_t>() - 1;
  PERIGEE_ASSIGN_OR_RETURN(const pod::Layout layout, pod::Layout::Create(plan, block_tokens));
  report["plan_saving"] = layout.PredictedSaving(cached);
  report["window"] = {{"sink_tokens", plan.window().sink_tokens},
                      {"recent_tokens", plan.window().recent_tokens},
                      {"block_tokens", block_tokens},
                      {"rounded_sink_tokens", pod::SinkEnd(plan.window(), block_tokens)},
                      {"rounded_recent_tokens", cached + 1 - pod::RecentBegin(plan.window(), block_tokens, cached)}};

  std::printf("\nKilling the store (SIGKILL) and starting it again on the same data ...\n");
  std::fflush(stdout);
  running->KillStore();
  PERIGEE_RETURN_IF_ERROR(running->StartStore());
  const Question again = {"3. The first question again: everything comes from disk", "after_restart", kPassKeys[0]};
  PERIGEE_ASSIGN_OR_RETURN(report[again.report_name], Ask(client, context, again));

  PERIGEE_ASSIGN_OR_RETURN(report["documents"],
                           AskAboutDocuments(running->addresses().gateway, info.model_name(),
                                             absl::StrReplaceAll(prose, {{"\r", ""}, {"\n", " "}})));

  PERIGEE_RETURN_IF_ERROR(running->Stop());
  std::printf("\nBy the plan's formula a cache of %" PRId64 " tokens needs %.1f %% fewer bytes than a dense one.\n",
              cached, 100 * report["plan_saving"].get<double>());
  if (!options.report_file.empty()) {
    std::filesystem::create_directories(std::filesystem::path(options.report_file).parent_path(), error);
    PERIGEE_RETURN_IF_ERROR(WriteFileAtomically(options.report_file, report.dump(2) + "\n"));
    std::printf("Report: %s\n", options.report_file.c_str());
  }
  for (const char* name : {"miss", "hit", "after_restart"}) {
    if (report[name]["answer"] != report[name]["expected"]) {
      return absl::InternalError(absl::StrCat("the answer to question '", name, "' is ", report[name]["answer"].dump(),
                                              ", expected ", report[name]["expected"].dump()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

void AddDemo(CLI::App& app, Action& action) {
  CLI::App* verb = app.add_subcommand("demo", "Show the main job: prefill, store, decode, reuse, survive a crash");
  auto o = std::make_shared<Options>();
  verb->add_option("--prose", o->prose_file, "Text to hide the pass keys in")->required();
  verb->add_option("--prose-bytes", o->prose_bytes, "How much of it")->capture_default_str();
  verb->add_option("--model", o->model_folder, "Model folder")->capture_default_str();
  verb->add_option("--plan", o->plan_file, "Plan file, or 'identity'");
  verb->add_option("--state-dir", o->state_folder, "Data and logs; emptied first")->capture_default_str();
  verb->add_option("--transports", o->transports, "UCX transports (default: UCX chooses)");
  verb->add_option("--report", o->report_file, "Write the figures as JSON");
  verb->callback([o, &action] { action = [o] { return Run(*o); }; });
}

}  // namespace perigee::cli
