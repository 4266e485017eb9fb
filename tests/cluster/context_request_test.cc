// Requests with contexts: read, refused, and put together.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <span>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "base/status.h"
#include "cluster/gateway/openai.h"
#include "nlohmann/json.hpp"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
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

absl::StatusOr<CompletionCall> Messages(const std::string& messages) {
  return ParseCompletionCall(absl::StrCat(R"({"model":"m","messages":)", messages, "}"), Endpoint::kChatCompletions);
}

Json ErrorOf(const absl::Status& status) { return Json::parse(ToApiError(status).body).at("error"); }

std::string List(size_t count, const std::string& one) {
  std::string list;
  for (size_t i = 0; i < count; ++i) absl::StrAppend(&list, i == 0 ? "[" : ",", one);
  return list + "]";
}

TEST(OpenAiContextsTest, ContextsStandWhereTheRequestSays) {
  const auto before = Completion(R"("contexts":["a","b","a"],"context_repair":"prefix:8")");
  ASSERT_TRUE(before.ok()) << before.status();
  EXPECT_THAT(before->contexts, ElementsAre("a", "b", "a"));
  EXPECT_EQ(before->leading_contexts, 3u);
  EXPECT_EQ(before->repair, "prefix:8");
  const auto segments = ParseCompletionCall(
      R"({"model":"m","contexts":["z"],"segments":[{"text":"x"},{"context":"a"},{"context":"b"},{"text":""}]})",
      Endpoint::kCompletions);
  ASSERT_TRUE(segments.ok()) << segments.status();
  EXPECT_THAT(segments->contexts, ElementsAre("z", "a", "b"));
  EXPECT_EQ(segments->leading_contexts, 1u);
  ASSERT_EQ(segments->segments.size(), 4u);
  EXPECT_TRUE(segments->segments[1].is_context && segments->segments[2].is_context);
  const auto chat = ParseCompletionCall(R"({"model":"m","contexts":["y","z"],"messages":[
      {"role":"system","content":[{"type":"context","id":"s"},{"type":"text","text":"brief"}]},
      {"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"},{"type":"context","id":"u"},
                                {"type":"text","text":"c"},{"type":"context","id":"v"}]},
      {"role":"user","content":"d"}]})",
                                        Endpoint::kChatCompletions);
  ASSERT_TRUE(chat.ok()) << chat.status();
  EXPECT_THAT(chat->contexts, ElementsAre("s", "y", "z", "u", "v"));
  EXPECT_EQ(chat->messages[0].content, "brief");
  EXPECT_THAT(chat->messages[0].contexts, ElementsAre(0));
  EXPECT_EQ(chat->messages[1].content, "a\nbc");
  EXPECT_THAT(chat->messages[1].contexts, ElementsAre(0, 0, 3, 4));
  EXPECT_TRUE(chat->messages[2].contexts.empty());
}

TEST(OpenAiContextsTest, WhatCannotBeMeantIsRefused) {
  const auto refused = [](const absl::StatusOr<CompletionCall>& call, const std::string& param) {
    EXPECT_EQ(ToApiError(call.status()).http_status, 400) << call.status();
    if (call.ok()) return;
    EXPECT_EQ(ErrorOf(call.status()).at("param"), param) << call.status();
  };
  for (const std::string contexts : {"\"a\"", "{}", "[1]", "[null]", "[\"\"]", "[\"a/b\"]", "[\"a b\"]", "[[\"a\"]]"}) {
    refused(Completion("\"contexts\":" + contexts), "contexts");
    refused(Chat("\"contexts\":" + contexts), "contexts");
  }
  EXPECT_TRUE(Completion("\"contexts\":" + List(1024, "\"a\"")).ok());
  refused(Completion("\"contexts\":" + List(1025, "\"a\"")), "contexts");
  refused(Completion(R"("segments":[{"text":"x"}])"), "segments");
  const auto segments = [](const std::string& list) {
    return ParseCompletionCall(R"({"model":"m","segments":)" + list + "}", Endpoint::kCompletions);
  };
  for (const std::string list : {"[]", "{}", "\"x\"", "[\"x\"]", R"([{"text":1}])", R"([{"context":1}])", "[{}]",
                                 R"([{"text":"x","context":"a"}])", R"([{"other":"x"}])"}) {
    refused(segments(list), "segments");
  }
  EXPECT_TRUE(segments(List(4096, R"({"text":"x"})")).ok());
  refused(segments(List(10000, R"({"text":"x"})")), "segments");
  refused(segments(List(1025, R"({"context":"a"})")), "segments");
  for (const std::string part :
       {R"({"type":"context"})", R"({"type":"context","id":7})", R"({"type":"context","id":"a/b"})"}) {
    refused(Messages(R"([{"role":"user","content":[)" + part + "]}]"), "messages[0].content");
  }
  refused(Messages(R"([{"role":"user","content":)" + List(1025, R"({"type":"context","id":"a"})") + "}]"),
          "messages[0].content");
  refused(ParseCompletionCall(R"({"model":"m","contexts":["a"],"messages":[{"role":"system","content":"x"}]})",
                              Endpoint::kChatCompletions),
          "contexts");
  for (const std::string repair : {"\"x\"", "\"prefix:0\"", "\"prefix:99999\"", "\"deviation:2\"", "7"}) {
    refused(Completion("\"context_repair\":" + repair), "context_repair");
  }
}

