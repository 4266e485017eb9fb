#include "cluster/metrics/metric_families.h"

#include <prometheus/metric_family.h>
#include <prometheus/text_serializer.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>
#include <iterator>
#include <limits>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "base/trace.h"

namespace perigee::cluster {
namespace {

prometheus::ClientMetric::Histogram ToHistogram(const DurationCounts& counts) {
  prometheus::ClientMetric::Histogram out;
  out.sample_count = counts.count;
  out.sample_sum = counts.sum_s;
  uint64_t below = 0;
  for (size_t i = 0; i < counts.buckets.size(); ++i) {
    below += counts.buckets[i];
    out.bucket.push_back(
        {.cumulative_count = below,
         .upper_bound = i < kDurationBounds_s.size() ? kDurationBounds_s[i] : std::numeric_limits<double>::infinity()});
  }
  return out;
}

}  // namespace

void MetricFamilies::Counter(absl::string_view name, absl::string_view help, double value, MetricLabels labels) {
  Add(name, help, Type::kCounter, {.labels = std::move(labels), .value = value, .counts = {}});
}

void MetricFamilies::Gauge(absl::string_view name, absl::string_view help, double value, MetricLabels labels) {
  Add(name, help, Type::kGauge, {.labels = std::move(labels), .value = value, .counts = {}});
}

void MetricFamilies::Histogram(absl::string_view name, absl::string_view help, const DurationCounts& counts,
                               MetricLabels labels) {
  Add(name, help, Type::kHistogram, {.labels = std::move(labels), .value = 0, .counts = counts});
}

void MetricFamilies::Add(absl::string_view name, absl::string_view help, Type type, Sample sample) {
  if (families_.empty() || families_.back().name != name) {
    families_.push_back({.name = std::string(name), .help = std::string(help), .type = type, .samples = {}});
  }
  families_.back().samples.push_back(std::move(sample));
}

std::string MetricFamilies::Text() const {
  std::vector<prometheus::MetricFamily> out;
  for (const Family& family : families_) {
    prometheus::MetricFamily& to = out.emplace_back();
    to.name = family.name;
    to.help = family.help;
    to.type = family.type == Type::kCounter ? prometheus::MetricType::Counter
              : family.type == Type::kGauge ? prometheus::MetricType::Gauge
                                            : prometheus::MetricType::Histogram;
    for (const Sample& sample : family.samples) {
      prometheus::ClientMetric& metric = to.metric.emplace_back();
      for (const auto& [name, value] : sample.labels) metric.label.push_back({name, value});
      metric.counter.value = metric.gauge.value = sample.value;
      if (family.type == Type::kHistogram) metric.histogram = ToHistogram(sample.counts);
    }
  }
  std::ostringstream text;
  prometheus::TextSerializer().Serialize(text, out);
  return text.str();
}

void CollectProcess(const std::string& role, const std::string& version, MetricFamilies& out) {
  out.Gauge("perigee_build_info", "Which program this is.", 1, {{"process", role}, {"version", version}});
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  out.Counter("process_cpu_seconds_total", "Processor time, of all threads.",
              seconds(usage.ru_utime) + seconds(usage.ru_stime));
  const std::vector<std::string> pages = absl::StrSplit(ReadFile("/proc/self/statm").value_or(""), ' ');
  uint64_t resident = 0;
  if (pages.size() > 1 && absl::SimpleAtoi(pages[1], &resident)) {
    out.Gauge("process_resident_memory_bytes", "Memory that is in use.",
              static_cast<double>(resident) * static_cast<double>(::sysconf(_SC_PAGESIZE)));
  }
  std::error_code error;
  const std::filesystem::directory_iterator descriptors("/proc/self/fd", error);
  if (!error) {
    out.Gauge("process_open_fds", "Open descriptors.",
              static_cast<double>(std::distance(begin(descriptors), end(descriptors))));
  }
  out.Counter("perigee_trace_forgotten_spans_total", "Spans of requests that made room for later ones.",
              static_cast<double>(ProcessTrace().forgotten()));
}

}  // namespace perigee::cluster
