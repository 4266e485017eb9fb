// What every benchmark program prints: a table for people and, with --json FILE, the same rows for programs. A row sets
// a measured value beside its peer or its limit; the ratio is value / limit where more is better (throughputs) and
// limit / value where less is (times), so that a target always reads ">=0.90".
//
// JSON: a list of {row, value, unit, limit, ratio, target, device, command}; limit and ratio are null where there is no
// peer.
#ifndef PERIGEE_BENCH_REPORT_H_
#define PERIGEE_BENCH_REPORT_H_

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace perigee::bench {

enum class Better { kMore, kLess };

struct Row {
  std::string row;  // "transfer/put/tcp/1MiB"
  double value = 0;
  std::string unit;             // "GB/s", "us"
  std::optional<double> limit;  // the peer's or the machine's number, in the same unit
  Better better = Better::kMore;
  std::string target;   // ">=0.90", or empty
  std::string command;  // the peer's command, or how the limit was measured
};

// Undefined for an empty list.
inline double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

// The processor's name from /proc/cpuinfo.
inline std::string CpuName() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown processor";
}

// Collects rows, prints each as it comes. Not thread-safe.
class Report {
 public:
  explicit Report(std::string device = CpuName()) : device_(std::move(device)) {}

  void Add(Row row) {
    if (rows_.empty()) {
      std::printf("%s\n%-44s %12s %-8s %12s %7s %8s\n", device_.c_str(), "row", "value", "unit", "limit", "ratio",
                  "target");
    }
    const std::optional<double> ratio = Ratio(row);
    std::printf("%-44s %12.4g %-8s ", row.row.c_str(), row.value, row.unit.c_str());
    ratio ? std::printf("%12.4g %7.2f", *row.limit, *ratio) : std::printf("%12s %7s", "-", "-");
    std::printf(" %8s\n", row.target.c_str());
    std::fflush(stdout);
    rows_.push_back(std::move(row));
  }

  // Does nothing for an empty path.
  absl::Status WriteJson(const std::string& path) const {
    if (path.empty()) return absl::OkStatus();
    nlohmann::json list = nlohmann::json::array();
    for (const Row& row : rows_) {
      const std::optional<double> ratio = Ratio(row);
      list.push_back({{"row", row.row},
                      {"value", row.value},
                      {"unit", row.unit},
                      {"limit", ratio ? nlohmann::json(*row.limit) : nlohmann::json()},
                      {"ratio", ratio ? nlohmann::json(*ratio) : nlohmann::json()},
                      {"target", row.target},
                      {"device", device_},
                      {"command", row.command}});
    }
    std::ofstream file(path);
    file << list.dump(2) << "\n";
    file.close();
    return file ? absl::OkStatus() : absl::UnavailableError(absl::StrCat("cannot write ", path));
  }

 private:
  static std::optional<double> Ratio(const Row& row) {
    if (!row.limit || *row.limit <= 0 || row.value <= 0) return std::nullopt;
    return row.better == Better::kMore ? row.value / *row.limit : *row.limit / row.value;
  }

  std::string device_;
  std::vector<Row> rows_;
};

}  // namespace perigee::bench

#endif  // PERIGEE_BENCH_REPORT_H_
