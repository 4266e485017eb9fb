#include "cluster/gateway/openai.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cluster/gateway/api_keys.h"
#include "nlohmann/json.hpp"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

absl::StatusOr<CompletionCall> Completion(const std::string& fields) {
  return ParseCompletionCall(absl::StrCat(R"({"model":"m","prompt":"hi")", fields.empty() ? "" : ",", fields, "}"),
                             Endpoint::kCompletions);
}

absl::StatusOr<CompletionCall> Chat(const std::string& fields) {
  return ParseCompletionCall(absl::StrCat(R"({"model":"m","messages":[{"role":"user","content":"hi"}])",
                                          fields.empty() ? "" : ",", fields, "}"),
                             Endpoint::kChatCompletions);
}

absl::StatusOr<CompletionCall> Prompt(const std::string& prompt) {
  return ParseCompletionCall(absl::StrCat(R"({"model":"m","prompt":)", prompt, "}"), Endpoint::kCompletions);
}

absl::StatusOr<CompletionCall> Messages(const std::string& messages) {
  return ParseCompletionCall(absl::StrCat(R"({"model":"m","messages":)", messages, "}"), Endpoint::kChatCompletions);
}

Json ErrorOf(const absl::Status& status) { return Json::parse(ToApiError(status).body).at("error"); }

TEST(OpenAiTest, DefaultsAreOpenAis) {
  const auto call = Completion("");
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->temperature, 1);
  EXPECT_EQ(call->top_p, 1);
  EXPECT_EQ(call->samples, 1u);
  EXPECT_FALSE(call->max_tokens.has_value());
  EXPECT_FALSE(call->seed.has_value());
  EXPECT_FALSE(call->stream);
  EXPECT_FALSE(call->ignore_eos);
  EXPECT_EQ(call->top_k, 0u);
}

TEST(OpenAiTest, EveryFieldArrives) {
  const auto call = Chat(R"("temperature":0.5,"top_p":0.25,"n":3,"max_tokens":5,"max_completion_tokens":7,"seed":-1,
    "stop":["a","b"],"stream":true,"stream_options":{"include_usage":true},"user":"u","top_k":9,"ignore_eos":true,
    "cache_salt":"s","timeout":2.5,"chat_template_kwargs":{"enable_thinking":false},"tools":[],"tool_choice":"none",
    "response_format":{"type":"text"},"logprobs":false,"top_logprobs":null,"logit_bias":{},"presence_penalty":0,
    "metadata":{"unknown":["fields","are","ignored"]},"store":true,"modalities":["text"])");
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->temperature, 0.5);
  EXPECT_EQ(call->top_p, 0.25);
  EXPECT_EQ(call->samples, 3u);
  EXPECT_EQ(call->max_tokens, 7u);
  EXPECT_EQ(call->seed, ~uint64_t{0});
  EXPECT_THAT(call->stop, ElementsAre("a", "b"));
  EXPECT_TRUE(call->stream && call->include_usage && call->ignore_eos);
  EXPECT_EQ(call->top_k, 9u);
  EXPECT_EQ(call->salt, "s");
  EXPECT_EQ(call->timeout, absl::Milliseconds(2500));
  EXPECT_EQ(call->template_switches.at("enable_thinking"), false);
  EXPECT_EQ(Completion(R"("stop":"x","best_of":1,"echo":false,"suffix":"","logprobs":null,"top_k":-1)")->stop[0], "x");
  EXPECT_TRUE(Completion(R"("n":2,"best_of":2)").ok());
}

