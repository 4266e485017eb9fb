#include "transfer/ucx_perftest.h"

#include <unistd.h>

#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "peers/children.h"

namespace perigee::bench {
namespace {

constexpr double kMegabyte = 1 << 20;  // ucx_perftest's MB
constexpr absl::Duration kServerStarts = absl::Seconds(5);

std::vector<std::string> ClientWords(const Perftest& run) {
  std::vector<std::string> words = {"ucx_perftest",
                                    "127.0.0.1",
                                    "-t",
                                    run.test,
                                    "-s",
                                    absl::StrCat(run.bytes),
                                    "-n",
                                    absl::StrCat(run.iterations),
                                    "-w",
                                    absl::StrCat(run.warm_up),
                                    "-f"};
  words.insert(words.end(), run.options.begin(), run.options.end());
  return words;
}

// Under limits: a ucx_perftest whose other side is lost waits, and spins, for ever.
std::vector<std::string> Limited(std::vector<std::string> command, const std::string& port) {
  std::vector<std::string> limited = {"timeout", "60", "prlimit", "--as=4294967296"};
  limited.insert(limited.end(), command.begin(), command.end());
  limited.push_back("-p");
  limited.push_back(port);
  return limited;
}

// The numbers of its last line: iterations, latency in us (percentile, average, overall), bandwidth in MB/s (average,
// overall), rate (average, overall). Empty where it failed.
std::vector<double> Run(const Perftest& run) {
  static int next_port = 20000 + getpid() % 20000;
  const std::string port = absl::StrCat(next_port++);
  const std::vector<std::string> environment = {absl::StrCat("UCX_TLS=", run.tls)};
  Child server(Limited({"ucx_perftest"}, port), PinnedProcessors().server, environment);
  if (!server.started()) return {};
  // The server says nothing useful before a client comes, so the client tries until it is let in.
  for (const absl::Time limit = absl::Now() + kServerStarts; absl::Now() < limit;
       absl::SleepFor(absl::Milliseconds(20))) {
    Child client(Limited(ClientWords(run), port), PinnedProcessors().initiator, environment);
    if (!client.started()) return {};
    const std::vector<std::string> lines = absl::StrSplit(client.ReadAll(), '\n', absl::SkipWhitespace());
    if (lines.empty()) continue;
    std::istringstream fields(lines.back());
    std::vector<double> numbers;
    for (double number; fields >> number;) numbers.push_back(number);
    if (numbers.size() >= 6) return numbers;
  }
  return {};
}

}  // namespace

std::string Perftest::ServerCommand() const {
  return absl::StrCat("UCX_TLS=", tls, " taskset -c ", PinnedProcessors().server, " ucx_perftest");
}

std::string Perftest::ClientCommand() const {
  return absl::StrCat("UCX_TLS=", tls, " taskset -c ", PinnedProcessors().initiator, " ",
                      absl::StrJoin(ClientWords(*this), " "));
}

std::optional<double> PerftestBytesPerSecond(const Perftest& run) {
  const std::vector<double> numbers = Run(run);
  if (numbers.empty() || numbers[5] <= 0) return std::nullopt;
  return numbers[5] * kMegabyte;
}

std::optional<double> PerftestLatencySeconds(const Perftest& run) {
  const std::vector<double> numbers = Run(run);
  if (numbers.empty() || numbers[1] <= 0) return std::nullopt;
  return numbers[1] * 1e-6;
}

}  // namespace perigee::bench
