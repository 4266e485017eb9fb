#include "cluster/gateway/completion_handler.h"

#include <poll.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>
#include <vector>

#include "absl/random/random.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "cluster/gateway/context_handler.h"
#include "cluster/gateway/text_chunks.h"

namespace perigee::cluster {

// A place among the requests that may be under way; and, once there is one, the run that Stop() ends.
class CompletionHandler::Admission {
 public:
  static absl::StatusOr<std::unique_ptr<Admission>> Enter(CompletionHandler& handler) {
    const absl::MutexLock lock(&handler.mutex_);
    if (handler.stopped_) return absl::UnavailableError("the server is stopping; try another");
    if (handler.admitted_ >= handler.options_.max_requests) {
      return WithDetails(absl::ResourceExhaustedError(
                             absl::StrCat("the server has ", handler.admitted_, " requests already; try again later")),
                         "", "too_many_requests");
    }
    ++handler.admitted_;
    return std::unique_ptr<Admission>(new Admission(handler));
  }

  ~Admission() {
    const absl::MutexLock lock(&handler_.mutex_);
    --handler_.admitted_;
    handler_.runs_.erase(run_);
  }

  void Register(CompletionRun* run) {
    const absl::MutexLock lock(&handler_.mutex_);
    run_ = run;
    handler_.runs_.insert(run);
    if (handler_.stopped_) run->Cancel(absl::UnavailableError("the server is stopping; try another"));
  }

 private:
  explicit Admission(CompletionHandler& handler) : handler_(handler) {}
  CompletionHandler& handler_;
  CompletionRun* run_ = nullptr;
};

// A request that the backend works on.
class CompletionHandler::Answer {
 public:
  Answer(CompletionCall call, const std::string& model, std::unique_ptr<CompletionRun> run,
         std::unique_ptr<Admission> admission, absl::Time deadline, size_t prompts, HttpExchange& exchange)
      : call_(std::move(call)),
        format_(call_, exchange.record.request_id, model, exchange.arrived),
        exchange_(exchange),
        deadline_(deadline),
        choices_(prompts * call_.samples),
        run_(std::move(run)),
        admission_(std::move(admission)) {
    admission_->Register(run_.get());
  }
  ~Answer() {
    admission_.reset();  // Nobody may reach the run while it goes.
    run_.reset();
  }

  bool streams() const { return call_.stream; }

  // Waits until it is known whether there will be an answer: an error is one from before the first piece.
  absl::Status AwaitFirst() {
    first_ = Next();
    if (first_) return absl::OkStatus();
    return End().status();
  }

  // The whole answer.
  absl::StatusOr<std::string> Collect() {
    for (std::optional<CompletionRun::Item> item = std::move(first_); item; item = Next()) {
      AnswerFormat::Choice& choice = choices_[ChoiceOf(*item)];
      choice.text += item->event.text;
      if (!item->event.finish_reason.empty()) choice.finish_reason = item->event.finish_reason;
    }
    PERIGEE_ASSIGN_OR_RETURN(const BackendUsage usage, End());
    return format_.Whole(choices_, usage);
  }

  // Pieces as they come. False: the client is gone.
  bool Stream(httplib::DataSink& sink) {
    std::vector<bool> begun(choices_.size());
    std::optional<CompletionRun::Item> item = std::move(first_);
    while (item) {
      std::string out;
      // What has come meanwhile goes out together.
      for (; item; item = run_->Take()) {
        const size_t choice = ChoiceOf(*item);
        if (!begun[choice]) out += format_.FirstChunk(choice);
        begun[choice] = true;
        out += format_.Chunk(choice, item->event);
        if (out.size() >= kMaxWriteBytes) break;
      }
      if (!out.empty() && !sink.write(out.data(), out.size())) {
        run_->Cancel(absl::CancelledError("the client is gone"));
        (void)End();
        return false;
      }
      item = Next();
    }
    const absl::StatusOr<BackendUsage> usage = End();
    std::string out;
    if (!usage.ok()) {
      out = AnswerFormat::ErrorChunk(usage.status());
    } else {
      if (call_.include_usage) out = format_.UsageChunk(*usage);
      out += AnswerFormat::Done();
    }
    if (absl::IsCancelled(usage.status()) || !sink.write(out.data(), out.size())) return false;
    sink.done();
    return true;
  }

 private:
  static constexpr size_t kMaxWriteBytes = size_t{64} << 10;

  size_t ChoiceOf(const CompletionRun::Item& item) const {
    return item.prompt * call_.samples + std::min(item.event.sample, call_.samples - 1);
  }

  // The next event; empty when the run has ended. A client that is gone and a deadline end it.
  std::optional<CompletionRun::Item> Next() {
    for (;;) {
      std::optional<CompletionRun::Item> item = run_->Take();
      if (item && item->event.tokens > 0 && exchange_.record.first_token == absl::InfiniteDuration()) {
        exchange_.record.first_token = absl::Now() - exchange_.arrived;
      }
      if (item || run_->Result()) return item;
      if (cancelled_) {
        pollfd fd = {run_->event_fd(), POLLIN, 0};
        (void)::poll(&fd, 1, -1);  // The backend asks whether it is cancelled.
      } else if (!exchange_.connection->WaitFor(run_->event_fd(), deadline_)) {
        cancelled_ = true;
        run_->Cancel(exchange_.connection->PeerGone()
                         ? absl::CancelledError("the client is gone")
                         : absl::DeadlineExceededError(absl::StrCat("the request took longer than the ",
                                                                    absl::FormatDuration(deadline_ - exchange_.arrived),
                                                                    " it had")));
      }
    }
  }

