// merge_reports OUT PREFIXES IN...: joins the benchmark programs' JSON lists, keeps the rows that begin with one of the
// (space-separated) prefixes, or all where there is none, writes OUT and prints the table.
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "base/file.h"

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: merge_reports OUT PREFIXES IN...\n");
    return 2;
  }
  const std::vector<std::string> prefixes = absl::StrSplit(argv[2], ' ', absl::SkipEmpty());
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  for (int i = 3; i < argc; ++i) {
    const auto text = perigee::ReadFile(argv[i]);
    const auto list = text.ok() ? nlohmann::ordered_json::parse(*text, nullptr, false) : nlohmann::ordered_json();
    if (!list.is_array()) {
      std::fprintf(stderr, "merge_reports: %s holds no list of rows\n", argv[i]);
      return 1;
    }
    for (const auto& row : list) {
      const std::string name = row.at("row").get<std::string>();
      const auto begins = [&](const std::string& prefix) { return absl::StartsWith(name, prefix); };
      if (prefixes.empty() || std::any_of(prefixes.begin(), prefixes.end(), begins)) rows.push_back(row);
    }
  }
  std::printf("\n%-44s %12s %-8s %12s %7s %8s\n", "row", "value", "unit", "limit", "ratio", "target");
  const auto number = [](const nlohmann::ordered_json& v) { return v.is_number() ? v.get<double>() : 0.0; };
  for (const auto& row : rows) {
    std::printf("%-44s %12.4g %-8s %12.4g %7.2f %8s\n", row["row"].get<std::string>().c_str(), number(row["value"]),
                row["unit"].get<std::string>().c_str(), number(row["limit"]), number(row["ratio"]),
                row["target"].get<std::string>().c_str());
  }
  const absl::Status written = perigee::WriteFileAtomically(argv[1], rows.dump(2) + "\n");
  if (!written.ok()) {
    std::fprintf(stderr, "merge_reports: %s\n", written.ToString().c_str());
    return 1;
  }
  std::printf("report: %s\n", argv[1]);
  return 0;
}
