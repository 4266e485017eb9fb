// ucx_perftest, UCX's own benchmark, as the peer: one server and one client for each run, pinned like ours.
//
// It sends one buffer to one buffer, over and over; ours does the same where it stands beside it.
#ifndef PERIGEE_BENCH_TRANSFER_UCX_PERFTEST_H_
#define PERIGEE_BENCH_TRANSFER_UCX_PERFTEST_H_

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace perigee::bench {

struct Perftest {
  std::string tls;   // UCX_TLS
  std::string test;  // "ucp_am_bw"
  size_t bytes = 0;
  size_t iterations = 0;
  size_t warm_up = 0;
  std::vector<std::string> options;  // "-O", "16"

  // The two commands in words, for a row.
  std::string ServerCommand() const;
  std::string ClientCommand() const;
};

// Bytes a second. Nothing where ucx_perftest is missing or failed.
std::optional<double> PerftestBytesPerSecond(const Perftest& run);
// One way, in seconds, the percentile of the -R option (50 by default).
std::optional<double> PerftestLatencySeconds(const Perftest& run);

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_TRANSFER_UCX_PERFTEST_H_
