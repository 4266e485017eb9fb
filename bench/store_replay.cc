// Replays a trace of requests against eviction policies and store sizes, beside LRU and the best that was possible.
//
//   store_replay [--trace FILE | --shape SHAPE --seed N --requests N] [--policy NAME]... [--fractions F,...]
//                [--block-kib N] [--ssd-fraction F --ssd-path FOLDER] [--json FILE|-]
//   store_replay --simulate [...] [--ssd-fraction F [--ssd-busy F]] [--json FILE|-]
//
// Without --trace, a generated one (replay/generator.h). Each row's policy runs in a real store in this process, and
// real bytes move: --block-kib of them stand for a block of 512 tokens (replay/store_run.h). With --simulate only the
// policies run, and no payload is needed; bytes are those of a block of 64 MiB (replay/simulate.h). A row per capacity
// and policy; capacities are fractions of the trace's distinct blocks. `belady` is no policy but the bound
// (replay/simulate.h), in both modes: the blocks of both tiers in one, and the future known.
//
// JSON rows: {mode, trace, policy, capacity_fraction, capacity_blocks, block_bytes, ssd_fraction, requests,
// distinct_blocks, tokens, token_hit_ratio, block_hit_ratio, dram_hit_tokens, ssd_hit_tokens, dram_bytes, ssd_bytes
// (most ever stored), ssd_written_bytes, evictions, dram_evictions, ssd_evictions, gap_closed}; gap_closed is (ratio -
// LRU's) / (Belady's - LRU's), null where the row has no LRU and Belady beside it or they are equal. mode is "real" or
// "simulated" (so are Belady's rows). Real rows have besides {seconds, bytes_moved, wrong_planes, refused_blocks,
// demoted_to_ssd}, see StoreRun; a wrong plane makes the program fail.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "base/log.h"
#include "base/status.h"
#include "kvstore/policy/eviction_policy.h"
#include "replay/generator.h"
#include "replay/simulate.h"
#include "replay/store_run.h"
#include "replay/trace.h"

namespace perigee::bench {
namespace {

struct Options {
  std::string trace, shape = "mixed", json;
  uint64_t seed = 1;
  size_t requests = 4000;
  std::vector<std::string> policies = {"default", "s3fifo", "lru", "belady"};
  std::vector<double> fractions = {0.05, 0.1, 0.2, 0.5};
  double ssd_fraction = 0, ssd_busy = StoreShape().ssd_busy;
  bool simulate = false;
  uint64_t block_kib = RealShape().block_bytes >> 10;
  std::string ssd_path;

