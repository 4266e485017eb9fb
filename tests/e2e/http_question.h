// One request to the front door, and what came of it, judged: nothing but the right answer and a clean error is right.
#ifndef PERIGEE_TESTS_E2E_HTTP_QUESTION_H_
#define PERIGEE_TESTS_E2E_HTTP_QUESTION_H_

#include <httplib.h>

#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "cluster/gateway/openai.h"

namespace perigee {

struct Question {
  cluster::Endpoint endpoint = cluster::Endpoint::kCompletions;
  nlohmann::json body;
  std::string expected;
  bool stream = false;
  size_t hang_up_after = std::string::npos;  // Bytes of the answer; for streams.
};

enum class Verdict {
  kEqual,     // The whole answer, and the right one.
  kHungUp,    // As far as it was read it was right.
  kError,     // A clean one that may be tried again; what came before it was right.
  kWrong,     // Another answer.
  kNotClean,  // Neither an answer nor an error that a client understands.
  kLate,      // An answer or error after the request's time.
};

struct Outcome {
  Verdict verdict = Verdict::kNotClean;
  std::string what;  // Errors: their kind and message. Wrong answers: both texts.
  std::string kind;  // Of an error: "503", "504 in the stream" ...
  absl::Duration took;
};

// The text of an answer's events, as far as they have come.
class StreamedAnswer {
 public:
  void Push(absl::string_view bytes) {
    absl::StrAppend(&pending_, bytes);
    for (size_t end; (end = pending_.find("\n\n")) != std::string::npos; pending_.erase(0, end + 2)) {
      absl::string_view event = absl::string_view(pending_).substr(0, end);
      if (!absl::ConsumePrefix(&event, "data: ")) continue;
      if (event == "[DONE]") {
        done = true;
        continue;
      }
      const auto json = nlohmann::json::parse(event, nullptr, false);
      if (json.is_discarded()) {
        broken = true;
      } else if (json.contains("error")) {
        error = json["error"];
      } else {
        for (const auto& choice : json["choices"]) {
          const auto& part = choice.contains("delta") ? choice["delta"] : choice;
          text += part.value(choice.contains("delta") ? "content" : "text", "");
        }
      }
    }
  }
  std::string text;
  nlohmann::json error;
  bool done = false, broken = false;

 private:
  std::string pending_;
};

inline std::string Shortened(const std::string& text) {
  return text.size() <= 300 ? text : text.substr(0, 300) + "...";
}

// gateway: "host:port". time: what the request is given; a little more is borne for the way.
inline Outcome Ask(const std::string& gateway, const Question& question, absl::Duration time) {
  const absl::Time start = absl::Now();
  const absl::Duration patience = time + absl::Seconds(5);
  httplib::Client client("http://" + gateway);
  client.set_connection_timeout(5);
  client.set_read_timeout(static_cast<time_t>(absl::ToInt64Seconds(patience)));
  nlohmann::json body = question.body;
  body["stream"] = question.stream;
  body["timeout"] = absl::ToDoubleSeconds(time);
  StreamedAnswer streamed;
  std::string raw;
  bool hung_up = false;
  httplib::Request request;
  request.method = "POST";
  const bool chat = question.endpoint == cluster::Endpoint::kChatCompletions;
  request.path = chat ? "/v1/chat/completions" : "/v1/completions";
  request.headers = {{"Content-Type", "application/json"}};
  request.body = body.dump();
  request.content_receiver = [&](const char* data, size_t bytes, uint64_t, uint64_t) {
    raw.append(data, bytes);
    if (question.stream) streamed.Push({data, bytes});
    hung_up = streamed.text.size() >= question.hang_up_after;
    return !hung_up;
  };
  const httplib::Result result = client.send(request);

  Outcome outcome;
  outcome.took = absl::Now() - start;
  const auto wrong = [&](const std::string& text) {
    outcome.verdict = Verdict::kWrong;
    outcome.what = absl::StrCat("answered '", text, "' instead of '", question.expected, "'");
    return outcome;
  };
  const auto failed = [&](const nlohmann::json& error, const std::string& kind) {
    const std::string type = error.value("type", "");
    const bool clean = type == "rate_limit_error" || type == "service_unavailable" || type == "timeout";
    outcome.verdict = clean ? Verdict::kError : Verdict::kNotClean;
    outcome.kind = kind;
    outcome.what = absl::StrCat(kind, " ", type, ": ", error.value("message", ""));
    return outcome;
  };
  if (outcome.took > patience) {
    outcome.verdict = Verdict::kLate;
    outcome.what = absl::StrCat("after ", absl::FormatDuration(outcome.took));
    return outcome;
  }
  if (!absl::StartsWith(question.expected, streamed.text)) return wrong(streamed.text);
  if (hung_up) {
    outcome.verdict = Verdict::kHungUp;
    return outcome;
  }
  if (!result) {
    outcome.what = absl::StrCat("no answer: ", httplib::to_string(result.error()), " after '", Shortened(raw), "'");
    return outcome;
  }
  const auto json = nlohmann::json::parse(raw, nullptr, false);
  if (result->status != 200) {
    if (json.is_object() && json.contains("error")) return failed(json["error"], absl::StrCat(result->status));
    outcome.what = absl::StrCat("status ", result->status, " with '", Shortened(raw), "'");
    return outcome;
  }
  if (question.stream) {
    if (!streamed.error.is_null()) return failed(streamed.error, "in the stream");
    if (!streamed.done || streamed.broken) {
      outcome.what = absl::StrCat("a stream that ends with '",
                                  Shortened(raw.substr(raw.size() - std::min<size_t>(raw.size(), 300))), "'");
      return outcome;
    }
    if (streamed.text != question.expected) return wrong(streamed.text);
  } else {
    if (json.is_discarded()) {
      outcome.what = absl::StrCat("no JSON: '", Shortened(raw), "'");
      return outcome;
    }
    const auto& choice = json["choices"][0];
    const std::string text = chat ? choice["message"]["content"] : choice["text"];
    if (text != question.expected) return wrong(text);
  }
  outcome.verdict = Verdict::kEqual;
  return outcome;
}

}  // namespace perigee

#endif  // PERIGEE_TESTS_E2E_HTTP_QUESTION_H_
