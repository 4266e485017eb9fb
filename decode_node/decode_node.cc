#include "decode_node/decode_node.h"

#include <algorithm>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/trace.h"

namespace perigee::decode_node {
namespace {

// Whether somebody who waits for a place is still there.
constexpr absl::Duration kAskEvery = absl::Milliseconds(50);

std::span<const int32_t> PromptOf(const v1::GenerateRequest& request) {
  return {request.token_ids().data(), static_cast<size_t>(request.token_ids_size())};
}

uint32_t SamplesOf(const v1::GenerateRequest& request) { return std::max<uint32_t>(request.samples(), 1); }

// Whether contexts stand in the prompt; in full they are text like any other.
absl::StatusOr<bool> IsComposed(const v1::GenerateRequest& request) {
  PERIGEE_ASSIGN_OR_RETURN(const model::Repair repair, model::Repair::Parse(request.repair()));
  return request.contexts_size() > 0 && repair.kind != model::RepairKind::kFull;
}

absl::Status CheckDigest(const char* what, const std::string& wanted, const Digest& served) {
  if (wanted.empty() || wanted == AsView(served)) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("the request is for ", what, " ",
                   ToHex(std::span(reinterpret_cast<const uint8_t*>(wanted.data()), wanted.size())),
                   ", this node serves ", ToHex(served)));
}

}  // namespace

// Room for a request's answers among those that are generated.
class DecodeNode::Place {
 public:
  explicit Place(DecodeNode* node) : node_(node) {}
  ~Place() {
    absl::MutexLock lock(&node_->mu_);
    node_->running_ -= taken_;
  }
  absl::Status Take(int samples, absl::Time deadline, const std::function<bool()>& cancelled) {
    absl::MutexLock lock(&node_->mu_);
    const uint64_t ticket = node_->next_ticket_++;
    node_->queue_.insert(ticket);
    const absl::Cleanup leave = [&]() ABSL_NO_THREAD_SAFETY_ANALYSIS { node_->queue_.erase(ticket); };
    const auto room = [&]() ABSL_SHARED_LOCKS_REQUIRED(node_->mu_) {
      return *node_->queue_.begin() == ticket && node_->running_ + samples <= node_->options_.max_sequences;
    };
    while (!node_->mu_.AwaitWithDeadline(absl::Condition(&room), std::min(deadline, absl::Now() + kAskEvery))) {
      if (absl::Now() >= deadline) {
        return absl::DeadlineExceededError(
            absl::StrCat("the request's time is over; ", node_->running_, " answers are being generated before it"));
      }
      if (cancelled != nullptr && cancelled()) return absl::CancelledError("the caller is gone");
    }
    node_->running_ += taken_ = samples;
    return absl::OkStatus();
  }

 private:
  DecodeNode* const node_;
  int taken_ = 0;
};

DecodeNode::DecodeNode(const node::Node* node, const DecodeOptions& options)
    : node_(node), options_(options), writer_(node, options.write) {}

int DecodeNode::running() const {
  absl::MutexLock lock(&mu_);
  return running_;
}

int DecodeNode::queued() const {
  absl::MutexLock lock(&mu_);
  return static_cast<int>(queue_.size());
}

absl::Status DecodeNode::CheckRequest(const v1::GenerateRequest& request) const {
  if (request.max_tokens() == 0) return absl::InvalidArgumentError("max_tokens is 0; ask for at least one token");
  if (request.samples() > static_cast<uint32_t>(options_.max_sequences)) {
    return absl::InvalidArgumentError(absl::StrCat("samples is ", request.samples(), "; this node generates at most ",
                                                   options_.max_sequences, " answers at once"));
  }
  const uint32_t answered = request.answered_tokens();
  if (answered > 0 && (SamplesOf(request) > 1 || answered > request.max_tokens() ||
                       answered >= static_cast<uint32_t>(request.token_ids_size()))) {
    return absl::InvalidArgumentError(
        absl::StrCat("answered_tokens is ", answered, " of ", request.token_ids_size(), " tokens, with max_tokens ",
                     request.max_tokens(), " and ", SamplesOf(request),
                     " samples: there must be a prompt, no more answered than asked for, and one sample"));
  }
  PERIGEE_RETURN_IF_ERROR(node_->CheckPrompt(PromptOf(request), int64_t{request.max_tokens()} - answered));
  PERIGEE_RETURN_IF_ERROR(CheckDigest("model", request.model_fingerprint(), node_->model().fingerprint()));
  return CheckDigest("plan", request.plan_id(), node_->model().plan().id());
}

