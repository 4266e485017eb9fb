// What verbs say to people: tables, sizes, progress bars, questions. Bars and questions are for terminals only.
#ifndef PERIGEE_CLUSTER_CLI_CONSOLE_H_
#define PERIGEE_CLUSTER_CLI_CONSOLE_H_

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"

namespace perigee::cli {

using Json = nlohmann::ordered_json;

// On standard output, with a line's end. Text that is not UTF-8 is made so.
void PrintJson(const Json& json);

std::string FormatBytes(double bytes);                     // "1.5 MiB"
std::string FormatPercent(uint64_t part, uint64_t whole);  // "12.3 %", "-" of nothing.
std::string FormatAge(absl::Duration age);                 // "3d 4h", "12s"

// Columns as wide as their widest cell; numbers to the right.
class Table {
 public:
  // A title that begins with '>' is of a column of numbers.
  explicit Table(std::vector<std::string> titles);
  void Add(std::vector<std::string> row);
  std::string ToString() const;
  void Print() const;  // On standard output.

 private:
  std::vector<std::string> titles_;
  std::vector<bool> right_;
  std::vector<std::vector<std::string>> rows_;
};

// A bar on standard error, where that is a terminal; else nothing. One thread at a time. Destruction ends its line.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  // whole 0: not known. `note`: behind the bar.
  void Set(uint64_t done, uint64_t whole, const std::string& note = "");

 private:
  const std::string label_;
  const bool shown_;
  bool begun_ = false;
  absl::Time last_ = absl::InfinitePast();
};

// OK when `yes`, or when somebody at the terminal says so; else kRefused. `what` is a question.
absl::Status Confirm(const std::string& what, bool yes);

}  // namespace perigee::cli

#endif  // PERIGEE_CLUSTER_CLI_CONSOLE_H_
