// What a decode node does for a request of a large model, end to end in one process beside a store over tcp: the first
// token of a context that is fetched against one that is computed, and answers generated together against one
// alone. 1.1 billion random weights (the shape of TinyLlama 1.1B).
//   decode_bench [--json FILE] [--tokens N] [--layers N] [--runs N] [--answer-tokens N]
//
// The defaults take some minutes and 6 GB.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_format.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "decode_node/decode_node.h"
#include "decode_requests.h"
#include "kvstore/server.h"
#include "node/node.h"
#include "peers/fail.h"
#include "peers/random_model.h"
#include "prefill_node/prefill_node.h"
#include "report.h"

namespace perigee::bench {
namespace {

constexpr const char* kTransports = "tcp";

struct Options {
  std::string json;
  int tokens = 4096;
  int layers = 22;
  int runs = 3;
  int answer_tokens = 24;
  std::vector<int> batches = {1, 2, 4, 8, 16};
};

// Tokens a second of so many answers at once, while all of them are being generated.
double Throughput(decode_node::DecodeNode& decode, int answers, int answer_tokens) {
  absl::Mutex mu;
  absl::Time all_began = absl::InfinitePast(), first_ended = absl::InfiniteFuture();
  std::vector<std::vector<absl::Time>> times(static_cast<size_t>(answers));
  std::vector<std::thread> threads;
  for (int i = 0; i < answers; ++i) {
    threads.emplace_back([&, i] {
      std::vector<absl::Time>& mine = times[static_cast<size_t>(i)];
      Check(decode.Generate(Request(Prompt(64, static_cast<uint32_t>(100 + i)), answer_tokens, 64),
                            [&](const v1::GenerateEvent& event) {
                              if (event.has_token()) mine.push_back(absl::Now());
                              return true;
                            }));
      absl::MutexLock lock(&mu);
      all_began = std::max(all_began, mine.front());
      first_ended = std::min(first_ended, mine.back());
    });
  }
  for (std::thread& thread : threads) thread.join();
  size_t tokens = 0;
  for (const auto& mine : times) {
    for (const absl::Time t : mine) tokens += t > all_began && t <= first_ended ? 1 : 0;
  }
  return static_cast<double>(tokens) / absl::ToDoubleSeconds(first_ended - all_began);
}

void Run(const Options& o) {
  kvstore::ServerOptions store_options;
  store_options.port = 0;
  store_options.slab_bytes = uint64_t{512} << 20;
  store_options.transport.transports = kTransports;
  const auto store = Check(kvstore::StoreServer::Start(store_options));
  const auto model = Check(MakeRandomModel(o.layers, o.tokens + 64));
  node::NodeOptions node_options;
  node_options.store_address = store->address();
  node_options.transports = kTransports;
  node_options.pool_bytes = size_t{512} << 20;
  node_options.keep_planes = false;  // Else the second run finds everything in the node itself.
  node_options.store.reservation_ttl = absl::Minutes(30);
  const auto node = Check(node::Node::Create(node_options, model));
  decode_node::DecodeNode decode(node.get());
  Report report;

  const std::vector<int32_t> context = Prompt(o.tokens, 1);
  // Nothing is stored of another salt: all of it is computed.
  v1::GenerateRequest computed = Request(context, 1, static_cast<uint32_t>(o.tokens));
  computed.mutable_scope()->set_salt("computed");
  const double recompute_s = FirstToken(decode, computed);
  v1::PrefillRequest prefill;
  prefill.add_segments()->mutable_tokens()->mutable_ids()->Assign(context.begin(), context.end());
  v1::PrefillResponse prefilled;
  Check(prefill_node::PrefillNode(node.get(), {}).Prefill(prefill, absl::InfiniteFuture(), &prefilled));
  std::vector<double> fetched;
  for (int i = 0; i < o.runs; ++i) fetched.push_back(FirstToken(decode, Request(context, 1, 0)));
  report.Add(
      {.row = "e2e/fetched_context/first_token",
       .value = Median(fetched),
       .unit = "s",
       .limit = recompute_s,
       .better = Better::kLess,
       .target = ">=30",
       .command = absl::StrFormat("a context of %d tokens, %d layers, %s; limit: the same decode node computes it",
                                  o.tokens, o.layers, kTransports)});

  double alone = 0;
  for (const int batch : o.batches) {
    std::vector<double> rates;
    for (int i = 0; i < o.runs; ++i) rates.push_back(Throughput(decode, batch, o.answer_tokens));
    if (batch == 1) alone = Median(rates);
    report.Add({.row = absl::StrCat("e2e/answers_together/", batch),
                .value = Median(rates),
                .unit = "tokens/s",
                .limit = alone,
                .better = Better::kMore,
                .target = batch == 8 ? ">=4" : "",
                .command = absl::StrFormat("limit: one answer alone; prompts of 64 tokens, %d layers", o.layers)});
  }
  Check(report.WriteJson(o.json));
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  perigee::bench::Options o;
  CLI::App app("What a decode node does for a request of a large model");
  app.add_option("--json", o.json, "Write the rows as JSON");
  app.add_option("--tokens", o.tokens, "Of the context")->capture_default_str();
  app.add_option("--layers", o.layers, "Of the model; 22 are all")->capture_default_str();
  app.add_option("--runs", o.runs, "Medians of so many")->capture_default_str();
  app.add_option("--answer-tokens", o.answer_tokens, "Of each answer")->capture_default_str();
  app.add_option("--batches", o.batches, "Answers at once; the first must be 1")->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  perigee::bench::Run(o);
  return 0;
}