  uint64_t block_bytes() const { return simulate ? StoreShape().block_bytes : block_kib << 10; }
};

struct ReplayRow {
  std::string policy;
  double fraction = 0;
  uint64_t capacity_blocks = 0;
  ReplayResult result;
  std::optional<StoreRun> real{};  // Where bytes have moved.
};

absl::StatusOr<Trace> LoadTrace(const Options& options, std::string& name) {
  if (options.trace.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(const Mix mix, MixOf(options.shape));
    name = absl::StrCat("generated:", options.shape, ":seed=", options.seed);
    return GenerateTrace(mix, options.seed, options.requests);
  }
  name = options.trace.substr(options.trace.rfind('/') + 1);
  std::ifstream file(options.trace);
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read ", options.trace));
  auto trace = ParseTrace(text);
  if (!trace.ok()) return Annotate(trace.status(), options.trace);
  return trace;
}

const ReplayRow* Find(const std::vector<ReplayRow>& rows, const char* policy, double fraction) {
  for (const ReplayRow& row : rows) {
    if (row.policy == policy && row.fraction == fraction) return &row;
  }
  return nullptr;
}

std::optional<double> GapClosed(const std::vector<ReplayRow>& rows, const ReplayRow& row) {
  const ReplayRow* const lru = Find(rows, "lru", row.fraction);
  const ReplayRow* const belady = Find(rows, "belady", row.fraction);
  if (lru == nullptr || belady == nullptr) return std::nullopt;
  const double gap = belady->result.token_hit_ratio() - lru->result.token_hit_ratio();
  if (gap <= 0) return std::nullopt;
  return (row.result.token_hit_ratio() - lru->result.token_hit_ratio()) / gap;
}

std::string Gigabytes(uint64_t bytes) {
  const double gigabytes = 1e-9 * static_cast<double>(bytes);
  return absl::StrFormat(gigabytes < 10 ? "%.2f" : "%.0f", gigabytes);
}

uint64_t SsdWrittenBytes(const ReplayRow& row, uint64_t block_bytes) {
  return row.real ? row.real->ssd_written_bytes : row.result.ssd_written_blocks * block_bytes;
}

void PrintTable(const Options& options, const std::string& name, const Trace& trace,
                const std::vector<ReplayRow>& rows) {
  std::printf("%s: %zu requests, %llu tokens, %zu distinct blocks of %s\n", name.c_str(), trace.requests.size(),
              static_cast<unsigned long long>(trace.total_tokens()), trace.parents.size(),
              options.simulate ? "64 MiB, simulated" : absl::StrCat(options.block_kib, " KiB").c_str());
  std::printf("%8s  %-8s %10s %10s %10s %10s %10s %10s %12s %11s", "capacity", "policy", "token hits", "in DRAM",
              "on SSD", "DRAM GB", "SSD GB", "evictions", "SSD written", "gap closed");
  std::printf(options.simulate ? "\n" : " %9s %9s %6s\n", "moved GB", "seconds", "wrong");
  for (const ReplayRow& row : rows) {
    const ReplayResult& r = row.result;
    const auto share = [&](uint64_t tokens) { return static_cast<double>(tokens) / static_cast<double>(r.tokens); };
    const std::optional<double> closed = GapClosed(rows, row);
    std::printf("%7.1f%%  %-8s %10.4f %10.4f %10.4f %10s %10s %10llu %12s %11s", 100 * row.fraction, row.policy.c_str(),
                r.token_hit_ratio(), share(r.dram_hit_tokens), share(r.ssd_hit_tokens),
                Gigabytes(r.dram_peak_blocks * options.block_bytes()).c_str(),
                Gigabytes(r.ssd_peak_blocks * options.block_bytes()).c_str(),
                static_cast<unsigned long long>(r.dram_evictions + r.ssd_evictions),
                Gigabytes(SsdWrittenBytes(row, options.block_bytes())).c_str(),
                closed ? absl::StrFormat("%.1f%%", 100 * *closed).c_str() : "-");
    if (row.real) {
      std::printf(" %9s %9.2f %6llu", Gigabytes(row.real->bytes_moved).c_str(), row.real->seconds,
                  static_cast<unsigned long long>(row.real->wrong_planes));
    }
    std::printf("\n");
  }
}

nlohmann::json Json(const Options& options, const std::string& name, const Trace& trace,
                    const std::vector<ReplayRow>& rows) {
  const uint64_t block_bytes = options.block_bytes();
  nlohmann::json list = nlohmann::json::array();
  for (const ReplayRow& row : rows) {
    const ReplayResult& r = row.result;
    const std::optional<double> closed = GapClosed(rows, row);
    nlohmann::json object = {{"mode", row.real ? "real" : "simulated"},
                             {"trace", name},
                             {"policy", row.policy},
                             {"capacity_fraction", row.fraction},
                             {"capacity_blocks", row.capacity_blocks},
                             {"block_bytes", block_bytes},
                             {"ssd_fraction", options.ssd_fraction},
                             {"requests", trace.requests.size()},
                             {"distinct_blocks", trace.parents.size()},
                             {"tokens", r.tokens},
                             {"token_hit_ratio", r.token_hit_ratio()},
                             {"block_hit_ratio", static_cast<double>(r.hit_blocks) / static_cast<double>(r.blocks)},
                             {"dram_hit_tokens", r.dram_hit_tokens},
                             {"ssd_hit_tokens", r.ssd_hit_tokens},
                             {"dram_bytes", r.dram_peak_blocks * block_bytes},
                             {"ssd_bytes", r.ssd_peak_blocks * block_bytes},
                             {"ssd_written_bytes", SsdWrittenBytes(row, block_bytes)},
                             {"evictions", r.dram_evictions + r.ssd_evictions},
                             {"dram_evictions", r.dram_evictions},
                             {"ssd_evictions", r.ssd_evictions},
                             {"gap_closed", closed ? nlohmann::json(*closed) : nlohmann::json()}};
    if (row.real) {
      object.update({{"seconds", row.real->seconds},
                     {"bytes_moved", row.real->bytes_moved},
                     {"wrong_planes", row.real->wrong_planes},
                     {"refused_blocks", row.real->refused_blocks},
                     {"demoted_to_ssd", row.real->demoted_to_ssd}});
    }
    list.push_back(std::move(object));
  }
  return list;
}

absl::Status Check(const Options& options) {
  for (const double f : options.fractions) {
    if (!(f > 0 && f <= 1)) {
      return absl::InvalidArgumentError(absl::StrCat("a fraction of ", f, "; above 0 and up to 1 are allowed"));
    }
  }
  if (!(options.ssd_fraction >= 0 && options.ssd_fraction <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("an SSD fraction of ", options.ssd_fraction, "; 0 to 1 are allowed"));
  }
  if (!(options.ssd_busy >= 0 && options.ssd_busy <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat("an SSD busy for ", options.ssd_busy, "; 0 to 1 are allowed"));
  }
  if (!options.simulate && (options.ssd_fraction > 0) == options.ssd_path.empty()) {
    return absl::InvalidArgumentError(
        "an SSD tier needs its size and its folder: give --ssd-fraction and --ssd-path, neither of them, or "
        "--simulate");
  }
  return absl::OkStatus();
}

// path: "-" for standard output, empty for nowhere.
absl::Status WriteJson(const std::string& path, const nlohmann::json& rows) {
  if (path.empty()) return absl::OkStatus();
  const std::string text = rows.dump(2) + "\n";
  if (path == "-") {
    std::fputs(text.c_str(), stdout);
    return absl::OkStatus();
  }
  std::ofstream file(path);
  file << text;
  file.close();
  return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
}

absl::Status Run(const Options& options) {
  PERIGEE_RETURN_IF_ERROR(Check(options));
  std::string name;
  PERIGEE_ASSIGN_OR_RETURN(const Trace trace, LoadTrace(options, name));
  const auto blocks_of = [&](double fraction) {
    return static_cast<uint64_t>(fraction * static_cast<double>(trace.parents.size()));
  };
  const bool progress = isatty(STDERR_FILENO) != 0;
  std::vector<ReplayRow> rows;
  uint64_t wrong_planes = 0;
  for (const double fraction : options.fractions) {
    for (const std::string& policy : options.policies) {
      if (progress) std::fprintf(stderr, "\r%-40s\r", absl::StrCat(policy, " at ", fraction).c_str());
      ReplayRow row{.policy = policy, .fraction = fraction, .capacity_blocks = blocks_of(fraction), .result = {}};
      if (row.capacity_blocks == 0) {
        return absl::InvalidArgumentError(
            absl::StrCat(fraction, " of ", trace.parents.size(), " distinct blocks is no block"));
      }
      if (policy == "belady") {
        row.result = Belady(trace, row.capacity_blocks + blocks_of(options.ssd_fraction));
      } else if (!options.simulate) {
        const RealShape shape{.dram_blocks = row.capacity_blocks,
                              .block_bytes = options.block_bytes(),
                              .ssd_blocks = blocks_of(options.ssd_fraction),
                              .ssd_path = options.ssd_path};
        PERIGEE_ASSIGN_OR_RETURN(row.real, ReplayThroughStore(trace, policy, shape));
        row.result = row.real->result;
        wrong_planes += row.real->wrong_planes;
      } else {
        const StoreShape shape{.dram_blocks = row.capacity_blocks,
                               .ssd_blocks = blocks_of(options.ssd_fraction),
                               .ssd_busy = options.ssd_busy};
        PERIGEE_ASSIGN_OR_RETURN(row.result, Replay(trace, policy, shape));
      }
      rows.push_back(std::move(row));
    }
  }
  if (progress) std::fprintf(stderr, "\r%-40s\r", "");
  if (options.json != "-") PrintTable(options, name, trace, rows);
  PERIGEE_RETURN_IF_ERROR(WriteJson(options.json, Json(options, name, trace, rows)));
  if (wrong_planes == 0) return absl::OkStatus();
  return absl::DataLossError(absl::StrCat(wrong_planes, " planes were read with other bytes than were written"));
}

}  // namespace
}  // namespace perigee::bench

