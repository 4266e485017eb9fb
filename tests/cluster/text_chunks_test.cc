// Prompts whose sender says what separates their chunks: how they are read, cut and put together, and which chunks
// become contexts.
#include "cluster/gateway/text_chunks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/status.h"
#include "cluster/gateway/openai.h"
#include "nlohmann/json.hpp"

namespace perigee::cluster {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Json = nlohmann::json;

constexpr char kSeparator[] = "\n\n---\n\n";

class TextChunksTest : public ::testing::Test {
 protected:
  static std::string Document(int number) {
    std::string text = absl::StrCat("Document ", number, ":");
    for (int i = 0; i < 40; ++i) absl::StrAppend(&text, " river ", number * 100 + i);
    return text;
  }
  static Json Body(const Json& fields) {
    Json body = {{"model", "m"}, {"max_tokens", 4}, {"context_separator", kSeparator}};
    body.update(fields);
    return body;
  }
  static absl::StatusOr<CompletionCall> Call(const Json& fields) {
    return ParseCompletionCall(Body(fields).dump(),
                               fields.contains("messages") ? Endpoint::kChatCompletions : Endpoint::kCompletions);
  }
  // Each context's id is its text.
  absl::StatusOr<std::vector<BackendRequest>> Requests(const Json& fields) const {
    PERIGEE_ASSIGN_OR_RETURN(const CompletionCall call, Call(fields));
    std::vector<SharedTokens> contexts;
    for (const std::string& id : call.contexts) {
      contexts.push_back(std::make_shared<const std::vector<int32_t>>(Ids(id)));
    }
    return MakeBackendRequests(call, model_, absl::UnixEpoch(), 7, contexts);
  }
  BackendRequest One(const Json& fields) const {
    const auto requests = Requests(fields);
    EXPECT_TRUE(requests.ok()) << requests.status();
    return requests.ok() ? requests->front() : BackendRequest();
  }
  std::vector<int32_t> Ids(const std::string& text) const { return *tokenizer_->Encode(text, false); }
  std::vector<int32_t> Join(const std::vector<std::string>& parts) const {
    std::vector<int32_t> all;
    for (const std::string& part : parts) {
      const std::vector<int32_t> ids = Ids(part);
      all.insert(all.end(), ids.begin(), ids.end());
    }
    return all;
  }
  std::vector<std::string> Texts(const BackendRequest& request, const std::vector<ContextSpan>& spans) const {
    std::vector<std::string> texts;
    for (const ContextSpan& span : spans) {
      texts.push_back(*tokenizer_->Decode(std::span(request.token_ids).subspan(span.begin, span.tokens)));
    }
    return texts;
  }
  std::vector<std::string> Chunks(const BackendRequest& request) const { return Texts(request, request.chunks); }
  std::vector<std::string> Contexts(const BackendRequest& request) const { return Texts(request, request.contexts); }