TEST(OpenAiTest, EveryFormOfAPromptIsTaken) {
  EXPECT_THAT(Prompt(R"("one")")->text_prompts, ElementsAre("one"));
  EXPECT_THAT(Prompt(R"(["one","two"])")->text_prompts, ElementsAre("one", "two"));
  EXPECT_THAT(Prompt("[1,2]")->token_prompts, ElementsAre(ElementsAre(1, 2)));
  EXPECT_THAT(Prompt("[[1,2],[3]]")->token_prompts, ElementsAre(ElementsAre(1, 2), ElementsAre(3)));
  std::string many = "[\"a\"";
  for (int i = 0; i < 64; ++i) many += ",\"a\"";
  for (const std::string prompt : {"null", "[]", "7", "{}", "[[]]", "[1,\"a\"]", "[\"a\",1]", "[\"a\",[1]]",
                                   "[[1],\"a\"]", "[-1]", "[1.5]", "[4294967296]", "[[1],[null]]", "true"}) {
    const absl::Status status = Prompt(prompt).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << prompt << ": " << status;
    EXPECT_EQ(ErrorOf(status).at("param"), "prompt");
  }
  EXPECT_TRUE(absl::IsInvalidArgument(Prompt(many + "]").status()));
}

TEST(OpenAiTest, MessagesAreTextOrTextParts) {
  const auto call =
      Messages(R"([{"role":"developer","content":"a"},{"role":"user","name":"Ann","content":[{"type":"text","text":"b"},
    {"type":"text","text":"c"}]},{"role":"assistant","content":null},{"role":"tool","tool_call_id":"1","content":"d"}])");
  ASSERT_TRUE(call.ok()) << call.status();
  EXPECT_EQ(call->messages[0].role, "system");
  EXPECT_EQ(call->messages[1].content, "b\nc");
  EXPECT_EQ(call->messages[1].name, "Ann");
  EXPECT_EQ(call->messages[2].content, "");
  EXPECT_EQ(call->messages[3].content, "d");
  for (const std::string messages :
       {"[]", "null", "7", "[7]", R"([{"role":"user"}])", R"([{"role":"user","content":7}])", R"([{"content":"x"}])",
        R"([{"role":"im_end","content":"x"}])", R"([{"role":"user","content":[{"type":"image_url","image_url":{}}]}])",
        R"([{"role":"user","content":[7]}])", R"([{"role":"user","content":[{"type":"text","text":7}]}])",
        R"([{"role":"assistant","content":"x","tool_calls":[{"id":"1"}]}])",
        R"([{"role":"user","content":"x","name":7}])"}) {
    const absl::Status status = Messages(messages).status();
    EXPECT_EQ(ToApiError(status).http_status, 400) << messages << ": " << status;
  }
  EXPECT_EQ(ErrorOf(Messages(R"([{"role":"user","content":"a"},{"role":"x","content":"x"}])").status()).at("param"),
            "messages[1].role");
}

TEST(OpenAiTest, WhatIsNotSupportedIsRefusedByName) {
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, std::string>>{{"tools", R"([{"type":"function"}])"},
                                                        {"functions", "[{}]"},
                                                        {"tool_choice", "\"required\""},
                                                        {"response_format", R"({"type":"json_object"})"},
                                                        {"logprobs", "true"},
                                                        {"top_logprobs", "2"},
                                                        {"logit_bias", R"({"1":2})"},
                                                        {"presence_penalty", "0.5"},
                                                        {"frequency_penalty", "-1"},
                                                        {"modalities", R"(["audio"])"},
                                                        {"audio", "{\"voice\":1}"},
                                                        {"chat_template_kwargs", "{\"a\":\"b\"}"}}) {
    const absl::Status status = Chat(absl::StrCat("\"", name, "\":", value)).status();
    EXPECT_EQ(ErrorOf(status).at("param"), name) << status;
    EXPECT_EQ(ErrorOf(status).at("code"), "unsupported_parameter");
    EXPECT_EQ(ErrorOf(status).at("type"), "invalid_request_error");
    EXPECT_EQ(ToApiError(status).http_status, 400);
  }
  for (const std::string field :
       {R"("suffix":"x")", R"("echo":true)", R"("best_of":3)", R"("logprobs":1)", R"("logprobs":0)"}) {
    EXPECT_EQ(ErrorOf(Completion(field).status()).at("code"), "unsupported_parameter") << field;
  }
  EXPECT_TRUE(Completion(R"("logprobs":false)").ok());
}

