// One request through real processes, and what can be seen of it: metrics, logs, a trace.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "cluster/membership/record.h"
#include "cluster/process.h"
#include "program.h"

namespace perigee {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

const char* const kModel = PERIGEE_SOURCE_DIR "/models/podling";
const char* const kDeploy = PERIGEE_SOURCE_DIR "/cluster/deploy";
constexpr absl::Duration kDeadline = absl::Seconds(60);
constexpr char kRequestId[] = "observed-1";

// The value of a sample; -1 where there is none.
double Value(const std::string& text, const std::string& sample) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (absl::StartsWith(line, sample + " ")) return std::stod(std::string(line.substr(sample.size() + 1)));
  }
  return -1;
}

// A store with all tiers, a prefill node, a decode node and a gateway, members by a file.
class ObservabilityTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(WriteFileAtomically(Members(), "{\"epoch\": 1, \"nodes\": []}").ok());
    std::filesystem::create_directory(home_.path() + "/remote");
    store_ = Start("store", {"--data-dir", home_.path() + "/planes", "--dram-mib", "64", "--ssd-mib", "256", "--remote",
                             "folder:" + home_.path() + "/remote", "--remote-create"});
    Start("prefill", {"--model", kModel, "--pool-mib", "64"});
    Start("decode", {"--model", kModel, "--pool-mib", "64"});
    gateway_ = Start("gateway", {"--model", kModel, "--max-direct-tokens", "0"});
  }

  std::string Members() const { return home_.path() + "/members.json"; }
  std::string Log(const std::string& role) const { return ReadFile(home_.path() + "/" + role + ".log").value_or(""); }

  std::string Start(const std::string& role, std::vector<std::string> more) {
    std::vector<std::string> arguments = {"serve",
                                          role,
                                          "--id",
                                          role,
                                          "--listen",
                                          "127.0.0.1:0",
                                          "--join",
                                          "static:" + Members(),
                                          "--transports",
                                          "tcp",
                                          "--metrics-listen",
                                          "127.0.0.1:0",
                                          "--log-format",
                                          "json"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    auto child =
        cluster::ChildProcess::Start(PERIGEE_PROGRAM, std::move(arguments), home_.path() + "/" + role + ".log");
    EXPECT_TRUE(child.ok()) << child.status();
    const auto address = child->WaitReady(kDeadline);
    EXPECT_TRUE(address.ok()) << address.status();
    if (child.ok()) processes_.push_back(*std::move(child));
    return address.value_or("");
  }

  // A prompt of several blocks.
  httplib::Result Post(const std::string& id, const std::string& begin) {
    std::string prompt = begin;
    for (int i = 0; i < 60; ++i) prompt += "In the beginning God created the heaven and the earth. ";
    const Json body = {{"model", "podling"}, {"prompt", prompt}, {"max_tokens", 8}};
    httplib::Client client("http://" + gateway_);
    client.set_read_timeout(60);
    return client.Post("/v1/completions", {{"X-Request-Id", id}}, body.dump(), "application/json");
  }

  void Complete() {
    // The first connections may fail, and their requests go another way: the one that is looked at finds all connected.
    int tries = 0;
    ASSERT_TRUE(WaitFor([&] {
      const std::string number = std::to_string(++tries);
      Post("warm-" + number, number);
      return Value(Metrics()["decode"], "perigee_node_fetched_bytes_total{role=\"decode\"}") > 0;
    })) << Log("gateway");
    const httplib::Result answer = Post(kRequestId, "");
    ASSERT_TRUE(answer) << httplib::to_string(answer.error());
    ASSERT_EQ(answer->status, 200) << answer->body;
  }

  // By role.
  std::map<std::string, std::string> Metrics() {
    std::map<std::string, std::string> texts;
    const auto file = cluster::FileFromJson(ReadFile(Members()).value_or(""));
    EXPECT_TRUE(file.ok()) << file.status();
    for (const cluster::NodeRecord& node : file->nodes) {
      EXPECT_NE(node.metrics_address, "") << node.id;
      const httplib::Result answer = httplib::Client("http://" + node.metrics_address).Get("/metrics");
      EXPECT_TRUE(answer) << node.id;
      if (answer) texts[cluster::RoleName(node.role)] = answer->body;
    }
    return texts;
  }

  Json Trace() {
    const std::string path = home_.path() + "/trace.json";
    const Ran ran = RunProgram({"trace", kRequestId, "-o", path, "--admin", store_}, home_.path());
    EXPECT_EQ(ran.exit_code, 0) << ran.out << ran.err;
    return Json::parse(ReadFile(path).value_or("{}"), nullptr, /*allow_exceptions=*/false);
  }

  TempFolder home_;
  std::string store_, gateway_;
  std::vector<cluster::ChildProcess> processes_;
};