absl::Status DecodeNode::LoadPrompt(const v1::GenerateRequest& request, const pod::Identity& identity,
                                    absl::Time deadline, const std::function<bool()>& cancelled,
                                    std::unique_ptr<model::PlaneCache>* cache, std::vector<float>* logits,
                                    node::ComposedReport* composed) const {
  PERIGEE_ASSIGN_OR_RETURN(const bool is_composed, IsComposed(request));
  if (is_composed) return LoadComposed(request, identity, deadline, cancelled, cache, logits, composed);
  node::LoadReport* const report = &composed->load;
  const std::span<const int32_t> ids = PromptOf(request);
  const int64_t cached = static_cast<int64_t>(ids.size()) - 1;
  const std::vector<pod::BlockKey> keys = pod::DeriveChain(identity, ids.first(static_cast<size_t>(cached)));
  const absl::Time start = absl::Now();
  absl::Status reached;
  node::StoredPrompt stored = node::LookUpPrompt(*node_, keys, cached, node::Presence::kStoredOrHere, &reached);
  report->lookup_time = absl::Now() - start;

  const int block_tokens = node_->model().layout().block_tokens();
  const int chunk = std::max(options_.chunk_tokens / block_tokens, 1) * block_tokens;
  const node::LoadRequest wanted{.identity = &identity,
                                 .ids = ids,
                                 .keys = keys,
                                 .tokens = cached,
                                 .max_compute_tokens = request.max_compute_tokens(),
                                 .chunk_tokens = chunk,
                                 .deadline = deadline,
                                 .cancelled = cancelled};
  const auto rest = [&](model::PlaneCache& loaded, node::PromptLoad& load) -> absl::Status {
    while (loaded.tokens() <= cached) {
      PERIGEE_RETURN_IF_ERROR(wanted.StillWanted());
      const int64_t begin = loaded.tokens();
      const int64_t end = std::min(cached + 1, begin + chunk);
      Span span(end > cached ? "first pass" : "compute chunk");
      span.Set("begin", begin);
      span.Set("tokens", end - begin);
      PERIGEE_RETURN_IF_ERROR(
          load.Run({.tokens = ids.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)),
                    .cache = &loaded,
                    .which = end > cached ? model::Logits::kLast : model::Logits::kNone,
                    .logits = logits}));
      loaded.RetireProximal(loaded.tokens() / block_tokens * block_tokens);
    }
    *cache = std::make_unique<model::PlaneCache>(std::move(loaded));
    return absl::OkStatus();
  };
  const absl::Status loaded = node::LoadPrompt(*node_, wanted, std::move(stored), rest, report);
  // A store that is not there might have what is missing.
  return absl::IsNotFound(loaded) && !reached.ok() ? reached : loaded;
}

