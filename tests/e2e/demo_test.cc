// `perigee demo`, the main job end to end: its report's fields, how they hang together, and that the answers are right.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "model/served_model.h"
#include "program.h"

namespace perigee {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

const char* const kModel = PERIGEE_SOURCE_DIR "/models/podling";

// Debian's bible-kjv where it is installed; else sentences in the same spirit, no two alike.
std::string Prose(const std::string& folder) {
  const std::string path = folder + "/prose.txt";
  if (std::system((std::string(PERIGEE_SOURCE_DIR "/scripts/demo_prose.sh >") + path + " 2>/dev/null").c_str()) == 0) {
    const std::string prose = ReadFile(path).value_or("");
    if (prose.size() > 12000) return path;
  }
  static const char* const kWho[] = {"the king",   "his brother", "an old shepherd", "the captain",
                                     "her mother", "a stranger",  "the judge"};
  static const char* const kDid[] = {"walked to",      "looked upon", "spoke of",
                                     "came back from", "remembered",  "departed from"};
  static const char* const kWhere[] = {"the river",      "the city",     "the great hall", "the field",
                                       "the sea",        "the mountain", "the garden",     "the house",
                                       "the north road", "the well",     "the gate"};
  std::string prose;
  for (int i = 0; prose.size() < 12000; ++i) {
    absl::StrAppend(&prose, "And it came to pass that ", kWho[i % 7], " ", kDid[i % 6], " ", kWhere[i % 11], ", and ",
                    kWho[(i / 7 + 3) % 7], " ", kDid[(i / 3) % 6], " ", kWhere[(i / 5 + 2) % 11], ". ");
  }
  EXPECT_TRUE(WriteFileAtomically(path, prose).ok());
  return path;
}

TEST(DemoTest, ReportHoldsMeasuredFactsThatAgreeAndRightAnswers) {
  TempFolder home;
  const std::string report_path = home.path() + "/out/report.json";
  const Ran ran = RunProgram({"demo", "--prose", Prose(home.path()), "--model", kModel, "--state-dir",
                              home.path() + "/state", "--report", report_path},
                             home.path(), absl::Seconds(200));
  ASSERT_EQ(ran.exit_code, 0) << ran.out << ran.err;
  const Json report = Json::parse(ReadFile(report_path).value_or(""), nullptr, false);
  ASSERT_TRUE(report.is_object());
  EXPECT_EQ(report["model"], "podling");

  const auto served = model::ServedModel::Load({.folder = kModel, .plan_file = "", .block_tokens = 64});
  ASSERT_TRUE(served.ok()) << served.status();
  const pod::Layout& layout = (*served)->layout();
  const pod::Window& window = layout.plan().window();
  EXPECT_EQ(report["window"]["sink_tokens"], window.sink_tokens);
  EXPECT_EQ(report["window"]["recent_tokens"], window.recent_tokens);
  EXPECT_EQ(report["window"]["block_tokens"], 64);
  EXPECT_EQ(report["window"]["rounded_sink_tokens"], 64);
  EXPECT_GE(report["window"]["rounded_recent_tokens"].get<int>(), window.recent_tokens);
  EXPECT_LT(report["window"]["rounded_recent_tokens"].get<int>(), window.recent_tokens + 64);

  for (const char* name : {"miss", "hit", "after_restart"}) {
    SCOPED_TRACE(name);
    const Json& q = report[name];
    ASSERT_TRUE(q.is_object());
    EXPECT_EQ(q["answer"], q["expected"]);
    const int64_t cached = q["prompt_tokens"].get<int64_t>() - 1;
    EXPECT_GE(cached, 3000);
    EXPECT_EQ(q["fetched_tokens"], cached);
    EXPECT_EQ(q["bytes_full"], cached * static_cast<int64_t>(layout.dense_bytes_per_token()));
    // What the decode node fetched is what the layout says that a reader of this length needs, to the byte.
    uint64_t fetched = 0, stored = 0;
    for (int64_t begin = 0; begin < cached; begin += 64) {
      fetched += layout.plane_bytes(pod::PlaneKind::kDistant);
      stored += layout.plane_bytes(pod::PlaneKind::kDistant) + layout.plane_bytes(pod::PlaneKind::kSummary);
      if (pod::IsNear(window, 64, begin, cached)) fetched += layout.plane_bytes(pod::PlaneKind::kProximal);
    }
    EXPECT_EQ(q["bytes_fetched"], fetched);
    EXPECT_LT(q["bytes_fetched"].get<double>(), 0.75 * q["bytes_full"].get<double>());
    EXPECT_GT(q["bytes_stored"].get<uint64_t>(), stored);
    EXPECT_LT(q["bytes_stored"].get<uint64_t>(), q["bytes_full"].get<uint64_t>());
    EXPECT_GT(q["ttft_ms"].get<double>(), 0);
    EXPECT_GT(q["decode_tokens_per_s"].get<double>(), 0);
  }
  EXPECT_EQ(report["miss"]["prefilled_tokens"], report["miss"]["prompt_tokens"].get<int64_t>() - 1);
  // Documents: sent as text all is computed, as contexts only the question and the repair.
  ASSERT_EQ(report["documents"].size(), 5u);
  for (const Json& row : report["documents"]) {
    SCOPED_TRACE(row.dump());
    EXPECT_EQ(row["answer"], row["expected"]);
    const double computed = row["computed_tokens"].get<double>() / row["prompt_tokens"].get<double>();
    if (row["name"] == "text") {
      EXPECT_EQ(computed, 1);
    } else {
      EXPECT_LT(computed, row["name"] == "deviation" ? 0.2 : 0.05);
    }
  }
  EXPECT_NE(report["miss"]["expected"], report["hit"]["expected"]);
  // Only the question, and at most one partial block before it.
  EXPECT_GT(report["hit"]["prefilled_tokens"].get<int>(), 0);
  EXPECT_LT(report["hit"]["prefilled_tokens"].get<int>(), 64 + 40);
  EXPECT_EQ(report["after_restart"]["prefilled_tokens"], 0);
  EXPECT_EQ(report["after_restart"]["prompt_tokens"], report["miss"]["prompt_tokens"]);
  const double saving = report["plan_saving"].get<double>();
  const Json& miss = report["miss"];
  EXPECT_GT(saving, 0.25);
  // The formula counts a dense cache in whole blocks, the report in tokens.
  EXPECT_NEAR(saving, 1 - miss["bytes_fetched"].get<double>() / miss["bytes_full"].get<double>(), 0.02);
  EXPECT_THAT(ran.out, HasSubstr("seeded"));  // What must be said beside podling's figures.
  EXPECT_FALSE(std::filesystem::exists(home.path() + "/state/cluster.json"));
}

TEST(DemoTest, BadInputIsAClearError) {
  TempFolder home;
  const std::string state = home.path() + "/state";
  Ran ran = RunProgram({"demo", "--prose", "/no/such/prose", "--state-dir", state}, home.path());
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_THAT(ran.err, HasSubstr("/no/such/prose"));
  const std::string tiny = home.path() + "/tiny.txt";
  for (const std::string& text : {std::string(), std::string("Too short."), std::string(20000, 'x')}) {
    ASSERT_TRUE(WriteFileAtomically(tiny, text).ok());
    ran = RunProgram({"demo", "--prose", tiny, "--state-dir", state}, home.path());
    EXPECT_EQ(ran.exit_code, 1) << ran.err;
    EXPECT_THAT(ran.err, HasSubstr("prose"));
  }
}

}  // namespace
}  // namespace perigee
