// Questions about several documents that were computed before, each alone, beside the same where everything is
// computed: by what is computed again of the documents (model/repair.h).
//
// How much sooner the first token comes: one process beside a store over tcp; 1.1 billion random weights (the shape of
// TinyLlama 1.1B). How many answers are right: a small model of ours, pass keys in documents of prose, some of them cut
// in two by a document's border (docs/contexts.md; perigee context eval).
//   rag_bench [--json FILE] [--documents N] [--document-tokens N] [--question-tokens N] [--layers N] [--runs N]
//             [--questions N] [--model FOLDER] [--text FILE]
//
// The defaults take some minutes and 6 GB.
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/file.h"
#include "decode_node/decode_node.h"
#include "decode_requests.h"
#include "kvstore/server.h"
#include "model/calibration_samples.h"
#include "model/context_measure.h"
#include "model/context_samples.h"
#include "node/composed_load.h"
#include "node/node.h"
#include "peers/random_model.h"
#include "prefill_node/prefill_node.h"
#include "report.h"

namespace perigee::bench {
namespace {

constexpr const char* kTransports = "tcp";

struct Options {
  std::string json;
  int documents = 4;
  int document_tokens = 1024;
  int question_tokens = 32;
  int layers = 22;
  int runs = 3;
  int questions = 200;
  std::string model_folder = PERIGEE_SOURCE_DIR "/models/podling";
  std::string text_file;  // "": filler.
};

struct Strategy {
  const char* row;
  const char* repair;
  const char* target;
};
constexpr Strategy kStrategies[] = {{"none", "none", ">=20"},
                                    {"prefix", "prefix:16", ">=8"},
                                    {"prefix_32", "prefix:32", ""},
                                    {"deviation_15", "deviation:0.15", ">=4"},
                                    {"parallel", "parallel:0.9:0.9", ""}};

void FirstTokens(const Options& o, Report& report) {
  kvstore::ServerOptions store_options;
  store_options.port = 0;
  store_options.slab_bytes = uint64_t{1} << 30;
  store_options.transport.transports = kTransports;
  const auto store = Check(kvstore::StoreServer::Start(store_options));
  const int tokens = o.documents * o.document_tokens + o.question_tokens;
  const auto model = Check(MakeRandomModel(o.layers, tokens + 64));
  node::NodeOptions node_options;
  node_options.store_address = store->address();
  node_options.transports = kTransports;
  node_options.pool_bytes = size_t{1} << 30;
  node_options.keep_planes = false;  // Else the second run finds everything in the node itself.
  node_options.store.reservation_ttl = absl::Minutes(30);
  const auto node = Check(node::Node::Create(node_options, model));
  decode_node::DecodeNode decode(node.get());
  const prefill_node::PrefillNode prefill(node.get(), {});

  const std::vector<int32_t> opening = node::ContextOpening(model->tokenizer());
  std::vector<int32_t> ids = opening;
  std::vector<int> begins;
  for (int d = 0; d < o.documents; ++d) {
    const std::vector<int32_t> document = Prompt(o.document_tokens, static_cast<uint32_t>(10 + d));
    v1::PrefillRequest request;
    auto* to = request.add_segments()->mutable_tokens()->mutable_ids();
    to->Assign(opening.begin(), opening.end());
    to->Add(document.begin(), document.end());
    request.set_whole(true);
    request.set_no_bos(true);
    v1::PrefillResponse response;
    Check(prefill.Prefill(request, absl::InfiniteFuture(), &response));
    begins.push_back(static_cast<int>(ids.size()));
    ids.insert(ids.end(), document.begin(), document.end());
  }
  const std::vector<int32_t> question = Prompt(o.question_tokens, 99);
  ids.insert(ids.end(), question.begin(), question.end());

  // Nothing is stored of another salt: all of it is computed.
  v1::GenerateRequest computed = Request(ids, 1, static_cast<uint32_t>(ids.size()));
  computed.mutable_scope()->set_salt("computed");
  const double full_s = FirstToken(decode, computed);

  for (const Strategy& strategy : kStrategies) {
    v1::GenerateRequest request = Request(ids, 1, 0);
    for (const int begin : begins) {
      v1::ContextSpan* span = request.add_contexts();
      span->set_begin(static_cast<uint32_t>(begin));
      span->set_tokens(static_cast<uint32_t>(o.document_tokens));
    }
    request.set_repair(strategy.repair);
    std::vector<double> seconds;
    for (int i = 0; i < o.runs; ++i) seconds.push_back(FirstToken(decode, request));
    report.Add({.row = absl::StrCat("e2e/rag_first_token/", strategy.row),
                .value = Median(seconds),
                .unit = "s",
                .limit = full_s,
                .better = Better::kLess,
                .target = strategy.target,
                .command = absl::StrFormat("%s: %d documents of %d tokens and a question of %d, %d layers, %s; limit: "
                                           "the same node computes it all",
                                           strategy.repair, o.documents, o.document_tokens, o.question_tokens, o.layers,
                                           kTransports)});
  }
}

void Answers(const Options& o, Report& report) {
  const auto served = Check(model::ServedModel::Load({.folder = o.model_folder, .plan_file = {}}));
  constexpr uint64_t kSeed = 1;
  const std::string prose =
      o.text_file.empty() ? model::FillerProse(kSeed, 200000) : Check(ReadFile(o.text_file, size_t{64} << 20));
  const auto samples = Check(model::MakeContextSamples(served->tokenizer(), prose,
                                                       {.questions = o.questions, .cut_share = 0.5, .seed = kSeed}));
  std::vector<model::RepairFigures> repairs;
  for (const char* repair : {"none", "prefix:8", "prefix:32", "deviation:0.05", "deviation:0.15", "parallel:1:1"}) {
    repairs.push_back({.repair = Check(model::Repair::Parse(repair))});
  }
  model::RepairFigures full;
  for (const model::ContextSample& sample : samples) Check(model::MeasureQuestion(*served, sample, full, repairs));
  for (const model::RepairFigures& one : repairs) {
    report.Add(
        {.row = absl::StrCat("e2e/rag_answers/", one.repair.ToString()),
         .value = one.accuracy(),
         .unit = "right",
         .limit = full.accuracy(),
         .better = Better::kMore,
         .target = one.computed_share() <= 0.2 && one.repair.kind == model::RepairKind::kPrefix ? ">=0.95" : "",
         .command = absl::StrFormat("%d questions over 2 to 8 documents, half of them about a statement that a "
                                    "border cuts; %.1f %% of the prompt computed, KL %.4f nats; limit: all of it",
                                    o.questions, 100 * one.computed_share(), one.kl())});
  }
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  perigee::bench::Options o;
  CLI::App app("First tokens of questions about documents that were computed before");
  app.add_option("--json", o.json, "Write the rows as JSON");
  app.add_option("--documents", o.documents, "In the prompt")->capture_default_str();
  app.add_option("--document-tokens", o.document_tokens, "Of each")->capture_default_str();
  app.add_option("--question-tokens", o.question_tokens, "Behind them")->capture_default_str();
  app.add_option("--layers", o.layers, "Of the model; 22 are all")->capture_default_str();
  app.add_option("--runs", o.runs, "Medians of so many")->capture_default_str();
  app.add_option("--questions", o.questions, "Whose answers are looked at")->capture_default_str();
  app.add_option("--model", o.model_folder, "That answers them")->capture_default_str();
  app.add_option("--text", o.text_file, "Prose that the documents are made of (default: filler)");
  CLI11_PARSE(app, argc, argv);
  perigee::bench::Report report;
  perigee::bench::FirstTokens(o, report);
  perigee::bench::Answers(o, report);
  perigee::bench::Check(report.WriteJson(o.json));
  return 0;
}