absl::Status DecodeNode::LoadComposed(const v1::GenerateRequest& request, const pod::Identity& identity,
                                      absl::Time deadline, const std::function<bool()>& cancelled,
                                      std::unique_ptr<model::PlaneCache>* cache, std::vector<float>* logits,
                                      node::ComposedReport* report) const {
  PERIGEE_ASSIGN_OR_RETURN(const model::Repair repair, model::Repair::Parse(request.repair()));
  std::vector<model::ContextRange> contexts;
  for (const v1::ContextSpan& span : request.contexts()) {
    contexts.push_back({.begin = span.begin(),
                        .tokens = span.tokens(),
                        .source = {span.source().data(), static_cast<size_t>(span.source_size())},
                        .source_begin = span.source_begin()});
  }
  const int block_tokens = node_->model().layout().block_tokens();
  const node::ComposedRequest wanted{.identity = &identity,
                                     .ids = PromptOf(request),
                                     .contexts = contexts,
                                     .repair = repair,
                                     .max_compute_tokens = request.max_compute_tokens(),
                                     .chunk_tokens = std::max(options_.chunk_tokens / block_tokens, 1) * block_tokens,
                                     .deadline = deadline,
                                     .cancelled = cancelled,
                                     .computed = [&](std::span<const int32_t> ids, const model::PlaneCache& own) {
                                       writer_.Add({.identity = identity,
                                                    .ids = {ids.begin(), ids.end()},
                                                    .cache = own,
                                                    .request_id = std::string(CurrentRequest())});
                                     }};
  return node::LoadComposed(*node_, wanted, cache, logits, report);
}

void DecodeNode::Describe(const v1::GenerateRequest& request, const node::ComposedReport& composed,
                          v1::GenerateEvent::Started* started) const {
  const node::LoadReport& report = composed.load;
  const pod::Layout& layout = node_->model().layout();
  const pod::Window& window = layout.plan().window();
  const int64_t cached = request.token_ids_size() - 1;
  const auto us = [](absl::Duration d) { return static_cast<uint64_t>(absl::ToInt64Microseconds(d)); };
  started->set_near_sink_end(std::min<int64_t>(pod::SinkEnd(window, layout.block_tokens()), cached + 1));
  started->set_near_recent_begin(pod::RecentBegin(window, layout.block_tokens(), cached));
  started->set_fetched_tokens(static_cast<uint32_t>(report.prefix_tokens));
  started->set_recomputed_tokens(static_cast<uint32_t>(report.recomputed_tokens));
  started->set_computed_tokens(static_cast<uint32_t>(cached + 1 - report.prefix_tokens));
  started->set_bytes_fetched(report.bytes);
  started->set_planes_fetched(report.planes);
  started->set_planes_from_ssd(report.planes_from_ssd);
  started->set_planes_from_dram(report.planes - report.planes_from_ssd);
  started->set_acquire_us(us(report.acquire_time));
  started->set_fetch_us(us(report.fetch_time));
  started->set_exposed_fetch_us(us(report.exposed_time));
  started->set_context_tokens(static_cast<uint32_t>(composed.context_tokens - composed.repaired_tokens));
  started->set_repaired_tokens(static_cast<uint32_t>(composed.repaired_tokens));
  started->set_far_only_blocks(composed.far_only_blocks);
}

void DecodeNode::KeepAnswers(const v1::GenerateRequest& request, const pod::Identity& identity,
                             std::vector<Answer>& answers) {
  // What was computed behind contexts is no prompt's prefix.
  if (IsComposed(request).value_or(true)) return;
  for (Answer& answer : answers) {
    // The last token was sampled, and not run.
    std::vector<int32_t> ids(answer.ids().begin(), answer.ids().begin() + answer.cache().tokens());
    node_->KeepBlocks(pod::DeriveChain(identity, ids), answer.cache());
    if (!request.store_answer()) continue;
    writer_.Add({.identity = identity,
                 .ids = std::move(ids),
                 .cache = std::move(answer.cache()),
                 .request_id = std::string(CurrentRequest())});
  }
}

absl::StatusOr<bool> DecodeNode::FinishAnswered(const v1::GenerateRequest& request,
                                                const std::function<bool(const v1::GenerateEvent&)>& emit) const {
  if (request.answered_tokens() == 0) return false;
  PERIGEE_ASSIGN_OR_RETURN(Answer answer, Answer::Create(node_->model(), request, 0, node_->NewCache()));
  if (!answer.ended()) return false;
  v1::GenerateEvent started, finished;
  started.mutable_started();
  answer.Finish(finished.mutable_finished());
  if (!emit(started) || !emit(finished)) return absl::CancelledError("the caller is gone");
  return true;
}

