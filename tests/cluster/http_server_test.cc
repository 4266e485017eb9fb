#include "cluster/gateway/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <netinet/in.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <poll.h>
#include <sys/socket.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/file.h"
#include "cluster/scheduler/fair_queue.h"
#include "fake_backend.h"
#include "nlohmann/json.hpp"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

constexpr absl::Duration kPatience = absl::Seconds(20);

// A client by hand: what it sends and when it hangs up is the test's.
class RawClient {
 public:
  explicit RawClient(const std::string& address, int receive_buffer_bytes = 0) {
    fd_ = UniqueFd(::socket(AF_INET, SOCK_STREAM, 0));
    if (receive_buffer_bytes > 0) ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer_bytes, sizeof(int));
    sockaddr_in to{};
    to.sin_family = AF_INET;
    int port = 0;
    EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
    to.sin_port = htons(static_cast<uint16_t>(port));
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_.get(), reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
  }
  void Send(absl::string_view text) {
    while (!text.empty()) {
      const ssize_t sent = ::send(fd_.get(), text.data(), text.size(), MSG_NOSIGNAL);
      if (sent <= 0) return;  // The server has hung up, which it may.
      text.remove_prefix(static_cast<size_t>(sent));
    }
  }
  // Reads until `text` has come (true), the end or the deadline.
  bool ReadUntil(absl::string_view text, absl::Duration patience = kPatience) {
    const absl::Time deadline = absl::Now() + patience;
    while (!absl::StrContains(read_, text)) {
      pollfd fd = {fd_.get(), POLLIN, 0};
      const int64_t left_ms = absl::ToInt64Milliseconds(deadline - absl::Now());
      if (left_ms <= 0 || ::poll(&fd, 1, static_cast<int>(left_ms)) <= 0) return false;
      char buffer[4096];
      const ssize_t got = ::recv(fd_.get(), buffer, sizeof(buffer), 0);
      if (got <= 0) {
        ended_ = true;
        return false;
      }
      read_.append(buffer, static_cast<size_t>(got));
    }
    return true;
  }
  // All until the server hangs up.
  std::string ReadToEnd(absl::Duration patience = kPatience) {
    ReadUntil("\xFF never sent \xFF", patience);
    EXPECT_TRUE(ended_) << "still open after: " << read_;
    return read_;
  }
  void ShutdownWrites() { ::shutdown(fd_.get(), SHUT_WR); }
  void HangUp() { fd_.Reset(); }
  const std::string& read() const { return read_; }
  std::string Forget() { return std::exchange(read_, {}); }

 private:
  UniqueFd fd_;
  std::string read_;
  bool ended_ = false;
};

std::string Post(absl::string_view path, absl::string_view body, absl::string_view headers = "") {
  return absl::StrCat("POST ", path, " HTTP/1.1\r\nHost: x\r\n", headers, "Content-Length: ", body.size(), "\r\n\r\n",
                      body);
}

std::string Body(absl::string_view fields) {
  return absl::StrCat(R"({"model":"m","prompt":"the pass key","max_tokens":20)", fields.empty() ? "" : ",", fields,
                      "}");
}

std::vector<std::string> EventsOf(const std::string& body) {
  std::vector<std::string> events;
  for (const absl::string_view event : absl::StrSplit(body, "\n\n", absl::SkipEmpty())) {
    EXPECT_TRUE(absl::StartsWith(event, "data: ")) << event;
    events.emplace_back(event.substr(6));
  }
  return events;
}