  // What the run has come to, after the last event.
  absl::StatusOr<BackendUsage> End() {
    while (Next()) {
    }
    const absl::StatusOr<BackendUsage> result = *run_->Result();
    exchange_.record.result = result.status();
    if (result.ok()) exchange_.record.usage = *result;
    return result;
  }

  const CompletionCall call_;
  const AnswerFormat format_;
  HttpExchange& exchange_;
  const absl::Time deadline_;
  std::vector<AnswerFormat::Choice> choices_;
  std::optional<CompletionRun::Item> first_;
  bool cancelled_ = false;
  std::unique_ptr<CompletionRun> run_;
  std::unique_ptr<Admission> admission_;
};

CompletionHandler::CompletionHandler(const HttpServerOptions& options, const FrontModel& model, Backend* backend)
    : options_(options), model_(model), backend_(backend) {}

namespace {

// The time that the request has: the server's, or less where it asks for less.
absl::StatusOr<absl::Duration> TimeFor(const httplib::Request& request, const CompletionCall& call,
                                       absl::Duration most) {
  absl::Duration time = std::min(most, call.timeout.value_or(most));
  if (request.has_header("X-Request-Timeout")) {
    const std::string text = request.get_header_value("X-Request-Timeout");
    double seconds = 0;
    if (!absl::SimpleAtod(text, &seconds) || !(seconds > 0) || !std::isfinite(seconds)) {
      return absl::InvalidArgumentError(
          absl::StrCat("X-Request-Timeout is \"", text.substr(0, 40), "\"; seconds above 0 are needed"));
    }
    time = std::min(time, absl::Seconds(seconds));
  }
  return time;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CompletionHandler::Answer>> CompletionHandler::Begin(
    Endpoint endpoint, const httplib::Request& request, const httplib::ContentReader& content, HttpExchange& exchange) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string body, ReadBody(options_, request, content, exchange));
  PERIGEE_ASSIGN_OR_RETURN(std::unique_ptr<Admission> admission, Admission::Enter(*this));
  CallLimits limits = options_.call_limits;
  if (const uint32_t most = options_.most_samples ? options_.most_samples() : 0; most > 0) {
    limits.max_samples = std::min(limits.max_samples, most);
  }
  PERIGEE_ASSIGN_OR_RETURN(CompletionCall call, ParseCompletionCall(body, endpoint, limits));
  exchange.record.stream = call.stream;
  if (options_.chunks == nullptr) call.separator.clear();
  PERIGEE_ASSIGN_OR_RETURN(const absl::Duration time, TimeFor(request, call, options_.request_timeout));
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<SharedTokens> contexts,
                           ResolveContexts(options_.contexts, exchange.record.tenant, call));
  thread_local absl::BitGen random;
  PERIGEE_ASSIGN_OR_RETURN(
      std::vector<BackendRequest> requests,
      MakeBackendRequests(call, model_, exchange.arrived, absl::Uniform<uint64_t>(random) >> 16, contexts));
  const absl::Time deadline = exchange.arrived + time;
  for (BackendRequest& one : requests) {
    one.request_id = exchange.record.request_id;
    one.tenant = exchange.record.tenant;
    one.deadline = deadline;
    if (options_.chunks != nullptr) AdmitChunks(*options_.chunks, one);
  }
  const size_t prompts = requests.size();
  PERIGEE_ASSIGN_OR_RETURN(
      std::unique_ptr<CompletionRun> run,
      CompletionRun::Start(backend_, std::move(requests), {.parallel_prompts = options_.parallel_prompts}));
  return std::make_unique<Answer>(std::move(call), model_.name, std::move(run), std::move(admission), deadline, prompts,
                                  exchange);
}

void CompletionHandler::Handle(Endpoint endpoint, const httplib::Request& request,
                               const httplib::ContentReader& content, HttpExchange& exchange,
                               httplib::Response& response) {
  absl::StatusOr<std::unique_ptr<Answer>> begun = Begin(endpoint, request, content, exchange);
  if (!begun.ok()) return AnswerError(begun.status(), exchange, response);
  const std::shared_ptr<Answer> answer = *std::move(begun);
  if (const absl::Status status = answer->AwaitFirst(); !status.ok()) return AnswerError(status, exchange, response);
  if (!answer->streams()) {
    const absl::StatusOr<std::string> whole = answer->Collect();
    if (!whole.ok()) return AnswerError(whole.status(), exchange, response);
    response.status = 200;
    response.set_content(*whole, "application/json");
    return;
  }
  response.status = 200;
  response.set_header("Cache-Control", "no-cache");
  response.set_header("X-Accel-Buffering", "no");
  // Called once: the library would look for its own socket, which it does not have, between calls.
  const auto stream = [answer](size_t, httplib::DataSink& sink) { return answer->Stream(sink); };
  if (request.version == "HTTP/1.0") {
    exchange.close = true;
    response.set_content_provider("text/event-stream", stream);
  } else {
    response.set_chunked_content_provider("text/event-stream", stream);
  }
}

void CompletionHandler::Stop() {
  const absl::MutexLock lock(&mutex_);
  stopped_ = true;
  for (CompletionRun* run : runs_) run->Cancel(absl::UnavailableError("the server is stopping; try another"));
}

}  // namespace perigee::cluster