void DecodeNode::Count(const node::LoadReport& report, const v1::GenerateEvent::Started& started) {
  metrics_.computed_tokens += started.computed_tokens();
  metrics_.recomputed_tokens += started.recomputed_tokens();
  metrics_.reused_tokens += started.fetched_tokens() - std::min(started.recomputed_tokens(), started.fetched_tokens());
  metrics_.fetched_bytes += report.bytes;
  metrics_.exposed_fetch_us += static_cast<uint64_t>(absl::ToInt64Microseconds(report.exposed_time));
}

absl::Status DecodeNode::Generate(const v1::GenerateRequest& request,
                                  const std::function<bool(const v1::GenerateEvent&)>& emit, absl::Time deadline,
                                  const std::function<bool()>& cancelled) {
  Span span("generate");
  span.Set("prompt_tokens", request.token_ids_size());
  const absl::Time arrival = absl::Now();
  const absl::Status status = Answers(request, emit, deadline, cancelled);
  span.Set("status", absl::StatusCodeToString(status.code()));
  metrics_.Ended(status, absl::Now() - arrival);
  return status;
}

absl::Status DecodeNode::Answers(const v1::GenerateRequest& request,
                                 const std::function<bool(const v1::GenerateEvent&)>& emit, absl::Time deadline,
                                 const std::function<bool()>& cancelled) {
  const absl::Time arrival = absl::Now();
  PERIGEE_RETURN_IF_ERROR(CheckRequest(request));
  PERIGEE_ASSIGN_OR_RETURN(const pod::Identity identity, node_->IdentityFor(request.scope()));
  PERIGEE_ASSIGN_OR_RETURN(const bool answered, FinishAnswered(request, emit));
  if (answered) return absl::OkStatus();
  Place place(this);
  {
    const Span span("queue");
    PERIGEE_RETURN_IF_ERROR(place.Take(static_cast<int>(SamplesOf(request)), deadline, cancelled));
  }
  const absl::Time begun = absl::Now();
  metrics_.queued.Record(begun - arrival);

  std::unique_ptr<model::PlaneCache> cache;
  std::vector<float> logits;
  node::ComposedReport report;
  PERIGEE_RETURN_IF_ERROR(LoadPrompt(request, identity, deadline, cancelled, &cache, &logits, &report));

  std::vector<Answer> answers;
  for (uint32_t sample = 0; sample < SamplesOf(request); ++sample) {
    const bool last = sample + 1 == SamplesOf(request);
    absl::StatusOr<model::PlaneCache> own = last ? std::move(*cache) : cache->Fork();
    PERIGEE_RETURN_IF_ERROR(own.status());
    PERIGEE_ASSIGN_OR_RETURN(Answer answer, Answer::Create(node_->model(), request, sample, *std::move(own)));
    answers.push_back(std::move(answer));
  }
  v1::GenerateEvent event;
  Describe(request, report, event.mutable_started());
  Count(report.load, event.started());
  event.mutable_started()->set_queued_us(static_cast<uint64_t>(absl::ToInt64Microseconds(begun - arrival)));
  if (!emit(event)) return absl::CancelledError("the caller is gone");

  AnswerGroup group(&node_->batches(), node_->model().layout().block_tokens(), std::move(answers), &metrics_);
  Span span("answer");
  const absl::Time first = absl::Now();
  group.Start(logits);
  TraceInstant("first token");
  metrics_.first_token.Record(first - arrival);
  PERIGEE_RETURN_IF_ERROR(group.Drain(
      [&](const v1::GenerateEvent& said) {
        if (!said.has_finished()) return emit(said);
        v1::GenerateEvent timed = said;
        timed.mutable_finished()->set_first_token_us(static_cast<uint64_t>(absl::ToInt64Microseconds(first - arrival)));
        timed.mutable_finished()->set_decode_us(node::MicrosecondsSince(first));
        return emit(timed);
      },
      deadline));
  span.End();
  const Span keep("keep answer");
  KeepAnswers(request, identity, group.answers());
  return absl::OkStatus();
}

}  // namespace perigee::decode_node