TEST(OpenAiTest, WrongValuesAreErrorsThatNameTheField) {
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, std::string>>{{"temperature", "-0.1"},
                                                        {"temperature", "2.1"},
                                                        {"temperature", "\"1\""},
                                                        {"temperature", "1e999"},
                                                        {"top_p", "0"},
                                                        {"top_p", "1.5"},
                                                        {"n", "0"},
                                                        {"n", "17"},
                                                        {"n", "1.5"},
                                                        {"max_tokens", "0"},
                                                        {"max_tokens", "-1"},
                                                        {"max_tokens", "4294967296"},
                                                        {"max_tokens", "18446744073709551615"},
                                                        {"seed", "1.5"},
                                                        {"seed", "9223372036854775808"},
                                                        {"stop", "\"\""},
                                                        {"stop", "[\"a\",\"b\",\"c\",\"d\",\"e\"]"},
                                                        {"stop", "[7]"},
                                                        {"stop", "7"},
                                                        {"stream", "1"},
                                                        {"stream_options", "{\"include_usage\":true}"},
                                                        {"top_k", "-2"},
                                                        {"ignore_eos", "\"yes\""},
                                                        {"cache_salt", "7"},
                                                        {"timeout", "0"},
                                                        {"timeout", "-5"},
                                                        {"user", "7"}}) {
    const absl::Status status = Completion(absl::StrCat("\"", name, "\":", value)).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << name << " " << value << ": " << status;
    if (value != "1e999") {  // The number itself is no JSON.
      EXPECT_EQ(ErrorOf(status).at("param"), name) << value;
    }
  }
  EXPECT_EQ(ErrorOf(ParseCompletionCall(R"({"prompt":"x"})", Endpoint::kCompletions).status()).at("param"), "model");
}

TEST(OpenAiTest, GarbageBodiesAreErrors) {
  const std::string good = R"({"model":"m","prompt":["a",[1]],"stop":"x","n":2})";
  for (size_t n = 0; n < good.size(); ++n) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseCompletionCall(good.substr(0, n), Endpoint::kCompletions).status()));
  }
  for (const std::string& body :
       {std::string(), std::string("[]"), std::string("\"x\""), std::string(1 << 20, '['),
        std::string("{\"model\":\"\xFF\",\"prompt\":\"x\"}"), std::string("{\"model\":\"\\ud800\"}"),
        std::string("{\"model\":\"m\",\"prompt\":") + std::string(64, '[')}) {
    EXPECT_TRUE(absl::IsInvalidArgument(ParseCompletionCall(body, Endpoint::kCompletions).status()));
  }
}

class BackendRequestsTest : public ::testing::Test {
 protected:
  BackendRequestsTest() {
    auto tokenizer = model::LoadTokenizer(std::string(PERIGEE_SOURCE_DIR) + "/models/podling");
    EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    template_ = model::ChatTemplate::Plain();
    model_ = {.name = "m", .tokenizer = tokenizer_.get(), .chat_template = template_.get(), .context_tokens = 100};
  }
  absl::StatusOr<std::vector<BackendRequest>> Make(const absl::StatusOr<CompletionCall>& call) {
    EXPECT_TRUE(call.ok()) << call.status();
    return MakeBackendRequests(*call, model_, absl::UnixEpoch(), 1000);
  }
  std::unique_ptr<model::Tokenizer> tokenizer_;
  std::unique_ptr<model::ChatTemplate> template_;
  FrontModel model_;
};