// Podling's, which adds no begin of sequence by itself, made to.
std::unique_ptr<model::Tokenizer> WithBos() {
  const std::string folder = std::string(PERIGEE_SOURCE_DIR) + "/models/podling";
  const auto plain = *model::LoadTokenizer(folder);
  const std::string bos(*plain->TokenBytes(*plain->bos_id()));
  return *model::ParseTokenizerJson(*ReadFile(folder + "/tokenizer.json"),
                                    Json({{"bos_token", bos}, {"add_bos_token", true}}).dump());
}

class ContextPromptTest : public ::testing::Test {
 protected:
  // The requests that a body becomes, where each context's id is its text.
  absl::StatusOr<std::vector<BackendRequest>> Requests(const std::string& body, Endpoint endpoint) const {
    PERIGEE_ASSIGN_OR_RETURN(const CompletionCall call, ParseCompletionCall(body, endpoint));
    std::vector<SharedTokens> contexts;
    for (const std::string& id : call.contexts) {
      contexts.push_back(std::make_shared<const std::vector<int32_t>>(Ids(id)));
    }
    return MakeBackendRequests(call, model_, absl::UnixEpoch(), 7, contexts);
  }
  BackendRequest One(const std::string& fields, Endpoint endpoint = Endpoint::kCompletions) const {
    const auto requests = Requests(R"({"model":"m",)" + fields + "}", endpoint);
    EXPECT_TRUE(requests.ok()) << requests.status();
    return requests.ok() ? requests->front() : BackendRequest();
  }
  std::vector<int32_t> Ids(const std::string& text, bool bos = false) const { return *tokenizer_->Encode(text, bos); }
  std::vector<int32_t> Join(const std::vector<std::vector<int32_t>>& parts) const {
    std::vector<int32_t> all;
    for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
    return all;
  }
  // Each context's text as the spans have it.
  std::vector<std::string> Spans(const BackendRequest& request) const {
    std::vector<std::string> texts;
    int64_t end = 0;
    for (const ContextSpan& span : request.contexts) {
      EXPECT_GE(span.begin, end);
      end = span.begin + span.tokens;
      EXPECT_LE(end, static_cast<int64_t>(request.token_ids.size()));
      texts.push_back(*tokenizer_->Decode(std::span(request.token_ids).subspan(span.begin, span.tokens)));
    }
    return texts;
  }

  const std::unique_ptr<model::Tokenizer> tokenizer_ = WithBos();
  const std::unique_ptr<model::ChatTemplate> chat_template_ = model::ChatTemplate::Plain();
  const FrontModel model_{
      .name = "m", .tokenizer = tokenizer_.get(), .chat_template = chat_template_.get(), .context_tokens = 512};
};

