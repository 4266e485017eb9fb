// Replays a trace of requests (Mooncake's format, bench/replay/trace.h) through a whole cluster's front door, twice:
// with a store, and without, where every prompt is computed.
//   gateway_replay [--trace FILE | --shape SHAPE --seed N --requests N] [--rate R] [--json FILE]
//
// The trace is scaled down to the demo model: a block of 512 tokens becomes one of --tokens-per-block, prompts that are
// longer than the model's context are cut, answers are shortened alike, and arrivals are spread so that --rate come a
// second on average. With: a store, a prefill node, a decode node. Without: the decode node alone, which computes
// prompts itself and keeps nothing. Both on this machine, one after the other, the same requests at the same times. A
// hit is a request of which the first run had tokens in the cache: in the store or, unless --no-keep-planes, in the
// decode node's own memory.
#include <httplib.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "base/file.h"
#include "cluster/local_cluster.h"
#include "peers/fail.h"
#include "replay/generator.h"
#include "replay/trace.h"
#include "report.h"

namespace perigee::bench {
namespace {

struct Options {
  std::string trace, shape = "mixed", json, program, model;
  uint64_t seed = 1;
  size_t requests = 200;
  double rate = 2;
  bool no_keep_planes = false;
  uint32_t tokens_per_block = 64;  // A block of the trace becomes one of ours.
  uint32_t max_prompt = 3840, max_answer = 48;
};

struct Prompt {
  absl::Duration at;
  std::vector<int32_t> ids;
  uint32_t answer_tokens = 1;
};

struct Outcome {
  bool ok = false;
  double ttft_ms = 0, total_ms = 0;
  uint32_t prompt_tokens = 0, cached_tokens = 0, answer_tokens = 0;
};

Trace ReadTrace(const Options& o) {
  if (o.trace.empty()) return GenerateTrace(Check(MixOf(o.shape), "shape"), o.seed, o.requests);
  Trace trace = Check(ParseTrace(Check(ReadFile(o.trace, size_t{1} << 30), "trace")), o.trace.c_str());
  if (trace.requests.size() > o.requests) trace.requests.resize(o.requests);
  return trace;
}

std::vector<Prompt> Scale(const Options& o, const Trace& trace) {
  std::vector<Prompt> prompts;
  const double span_ms = static_cast<double>(trace.requests.back().timestamp_ms - trace.requests.front().timestamp_ms);
  const double stretch = static_cast<double>(trace.requests.size()) / o.rate * 1000 / std::max(span_ms, 1.0);
  for (const TraceRequest& request : trace.requests) {
    Prompt prompt;
    prompt.at =
        absl::Milliseconds(static_cast<double>(request.timestamp_ms - trace.requests.front().timestamp_ms) * stretch);
    for (const uint32_t block : request.blocks) {
      if (prompt.ids.size() + o.tokens_per_block > o.max_prompt) break;
      uint64_t state = uint64_t{block} * 0x9E3779B97F4A7C15 + 1;
      for (uint32_t t = 0; t < o.tokens_per_block; ++t) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        prompt.ids.push_back(static_cast<int32_t>(2 + state % 1000));
      }
    }
    // The last token of each prompt is its own: the same blocks twice are two questions about the same text.
    prompt.ids.push_back(static_cast<int32_t>(2 + prompts.size() % 1000));
    prompt.answer_tokens =
        std::clamp<uint32_t>(request.output_tokens * o.tokens_per_block / kTraceBlockTokens, 1, o.max_answer);
    prompts.push_back(std::move(prompt));
  }
  return prompts;
}

Outcome Ask(const std::string& gateway, const Prompt& prompt) {
  const nlohmann::json body = {
      {"model", "podling"}, {"prompt", prompt.ids}, {"max_tokens", prompt.answer_tokens},         {"temperature", 0},
      {"ignore_eos", true}, {"stream", true},       {"stream_options", {{"include_usage", true}}}};
  httplib::Client client(absl::StrCat("http://", gateway));
  client.set_read_timeout(600);
  Outcome outcome;
  const absl::Time start = absl::Now();
  std::string received;
  httplib::Request request;
  request.method = "POST";
  request.path = "/v1/completions";
  request.headers = {{"Content-Type", "application/json"}};
  request.body = body.dump();
  request.content_receiver = [&](const char* data, size_t size, uint64_t, uint64_t) {
    if (outcome.ttft_ms == 0) outcome.ttft_ms = absl::ToDoubleMilliseconds(absl::Now() - start);
    received.append(data, size);
    return true;
  };
  const httplib::Result result = client.send(request);
  outcome.total_ms = absl::ToDoubleMilliseconds(absl::Now() - start);
  outcome.ok = result && result->status == 200 && received.find("data: [DONE]") != std::string::npos;
  const size_t usage = received.rfind("\"usage\":{");
  if (outcome.ok && usage != std::string::npos) {
    const size_t line = received.rfind("data: ", usage) + 6;
    const auto json = nlohmann::json::parse(received.substr(line, received.find('\n', line) - line), nullptr, false);
    outcome.prompt_tokens = json["usage"]["prompt_tokens"];
    outcome.answer_tokens = json["usage"]["completion_tokens"];
    outcome.cached_tokens = json["usage"]["prompt_tokens_details"]["cached_tokens"];
  }
  return outcome;
}

// Prompt tokens that earlier prompts had in the same place, in blocks of 64: what a cache that forgets nothing, and has
// all at once, would give.
uint64_t RepeatedTokens(const std::vector<Prompt>& prompts) {
  constexpr size_t kBlock = 64;
  std::set<uint64_t> seen;
  uint64_t tokens = 0;
  for (const Prompt& prompt : prompts) {
    uint64_t chain = 0;
    bool repeated = true;
    for (size_t begin = 0; begin + kBlock < prompt.ids.size(); begin += kBlock) {
      for (size_t t = begin; t < begin + kBlock; ++t) {
        chain = (chain ^ static_cast<uint64_t>(prompt.ids[t])) * 0x9E3779B97F4A7C15;
        chain ^= chain >> 29;
      }
      repeated = !seen.insert(chain).second && repeated;
      if (repeated) tokens += kBlock;
    }
  }
  return tokens;
}

struct Run {
  std::vector<Outcome> outcomes;
  double seconds = 0;
};

Run Replay(const Options& o, const std::vector<Prompt>& prompts, bool with_store) {
  cluster::LocalClusterOptions options;
  options.executable = o.program;
  options.model_folder = o.model;
  options.state_folder = absl::StrCat(std::filesystem::temp_directory_path().string(), "/perigee_replay_", getpid());
  options.stores = options.prefill_nodes = with_store ? 1 : 0;
  options.gateway = true;
  options.keep_planes = with_store && !o.no_keep_planes;
  options.dram_mib = 1024;
  options.pool_mib = 512;
  options.log_level = "warn";
  const auto cluster = Check(cluster::LocalCluster::Start(options), "cluster");
  const std::string& gateway = cluster->addresses().gateway;
  Prompt warm{.at = {}, .ids = std::vector<int32_t>(1000, 7), .answer_tokens = 4};
  for (int i = 0; i < 3; ++i) {
    warm.ids[0] = 10 + i;
    Ask(gateway, warm);
  }
  Run run;
  run.outcomes.resize(prompts.size());
  std::vector<std::thread> threads;
  const absl::Time start = absl::Now();
  for (size_t i = 0; i < prompts.size(); ++i) {
    absl::SleepFor(start + prompts[i].at - absl::Now());
    threads.emplace_back([&, i] { run.outcomes[i] = Ask(gateway, prompts[i]); });
  }
  for (std::thread& thread : threads) thread.join();
  run.seconds = absl::ToDoubleSeconds(absl::Now() - start);
  Check(cluster->Stop(), "stop");
  std::filesystem::remove_all(options.state_folder);
  return run;
}

double Percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  return values[std::min(values.size() - 1, static_cast<size_t>(p / 100 * static_cast<double>(values.size())))];
}