TEST_F(BackendRequestsTest, PromptsAreTokenisedAndParametersCarriedOver) {
  const auto requests = Make(ParseCompletionCall(
      R"({"model":"m","prompt":["the pass key","is"],"n":2,"seed":5,"temperature":0,"top_p":0.5,"top_k":3,"stop":"x","ignore_eos":true,"cache_salt":"s","max_tokens":9})",
      Endpoint::kCompletions));
  ASSERT_TRUE(requests.ok()) << requests.status();
  ASSERT_EQ(requests->size(), 2u);
  const BackendRequest& first = (*requests)[0];
  EXPECT_EQ(first.token_ids, *tokenizer_->Encode("the pass key", tokenizer_->adds_bos_by_default()));
  EXPECT_EQ(first.samples, 2u);
  EXPECT_EQ(first.seed, 5u);
  EXPECT_EQ((*requests)[1].seed, 7u);
  EXPECT_EQ(first.temperature, 0);
  EXPECT_EQ(first.top_p, 0.5);
  EXPECT_EQ(first.top_k, 3u);
  EXPECT_EQ(first.max_tokens, 9u);
  EXPECT_THAT(first.stop, ElementsAre("x"));
  EXPECT_TRUE(first.ignore_eos);
  EXPECT_EQ(first.salt, "s");
  EXPECT_EQ((*Make(Completion("")))[0].seed, 1000u);
}

TEST_F(BackendRequestsTest, AnswersGetOpenAisDefaultsAndWhatThereIsRoomFor) {
  EXPECT_EQ((*Make(Completion("")))[0].max_tokens, 16u);
  const auto chat = Make(Chat(""));
  EXPECT_EQ((*chat)[0].max_tokens, 100 - (*chat)[0].token_ids.size());
  EXPECT_EQ((*chat)[0].token_ids, *tokenizer_->Encode("User: hi\nAssistant:", tokenizer_->adds_bos_by_default()));
  // A default shrinks, a wish does not.
  std::string prompt = "[5";
  for (int i = 1; i < 95; ++i) prompt += ",5";
  EXPECT_EQ((*Make(Prompt(prompt + "]")))[0].max_tokens, 5u);
  const auto too_many =
      Make(ParseCompletionCall(R"({"model":"m","max_tokens":6,"prompt":)" + prompt + "]}", Endpoint::kCompletions));
  EXPECT_EQ(ErrorOf(too_many.status()).at("code"), "context_length_exceeded");
  EXPECT_EQ(ToApiError(too_many.status()).http_status, 400);
  EXPECT_THAT(std::string(too_many.status().message()), HasSubstr("100"));
  EXPECT_EQ(ErrorOf(Make(Prompt(prompt + ",5,5,5,5,5]")).status()).at("code"), "context_length_exceeded");
}

TEST_F(BackendRequestsTest, AContextThatIsTooSmallNamesTheFieldThatIsToShrink) {
  const auto param = [&](const std::string& fields, Endpoint endpoint) {
    return ErrorOf(Make(ParseCompletionCall(absl::StrCat(R"({"model":"m",)", fields, "}"), endpoint)).status())
        .at("param");
  };
  const std::string message = R"("messages":[{"role":"user","content":"hi"}])";
  EXPECT_EQ(param(R"("prompt":"x","max_tokens":101)", Endpoint::kCompletions), "max_tokens");
  EXPECT_EQ(param(message + R"(,"max_tokens":101)", Endpoint::kChatCompletions), "max_tokens");
  EXPECT_EQ(param(message + R"(,"max_completion_tokens":101)", Endpoint::kChatCompletions), "max_completion_tokens");
  std::string ids = "[5";
  for (int i = 1; i < 100; ++i) ids += ",5";
  EXPECT_EQ(param("\"prompt\":" + ids + "]", Endpoint::kCompletions), "prompt");
  EXPECT_EQ(param("\"prompt\":" + ids + "],\"max_tokens\":1", Endpoint::kCompletions), "prompt");
}

TEST_F(BackendRequestsTest, BothNamesOfTheAnswersLengthCountAtBothEndpoints) {
  for (const std::string fields :
       {R"("max_tokens":7)", R"("max_completion_tokens":7)", R"("max_tokens":3,"max_completion_tokens":7)"}) {
    EXPECT_EQ((*Make(Completion(fields)))[0].max_tokens, 7u) << fields;
    EXPECT_EQ((*Make(Chat(fields)))[0].max_tokens, 7u) << fields;
  }
}