TEST_F(ContextPromptTest, NothingIsPutAroundContextsAndNoTokenCrossesTheirBorders) {
  const std::vector<int32_t> bos = {*tokenizer_->bos_id()};
  ASSERT_TRUE(tokenizer_->adds_bos_by_default());
  const BackendRequest leading = One(R"("contexts":["the","pa"],"prompt":"ss key","context_repair":"prefix")");
  EXPECT_EQ(leading.token_ids, Join({bos, Ids("the"), Ids("pa"), Ids("ss key")}));
  EXPECT_THAT(Spans(leading), ElementsAre("the", "pa"));
  EXPECT_EQ(leading.contexts[0].begin, 1);
  EXPECT_EQ(leading.repair, "prefix:32");
  EXPECT_EQ(One(R"("prompt":"x")").repair, "");
  const BackendRequest segments = One(
      R"("contexts":["one"],"segments":[{"text":"th"},{"text":"e"},{"context":"pa"},{"text":"ss"},{"context":"end"}])");
  EXPECT_EQ(segments.token_ids, Join({bos, Ids("one"), Ids("th"), Ids("e"), Ids("pa"), Ids("ss"), Ids("end")}));
  EXPECT_THAT(Spans(segments), ElementsAre("one", "pa", "end"));
  for (const ContextSpan& span : segments.contexts) {
    if (span.begin == 1) continue;  // Behind the begin of sequence, which all have.
    EXPECT_THAT(segments.branch_points, ::testing::Contains(span.begin));
  }
  const BackendRequest only = One(R"("segments":[{"context":"pa"}])");
  EXPECT_EQ(only.token_ids, Join({bos, Ids("pa")}));
  EXPECT_THAT(One(R"("prompt":"the pass key")").branch_points, ElementsAre());
}

TEST_F(ContextPromptTest, TheBeginOfSequenceStandsAtTheBeginningOnly) {
  const int32_t bos = *tokenizer_->bos_id();
  for (const std::string& prompt : {absl::StrCat("[", bos, ",300,301]"), std::string("[300,301]")}) {
    const BackendRequest request = One(R"("contexts":["pa"],"prompt":)" + prompt);
    EXPECT_EQ(request.token_ids, Join({{bos}, Ids("pa"), {300, 301}})) << prompt;
  }
  const auto both = Requests(R"({"model":"m","contexts":["pa"],"prompt":["x","y"]})", Endpoint::kCompletions);
  ASSERT_TRUE(both.ok());
  ASSERT_EQ(both->size(), 2u);
  for (const BackendRequest& request : *both) EXPECT_THAT(Spans(request), ElementsAre("pa"));
}

TEST_F(ContextPromptTest, ChatsHaveContextsAmongTheirParts) {
  const BackendRequest request = One(R"("contexts":["first"],"messages":[{"role":"user","content":[
      {"type":"text","text":"the pa"},{"type":"context","id":"ss"},{"type":"text","text":" key"}]}])",
                                     Endpoint::kChatCompletions);
  EXPECT_THAT(Spans(request), ElementsAre("first", "ss"));
  EXPECT_EQ(*tokenizer_->Decode(request.token_ids), "User: firstthe pass key\nAssistant:");
  EXPECT_EQ(std::count(request.token_ids.begin(), request.token_ids.end(), *tokenizer_->bos_id()), 1);
}

TEST_F(ContextPromptTest, TooManyTokensOfContextsAreOneErrorBeforeTheyArePutTogether) {
  const std::string id(128, 'q');
  for (const auto& [fields, endpoint] :
       {std::pair(R"("prompt":"x")", Endpoint::kCompletions),
        std::pair(R"("messages":[{"role":"user","content":"x"}])", Endpoint::kChatCompletions)}) {
    const absl::Status status =
        Requests(absl::StrCat(R"({"model":"m","contexts":)", List(1024, "\"" + id + "\""), ",", fields, "}"), endpoint)
            .status();
    EXPECT_EQ(ErrorOf(status).at("code"), "context_length_exceeded") << status;
  }
}

TEST(OpenAiContextsTest, UsageTellsOfContextsOnlyWhereThereWereSome) {
  const BackendUsage usage{.prompt_tokens = 9, .cached_tokens = 5, .context_tokens = 4, .repaired_tokens = 2};
  for (const bool with : {false, true}) {
    const auto call = Completion(with ? R"("contexts":["a"])" : "");
    const AnswerFormat format(*call, "id", "m", absl::UnixEpoch());
    const Json details = Json::parse(format.Whole({{}}, usage)).at("usage").at("prompt_tokens_details");
    EXPECT_EQ(details.at("cached_tokens"), 5);
    EXPECT_EQ(details.contains("context_tokens"), with);
    EXPECT_EQ(details.value("context_tokens", 4), 4);
    EXPECT_EQ(details.value("repaired_tokens", 2), 2);
    EXPECT_EQ(Json::parse(format.UsageChunk(usage).substr(6)).at("usage").at("prompt_tokens_details"), details);
  }
}

}  // namespace
}  // namespace perigee::cluster
