// The round trip of a small message that a handler in the other process answers.
#include <algorithm>
#include <array>
#include <chrono>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "peers/fail.h"
#include "transfer/rows.h"
#include "transfer/ucx_perftest.h"

namespace perigee::bench {
namespace {

constexpr size_t kBytes = 32;
constexpr size_t kCalls = 20000;
constexpr size_t kWarmUp = 2000;

// Of every call, in us, sorted.
std::vector<double> RoundTrips(const transport::Endpoint& endpoint) {
  const std::string payload(kBytes, 'p');
  const absl::Time deadline = absl::Now() + absl::Minutes(5);
  std::vector<double> times_us;
  times_us.reserve(kCalls);
  for (size_t i = 0; i < kWarmUp + kCalls; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const absl::StatusOr<std::string> answer = endpoint.Call(kEchoId, "", payload, deadline);
    const std::chrono::duration<double, std::micro> time = std::chrono::steady_clock::now() - start;
    if (!answer.ok() || *answer != payload) Die(absl::StrCat("call: ", answer.status().ToString()));
    if (i >= kWarmUp) times_us.push_back(time.count());
  }
  std::sort(times_us.begin(), times_us.end());
  return times_us;
}

}  // namespace

void AddCallRows(const Run& run, const Pair& pair) {
  struct Percentile {
    int rank;
    const char* target;  // at most 1.5 times, 3 times the peer's
    std::vector<double> ours, peers;
  };
  std::array<Percentile, 2> percentiles = {Percentile{50, ">=0.67", {}, {}}, Percentile{99, ">=0.33", {}, {}}};
  const auto name = [&](int rank) { return absl::StrCat("transfer/call/", pair.transport(), "/p", rank); };
  if (!run.Wants(name(50)) && !run.Wants(name(99))) return;
  const auto command = [&](int rank) {
    return Perftest{.tls = pair.transport(),
                    .test = "ucp_am_lat",
                    .bytes = kBytes,
                    .iterations = kCalls,
                    .warm_up = kWarmUp,
                    .options = {"-R", absl::StrCat(rank)}};
  };
  for (int i = 0; i < run.repetitions; ++i) {
    const std::vector<double> times_us = RoundTrips(pair.endpoint());
    for (Percentile& percentile : percentiles) {
      percentile.ours.push_back(times_us[kCalls * percentile.rank / 100]);
      // It reports one way: half of its round trip.
      if (const auto seconds = PerftestLatencySeconds(command(percentile.rank))) {
        percentile.peers.push_back(*seconds * 2 * 1e6);
      }
    }
  }
  for (const Percentile& percentile : percentiles) {
    if (!run.Wants(name(percentile.rank))) continue;
    Row row;
    row.row = name(percentile.rank);
    row.value = Median(percentile.ours);
    row.unit = "us";
    row.better = Better::kLess;
    row.target = percentile.target;
    if (percentile.peers.empty()) {
      row.command = "no peer: ucx_perftest is missing or failed";
    } else {
      row.limit = Median(percentile.peers);
      row.command = absl::StrCat("twice the one-way latency of: ", command(percentile.rank).ServerCommand(), " & ",
                                 command(percentile.rank).ClientCommand());
    }
    run.report->Add(std::move(row));
  }
}

}  // namespace perigee::bench