TEST_F(BackendRequestsTest, OtherModelsAndUnknownTokensAreRefused) {
  const auto other = Make(ParseCompletionCall(R"({"model":"gpt-4","prompt":"x"})", Endpoint::kCompletions));
  EXPECT_EQ(ToApiError(other.status()).http_status, 404);
  EXPECT_EQ(ErrorOf(other.status()).at("code"), "model_not_found");
  EXPECT_TRUE(absl::IsInvalidArgument(Make(Prompt("[99999]")).status()));
  EXPECT_TRUE(absl::IsInvalidArgument(Make(Prompt("\"\"")).status()) || tokenizer_->adds_bos_by_default());
}

TEST(AnswerFormatTest, WholeAnswersAreOpenAis) {
  const AnswerFormat chat(*Chat(""), "r1", "m", absl::FromUnixSeconds(77));
  const Json whole = Json::parse(
      chat.Whole({{"a\"", "stop"}, {"b", "length"}}, {.prompt_tokens = 5, .cached_tokens = 4, .completion_tokens = 3}));
  EXPECT_EQ(whole.at("id"), "chatcmpl-r1");
  EXPECT_EQ(whole.at("object"), "chat.completion");
  EXPECT_EQ(whole.at("created"), 77);
  EXPECT_EQ(whole.at("model"), "m");
  EXPECT_EQ(whole.at("choices")[1].at("index"), 1);
  EXPECT_EQ(whole.at("choices")[0].at("message"),
            Json::parse(R"({"role":"assistant","content":"a\"","refusal":null})"));
  EXPECT_EQ(whole.at("choices")[1].at("finish_reason"), "length");
  EXPECT_EQ(
      whole.at("usage"),
      Json::parse(
          R"({"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":4}})"));
  const AnswerFormat plain(*Completion(""), "r1", "m", absl::FromUnixSeconds(77));
  const Json text = Json::parse(plain.Whole({{"a", "stop"}}, {}));
  EXPECT_EQ(text.at("id"), "cmpl-r1");
  EXPECT_EQ(text.at("object"), "text_completion");
  EXPECT_EQ(text.at("choices")[0].at("text"), "a");
}

Json EventOf(const std::string& chunk) {
  EXPECT_TRUE(absl::StartsWith(chunk, "data: ") && absl::EndsWith(chunk, "\n\n")) << chunk;
  return Json::parse(chunk.substr(6));
}

TEST(AnswerFormatTest, ChunksAreOpenAis) {
  const AnswerFormat chat(*Chat(R"("stream":true,"stream_options":{"include_usage":true})"), "r", "m",
                          absl::UnixEpoch());
  EXPECT_EQ(EventOf(chat.FirstChunk(2)).at("choices")[0].at("delta").at("role"), "assistant");
  const Json chunk = EventOf(chat.Chunk(2, {.sample = 0, .text = "x\n", .tokens = 1, .finish_reason = ""}));
  EXPECT_EQ(chunk.at("object"), "chat.completion.chunk");
  EXPECT_EQ(chunk.at("choices")[0].at("index"), 2);
  EXPECT_EQ(chunk.at("choices")[0].at("delta").at("content"), "x\n");
  EXPECT_EQ(chunk.at("choices")[0].at("finish_reason"), nullptr);
  EXPECT_EQ(chunk.at("usage"), nullptr);
  EXPECT_EQ(EventOf(chat.Chunk(0, {.sample = 0, .text = "", .tokens = 0, .finish_reason = "stop"}))
                .at("choices")[0]
                .at("finish_reason"),
            "stop");
  EXPECT_EQ(chat.Chunk(0, {.sample = 0, .text = "", .tokens = 1, .finish_reason = ""}), "");
  const Json usage = EventOf(chat.UsageChunk({.prompt_tokens = 1, .cached_tokens = 0, .completion_tokens = 2}));
  EXPECT_TRUE(usage.at("choices").empty());
  EXPECT_EQ(usage.at("usage").at("total_tokens"), 3);
  const AnswerFormat plain(*Completion(R"("stream":true)"), "r", "m", absl::UnixEpoch());
  EXPECT_EQ(plain.FirstChunk(0), "");
  const Json text = EventOf(plain.Chunk(0, {.sample = 0, .text = "x", .tokens = 1, .finish_reason = "length"}));
  EXPECT_EQ(text.at("choices")[0].at("text"), "x");
  EXPECT_EQ(text.at("choices")[0].at("finish_reason"), "length");
  EXPECT_FALSE(text.contains("usage"));
  // An answer that is no UTF-8 does not end the process.
  EXPECT_THAT(plain.Chunk(0, {.sample = 0, .text = "\xFF", .tokens = 1, .finish_reason = ""}),
              HasSubstr("\xEF\xBF\xBD"));
}

