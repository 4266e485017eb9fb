#include "cluster/cli/console.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <iostream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "cluster/cli/exit_code.h"

namespace perigee::cli {

void PrintJson(const Json& json) {
  std::printf("%s\n", json.dump(2, ' ', false, Json::error_handler_t::replace).c_str());
  std::fflush(stdout);
}

std::string FormatBytes(double bytes) {
  const char* const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  size_t unit = 0;
  while (bytes >= 1024 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrFormat(unit == 0 ? "%.0f %s" : "%.1f %s", bytes, units[unit]);
}

std::string FormatPercent(uint64_t part, uint64_t whole) {
  return whole == 0 ? "-" : absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string FormatAge(absl::Duration age) {
  const int64_t s = std::max<int64_t>(0, absl::ToInt64Seconds(age));
  if (s < 60) return absl::StrCat(s, "s");
  if (s < 3600) return absl::StrCat(s / 60, "m ", s % 60, "s");
  if (s < 86400) return absl::StrCat(s / 3600, "h ", s % 3600 / 60, "m");
  return absl::StrCat(s / 86400, "d ", s % 86400 / 3600, "h");
}

Table::Table(std::vector<std::string> titles) : titles_(std::move(titles)) {
  for (std::string& title : titles_) {
    right_.push_back(!title.empty() && title[0] == '>');
    if (right_.back()) title.erase(0, 1);
  }
}

void Table::Add(std::vector<std::string> row) {
  row.resize(titles_.size());
  rows_.push_back(std::move(row));
}

std::string Table::ToString() const {
  std::vector<size_t> widths;
  for (size_t i = 0; i < titles_.size(); ++i) {
    size_t width = titles_[i].size();
    for (const auto& row : rows_) width = std::max(width, row[i].size());
    widths.push_back(width);
  }
  std::string text;
  const auto add = [&](const std::vector<std::string>& row) {
    std::string line;
    for (size_t i = 0; i < row.size(); ++i) {
      const std::string fill(widths[i] - row[i].size(), ' ');
      absl::StrAppend(&line, i == 0 ? "" : "  ", right_[i] ? fill : "", row[i], right_[i] ? "" : fill);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&text, line, "\n");
  };
  add(titles_);
  for (const auto& row : rows_) add(row);
  return text;
}

void Table::Print() const {
  std::fputs(ToString().c_str(), stdout);
  std::fflush(stdout);
}

ProgressBar::ProgressBar(std::string label) : label_(std::move(label)), shown_(::isatty(STDERR_FILENO)) {}

ProgressBar::~ProgressBar() {
  if (begun_) std::fputc('\n', stderr);
}

void ProgressBar::Set(uint64_t done, uint64_t whole, const std::string& note) {
  if (!shown_) return;
  if (absl::Now() - last_ < absl::Milliseconds(100) && done != whole) return;
  last_ = absl::Now();
  begun_ = true;
  constexpr size_t kWidth = 30;
  std::string bar;
  if (whole > 0) {
    const double share = std::min(1.0, static_cast<double>(done) / static_cast<double>(whole));
    const auto full = static_cast<size_t>(share * kWidth);
    bar = absl::StrCat("[", std::string(full, '#'), std::string(kWidth - full, ' '), "] ",
                       absl::StrFormat("%3.0f %%", 100 * share));
  } else {
    bar = absl::StrCat(done);
  }
  std::fprintf(stderr, "\r%s %s %s\x1b[K", label_.c_str(), bar.c_str(), note.c_str());
  std::fflush(stderr);
}

absl::Status Confirm(const std::string& what, bool yes) {
  if (yes) return absl::OkStatus();
  if (!::isatty(STDIN_FILENO) || !::isatty(STDERR_FILENO)) {
    return WithExitCode(absl::FailedPreconditionError(absl::StrCat(what, " Nobody to ask: say --yes")),
                        ExitCode::kRefused);
  }
  std::fprintf(stderr, "%s [y/N] ", what.c_str());
  std::string answer;
  std::getline(std::cin, answer);
  if (answer == "y" || answer == "Y" || answer == "yes") return absl::OkStatus();
  return WithExitCode(absl::CancelledError("nothing was done"), ExitCode::kRefused);
}

}  // namespace perigee::cli
