// Metrics as one scrape of Prometheus sees them: families of samples, made anew from snapshots each time.
//
// Names follow Prometheus' conventions: perigee_ROOM_WHAT_UNIT, _total for what only grows, seconds and bytes.
#ifndef PERIGEE_CLUSTER_METRICS_METRIC_FAMILIES_H_
#define PERIGEE_CLUSTER_METRICS_METRIC_FAMILIES_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "base/histogram.h"

namespace perigee::cluster {

using MetricLabels = std::vector<std::pair<std::string, std::string>>;

// One thread.
class MetricFamilies {
 public:
  // Samples of one name are one family: they come one after the other, and the first one's help counts.
  void Counter(absl::string_view name, absl::string_view help, double value, MetricLabels labels = {});
  void Gauge(absl::string_view name, absl::string_view help, double value, MetricLabels labels = {});
  void Histogram(absl::string_view name, absl::string_view help, const DurationCounts& counts,
                 MetricLabels labels = {});

  // Prometheus' text format, version 0.0.4.
  std::string Text() const;

 private:
  enum class Type : uint8_t { kCounter, kGauge, kHistogram };
  struct Sample {
    MetricLabels labels;
    double value = 0;
    DurationCounts counts;
  };
  struct Family {
    std::string name, help;
    Type type;
    std::vector<Sample> samples;
  };
  void Add(absl::string_view name, absl::string_view help, Type type, Sample sample);

  std::vector<Family> families_;
};

// What every process has: memory, processor time, descriptors, its version and role.
void CollectProcess(const std::string& role, const std::string& version, MetricFamilies& out);

}  // namespace perigee::cluster

#endif  // PERIGEE_CLUSTER_METRICS_METRIC_FAMILIES_H_