class HttpServerTest : public ::testing::Test {
 protected:
  HttpServerTest() {
    static model::Tokenizer* const tokenizer =
        model::LoadTokenizer(std::string(PERIGEE_SOURCE_DIR) + "/models/podling")->release();
    static model::ChatTemplate* const chat_template = model::ChatTemplate::Plain().release();
    model_ = {.name = "m", .tokenizer = tokenizer, .chat_template = chat_template, .context_tokens = 4096};
    options_.address = "127.0.0.1:0";
  }
  void StartServer() {
    auto server = HttpServer::Start(options_, model_, &backend_, [this](const HttpRequestRecord& record) {
      const absl::MutexLock lock(&mutex_);
      records_.push_back(record);
    });
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  httplib::Client Client() {
    httplib::Client client("http://" + server_->address());
    client.set_read_timeout(20);
    client.set_keep_alive(true);
    return client;
  }
  std::vector<HttpRequestRecord> WaitRecords(size_t count) {
    const absl::MutexLock lock(&mutex_);
    const auto enough = [&] {
      mutex_.AssertReaderHeld();
      return records_.size() >= count;
    };
    EXPECT_TRUE(mutex_.AwaitWithTimeout(absl::Condition(&enough), kPatience));
    return records_;
  }
  // The status and the error of one request.
  std::pair<int, Json> Failure(const std::string& request) {
    RawClient client(server_->address());
    client.Send(request);
    const bool answered = client.ReadUntil("}}");
    EXPECT_TRUE(answered) << request.substr(0, 200) << " -> " << client.read();
    int status = 0;
    EXPECT_TRUE(absl::SimpleAtoi(client.read().substr(9, 3), &status)) << client.read();
    const size_t body = client.read().find("\r\n\r\n");
    const Json json = Json::parse(client.read().substr(body == std::string::npos ? 0 : body), nullptr, false);
    EXPECT_FALSE(json.is_discarded()) << client.read();
    return {status, json.is_object() ? json.value("error", Json()) : Json()};
  }

  HttpServerOptions options_;
  FrontModel model_;
  FakeBackend backend_;
  absl::Mutex mutex_;
  std::vector<HttpRequestRecord> records_;
  std::unique_ptr<HttpServer> server_;
};

TEST_F(HttpServerTest, AnswersACompletion) {
  StartServer();
  auto client = Client();
  const auto result = client.Post("/v1/completions", {{"X-Request-Id", "abc-1"}}, Body(""), "application/json");
  ASSERT_TRUE(result) << httplib::to_string(result.error());
  EXPECT_EQ(result->status, 200);
  EXPECT_EQ(result->get_header_value("Content-Type"), "application/json");
  EXPECT_EQ(result->get_header_value("X-Request-Id"), "abc-1");
  const Json answer = Json::parse(result->body);
  EXPECT_EQ(answer.at("choices")[0].at("text"), "one two three four five six seven eight");
  EXPECT_EQ(answer.at("choices")[0].at("finish_reason"), "stop");
  EXPECT_EQ(answer.at("usage").at("completion_tokens"), 8);
  EXPECT_GT(answer.at("usage").at("prompt_tokens_details").at("cached_tokens"), 0);
  const auto records = WaitRecords(1);
  EXPECT_EQ(records[0].request_id, "abc-1");
  EXPECT_EQ(records[0].method, "POST");
  EXPECT_EQ(records[0].path, "/v1/completions");
  EXPECT_EQ(records[0].status, 200);
  EXPECT_TRUE(records[0].result.ok());
  EXPECT_EQ(records[0].usage.completion_tokens, 8u);
  EXPECT_LE(records[0].first_token, records[0].took);
  EXPECT_EQ(backend_.seen()[0].request_id, "abc-1");
  EXPECT_EQ(backend_.seen()[0].tenant, "");
  EXPECT_LT(backend_.seen()[0].deadline, absl::InfiniteFuture());
}

TEST_F(HttpServerTest, ChoicesAreNumberedOverPromptsAndSamples) {
  StartServer();
  auto client = Client();
  for (const bool stream : {false, true}) {
    const auto result =
        client.Post("/v1/completions",
                    absl::StrCat(R"({"model":"m","prompt":["a","b","c"],"n":2,"max_tokens":2,"stream":)",
                                 stream ? "true" : "false", "}"),
                    "application/json");
    ASSERT_TRUE(result);
    std::map<int, std::string> texts;
    std::vector<std::string> objects = {result->body};
    if (stream) objects = EventsOf(result->body);
    if (stream) {
      EXPECT_EQ(objects.back(), "[DONE]");
      objects.pop_back();
    }
    for (const std::string& object : objects) {
      const Json parsed = Json::parse(object);  // The loop below must not outlive it.
      for (const Json& choice : parsed.at("choices")) texts[choice.at("index")] += choice.at("text").get<std::string>();
    }
    ASSERT_EQ(texts.size(), 6u);
    for (int i = 0; i < 6; ++i) EXPECT_EQ(texts[i], i % 2 == 0 ? "one two" : "1:one two");
  }
}

TEST_F(HttpServerTest, ManyPromptsRunAFewAtATime) {
  options_.parallel_prompts = 2;
  StartServer();
  auto client = Client();
  std::string prompts = "\"a\"";
  for (int i = 0; i < 9; ++i) prompts += ",\"a\"";
  const auto result =
      client.Post("/v1/completions", absl::StrCat(R"({"model":"m","prompt":[)", prompts, "]}"), "application/json");
  ASSERT_TRUE(result);
  EXPECT_EQ(Json::parse(result->body).at("choices").size(), 10u);
  EXPECT_LE(backend_.most_running(), 2);
}

TEST_F(HttpServerTest, StreamsComeAsTheyAreSaid) {
  StartServer();
  RawClient client(server_->address());
  client.Send(Post(
      "/v1/chat/completions",
      R"({"model":"m","messages":[{"role":"user","content":"hi"}],"cache_salt":"slow","max_tokens":3,"stream":true,"stream_options":{"include_usage":true}})"));
  ASSERT_TRUE(backend_.WaitRunning(1));
  EXPECT_FALSE(client.ReadUntil("HTTP", absl::Milliseconds(50)));  // No status before the first piece.
  backend_.Release(1);
  ASSERT_TRUE(client.ReadUntil("\"content\":\"one\"")) << client.read();
  EXPECT_THAT(client.read(), HasSubstr("200 OK"));
  EXPECT_THAT(client.read(), HasSubstr("Content-Type: text/event-stream"));
  EXPECT_THAT(client.read(), HasSubstr("\"role\":\"assistant\""));
  EXPECT_FALSE(absl::StrContains(client.read(), "two"));
  backend_.Release(1);
  ASSERT_TRUE(client.ReadUntil("two"));
  EXPECT_FALSE(absl::StrContains(client.read(), "three"));
  backend_.Release(1);
  ASSERT_TRUE(client.ReadUntil("[DONE]\n\n\r\n0\r\n\r\n")) << client.read();
  const size_t finish = client.read().find("\"finish_reason\":\"length\""),
               usage = client.read().find("\"prompt_tokens\""), done = client.read().find("[DONE]");
  EXPECT_LT(client.read().find("three"), finish);
  EXPECT_LT(finish, usage);
  EXPECT_LT(usage, done);
  // And the connection goes on.
  client.Forget();
  client.Send("GET /health HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(client.ReadUntil("{\"status\":\"ok\"}"));
}

TEST_F(HttpServerTest, ErrorsBeforeTheFirstPieceAreRealStatusesAlsoForStreams) {
  StartServer();
  for (const bool stream : {false, true}) {
    const auto failure = [&](absl::string_view salt) {
      return Failure(Post("/v1/completions",
                          Body(absl::StrCat("\"cache_salt\":\"", salt, "\",\"stream\":", stream ? "true" : "false"))));
    };
    EXPECT_EQ(failure("overload").first, 429);
    EXPECT_EQ(failure("down").first, 503);
    EXPECT_EQ(failure("broken").first, 500);
    EXPECT_THAT(failure("down").second.at("message").get<std::string>(), HasSubstr("no decode node"));
  }
  RawClient client(server_->address());
  client.Send(Post("/v1/completions", Body("\"cache_salt\":\"overload\"")));
  ASSERT_TRUE(client.ReadUntil("}}"));
  EXPECT_THAT(client.read(), HasSubstr("Retry-After: 1\r\n"));
}

TEST_F(HttpServerTest, ErrorsInMidStreamAreAnEventAndNoDone) {
  StartServer();
  auto client = Client();
  const auto result = client.Post("/v1/completions", Body(R"("cache_salt":"late","stream":true)"), "application/json");
  ASSERT_TRUE(result);
  EXPECT_EQ(result->status, 200);
  const auto events = EventsOf(result->body);
  EXPECT_EQ(Json::parse(events.back()).at("error").at("type"), "service_unavailable");
  EXPECT_FALSE(absl::StrContains(result->body, "[DONE]"));
  EXPECT_EQ(WaitRecords(1)[0].status, 200);
  EXPECT_TRUE(absl::IsUnavailable(WaitRecords(1)[0].result));
  EXPECT_EQ(client.Post("/v1/completions", Body(R"("cache_salt":"late")"), "application/json")->status, 503);
}

TEST_F(HttpServerTest, AClientThatHangsUpCancelsItsRequest) {
  StartServer();
  int cancelled = 0;
  for (const std::string salt : {"hang", "slow"}) {
    for (const std::string stream : {"false", "true"}) {
      RawClient client(server_->address());
      client.Send(Post("/v1/completions", Body(absl::StrCat("\"cache_salt\":\"", salt, "\",\"stream\":", stream))));
      ASSERT_TRUE(backend_.WaitRunning(1));
      if (salt == "slow") backend_.Release(1);
      if (salt == "slow" && stream == "true") {
        ASSERT_TRUE(client.ReadUntil("one"));
      }
      client.HangUp();
      ASSERT_TRUE(backend_.WaitRunning(0, absl::Seconds(5))) << salt << " " << stream;
      EXPECT_EQ(backend_.cancelled(), ++cancelled);
    }
  }
  const auto records = WaitRecords(4);
  EXPECT_EQ(records[0].status, 499);
  EXPECT_TRUE(absl::IsCancelled(records[0].result));
  EXPECT_TRUE(absl::IsCancelled(records[3].result));
}

TEST_F(HttpServerTest, ASlowReaderHoldsItsOwnRequestOnly) {
  options_.write_timeout = absl::Seconds(60);
  model_.context_tokens = 4'000'000;
  StartServer();
  RawClient slow(server_->address(), 4096);
  slow.Send(Post("/v1/completions",
                 R"({"model":"m","prompt":"x","cache_salt":"endless","max_tokens":3000000,"stream":true})"));
  ASSERT_TRUE(slow.ReadUntil("one"));
  auto client = Client();
  EXPECT_EQ(client.Post("/v1/completions", Body(""), "application/json")->status, 200);
  EXPECT_TRUE(backend_.WaitRunning(1));  // It waits for its reader, and its memory is bounded.
  slow.HangUp();
  EXPECT_TRUE(backend_.WaitRunning(0));
}

TEST_F(HttpServerTest, AReaderThatStandsStillIsCutOff) {
  options_.write_timeout = absl::Milliseconds(200);
  model_.context_tokens = 4'000'000;
  StartServer();
  RawClient slow(server_->address(), 4096);
  slow.Send(Post("/v1/completions",
                 R"({"model":"m","prompt":"x","cache_salt":"endless","max_tokens":3000000,"stream":true})"));
  ASSERT_TRUE(slow.ReadUntil("one"));
  EXPECT_TRUE(backend_.WaitRunning(0));
  EXPECT_TRUE(absl::IsCancelled(WaitRecords(1)[0].result));
}

TEST_F(HttpServerTest, DeadlinesEndRequests) {
  options_.request_timeout = absl::Seconds(60);
  StartServer();
  for (const std::string stream : {"false", "true"}) {
    const std::string body = Body(absl::StrCat("\"cache_salt\":\"hang\",\"stream\":", stream));
    EXPECT_EQ(Failure(Post("/v1/completions", body, "X-Request-Timeout: 0.05\r\n")).first, 504);
    EXPECT_EQ(Failure(Post("/v1/completions",
                           Body(absl::StrCat("\"cache_salt\":\"hang\",\"timeout\":0.05,\"stream\":", stream))))
                  .first,
              504);
  }
  EXPECT_EQ(Failure(Post("/v1/completions", Body(R"("cache_salt":"deaf","timeout":0.05)"))).first, 504);
  EXPECT_EQ(Failure(Post("/v1/completions", Body(""), "X-Request-Timeout: soon\r\n")).first, 400);
  // A wish cannot be longer than the server's own time.
  options_.request_timeout = absl::Milliseconds(50);
  StartServer();
  EXPECT_EQ(Failure(Post("/v1/completions", Body(R"("cache_salt":"hang")"), "X-Request-Timeout: 100\r\n")).first, 504);
}

TEST_F(HttpServerTest, MoreRequestsThanAllowedAreToldToComeAgain) {
  options_.max_requests = 1;
  StartServer();
  RawClient first(server_->address());
  first.Send(Post("/v1/completions", Body(R"("cache_salt":"slow","max_tokens":20)")));
  ASSERT_TRUE(backend_.WaitRunning(1));
  const auto [status, error] = Failure(Post("/v1/completions", Body("")));
  EXPECT_EQ(status, 429);
  EXPECT_EQ(error.at("code"), "too_many_requests");
  EXPECT_EQ(Client().Get("/health")->status, 200);
  backend_.Release(8);
  ASSERT_TRUE(first.ReadUntil("eight"));
  ASSERT_TRUE(backend_.WaitRunning(0));
  WaitRecords(3);  // Its place is free when it has been told of.
  EXPECT_EQ(Client().Post("/v1/completions", Body(""), "application/json")->status, 200);
}

TEST_F(HttpServerTest, MoreSamplesThanTheClusterCanGiveAreAnErrorAboutN) {
  std::atomic<uint32_t> most = 3;
  options_.most_samples = [&most] { return most.load(); };
  StartServer();
  const auto [status, error] = Failure(Post("/v1/completions", Body(R"("n":4)")));
  EXPECT_EQ(status, 400);
  EXPECT_EQ(error.at("param"), "n");
  EXPECT_THAT(error.at("message").get<std::string>(), HasSubstr("from 1 to 3"));
  EXPECT_EQ(Client().Post("/v1/completions", Body(R"("n":3)"), "application/json")->status, 200);
  most = 0;  // No node has said anything yet.
  EXPECT_EQ(Client().Post("/v1/completions", Body(R"("n":4)"), "application/json")->status, 200);
}

TEST(HttpServerOptionsTest, TheFrontDoorLetsInWhatTheClustersQueueMayHold) {
  const HttpServerOptions http;
  EXPECT_GT(http.max_requests, FairQueueOptions().max_waiting);
  EXPECT_GT(http.max_connections, http.max_requests);
}

TEST_F(HttpServerTest, MoreConnectionsThanAllowedAreToldToComeAgain) {
  options_.max_connections = 2;
  StartServer();
  RawClient one(server_->address()), two(server_->address());
  for (RawClient* client : {&one, &two}) {
    client->Send("GET /health HTTP/1.1\r\n\r\n");
    ASSERT_TRUE(client->ReadUntil("ok"));
  }
  RawClient three(server_->address());
  EXPECT_THAT(three.ReadToEnd(), HasSubstr("HTTP/1.1 503"));
  one.HangUp();
  const absl::Time deadline = absl::Now() + kPatience;
  bool served = false;
  while (!served && absl::Now() < deadline) {  // Until the server has noticed.
    RawClient next(server_->address());
    next.Send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
    served = absl::StrContains(next.ReadToEnd(), "200 OK");
  }
  EXPECT_TRUE(served);
}

TEST_F(HttpServerTest, BodiesAndHeadsAreBounded) {
  options_.max_body_bytes = 1000;
  options_.max_head_bytes = 2000;
  StartServer();
  EXPECT_EQ(Failure(Post("/v1/completions", std::string(1001, 'x'))).first, 413);
  // Also where the length is not said before.
  std::string chunked = "POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
  for (int i = 0; i < 20; ++i) absl::StrAppend(&chunked, "64\r\n", std::string(100, 'x'), "\r\n");
  EXPECT_EQ(Failure(chunked + "0\r\n\r\n").first, 413);
  EXPECT_EQ(Failure(Post("/v1/completions", "{}", absl::StrCat("X-Long: ", std::string(3000, 'x'), "\r\n"))).first,
            431);
  EXPECT_EQ(Failure(absl::StrCat("GET /", std::string(50'000, 'x'))).first, 431);
  std::string many = "GET /health HTTP/1.1\r\n";
  for (int i = 0; i < 150; ++i) absl::StrAppend(&many, "a: b\r\n");
  EXPECT_EQ(Failure(many + "\r\n").first, 431);
  const std::string good = Body("");
  EXPECT_EQ(Client().Post("/v1/completions", good, "application/json")->status, 200);
}

TEST_F(HttpServerTest, ChunkedBodiesAreRead) {
  StartServer();
  RawClient client(server_->address());
  const std::string body = Body("");
  client.Send(absl::StrCat("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
                           absl::Hex(body.size() - 5), "\r\n", body.substr(0, body.size() - 5), "\r\n5\r\n",
                           body.substr(body.size() - 5), "\r\n0\r\n\r\nGET /health HTTP/1.1\r\n\r\n"));
  EXPECT_TRUE(client.ReadUntil("eight"));
  EXPECT_TRUE(client.ReadUntil("{\"status\":\"ok\"}")) << client.read();
}

TEST_F(HttpServerTest, GarbageIsAnsweredOrHungUpOn) {
  options_.read_timeout = absl::Milliseconds(300);
  StartServer();
  for (const std::string& request :
       {std::string("\r\n\r\n\r\n GET / HTTP/1.1\r\n\r\n"),
        std::string("GET\r\n\r\n"),
        std::string("GET /health\r\n\r\n"),
        std::string("GET /health HTTP/2.0\r\n\r\n"),
        std::string("G\x01T /health HTTP/1.1\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\nno colon\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\n: x\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\na b: x\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\na: x\r\n folded\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\na: \0\r\n\r\n", 33),
        std::string("GET /he alth HTTP/1.1\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}"),
        std::string("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
        std::string("POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nxx"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=x\r\nContent-Length: "
                    "4\r\n\r\nabcd"),
        std::string("POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{}"),
        std::string("BREW /v1/completions HTTP/1.1\r\n\r\n"),
        std::string("GET /health HTTP/1.1\r\n"),
        std::string("GET /%zz%00\x7f HTTP/1.1\r\n\r\n"),
        std::string(100, '\0'),
        std::string("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 11)}) {
    RawClient client(server_->address());
    client.Send(request);
    client.ShutdownWrites();
    const std::string answer = client.ReadToEnd();
    EXPECT_TRUE(answer.empty() || absl::StartsWith(answer, "HTTP/1.1 4") || absl::StartsWith(answer, "HTTP/1.1 505"))
        << request << " -> " << answer;
  }
  EXPECT_EQ(Client().Get("/health")->status, 200);
  EXPECT_TRUE(backend_.seen().empty());
}

// What two servers in a row could read differently.
TEST_F(HttpServerTest, ABodysLengthIsSaidInOneWayOnly) {
  StartServer();
  const std::string body = Body("");
  const std::string chunked = absl::StrCat(absl::Hex(body.size()), "\r\n", body, "\r\n0\r\n\r\n");
  const std::string post = "POST /v1/completions HTTP/1.1\r\n";
  const std::string length = absl::StrCat("Content-Length: ", body.size(), "\r\n"),
                    encoding = "Transfer-Encoding: chunked\r\n";
  EXPECT_EQ(Failure(absl::StrCat(post, length, encoding, "\r\n", chunked)).first, 400);
  EXPECT_EQ(Failure(absl::StrCat(post, encoding, length, "\r\n", chunked)).first, 400);
  EXPECT_EQ(Failure(absl::StrCat(post, length, length, "\r\n", body)).first, 400);
  EXPECT_EQ(Failure(absl::StrCat(post, encoding, encoding, "\r\n", chunked)).first, 400);
  EXPECT_EQ(Failure(absl::StrCat(post, "Transfer-Encoding: identity\r\n", length, "\r\n", body)).first, 400);
  EXPECT_EQ(Failure(absl::StrCat(post, "Content-Length: +", body.size(), "\r\n\r\n", body)).first, 400);
  EXPECT_EQ(Failure(absl::StrCat(post, "Content-Length : ", body.size(), "\r\n\r\n", body)).first, 400);
  EXPECT_EQ(Failure(absl::StrCat(post, "\r\n", body)).first, 411);
  EXPECT_TRUE(backend_.seen().empty());
  // A body where none belongs is not taken for a request.
  RawClient client(server_->address());
  client.Send(absl::StrCat("GET /nothing HTTP/1.1\r\nContent-Length: 27\r\n\r\nGET /health HTTP/1.1\r\n\r\n    "));
  EXPECT_FALSE(absl::StrContains(client.ReadToEnd(), "200 OK"));
}

TEST_F(HttpServerTest, RequestsThatDoNotArriveAreTimedOut) {
  options_.read_timeout = absl::Milliseconds(100);
  StartServer();
  EXPECT_EQ(Failure("POST /v1/compl").first, 408);
  EXPECT_EQ(Failure("POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{").first, 408);
}

TEST_F(HttpServerTest, IdleConnectionsEnd) {
  options_.idle_timeout = absl::Seconds(1);
  StartServer();
  RawClient client(server_->address());
  client.Send("GET /health HTTP/1.1\r\n\r\n");
  EXPECT_THAT(client.ReadToEnd(), HasSubstr("200 OK"));
  RawClient silent(server_->address());
  EXPECT_EQ(silent.ReadToEnd(), "");
}

TEST_F(HttpServerTest, RequestsMayFollowEachOtherWithoutWaiting) {
  StartServer();
  RawClient client(server_->address());
  std::string all;
  for (int i = 0; i < 20; ++i) {
    all += Post("/v1/completions", Body(""), absl::StrCat("X-Request-Id: r", i, "\r\n"));
    all += absl::StrCat("GET /health HTTP/1.1\r\nX-Request-Id: h", i, "\r\n\r\n");
  }
  client.Send(all);
  ASSERT_TRUE(client.ReadUntil("X-Request-Id: h19"));
  size_t at = 0;
  for (int i = 0; i < 20; ++i) {
    for (const char kind : {'r', 'h'}) {
      const size_t next = client.read().find(absl::StrCat("X-Request-Id: ", std::string(1, kind), i, "\r\n"));
      EXPECT_TRUE(next != std::string::npos && next >= at) << kind << i;
      at = next;
    }
  }
  EXPECT_FALSE(absl::StrContains(client.read(), "HTTP/1.1 4"));
}

TEST_F(HttpServerTest, HttpOneDotZeroAndCloseEndTheConnection) {
  StartServer();
  RawClient client(server_->address());
  const std::string body = Body(R"("stream":true)");
  client.Send(absl::StrCat("POST /v1/completions HTTP/1.0\r\nContent-Length: ", body.size(), "\r\n\r\n", body));
  const std::string answer = client.ReadToEnd();
  EXPECT_TRUE(absl::EndsWith(answer, "data: [DONE]\n\n")) << answer;
  EXPECT_FALSE(absl::StrContains(answer, "chunked"));
  RawClient other(server_->address());
  other.Send("GET /health HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(other.ReadToEnd(), HasSubstr("Connection: close"));
}

TEST_F(HttpServerTest, AllRoutesAnswer) {
  StartServer();
  auto client = Client();
  EXPECT_EQ(Json::parse(client.Get("/v1/models")->body).at("data")[0].at("id"), "m");
  EXPECT_EQ(Json::parse(client.Get("/v1/models/m")->body).at("object"), "model");
  EXPECT_EQ(client.Get("/v1/models/gpt-4")->status, 404);
  EXPECT_EQ(client.Get("/v1/models/")->status, 404);
  EXPECT_EQ(client.Get("/nothing")->status, 404);
  EXPECT_EQ(Json::parse(client.Get("/nothing")->body).at("error").at("code"), "unknown_url");
  EXPECT_EQ(client.Head("/health")->status, 200);
  EXPECT_EQ(client.Get("/v1/completions")->status, 405);
  EXPECT_EQ(client.Get("/v1/completions")->get_header_value("Allow"), "POST");
  EXPECT_EQ(client.Post("/health", "x", "text/plain")->status, 405);
  EXPECT_EQ(client.Get("/ready")->status, 200);
  backend_.SetReady(absl::UnavailableError("no decode node"));
  EXPECT_EQ(client.Get("/ready")->status, 503);
  EXPECT_THAT(client.Get("/ready")->body, HasSubstr("no decode node"));
  EXPECT_EQ(client.Get("/health")->status, 200);
  EXPECT_EQ(client.Post("/v1/completions", R"({"model":"other","prompt":"x"})", "application/json")->status, 404);
  EXPECT_EQ(client.Post("/v1/completions", "{", "application/json")->status, 400);
}

TEST_F(HttpServerTest, RequestIdsAreMadeWhereTheyAreMissingOrStrange) {
  StartServer();
  auto client = Client();
  const std::string made = client.Get("/health")->get_header_value("X-Request-Id");
  EXPECT_EQ(made.size(), 24u);
  EXPECT_NE(client.Get("/health")->get_header_value("X-Request-Id"), made);
  for (const std::string& strange :
       {std::string("a b"), std::string(129, 'x'), std::string("\xC3\xA9"), std::string("a/b")}) {
    EXPECT_EQ(client.Get("/health", {{"X-Request-Id", strange}})->get_header_value("X-Request-Id").size(), 24u)
        << strange;
  }
  EXPECT_EQ(Failure("nonsense\r\n\r\n").first, 400);
  EXPECT_FALSE(WaitRecords(7).back().request_id.empty());
}

TEST_F(HttpServerTest, KeysSayWhoAsks) {
  std::string folder = testing::TempDir() + "/perigee_http_XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  options_.keys_file = folder + "/keys";
  std::ofstream(options_.keys_file) << "sk-0123456789abcdef red\n";
  StartServer();
  auto client = Client();
  EXPECT_EQ(client.Post("/v1/completions", Body(""), "application/json")->status, 401);
  EXPECT_EQ(client.Get("/v1/models")->status, 401);
  const auto refused = client.Get("/v1/models", {{"Authorization", "Bearer sk-0123456789abcdeX"}});
  EXPECT_EQ(refused->status, 401);
  EXPECT_EQ(Json::parse(refused->body).at("error").at("code"), "invalid_api_key");
  EXPECT_EQ(client.Get("/health")->status, 200);
  EXPECT_EQ(client.Get("/ready")->status, 200);
  EXPECT_TRUE(backend_.seen().empty());
  EXPECT_EQ(
      client.Post("/v1/completions", {{"Authorization", "Bearer sk-0123456789abcdef"}}, Body(""), "application/json")
          ->status,
      200);
  EXPECT_EQ(backend_.seen()[0].tenant, "red");
  std::filesystem::remove_all(folder);
  EXPECT_TRUE(absl::IsNotFound(HttpServer::Start(options_, model_, &backend_).status()));
}

TEST_F(HttpServerTest, DrainingLetsRequestsFinish) {
  StartServer();
  RawClient running(server_->address()), idle(server_->address());
  idle.Send("GET /health HTTP/1.1\r\n\r\n");
  ASSERT_TRUE(idle.ReadUntil("ok"));
  running.Send(Post("/v1/completions", Body(R"("cache_salt":"slow","stream":true)")));
  ASSERT_TRUE(backend_.WaitRunning(1));
  bool finished = false;
  std::thread drain([&] { finished = server_->Drain(kPatience); });
  idle.ReadToEnd();  // Idle ones go at once.
  EXPECT_EQ(backend_.cancelled(), 0);
  httplib::Client late("http://" + server_->address());
  EXPECT_FALSE(late.Get("/health"));  // Nobody is let in any more.
  backend_.Release(8);                // The stream begins only now.
  EXPECT_THAT(running.ReadToEnd(), HasSubstr("[DONE]"));
  drain.join();
  EXPECT_TRUE(finished);
}

TEST_F(HttpServerTest, DrainingCancelsWhatTakesTooLong) {
  StartServer();
  RawClient waiting(server_->address()), streaming(server_->address());
  waiting.Send(Post("/v1/completions", Body(R"("cache_salt":"hang")")));
  ASSERT_TRUE(backend_.WaitRunning(1));
  streaming.Send(Post("/v1/completions", Body(R"("cache_salt":"slow","stream":true)")));
  ASSERT_TRUE(backend_.WaitRunning(2));
  backend_.Release(1);
  ASSERT_TRUE(streaming.ReadUntil("one"));
  EXPECT_FALSE(server_->Drain(absl::Milliseconds(50)));
  EXPECT_THAT(waiting.ReadToEnd(), HasSubstr("HTTP/1.1 503"));
  EXPECT_THAT(streaming.ReadToEnd(), HasSubstr("\"error\""));
  EXPECT_EQ(backend_.cancelled(), 2);
}

TEST_F(HttpServerTest, BadOptionsAreErrors) {
  const auto start = [&] { return HttpServer::Start(options_, model_, &backend_).status(); };
  options_.address = "nonsense";
  EXPECT_TRUE(absl::IsInvalidArgument(start()));
  options_.address = "127.0.0.1:notaport";
  EXPECT_TRUE(absl::IsInvalidArgument(start()));
  options_.address = "127.0.0.1:0";
  StartServer();
  options_.address = server_->address();
  EXPECT_TRUE(absl::IsUnavailable(start()));  // Taken; not silently shared.
  options_.address = "127.0.0.1:0";
  options_.tls_certificate_file = "/nonexistent";
  EXPECT_TRUE(absl::IsInvalidArgument(start()));
  options_.tls_key_file = "/nonexistent";
  EXPECT_TRUE(absl::IsInvalidArgument(start()));
}

// A key and a certificate that vouches for itself.
void WriteCertificate(const std::string& certificate_file, const std::string& key_file) {
  EVP_PKEY* key = ::EVP_EC_gen("P-256");
  X509* certificate = ::X509_new();
  ::X509_set_version(certificate, 2);
  ::ASN1_INTEGER_set(::X509_get_serialNumber(certificate), 1);
  ::X509_gmtime_adj(::X509_getm_notBefore(certificate), -60);
  ::X509_gmtime_adj(::X509_getm_notAfter(certificate), 3600);
  ::X509_set_pubkey(certificate, key);
  X509_NAME* name = ::X509_get_subject_name(certificate);
  ::X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, reinterpret_cast<const unsigned char*>("127.0.0.1"), -1, -1,
                               0);
  ::X509_set_issuer_name(certificate, name);
  ::X509_sign(certificate, key, ::EVP_sha256());
  FILE* file = std::fopen(certificate_file.c_str(), "w");
  ::PEM_write_X509(file, certificate);
  std::fclose(file);
  file = std::fopen(key_file.c_str(), "w");
  ::PEM_write_PrivateKey(file, key, nullptr, nullptr, 0, nullptr, nullptr);
  std::fclose(file);
  ::X509_free(certificate);
  ::EVP_PKEY_free(key);
}

TEST_F(HttpServerTest, TlsServesTheSame) {
  std::string folder = testing::TempDir() + "/perigee_tls_XXXXXX";
  ASSERT_NE(::mkdtemp(folder.data()), nullptr);
  options_.tls_certificate_file = folder + "/cert.pem";
  options_.tls_key_file = folder + "/key.pem";
  options_.read_timeout = absl::Seconds(2);
  WriteCertificate(options_.tls_certificate_file, options_.tls_key_file);
  StartServer();
  int port = 0;
  ASSERT_TRUE(absl::SimpleAtoi(server_->address().substr(10), &port));
  {
    httplib::SSLClient client("127.0.0.1", port);
    client.enable_server_certificate_verification(false);
    client.set_keep_alive(true);
    client.set_read_timeout(20);
    EXPECT_EQ(client.Get("/health")->status, 200);
    const auto result = client.Post("/v1/completions", Body(R"("stream":true)"), "application/json");
    ASSERT_TRUE(result) << httplib::to_string(result.error());
    EXPECT_THAT(result->body, HasSubstr("[DONE]"));
  }
  RawClient plain(server_->address());
  plain.Send("GET /health HTTP/1.1\r\n\r\n");
  EXPECT_FALSE(absl::StrContains(plain.ReadToEnd(), "200"));
  RawClient silent(server_->address());
  silent.ReadToEnd();  // A handshake that never comes is timed out.
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace perigee::cluster
