// Contexts over HTTP, and requests that use them, before a backend that only looks at what it is given.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include <fstream>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "cluster/contexts/folder_registry.h"
#include "cluster/gateway/http_server.h"
#include "fake_backend.h"
#include "members.h"
#include "nlohmann/json.hpp"

namespace perigee::cluster {
namespace {

using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr char kAnn[] = "Bearer sk-ann-0123456789abcdef", kBob[] = "Bearer sk-bob-0123456789abcdef";

class ContextHttpTest : public FolderTest {
 protected:
  void SetUp() override {
    static model::Tokenizer* const tokenizer =
        model::LoadTokenizer(std::string(PERIGEE_SOURCE_DIR) + "/models/podling")->release();
    static model::ChatTemplate* const chat_template = model::ChatTemplate::Plain().release();
    tokenizer_ = tokenizer;
    registry_ = *FolderContextRegistry::Open(folder_ + "/contexts");
    const auto prefill = [](const std::string&, const std::vector<int32_t>&, const std::function<bool()>&) {
      return absl::OkStatus();
    };
    service_ = std::make_unique<ContextService>(registry_.get(), tokenizer, prefill,
                                                ContextServiceOptions{.window_tokens = 512});
    HttpServerOptions options;
    options.address = "127.0.0.1:0";
    options.keys_file = folder_ + "/keys";
    options.contexts = service_.get();
    if (with_chunks_) options.chunks = &chunks_;
    std::ofstream(options.keys_file) << "sk-ann-0123456789abcdef ann\nsk-bob-0123456789abcdef bob\n";
    const FrontModel model{.name = "m", .tokenizer = tokenizer, .chat_template = chat_template, .context_tokens = 512};
    auto server = HttpServer::Start(options, model, &backend_);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  struct Answer {
    int status = 0;
    Json json;
    Json error() const { return json.value("error", Json::object()); }
  };
  Answer Ask(const std::string& method, const std::string& path, const std::string& body = "",
             const std::string& type = "application/json", const char* key = kAnn) {
    httplib::Client client("http://" + server_->address());
    client.set_read_timeout(20);
    httplib::Request request;
    request.method = method;
    request.path = path;
    request.headers = {{"Authorization", key}};
    if (!body.empty()) request.headers.emplace("Content-Type", type);
    request.body = body;
    const auto result = client.send(request);
    if (!result) return {.status = -1, .json = httplib::to_string(result.error())};
    return {.status = result->status, .json = Json::parse(result->body, nullptr, false)};
  }
  Answer Put(const std::string& id, const std::string& text) {
    return Ask("PUT", "/v1/contexts/" + id, Json({{"text", text}}).dump());
  }
  Answer Complete(const std::string& fields, const char* key = kAnn) {
    return Ask("POST", "/v1/completions", R"({"model":"m","max_tokens":20,)" + fields + "}", "application/json", key);
  }
  std::vector<int32_t> Ids(const std::string& text) const { return *tokenizer_->Encode(text, false); }

  const model::Tokenizer* tokenizer_ = nullptr;
  bool with_chunks_ = true;
  ChunkIndex chunks_;
  std::unique_ptr<FolderContextRegistry> registry_;
  std::unique_ptr<ContextService> service_;
  FakeBackend backend_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(ContextHttpTest, AContextIsPutShownListedAndDeleted) {
  const Answer put = Put("river", "the pass key");
  ASSERT_EQ(put.status, 200) << put.json;
  EXPECT_EQ(put.json.at("id"), "river");
  EXPECT_EQ(put.json.at("object"), "context");
  EXPECT_EQ(put.json.at("version"), 1);
  EXPECT_EQ(put.json.at("tokens"), Ids("the pass key").size());
  EXPECT_EQ(put.json.at("new"), true);
  EXPECT_TRUE(put.json.contains("state") && !put.json.contains("error"));
  const Answer again = Ask("PUT", "/v1/contexts/river", "the pass key", "text/plain; charset=utf-8");
  EXPECT_EQ(again.json.at("new"), false);
  EXPECT_EQ(again.json.at("version"), 1);
  EXPECT_EQ(Put("river", "another").json.at("version"), 2);
  EXPECT_EQ(Ask("PUT", "/v1/contexts/ids", R"({"token_ids":[300,301]})").json.at("tokens"), 2);
  EXPECT_EQ(Ask("GET", "/v1/contexts/ids").json.at("tokens"), 2);
  const Json all = Ask("GET", "/v1/contexts").json;
  ASSERT_EQ(all.at("data").size(), 2u);
  EXPECT_EQ(all.at("data")[1].at("id"), "river");
  EXPECT_EQ(all.at("has_more"), false);
  const Json page = Ask("GET", "/v1/contexts?limit=1").json;
  EXPECT_EQ(page.at("data").size(), 1u);
  EXPECT_EQ(page.at("has_more"), true);
  EXPECT_EQ(Ask("GET", "/v1/contexts?limit=1&after=ids").json.at("data")[0].at("id"), "river");
  EXPECT_EQ(Ask("DELETE", "/v1/contexts/river").json.at("deleted"), true);
  const Answer gone = Ask("DELETE", "/v1/contexts/river");
  EXPECT_EQ(gone.status, 404);
  EXPECT_EQ(gone.error().at("code"), "context_not_found");
}

TEST_F(ContextHttpTest, WhatCannotBeAContextIsRefused) {
  for (const auto& [body, param] :
       std::vector<std::pair<std::string, Json>>{{"{", nullptr},
                                                 {"[]", nullptr},
                                                 {"{}", "text"},
                                                 {R"({"text":7})", "text"},
                                                 {R"({"text":"a","token_ids":[1]})", "token_ids"},
                                                 {R"({"token_ids":7})", "token_ids"},
                                                 {R"({"token_ids":[-1]})", "token_ids"},
                                                 {R"({"token_ids":["a"]})", "token_ids"},
                                                 {R"({"token_ids":[1000000]})", nullptr},
                                                 {R"({"token_ids":[]})", nullptr},
                                                 {R"({"text":""})", nullptr}}) {
    const Answer answer = Ask("PUT", "/v1/contexts/a", body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_EQ(answer.error().value("param", Json()), param) << body << answer.json;
  }
  const Answer large = Put("a", std::string(4000, 'q'));
  EXPECT_EQ(large.status, 400);
  EXPECT_THAT(large.error().at("message").get<std::string>(), HasSubstr("context length is 512"));
  EXPECT_EQ(Ask("PUT", "/v1/contexts/a", "\xFF", "text/plain").status, 400);
  EXPECT_EQ(Ask("PUT", "/v1/contexts/a", "text=a", "application/x-www-form-urlencoded").status, 415);
  EXPECT_EQ(Ask("PUT", "/v1/contexts/a", std::string((size_t{8} << 20) + 1, 'a'), "text/plain").status, 413);
  for (const char* id : {"", "a%20b", "a%2Fb", "..%2F..%2Fetc", "a/b"}) {
    const Answer answer = Put(id, "x");
    EXPECT_EQ(answer.status, 400) << id;
    EXPECT_THAT(answer.error().value("message", ""), HasSubstr("is no context's id")) << id;
  }
  EXPECT_EQ(Ask("POST", "/v1/contexts/a", "{}").status, 405);
  EXPECT_EQ(Ask("DELETE", "/v1/contexts").status, 405);
  for (const char* query : {"limit=0", "limit=x", "limit=1001", "limit=-1", "after=a%20b"}) {
    EXPECT_EQ(Ask("GET", absl::StrCat("/v1/contexts?", query)).status, 400) << query;
  }
  EXPECT_EQ(Ask("GET", "/v1/contexts", "", "", "Bearer sk-nobody").status, 401);
  EXPECT_TRUE(Ask("GET", "/v1/contexts").json.at("data").empty());
}

TEST_F(ContextHttpTest, AnotherTenantsContextIsAsAbsent) {
  ASSERT_EQ(Put("river", "the pass key").status, 200);
  for (const char* method : {"GET", "DELETE"}) {
    const Answer theirs = Ask(method, "/v1/contexts/river", "", "", kBob);
    Answer absent = Ask(method, "/v1/contexts/lakes", "", "", kBob);
    EXPECT_EQ(theirs.status, 404);
    EXPECT_EQ(absent.status, 404);
    EXPECT_THAT(absent.error().at("message").get<std::string>(), HasSubstr("\"lakes\""));
    EXPECT_EQ(theirs.error().at("code"), absent.error().at("code"));
  }
  EXPECT_TRUE(Ask("GET", "/v1/contexts", "", "", kBob).json.at("data").empty());
  const Answer used = Complete(R"("prompt":"x","contexts":["river"])", kBob);
  EXPECT_EQ(used.status, 404);
  EXPECT_EQ(used.error().at("code"), "context_not_found");
  EXPECT_TRUE(backend_.seen().empty());
}

TEST_F(ContextHttpTest, ARequestsContextsReachTheBackendAsTokensAndTheUsageTellsOfThem) {
  ASSERT_EQ(Put("river", "the pa").status, 200);
  const Answer answer = Complete(R"("prompt":"ss key","contexts":["river"],"context_repair":"none")");
  ASSERT_EQ(answer.status, 200) << answer.json;
  const Json details = answer.json.at("usage").at("prompt_tokens_details");
  EXPECT_EQ(details.at("context_tokens"), Ids("the pa").size());
  EXPECT_EQ(details.at("repaired_tokens"), 0);
  const BackendRequest request = backend_.seen().at(0);
  std::vector<int32_t> expected = Ids("the pa");
  for (const int32_t id : Ids("ss key")) expected.push_back(id);
  EXPECT_EQ(request.token_ids, expected);
  ASSERT_EQ(request.contexts.size(), 1u);
  EXPECT_EQ(request.contexts[0].tokens, static_cast<int64_t>(Ids("the pa").size()));
  EXPECT_EQ(request.repair, "none");
  EXPECT_EQ(request.tenant, "ann");
  EXPECT_FALSE(Complete(R"("prompt":"x")").json.at("usage").at("prompt_tokens_details").contains("context_tokens"));
}

TEST_F(ContextHttpTest, UnknownContextsAreNamed) {
  ASSERT_EQ(Put("river", "x").status, 200);
  const Answer answer = Complete(R"("segments":[{"context":"river"},{"context":"lake"}])");
  EXPECT_EQ(answer.status, 404);
  EXPECT_EQ(answer.error().at("code"), "context_not_found");
  EXPECT_EQ(answer.error().at("param"), "contexts");
  EXPECT_THAT(answer.error().at("message").get<std::string>(), HasSubstr("\"lake\""));
}

TEST_F(ContextHttpTest, ARequestThatRunsKeepsTheVersionItBeganWith) {
  ASSERT_EQ(Put("river", "the pass key").status, 200);
  Answer answer;
  std::thread client([&] { answer = Complete(R"("prompt":"x","contexts":["river"],"cache_salt":"slow")"); });
  ASSERT_TRUE(backend_.WaitRunning(1));
  EXPECT_EQ(Put("river", "another text").status, 200);
  EXPECT_EQ(Ask("DELETE", "/v1/contexts/river").status, 200);
  EXPECT_EQ(Complete(R"("prompt":"x","contexts":["river"])").status, 404);
  backend_.Release(8);
  client.join();
  EXPECT_EQ(answer.status, 200) << answer.json;
  EXPECT_EQ(answer.json.at("usage").at("prompt_tokens_details").at("context_tokens"), Ids("the pass key").size());
}

TEST_F(ContextHttpTest, ChunksOfATextAreContextsAtTheirSecondSightForTheirTenantOnly) {
  std::string document;
  for (int i = 0; i < 60; ++i) absl::StrAppend(&document, " river ", i);
  const auto ask = [&](const std::string& question, const char* key) {
    const Json prompt = document + "|" + question;
    const Answer answer = Complete(R"("context_separator":"|","prompt":)" + prompt.dump(), key);
    EXPECT_EQ(answer.status, 200) << answer.json;
    return answer.json.at("usage").at("prompt_tokens_details").at("context_tokens").get<size_t>();
  };
  const size_t tokens = Ids(document).size();
  ASSERT_GE(tokens, 64u);
  EXPECT_EQ(ask("Why?", kAnn), 0u);
  EXPECT_EQ(ask("Where?", kAnn), tokens);
  EXPECT_EQ(ask("Where?", kBob), 0u);
  EXPECT_EQ(backend_.seen().at(0).chunks.size(), 1u);
  EXPECT_TRUE(backend_.seen().at(1).chunks.empty());
}

class WithoutChunksHttpTest : public ContextHttpTest {
 protected:
  WithoutChunksHttpTest() { with_chunks_ = false; }
};

TEST_F(WithoutChunksHttpTest, ASeparatorDoesNothing) {
  const Answer answer = Complete(R"("context_separator":"|","prompt":")" + std::string(300, 'x') + R"(|y")");
  EXPECT_EQ(answer.status, 200) << answer.json;
  EXPECT_FALSE(answer.json.at("usage").at("prompt_tokens_details").contains("context_tokens"));
  EXPECT_TRUE(backend_.seen().at(0).chunks.empty());
  EXPECT_EQ(Complete(R"("context_separator":"","prompt":"y")").status, 400) << "still read";
}

TEST_F(ContextHttpTest, ARegistryThatCannotBeReachedIsNoMissingContext) {
  ASSERT_EQ(Put("river", "x").status, 200);
  const std::string folder = absl::StrCat(folder_, "/contexts/", TenantKey("ann"));
  std::filesystem::remove_all(folder);
  ASSERT_TRUE(WriteFileAtomically(folder, "").ok());
  for (const Answer& answer : {Ask("GET", "/v1/contexts/river"), Complete(R"("prompt":"x","contexts":["river"])")}) {
    EXPECT_EQ(answer.status, 503) << answer.json;
    EXPECT_THAT(answer.error().at("message").get<std::string>(), HasSubstr("try again"));
  }
  EXPECT_EQ(Complete(R"("prompt":"x")").status, 200) << "others are served";
}

}  // namespace
}  // namespace perigee::cluster
