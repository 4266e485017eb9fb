// What many users ask at once: conversations over shared documents, turn by turn, streamed or not, some given up in
// mid-answer; each with the reference's answer.
#ifndef PERIGEE_TESTS_E2E_CHAOS_WORKLOAD_H_
#define PERIGEE_TESTS_E2E_CHAOS_WORKLOAD_H_

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "http_question.h"
#include "reference.h"

namespace perigee {

// Conversations' turns. The next turn has the reference's answer in its prompt, so all prompts are known beforehand.
class Workload {
 public:
  static absl::StatusOr<Workload> Create(const Reference& reference, int conversations, int turns, uint64_t seed) {
    Workload out;
    out.conversations_.resize(static_cast<size_t>(conversations));
    std::vector<absl::Status> said(out.conversations_.size());
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t c; (c = next++) < said.size();) {
        said[c] = Talk(reference, c, turns, seed, &out.conversations_[c]);
      }
    };
    std::thread helper(work);
    work();
    helper.join();
    for (const absl::Status& status : said) PERIGEE_RETURN_IF_ERROR(status);
    return out;
  }

  size_t size() const {
    size_t questions = 0;
    for (const auto& turns : conversations_) questions += turns.size();
    return questions;
  }

  // Any of them: whole, streamed, or given up after some bytes.
  Question Draw(std::mt19937_64& random) const {
    const std::vector<Question>* turns;
    do {
      turns = &conversations_[random() % conversations_.size()];
    } while (turns->empty());
    Question question = (*turns)[random() % turns->size()];
    const uint64_t manner = random() % 10;
    question.stream = manner < 6;
    if (manner < 2 && !question.expected.empty()) question.hang_up_after = 1 + random() % question.expected.size();
    return question;
  }

 private:
  // Beyond what another order of sums changes; see tests/e2e/equivalence_test.cc.
  static constexpr float kLeastMargin = 0.04f;

  static std::string Document(size_t number, const model::Tokenizer& tokenizer) {
    const std::string path = std::string(PERIGEE_SOURCE_DIR) + "/tests/model/testdata/podling_needle.json";
    const auto ids = nlohmann::json::parse(*ReadFile(path))["prompt_ids"].get<std::vector<int32_t>>();
    const size_t begin = 40 * number + 1, tokens = 130 + 90 * number;  // Documents of 130, 220, 310, 400 tokens.
    return *tokenizer.Decode(std::span(ids).subspan(begin, tokens));
  }

  static absl::Status Talk(const Reference& reference, size_t number, int turns, uint64_t seed,
                           std::vector<Question>* out) {
    static constexpr const char* kAsked[] = {"What is the pass key for ", "And then he said to ",
                                             "In the morning came ",      "The house of ",
                                             "Why did you not tell ",     "There was once "};
    static constexpr const char* kNames[] = {"Torvek", "Braimel", "Plosun", "Garvis", "Trendol", "Milvane"};
    std::mt19937_64 random(seed * 1000 + number);
    const bool chat = number % 3 == 2;
    const std::string document = Document(number % 4, reference.model().tokenizer());
    std::string prompt = document;
    nlohmann::json messages = {{{"role", "system"}, {"content", document}}};
    for (int turn = 0; turn < turns; ++turn) {
      const std::string asked =
          absl::StrCat("\n", kAsked[random() % std::size(kAsked)], kNames[random() % std::size(kNames)]);
      Question question;
      question.endpoint = chat ? cluster::Endpoint::kChatCompletions : cluster::Endpoint::kCompletions;
      question.body = {
          {"model", "podling"}, {"temperature", 0}, {"ignore_eos", true}, {"max_tokens", 16 + random() % 49}};
      if (chat) {
        messages.push_back({{"role", "user"}, {"content", asked}});
        question.body["messages"] = messages;
      } else {
        prompt += asked;
        question.body["prompt"] = prompt;
      }
      PERIGEE_ASSIGN_OR_RETURN(const Reference::Answer answer, reference.Complete(question.endpoint, question.body));
      if (answer.margin < kLeastMargin) continue;  // The next turn follows another question.
      question.expected = answer.text;
      out->push_back(std::move(question));
      prompt += answer.text;
      messages.push_back({{"role", "assistant"}, {"content", answer.text}});
    }
    return absl::OkStatus();
  }

  std::vector<std::vector<Question>> conversations_;
};

// Users that ask one question after the other, until Stop.
class Users {
 public:
  struct Tally {
    int requests = 0;
    std::map<Verdict, int> verdicts;
    std::map<std::string, int> errors;  // By kind.
    std::vector<std::string> wrong;     // What must not be.
    std::map<std::string, int> reasons;
    absl::Duration slowest;
  };

  Users(const Workload& workload, std::string gateway, int users, absl::Duration time, absl::Duration pause,
        uint64_t seed) {
    for (int user = 0; user < users; ++user) {
      threads_.emplace_back(
          [this, &workload, gateway, time, pause, random = std::mt19937_64(seed * 100 + user)]() mutable {
            while (!stopping_) {
              const Question question = workload.Draw(random);
              Note(Ask(gateway, question, time));
              absl::MutexLock lock(&mu_);
              mu_.AwaitWithTimeout(absl::Condition(
                                       +[](std::atomic<bool>* stopping) { return stopping->load(); }, &stopping_),
                                   pause);
            }
          });
    }
  }
  ~Users() { Stop(); }
  Users(const Users&) = delete;

  Tally Stop() {
    {
      absl::MutexLock lock(&mu_);
      stopping_ = true;
    }
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
    return Now();
  }
  Tally Now() const {
    absl::MutexLock lock(&mu_);
    return tally_;
  }

 private:
  void Note(const Outcome& outcome) {
    absl::MutexLock lock(&mu_);
    ++tally_.requests;
    ++tally_.verdicts[outcome.verdict];
    tally_.slowest = std::max(tally_.slowest, outcome.took);
    if (outcome.verdict == Verdict::kError) {
      ++tally_.errors[outcome.kind];
      if (tally_.reasons.size() < 20) ++tally_.reasons[outcome.what];
    }
    if (outcome.verdict >= Verdict::kWrong && tally_.wrong.size() < 20) tally_.wrong.push_back(outcome.what);
  }

  mutable absl::Mutex mu_;
  Tally tally_ ABSL_GUARDED_BY(mu_);
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> threads_;
};

}  // namespace perigee

#endif  // PERIGEE_TESTS_E2E_CHAOS_WORKLOAD_H_
