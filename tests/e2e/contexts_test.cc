// Contexts through a real cluster: registered over HTTP, asked about in any order, while processes die and others
// delete them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <signal.h>

#include <nlohmann/json.hpp>

#include "cluster/local_cluster.h"
#include "http_question.h"
#include "program.h"

namespace perigee {
namespace {

using Json = nlohmann::json;

const char* const kModel = PERIGEE_SOURCE_DIR "/models/podling";

class ContextsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto cluster = cluster::LocalCluster::Start({.executable = PERIGEE_PROGRAM,
                                                 .model_folder = kModel,
                                                 .plan_file = {},
                                                 .state_folder = home_.path() + "/state",
                                                 .decode_nodes = 2,
                                                 .gateway = true,
                                                 .keep_planes = false,
                                                 .transports = {}});
    ASSERT_TRUE(cluster.ok()) << cluster.status();
    cluster_ = *std::move(cluster);
    http_ = std::make_unique<httplib::Client>("http://" + cluster_->addresses().gateway);
    http_->set_read_timeout(60);
    for (int i = 0; i < 3; ++i) Put(Name(i), Document(i));
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(Becomes([&] { return Get("/v1/contexts/" + Name(i)).value("state", "") == "ready"; })) << i;
    }
  }

  static std::string Name(int i) { return absl::StrCat("document-", i); }
  static std::string Document(int i) {
    static const char* const kKeys[] = {"Torvek is 48213", "Braimel is 90756", "Plosun is 15384"};
    std::string text;
    for (int s = 0; s < 24; ++s) {
      absl::StrAppend(&text, " And in the ", s + 3 * i, " year they came to the river of ", s * 7 % 11,
                      " stones, and spoke of the king.");
      if (s == 12) absl::StrAppend(&text, " The pass key for ", kKeys[i], ".");
    }
    return text;
  }
  static bool Becomes(const std::function<bool()>& so) {
    for (const absl::Time deadline = absl::Now() + absl::Seconds(30); !so(); absl::SleepFor(absl::Milliseconds(10))) {
      if (absl::Now() > deadline) return false;
    }
    return true;
  }
  void Put(const std::string& id, const std::string& text) {
    const auto answer = http_->Put("/v1/contexts/" + id, Json({{"text", text}}).dump(), "application/json");
    ASSERT_TRUE(answer && answer->status == 200) << (answer ? answer->body : httplib::to_string(answer.error()));
  }
  Json Get(const std::string& path) {
    const auto answer = http_->Get(path);
    return answer ? Json::parse(answer->body, nullptr, false) : Json();
  }
  static Json Body(const std::vector<int>& order, const std::string& name, int max_tokens = 6) {
    Json ids = Json::array();
    for (const int i : order) ids.push_back(Name(i));
    return {{"model", "podling"},
            {"contexts", ids},
            {"context_repair", "prefix:8"},
            {"prompt", absl::StrCat(" What is the pass key for ", name, "? ")},
            {"max_tokens", max_tokens},
            {"ignore_eos", true},
            {"temperature", 0}};
  }
  Json Complete(const Json& body) {
    const auto answer = http_->Post("/v1/completions", body.dump(), "application/json");
    if (!answer) return {{"error", httplib::to_string(answer.error())}};
    return Json::parse(answer->body, nullptr, false);
  }
  static std::string TextOf(const Json& answer) {
    return answer.contains("choices") ? answer["choices"][0].value("text", "") : answer.dump();
  }
  // The text of a streamed answer; `after_first` is called once something of it has come.
  std::string Stream(Json body, const std::function<void()>& after_first) {
    body["stream"] = true;
    StreamedAnswer answer;
    bool begun = false;
    httplib::Request request;
    request.method = "POST";
    request.path = "/v1/completions";
    request.body = body.dump();
    request.set_header("Content-Type", "application/json");
    request.content_receiver = [&](const char* data, size_t bytes, uint64_t, uint64_t) {
      answer.Push(absl::string_view(data, bytes));
      if (!begun && !answer.text.empty()) after_first();
      begun = begun || !answer.text.empty();
      return true;
    };
    const auto sent = http_->send(request);
    EXPECT_TRUE(sent) << httplib::to_string(sent.error());
    EXPECT_TRUE(answer.done) << answer.error;
    return answer.text;
  }

  TempFolder home_;
  std::unique_ptr<cluster::LocalCluster> cluster_;
  std::unique_ptr<httplib::Client> http_;
};

TEST_F(ContextsTest, ReusedInAnyOrderAndAfterTheStoreWasKilled) {
  const struct {
    std::vector<int> order;
    const char* name;
    const char* digits;
  } asked[] = {{{0, 1, 2}, "Torvek", "48213"}, {{2, 0}, "Plosun", "15384"}, {{2, 1, 0}, "Braimel", "90756"}};
  for (int round = 0; round < 2; ++round) {
    for (const auto& one : asked) {
      const Json answer = Complete(Body(one.order, one.name));
      EXPECT_THAT(TextOf(answer), ::testing::StartsWith(one.digits)) << answer;
      const Json& usage = answer["usage"];
      EXPECT_GT(usage["prompt_tokens_details"]["cached_tokens"].get<double>(),
                0.9 * usage["prompt_tokens"].get<double>());
      EXPECT_EQ(usage["prompt_tokens_details"]["repaired_tokens"], 8 * (one.order.size() - 1));
    }
    if (round == 0) {
      cluster_->KillStore();
      ASSERT_TRUE(cluster_->StartStore().ok());
    }
  }
}

TEST_F(ContextsTest, AnAnswerOverContextsOutlivesItsNode) {
  const Json body = Body({1, 2, 0}, "Torvek", 200);
  const std::string expected = TextOf(Complete(body));
  ASSERT_GT(expected.size(), 100u);
  // Whichever of the two answers: one of them goes.
  EXPECT_EQ(Stream(body, [&] { ::kill(cluster_->decode_pid(), SIGKILL); }), expected);
  EXPECT_EQ(Stream(body, [] {}), expected);
}

TEST_F(ContextsTest, RequestsFinishOnWhatTheyBeganWithAndLaterOnesAreToldThatItIsGone) {
  const Json body = Body({0, 1}, "Braimel", 200);
  const std::string expected = TextOf(Complete(body));
  httplib::Client other("http://" + cluster_->addresses().gateway);
  EXPECT_EQ(Stream(body,
                   [&] {
                     const auto gone = other.Delete("/v1/contexts/" + Name(1));
                     EXPECT_TRUE(gone && gone->status == 200) << (gone ? gone->body : "");
                   }),
            expected);
  const Json refused = Complete(body);
  EXPECT_EQ(refused["error"]["code"], "context_not_found") << refused;
  // A changed text is another version from the next request on.
  std::string changed = Document(0);
  changed.replace(changed.find("48213"), 5, "31999");
  Put(Name(0), changed);
  EXPECT_EQ(Get("/v1/contexts/" + Name(0))["version"], 2);
  EXPECT_THAT(TextOf(Complete(Body({2, 0}, "Torvek"))), ::testing::StartsWith("31999"));
}

}  // namespace
}  // namespace perigee
