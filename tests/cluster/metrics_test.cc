// What Prometheus reads: names, labels, buckets; and the little server that it reads them from.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "cluster/metrics/gateway_metrics.h"
#include "cluster/metrics/metric_families.h"
#include "cluster/metrics/metrics_server.h"
#include "cluster/metrics/store_metrics.h"

namespace perigee::cluster {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

size_t Count(const std::string& text, const std::string& what) {
  size_t count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}

TEST(MetricFamiliesTest, SamplesOfOneNameAreOneFamily) {
  MetricFamilies families;
  families.Counter("x_total", "How many.", 3, {{"kind", "b"}});
  families.Counter("x_total", "", 4, {{"kind", "c"}});
  families.Gauge("y_bytes", "How much.", 0.5);
  const std::string text = families.Text();
  EXPECT_EQ(Count(text, "# TYPE x_total counter"), 1u) << text;
  EXPECT_THAT(text, HasSubstr("# HELP x_total How many.\n"));
  EXPECT_THAT(text, HasSubstr("x_total{kind=\"b\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("x_total{kind=\"c\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("y_bytes 0.5\n"));
}

TEST(MetricFamiliesTest, BucketsAreCumulative) {
  DurationHistogram histogram;
  histogram.Record(absl::Microseconds(50));
  histogram.Record(absl::Milliseconds(3));
  histogram.Record(absl::Hours(1));
  MetricFamilies families;
  families.Histogram("t_seconds", "How long.", histogram.Snapshot());
  const std::string text = families.Text();
  EXPECT_THAT(text, HasSubstr("t_seconds_bucket{le=\"0.0001\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("t_seconds_bucket{le=\"0.005\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("t_seconds_bucket{le=\"300\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("t_seconds_bucket{le=\"+Inf\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("t_seconds_count 3\n"));
}

HttpRequestRecord Record(const std::string& tenant, int status = 200) {
  HttpRequestRecord record;
  record.path = "/v1/completions";
  record.tenant = tenant;
  record.status = status;
  record.took = absl::Milliseconds(30);
  record.first_token = absl::Milliseconds(20);
  record.usage = {
      .prompt_tokens = 10, .cached_tokens = 8, .context_tokens = 7, .repaired_tokens = 1, .completion_tokens = 2};
  return record;
}

TEST(GatewayMetricsTest, CompletionsCountByTenantAndStatus) {
  GatewayMetrics metrics;
  metrics.Observe(Record("acme"));
  metrics.Observe(Record("acme"));
  metrics.Observe(Record("acme", 429));
  HttpRequestRecord health;
  health.path = "/health";
  health.status = 200;
  metrics.Observe(health);
  HttpRequestRecord broken = Record("");
  broken.result = absl::UnavailableError("late");
  metrics.Observe(broken);
  MetricFamilies families;
  metrics.Collect({.retries = 5, .waiting = 2},
                  {.seen = 9, .reused = 4, .admitted = 3, .entries = 7, .admitted_now = 2}, families);
  const std::string text = families.Text();
  EXPECT_THAT(text, HasSubstr("perigee_gateway_requests_total{tenant=\"acme\",status=\"200\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_requests_total{tenant=\"acme\",status=\"429\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_tokens_total{tenant=\"acme\",kind=\"cached\"} 24\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_tokens_total{tenant=\"acme\",kind=\"context\"} 21\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_tokens_total{tenant=\"acme\",kind=\"repaired\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_first_token_seconds_count 4\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_broken_streams_total 1\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_retries_total 5\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_waiting 2\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_chunks_total{as=\"context\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_chunks_total{as=\"text\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_chunks_admitted_total 3\n"));
  EXPECT_THAT(text, HasSubstr("perigee_gateway_chunks_remembered{as=\"text\"} 5\n"));
}

TEST(GatewayMetricsTest, TenantsWithSamplesOfTheirOwnAreBounded) {
  GatewayMetrics metrics;
  for (size_t i = 0; i < GatewayMetrics::kMaxTenants + 50; ++i) metrics.Observe(Record(absl::StrCat("t", i)));
  MetricFamilies families;
  metrics.Collect({}, {}, families);
  const std::string text = families.Text();
  EXPECT_EQ(Count(text, "perigee_gateway_requests_total{"), GatewayMetrics::kMaxTenants + 1);
  EXPECT_THAT(text, HasSubstr("perigee_gateway_requests_total{tenant=\"other\",status=\"200\"} 50\n"));
}

TEST(StoreMetricsTest, TiersReasonsAndDisksAreLabels) {
  kvstore::StoreStats stats;
  stats.hits_ssd = 7;
  stats.misses_because[static_cast<size_t>(kvstore::MissReason::kEvicted)] = 3;
  stats.lookups_missed[static_cast<size_t>(kvstore::MissReason::kMoved)] = 2;
  stats.ssd.paths = {{.path = "/disk1", .health = kvstore::SsdHealth::kReadOnly, .message = ""}};
  MetricFamilies families;
  CollectStore(stats, std::nullopt, families);
  const std::string text = families.Text();
  EXPECT_THAT(text, HasSubstr("perigee_store_hits_total{tier=\"ssd\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("perigee_store_misses_total{reason=\"evicted\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("perigee_store_lookup_missed_total{reason=\"moved\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("perigee_store_disk_health{path=\"/disk1\"} 3\n"));
  EXPECT_THAT(text, Not(HasSubstr("perigee_store_placement_epoch")));
  MetricFamilies member;
  CollectStore(stats, kvstore::RebalanceStats{.map_epoch = 4}, member);
  EXPECT_THAT(member.Text(), HasSubstr("perigee_store_placement_epoch 4\n"));
}

TEST(StoreMetricsTest, NamesFollowTheConventions) {
  MetricFamilies families;
  CollectStore({}, kvstore::RebalanceStats{}, families);
  CollectProcess("store", "1", families);
  std::string last;
  for (const absl::string_view line : absl::StrSplit(families.Text(), '\n')) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    if (words.size() < 4 || words[0] != "#") continue;
    if (words[1] == "HELP") {
      last = words[2];
      continue;
    }
    EXPECT_EQ(words[2], last) << "without help";
    EXPECT_EQ(words[3] == "counter", absl::EndsWith(words[2], "_total")) << line;
  }
}

class MetricsServerTest : public ::testing::Test {
 protected:
  absl::Status Start(const std::string& listen = "127.0.0.1:0") {
    auto server =
        MetricsServer::Start(listen, {.process = "tester",
                                      .version = "9",
                                      .collect = [this](MetricFamilies& out) { out.Gauge("scrapes", "", ++scrapes_); },
                                      .ready = [this] { return ready_; }});
    if (!server.ok()) return server.status();
    server_ = *std::move(server);
    return absl::OkStatus();
  }
  httplib::Result Get(const std::string& path) { return httplib::Client("http://" + server_->address()).Get(path); }

  int scrapes_ = 0;
  absl::Status ready_;
  std::unique_ptr<MetricsServer> server_;
};

TEST_F(MetricsServerTest, EveryScrapeIsMadeAnew) {
  ASSERT_TRUE(Start().ok());
  for (const int scrape : {1, 2}) {
    const httplib::Result answer = Get("/metrics");
    ASSERT_TRUE(answer) << httplib::to_string(answer.error());
    EXPECT_EQ(answer->status, 200);
    EXPECT_THAT(answer->get_header_value("Content-Type"), HasSubstr("text/plain; version=0.0.4"));
    EXPECT_THAT(answer->body, HasSubstr(absl::StrCat("scrapes ", scrape, "\n")));
    EXPECT_THAT(answer->body, HasSubstr("perigee_build_info{process=\"tester\",version=\"9\"} 1\n"));
    EXPECT_THAT(answer->body, HasSubstr("process_resident_memory_bytes "));
  }
}

TEST_F(MetricsServerTest, ReadinessSaysWhyNot) {
  ASSERT_TRUE(Start().ok());
  EXPECT_EQ(Get("/ready")->status, 200);
  ready_ = absl::UnavailableError("it is going to stop");
  EXPECT_EQ(Get("/ready")->status, 503);
  EXPECT_EQ(Get("/ready")->body, "it is going to stop\n");
  EXPECT_EQ(Get("/health")->status, 200);
  EXPECT_EQ(Get("/else")->status, 404);
}

TEST_F(MetricsServerTest, AnAddressThatCannotBeUsedIsAClearError) {
  ASSERT_TRUE(Start().ok());
  const std::string taken = server_->address();
  EXPECT_TRUE(absl::IsAlreadyExists(Start(taken)));
  for (const char* wrong : {"", "host", ":80", "127.0.0.1:", "127.0.0.1:70000"}) {
    const absl::Status status = Start(wrong);
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << wrong << ": " << status;
  }
}

}  // namespace
}  // namespace perigee::cluster