std::vector<double> Ttfts(const Run& run, const std::vector<bool>& which) {
  std::vector<double> out;
  for (size_t i = 0; i < which.size(); ++i) {
    if (which[i]) out.push_back(run.outcomes[i].ttft_ms);
  }
  return out;
}

int Main(const Options& o) {
  const Trace trace = ReadTrace(o);
  const std::vector<Prompt> prompts = Scale(o, trace);
  const Run on = Replay(o, prompts, true);
  const Run off = Replay(o, prompts, false);

  std::vector<bool> all(prompts.size()), hits(prompts.size());
  size_t failed = 0, hit_count = 0;
  uint64_t tokens = 0, cached = 0, answered_on = 0, answered_off = 0;
  for (size_t i = 0; i < prompts.size(); ++i) {
    all[i] = on.outcomes[i].ok && off.outcomes[i].ok;
    hits[i] = all[i] && on.outcomes[i].cached_tokens > 0;
    failed += all[i] ? 0 : 1;
    hit_count += hits[i] ? 1 : 0;
    tokens += on.outcomes[i].prompt_tokens;
    cached += on.outcomes[i].cached_tokens;
    answered_on += on.outcomes[i].answer_tokens;
    answered_off += off.outcomes[i].answer_tokens;
  }
  if (failed == prompts.size() || hit_count == 0) Die("no request was answered by both, or none hit");
  Report report;
  const std::string what = absl::StrFormat(
      "%s: %d requests, %.1f a second, %.0f tokens a prompt; %d hits; %d failed; %.1f %% of prompt tokens from the "
      "cache",
      o.trace.empty() ? o.shape : o.trace, prompts.size(), o.rate,
      static_cast<double>(tokens) / static_cast<double>(prompts.size()), hit_count, failed,
      100 * static_cast<double>(cached) / static_cast<double>(tokens));
  const auto add = [&](const std::string& row, double value, const char* unit, double limit, Better better,
                       const char* target) {
    report.Add({.row = absl::StrCat("e2e/replay/", o.trace.empty() ? o.shape : "trace", "/", row),
                .value = value,
                .unit = unit,
                .limit = limit,
                .better = better,
                .target = target,
                .command = absl::StrCat("limit: the same without a store; ", what)});
  };
  std::printf("%s\n", what.c_str());
  report.Add({.row = absl::StrCat("e2e/replay/", o.trace.empty() ? o.shape : "trace", "/hit_tokens"),
              .value = static_cast<double>(cached),
              .unit = "tokens",
              .limit = static_cast<double>(RepeatedTokens(prompts)),
              .better = Better::kMore,
              .target = "",
              .command = absl::StrCat("limit: tokens that were sent before; ", what)});
  add("ttft_of_hits/p50", Percentile(Ttfts(on, hits), 50), "ms", Percentile(Ttfts(off, hits), 50), Better::kLess,
      ">=3.33");
  add("ttft_of_hits/p99", Percentile(Ttfts(on, hits), 99), "ms", Percentile(Ttfts(off, hits), 99), Better::kLess,
      ">=0.95");
  for (const double p : {50.0, 75.0, 90.0, 95.0, 99.0}) {
    add(absl::StrFormat("ttft/p%.0f", p), Percentile(Ttfts(on, all), p), "ms", Percentile(Ttfts(off, all), p),
        Better::kLess, ">=0.95");
  }
  add("answer_tokens", static_cast<double>(answered_on) / on.seconds, "tokens/s",
      static_cast<double>(answered_off) / off.seconds, Better::kMore, "");
  Check(report.WriteJson(o.json), "report");
  return failed == 0 ? 0 : 1;
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  perigee::bench::Options o;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe");
  o.program = (self.parent_path().parent_path() / "cluster" / "perigee").string();
  o.model = PERIGEE_SOURCE_DIR "/models/podling";
  CLI::App app("Replays a trace through a cluster's front door, with and without a store");
  app.add_option("--trace", o.trace, "In Mooncake's format (default: a generated one)");
  app.add_option("--shape", o.shape, "Of the generated one")->capture_default_str();
  app.add_option("--seed", o.seed)->capture_default_str();
  app.add_option("--requests", o.requests, "At most so many")->capture_default_str();
  app.add_option("--rate", o.rate, "Requests a second, on average")->capture_default_str();
  app.add_flag("--no-keep-planes", o.no_keep_planes, "The decode node's own memory gives nothing");
  app.add_option("--tokens-per-block", o.tokens_per_block, "Instead of the trace's 512")->capture_default_str();
  app.add_option("--program", o.program, "perigee")->capture_default_str();
  app.add_option("--model", o.model)->capture_default_str();
  app.add_option("--json", o.json, "Write the rows as JSON");
  CLI11_PARSE(app, argc, argv);
  return perigee::bench::Main(o);
}