TEST_F(ObservabilityTest, MetricsTellOfARequest) {
  Complete();
  const auto told = [&](const std::string& role, const std::string& sample, double least) {
    EXPECT_GE(Value(Metrics()[role], sample), least) << role << " " << sample;
  };
  told("gateway", "perigee_gateway_requests_total{tenant=\"\",status=\"200\"}", 1);
  told("gateway", "perigee_gateway_first_token_seconds_count", 1);
  told("gateway", "perigee_gateway_attempts_total{way=\"prefill\"}", 1);
  told("prefill", "perigee_node_prompt_tokens_total{role=\"prefill\",how=\"computed\"}", 64);
  told("prefill", "perigee_node_requests_total{role=\"prefill\",status=\"OK\"}", 1);
  told("prefill", "perigee_node_written_bytes_total{role=\"prefill\"}", 1);
  told("decode", "perigee_node_generated_tokens_total{role=\"decode\"}", 8);
  told("decode", "perigee_node_between_tokens_seconds_count{role=\"decode\"}", 7);
  told("decode", "perigee_node_first_token_seconds_count{role=\"decode\"}", 1);
  told("decode", "perigee_node_fetched_bytes_total{role=\"decode\"}", 1);
  told("store", "perigee_store_received_bytes_total", 1);
  told("store", "perigee_store_hits_total{tier=\"dram\"}", 1);
  told("store", "perigee_store_lookup_missed_total{reason=\"never_stored\"}", 1);
}

TEST_F(ObservabilityTest, DashboardAndAlertsUseMetricsThatExist) {
  Complete();
  std::set<std::string> exposed = {"up"};
  for (const auto& [role, text] : Metrics()) {
    for (const absl::string_view line : absl::StrSplit(text, '\n')) {
      const std::vector<std::string> words = absl::StrSplit(line, ' ');
      if (words.size() == 4 && words[1] == "TYPE") exposed.insert(words[2]);
    }
  }
  std::vector<std::string> expressions;
  const auto board = ReadFile(absl::StrCat(kDeploy, "/grafana/perigee.json"));
  ASSERT_TRUE(board.ok()) << board.status();
  const Json dashboard = Json::parse(*board);
  for (const Json& panel : dashboard["panels"]) {
    for (const Json& target : panel.value("targets", Json::array())) expressions.push_back(target["expr"]);
  }
  const auto alerts = ReadFile(absl::StrCat(kDeploy, "/prometheus/alerts.yml"));
  ASSERT_TRUE(alerts.ok()) << alerts.status();
  expressions.push_back(*alerts);
  std::set<std::string> used;
  const std::regex name("\\b(perigee|process)_[a-z_]+\\b");
  for (const std::string& expression : expressions) {
    for (std::sregex_iterator at(expression.begin(), expression.end(), name), end; at != end; ++at) {
      used.insert(at->str());
    }
  }
  EXPECT_GT(used.size(), 50u);
  for (const std::string& metric : used) {
    const std::string family(absl::StripSuffix(metric, "_bucket"));
    EXPECT_TRUE(exposed.contains(family)) << metric << " is exposed by no process";
  }
}

TEST_F(ObservabilityTest, LogsOfAllProcessesNameTheRequest) {
  Complete();
  for (const std::string role : {"gateway", "prefill", "decode"}) {
    // The gateway logs when the answer has been written.
    EXPECT_TRUE(WaitFor([&] { return absl::StrContains(Log(role), kRequestId); }, absl::Seconds(20))) << Log(role);
    for (const absl::string_view line : absl::StrSplit(Log(role), '\n', absl::SkipEmpty())) {
      const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
      ASSERT_TRUE(object.is_object()) << line;
      EXPECT_EQ(object["process"], role);
      EXPECT_TRUE(object.contains("time") && object.contains("level") && object.contains("message")) << line;
    }
  }
}

struct Event {
  std::string process, name;
  int thread = 0;
  int64_t begin_us = 0, end_us = 0;
};