int main(int argc, char** argv) {
  perigee::bench::Options options;
  CLI::App app("Replays a trace of requests against eviction policies and store sizes.");
  auto* const trace =
      app.add_option("--trace", options.trace, "a trace in Mooncake's format; default: a generated one");
  app.add_option("--shape", options.shape,
                 absl::StrCat("of the generated trace: ", absl::StrJoin(perigee::bench::Shapes(), ", ")))
      ->capture_default_str()
      ->excludes(trace);
  app.add_option("--seed", options.seed, "of the generated trace")->capture_default_str()->excludes(trace);
  app.add_option("--requests", options.requests, "of the generated trace")
      ->capture_default_str()
      ->excludes(trace)
      ->check(CLI::Range(size_t{1}, size_t{1000000}));
  app.add_option("--policy", options.policies,
                 absl::StrCat("belady, or one of ", absl::StrJoin(perigee::kvstore::EvictionPolicyNames(), ", "),
                              "; repeatable"))
      ->capture_default_str();
  app.add_option("--fractions", options.fractions, "store sizes, of the trace's distinct blocks")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--ssd-fraction", options.ssd_fraction, "an SSD tier of this size behind it")->capture_default_str();
  auto* const simulate = app.add_flag("--simulate", options.simulate, "move no payload: the policies alone");
  app.add_option("--ssd-busy", options.ssd_busy, "the part of an SSD write's time that admission charges for it")
      ->capture_default_str()
      ->needs(simulate);
  app.add_option("--ssd-path", options.ssd_path, "a folder for the SSD tier's files")->excludes(simulate);
  app.add_option("--block-kib", options.block_kib, "payload of a block of 512 tokens")
      ->capture_default_str()
      ->excludes(simulate)
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 20));
  app.add_option("--json", options.json, "write the rows to this file, or - for standard output");
  CLI11_PARSE(app, argc, argv);
  absl::Status status = perigee::InitLogging("store_replay", "warn");
  if (status.ok()) status = perigee::bench::Run(options);
  if (!status.ok()) std::fprintf(stderr, "store_replay: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