TEST(ApiErrorTest, EveryCodeHasItsHttpStatus) {
  const auto http = [](const absl::Status& status) { return ToApiError(status).http_status; };
  EXPECT_EQ(http(absl::InvalidArgumentError("x")), 400);
  EXPECT_EQ(http(absl::UnimplementedError("x")), 400);
  EXPECT_EQ(http(absl::UnauthenticatedError("x")), 401);
  EXPECT_EQ(http(absl::PermissionDeniedError("x")), 403);
  EXPECT_EQ(http(absl::NotFoundError("x")), 404);
  EXPECT_EQ(http(HttpError(413, "x")), 413);
  EXPECT_EQ(http(absl::ResourceExhaustedError("x")), 429);
  EXPECT_EQ(http(absl::CancelledError("x")), 499);
  EXPECT_EQ(http(absl::InternalError("x")), 500);
  EXPECT_EQ(http(absl::DataLossError("x")), 500);
  EXPECT_EQ(http(absl::UnavailableError("x")), 503);
  EXPECT_EQ(http(absl::DeadlineExceededError("x")), 504);
  EXPECT_TRUE(ToApiError(absl::UnavailableError("x")).retry_later &&
              ToApiError(absl::ResourceExhaustedError("x")).retry_later);
  EXPECT_FALSE(ToApiError(absl::InternalError("x")).retry_later);
  EXPECT_EQ(ErrorOf(absl::InternalError("why")).at("message"), "why");
  EXPECT_EQ(ErrorOf(absl::InternalError("why")).at("param"), nullptr);
}

TEST(ApiKeysTest, KeysStandForTenants) {
  const auto keys = ApiKeys::Parse("# ours\n\nsk-0123456789abcdef  red\r\nsk-fedcba9876543210\tblue\n");
  ASSERT_TRUE(keys.ok()) << keys.status();
  EXPECT_EQ(*keys->TenantOf("Bearer sk-0123456789abcdef"), "red");
  EXPECT_EQ(*keys->TenantOf("bearer sk-fedcba9876543210"), "blue");
  for (const std::string header : {"", "Bearer", "Bearer ", "Bearer sk-0123456789abcde", "Basic sk-0123456789abcdef",
                                   "sk-0123456789abcdef", "Bearer sk-0123456789abcdef red"}) {
    EXPECT_TRUE(absl::IsUnauthenticated(keys->TenantOf(header).status())) << header;
  }
}

TEST(ApiKeysTest, BadFilesNameTheLineAndNotTheKey) {
  for (const std::string text : {"", "# nothing\n", "\nshort red", "\nsk-0123456789abcdef",
                                 "\nsk-0123456789abcdef red blue", "sk-0123456789abcdef red\nsk-0123456789abcdef blue",
                                 "\nsk-0123456789\x01"
                                 "bcdef red"}) {
    const absl::Status status = ApiKeys::Parse(text).status();
    EXPECT_TRUE(absl::IsInvalidArgument(status)) << text;
    if (text.size() > 12) {
      EXPECT_THAT(std::string(status.message()), HasSubstr("line 2"));
    }
    EXPECT_FALSE(absl::StrContains(status.message(), "0123456789"));
  }
}

}  // namespace
}  // namespace perigee::cluster
