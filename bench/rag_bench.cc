// How much sooner a question about several documents gets its first token where the documents were computed before,
// each alone, than where everything is computed: by what is computed again of them (model/repair.h). One process beside
// a store over tcp; 1.1 billion random weights (the shape of TinyLlama 1.1B).
//   rag_bench [--json FILE] [--documents N] [--document-tokens N] [--question-tokens N] [--layers N] [--runs N]
//
// The defaults take some minutes and 6 GB. What the answers are worth is not measured here: docs/contexts.md.
#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "decode_node/decode_node.h"
#include "decode_requests.h"
#include "kvstore/server.h"
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

void Run(const Options& o) {
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
  Report report;

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
  Check(report.WriteJson(o.json));
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
  CLI11_PARSE(app, argc, argv);
  perigee::bench::Run(o);
  return 0;
}