std::vector<Event> Events(const Json& file) {
  std::map<int, std::string> processes;
  std::vector<Event> events;
  for (const Json& event : file["traceEvents"]) {
    if (event["ph"] == "M") {
      processes[event["pid"]] = event["args"]["name"];
      continue;
    }
    const int64_t begin = event["ts"];
    events.push_back({.process = processes[event["pid"]],
                      .name = event["name"],
                      .thread = event["tid"],
                      .begin_us = begin,
                      .end_us = begin + event.value("dur", int64_t{0})});
  }
  return events;
}

const Event* Find(const std::vector<Event>& events, const std::string& process, const std::string& name) {
  for (const Event& event : events) {
    if (event.process == process && event.name == name) return &event;
  }
  return nullptr;
}

TEST_F(ObservabilityTest, ATraceHasAllProcessesAndItsSpansNest) {
  Complete();
  std::vector<Event> events;
  // The request's own span ends, and what is stored of the answer is, when the client has the answer.
  ASSERT_TRUE(WaitFor([&] {
    events = Events(Trace());
    return Find(events, "gateway gateway", "request") != nullptr;
  }));
  const std::vector<std::pair<std::string, std::string>> expected = {
      {"gateway gateway", "complete"},      {"gateway gateway", "queue"},        {"gateway gateway", "attempt"},
      {"gateway gateway", "route"},         {"gateway gateway", "store Lookup"}, {"gateway gateway", "prefill call"},
      {"gateway gateway", "decode call"},   {"gateway gateway", "first token"},  {"prefill prefill", "prefill"},
      {"prefill prefill", "lookup"},        {"prefill prefill", "claim"},        {"prefill prefill", "compute chunk"},
      {"prefill prefill", "store Reserve"}, {"prefill prefill", "commit"},       {"decode decode", "generate"},
      {"decode decode", "queue"},           {"decode decode", "lookup"},         {"decode decode", "load"},
      {"decode decode", "acquire"},         {"decode decode", "store fetch"},    {"decode decode", "first pass"},
      {"decode decode", "first token"},     {"decode decode", "answer"},         {"store store", "serve Lookup"}};
  for (const auto& [process, name] : expected)
    EXPECT_NE(Find(events, process, name), nullptr) << process << " " << name;

  // On one thread a span is inside another or apart from it.
  for (const Event& a : events) {
    EXPECT_LE(a.begin_us, a.end_us) << a.name;
    for (const Event& b : events) {
      if (a.process != b.process || a.thread != b.thread || a.begin_us > b.begin_us) continue;
      EXPECT_TRUE(b.begin_us >= a.end_us || b.end_us <= a.end_us || a.begin_us == b.begin_us)
          << a.process << ": " << a.name << " [" << a.begin_us << ", " << a.end_us << "] and " << b.name << " ["
          << b.begin_us << ", " << b.end_us << "]";
    }
  }
  // Across processes, as far as their clocks can be known to agree.
  constexpr int64_t kClock_us = 5000;
  const auto inside = [&](const std::string& in_process, const std::string& in, const std::string& process,
                          const std::string& name) {
    const Event *outer = Find(events, in_process, in), *inner = Find(events, process, name);
    ASSERT_TRUE(outer != nullptr && inner != nullptr) << in << " " << name;
    EXPECT_LE(outer->begin_us, inner->begin_us + kClock_us) << name;
    EXPECT_GE(outer->end_us, inner->end_us - kClock_us) << name;
  };
  inside("gateway gateway", "request", "gateway gateway", "complete");
  inside("gateway gateway", "prefill call", "prefill prefill", "prefill");
  inside("gateway gateway", "decode call", "decode decode", "generate");
}

TEST_F(ObservabilityTest, ARequestThatNobodyRemembersIsAnError) {
  const Ran ran = RunProgram({"trace", "never-seen", "--admin", store_}, home_.path());
  EXPECT_EQ(ran.exit_code, 3);
  EXPECT_THAT(ran.err, HasSubstr("never-seen"));
  const Ran wrong = RunProgram({"trace", "no id", "--admin", "127.0.0.1:1"}, home_.path());
  EXPECT_EQ(wrong.exit_code, 2);
  EXPECT_THAT(wrong.err, HasSubstr("no request id"));
}

}  // namespace
}  // namespace perigee