  const std::unique_ptr<model::Tokenizer> tokenizer_ =
      *model::LoadTokenizer(std::string(PERIGEE_SOURCE_DIR) + "/models/podling");
  const std::unique_ptr<model::ChatTemplate> chat_template_ = model::ChatTemplate::Plain();
  const FrontModel model_{
      .name = "m", .tokenizer = tokenizer_.get(), .chat_template = chat_template_.get(), .context_tokens = 1 << 20};
};

TEST_F(TextChunksTest, EveryPieceButTheLastIsAChunkWithTheTokensThatItHasAlone) {
  const std::string a = Document(1), b = Document(2), s = kSeparator;
  const BackendRequest request = One({{"prompt", "Read:" + s + a + s + b + s + "What?"}});
  EXPECT_THAT(Chunks(request), ElementsAre(a, b));
  EXPECT_THAT(request.contexts, IsEmpty());
  EXPECT_EQ(request.token_ids, Join({"Read:" + s, a, s, b, s + "What?"}));
  EXPECT_EQ(request.chunks[0].tokens, static_cast<int64_t>(Ids(a).size()));
  // What others have in common with this prompt, and not as a context, is what stands before the chunks.
  EXPECT_THAT(request.branch_points, ElementsAre(request.chunks[0].begin));
}

TEST_F(TextChunksTest, ASeparatorInTheLastPlaceMeansAnEmptyQuestionAndOneThatNeverOccursChangesNothing) {
  const std::string a = Document(1), s = kSeparator;
  const BackendRequest last = One({{"prompt", a + s}});
  EXPECT_THAT(Chunks(last), ElementsAre(a));
  EXPECT_EQ(last.token_ids, Join({a, s})) << "a token is left to answer behind";
  const std::string never = a + "\n---\n" + Document(2);
  EXPECT_THAT(Chunks(One({{"prompt", never}})), IsEmpty());
  EXPECT_EQ(One({{"prompt", never}}).token_ids, Ids(never));
  EXPECT_THAT(Chunks(One({{"prompt", s + s + s + "x"}})), IsEmpty());
  EXPECT_THAT(Chunks(One({{"prompt", s + a + s + s + "x"}})), ElementsAre(a));
}

TEST_F(TextChunksTest, ShortPiecesStayTextHoweverMany) {
  std::string prompt;
  for (int i = 0; i < 10000; ++i) absl::StrAppend(&prompt, "piece ", i, kSeparator);
  const BackendRequest request = One({{"prompt", prompt + "What?"}});
  EXPECT_THAT(request.chunks, IsEmpty());
  EXPECT_THAT(request.branch_points, IsEmpty());
  EXPECT_EQ(request.token_ids, Ids(prompt + "What?"));
  // Among them a long one.
  EXPECT_THAT(Chunks(One({{"prompt", prompt + Document(1) + kSeparator + prompt}})), ElementsAre(Document(1)));
}

TEST_F(TextChunksTest, NoMoreThanAThousandChunksAreCutOut) {
  std::vector<std::string> documents;
  for (int i = 0; i < 1100; ++i) documents.push_back(Document(i));
  const BackendRequest request = One({{"prompt", absl::StrJoin(documents, kSeparator)}, {"contexts", {"the"}}});
  EXPECT_EQ(request.chunks.size(), 1023u);
}

TEST_F(TextChunksTest, OnlyTextPromptsAndUsersMessagesAreCut) {
  const std::string a = Document(1), b = Document(2), c = Document(3), s = kSeparator;
  const BackendRequest beside = One({{"prompt", a + s + "What?"}, {"contexts", {"the" + std::string(80, 'q')}}});
  EXPECT_THAT(Contexts(beside), ElementsAre("the" + std::string(80, 'q')));
  EXPECT_THAT(Chunks(beside), ElementsAre(a));
  EXPECT_THAT(Chunks(One({{"segments", {{{"text", a + s + b + s}}}}})), IsEmpty());
  const BackendRequest chat = One({{"messages",
                                    {{{"role", "system"}, {"content", a + s + "Be brief."}},
                                     {{"role", "user"}, {"content", b + s + "What?"}},
                                     {{"role", "assistant"}, {"content", c + s + "That."}},
                                     {{"role", "user"}, {"content", "And here?" + s + c + s + "Why?"}}}}});
  EXPECT_THAT(Chunks(chat), ElementsAre(b, c));
  EXPECT_EQ(*tokenizer_->Decode(chat.token_ids), "System: " + a + s + "Be brief.\nUser: " + b + s +
                                                     "What?\nAssistant: " + c + s + "That.\nUser: And here?" + s + c +
                                                     s + "Why?\nAssistant:");
  for (const int64_t point : chat.branch_points) EXPECT_LE(point, chat.chunks[0].begin);
}

TEST_F(TextChunksTest, ContextsAmongAMessagesPartsKeepTheirPlaces) {
  const std::string a = Document(1), b = Document(2), s = kSeparator;
  const auto text = [](const std::string& t) { return Json{{"type", "text"}, {"text", t}}; };
  const auto context = [](const std::string& id) { return Json{{"type", "context"}, {"id", id}}; };
  const BackendRequest request =
      One({{"contexts", {"the"}},
           {"messages",
            {{{"role", "user"},
              {"content", Json::array({text(a), context("pa"), text(s + b.substr(0, 90)), context("ss"),
                                       text(b.substr(90) + s), context("key"), text("What?")})}}}}});
  EXPECT_THAT(Contexts(request), ElementsAre("the", "pa", "ss", "key"));
  EXPECT_THAT(Chunks(request), ElementsAre(a)) << "inside of the other stands a context";
  EXPECT_EQ(*tokenizer_->Decode(request.token_ids),
            "User: the" + a + "pa" + s + b.substr(0, 90) + "ss" + b.substr(90) + s + "keyWhat?\nAssistant:");
}

TEST_F(TextChunksTest, ATemplateMayReorderRepeatAndLeaveOutMessages) {
  const std::string a = Document(1), b = Document(2), s = "|";
  const auto ask = [&](const std::string& source) {
    const auto chat_template = *model::ChatTemplate::Parse(source, {});
    FrontModel model = model_;
    model.chat_template = chat_template.get();
    const auto call = Call(
        {{"context_separator", s},
         {"messages",
          {{{"role", "user"}, {"content", a + s + "Why?"}},
           {{"role", "user"},
            {"content",
             {{{"type", "context"}, {"id", "the"}}, {{"type", "text"}, {"text", "What?" + s + b + s + "Who?"}}}}}}}});
    EXPECT_TRUE(call.ok()) << call.status();
    const auto the = std::make_shared<const std::vector<int32_t>>(Ids("the"));
    const auto requests = MakeBackendRequests(*call, model, absl::UnixEpoch(), 7, std::vector<SharedTokens>{the});
    EXPECT_TRUE(requests.ok()) << requests.status();
    return requests.ok() ? requests->front() : BackendRequest();
  };
  const BackendRequest turned = ask("{{ messages[1]['content'] }}{{ messages[0]['content'] }}");
  EXPECT_THAT(Chunks(turned), ElementsAre(b, a));
  EXPECT_THAT(Contexts(turned), ElementsAre("the"));
  const BackendRequest twice =
      ask("{{ messages[0]['content'] }}{{ messages[1]['content'] }}{{ messages[0]['content'] }}");
  EXPECT_THAT(Chunks(twice), ElementsAre(a, b, a));
  EXPECT_THAT(Contexts(twice), ElementsAre("the"));
  const BackendRequest last = ask("{{ messages[1]['content'] }}");
  EXPECT_THAT(Chunks(last), IsEmpty()) << "all of it is text then";
  EXPECT_EQ(*tokenizer_->Decode(last.token_ids), "theWhat?" + s + b + s + "Who?");
}

TEST_F(TextChunksTest, SeparatorsThatCannotBeMeantAreRefused) {
  const auto refused = [](const Json& fields) {
    const absl::Status status = Call(fields).status();
    EXPECT_EQ(ToApiError(status).http_status, 400) << status;
    EXPECT_EQ(Json::parse(ToApiError(status).body).at("error").value("param", Json()), "context_separator");
  };
  for (const Json& separator : {Json(""), Json(7), Json::array({"x"}), Json::object(), Json(std::string(65, '-'))}) {
    refused({{"prompt", "x"}, {"context_separator", separator}});
    refused({{"messages", {{{"role", "user"}, {"content", "x"}}}}, {"context_separator", separator}});
  }
  refused({{"prompt", {"x", "y"}}});
  refused({{"prompt", {1, 2}}});
  refused({{"prompt", Json::array({{1, 2}})}});
  EXPECT_TRUE(Call({{"prompt", Json::array({"x"})}}).ok());
  EXPECT_TRUE(Call({{"prompt", "x"}, {"context_separator", std::string(64, '-')}}).ok());
  EXPECT_TRUE(Call({{"prompt", {"x", "y"}}, {"context_separator", nullptr}}).ok());
}

TEST_F(TextChunksTest, ChunksBecomeContextsInOrderAtTheirSecondSightAndTokensStayTheSame) {
  const std::string a = Document(1), b = Document(2), c = Document(3), s = kSeparator;
  ChunkIndex index;
  BackendRequest first = One({{"prompt", a + s + b + s + "What?"}});
  AdmitChunks(index, first);
  EXPECT_THAT(first.contexts, IsEmpty());
  EXPECT_THAT(Chunks(first), ElementsAre(a, b));
  const Json fields = {{"prompt", b + s + c + s + a + s + "Why?"}, {"contexts", {"the"}}};
  BackendRequest second = One(fields);
  const BackendRequest before = second;
  AdmitChunks(index, second);
  EXPECT_EQ(second.token_ids, before.token_ids);
  EXPECT_THAT(Contexts(second), ElementsAre("the", b, a));
  EXPECT_THAT(Chunks(second), ElementsAre(c));
  BackendRequest salted = before;
  salted.salt = "s";
  AdmitChunks(index, salted);
  EXPECT_THAT(Contexts(salted), ElementsAre("the"));
}

TEST_F(TextChunksTest, UsageTellsOfContextsWhereThereIsASeparator) {
  const AnswerFormat format(*Call({{"prompt", "x"}}), "id", "m", absl::UnixEpoch());
  const Json details = Json::parse(format.Whole({{}}, {})).at("usage").at("prompt_tokens_details");
  EXPECT_EQ(details.at("context_tokens"), 0);
}

}  // namespace
}  // namespace perigee::cluster
