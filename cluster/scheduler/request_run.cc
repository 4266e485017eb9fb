#include "cluster/scheduler/request_run.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/trace.h"
#include "cluster/scheduler/calls.h"
#include "cluster/scheduler/passing_blocks.h"
#include "node/stored_prompt.h"

namespace perigee::cluster {
namespace {

using pod::PlaneKind;

// How long a wait for a node's next word is not interrupted by looking whether caller and node are still there.
constexpr absl::Duration kLookEvery = absl::Milliseconds(50);
// A decode node may compute so much that proves missing since the lookup, rather than send the request back.
constexpr uint32_t kSpareComputeTokens = 256;

// What a store's answer means for continuing from it.
std::vector<node::StoredBlock> StoredBlocks(const pod::Layout& layout, size_t blocks,
                                            const kvstore::LookupResult& lookup) {
  std::vector<node::StoredBlock> stored(blocks);
  for (size_t b = 0; b < blocks; ++b) {
    stored[b].distant = layout.plane_bytes(PlaneKind::kDistant) == 0;
    stored[b].proximal = layout.plane_bytes(PlaneKind::kProximal) == 0;
    if (b < lookup.blocks.size()) node::MergeStored(lookup.blocks[b], stored[b]);
  }
  return stored;
}

NodeFigures FiguresOf(const NodeHandle& node) {
  const std::shared_ptr<const v1::NodeInfo> info = node.info();
  const v1::NodeLoad& load = info->load();
  // Its own figures are a quarter of a second old at worst, and know of what others gave it; this process's know of
  // what it gave it since.
  return {.running = std::max<int>(static_cast<int>(load.running()), node.requests),
          .queued = static_cast<int>(load.queued()),
          .max_running = static_cast<int>(load.max_running()),
          .tokens_ahead = std::max<int64_t>(load.prefill_tokens_ahead(), node.prefill_tokens),
          .compute = {.pass_s = load.prefill_pass_s(),
                      .token_s = load.prefill_token_s(),
                      .position_s = load.prefill_position_s()},
          .answer_token_s = load.answer_token_s()};
}

}  // namespace

RequestRun::RequestRun(ClusterBackend* backend, const ClusterModel& model, const BackendRequest& request,
                       absl::Time deadline, absl::FunctionRef<bool(const BackendEvent&)> emit,
                       absl::FunctionRef<bool()> cancelled)
    : backend_(*backend),
      model_(model),
      request_(request),
      deadline_(deadline),
      emit_(emit),
      cancelled_(cancelled),
      identity_{.tenant = request.tenant,
                .salt = request.salt,
                .model_fingerprint = model.fingerprint,
                .plan_id = model.layout.plan().id(),
                .block_tokens = model.layout.block_tokens()},
      repair_(ChooseRepair()),
      samples_(std::max<uint32_t>(request.samples, 1)) {
  usage_.prompt_tokens = static_cast<uint32_t>(request.token_ids.size());
  // In full, contexts are text like any other.
  if (!repair_.ok() || repair_->kind == model::RepairKind::kFull) return;
  for (const ContextSpan& span : request.contexts) {
    std::vector<int32_t>& ids = contexts_.emplace_back(backend_.options_.context_opening);
    const auto begin = request.token_ids.begin() + span.begin;
    if (span.source == nullptr) {
      ids.insert(ids.end(), begin, begin + span.tokens);
    } else {
      ids.insert(ids.end(), span.source->begin(), span.source->end());
    }
    context_keys_.push_back(pod::DeriveChain(identity_, ids));
  }
}

absl::StatusOr<model::Repair> RequestRun::ChooseRepair() const {
  if (!request_.repair.empty()) return model::Repair::Parse(request_.repair);
  const ClusterBackendOptions& options = backend_.options_;
  if (options.context_repair.has_value()) return *options.context_repair;
  const std::optional<model::MeasuredRepair>& measured = options.measured_repair;
  if (measured.has_value() && measured->IsOf(model_.fingerprint, model_.layout.plan().id())) return measured->repair;
  return model::Repair{.kind = model::RepairKind::kFull};
}

absl::StatusOr<BackendUsage> RequestRun::Run() {
  PERIGEE_RETURN_IF_ERROR(repair_.status());
  PERIGEE_RETURN_IF_ERROR(pod::ValidateIdentity(identity_));
  const absl::Cleanup drop = [this] { DropPassingBlocks(); };
  const absl::Time busy_until = std::min(deadline_, absl::Now() + backend_.options_.queue.max_wait);
  const auto complete = [this] {
    return std::all_of(samples_.begin(), samples_.end(), [](const Sample& s) { return s.finished; });
  };
  for (int tried = 0; !complete();) {
    const absl::Status status = Try(NextAttempt());
    if (status.ok()) continue;
    if (complete() && !caller_gone_) break;
    PERIGEE_RETURN_IF_ERROR(GivesUp(status));
    // Nodes without room are well: their room comes back as other requests end.
    if (absl::IsResourceExhausted(status)) {
      if (absl::Now() >= busy_until) return Annotate(status, "the cluster is busy; try again later");
    } else if (++tried >= backend_.options_.max_attempts) {
      return absl::UnavailableError(absl::StrCat("after ", tried, " attempts: ", status.message()));
    }
    {
      absl::MutexLock lock(&backend_.mu_);
      ++backend_.stats_.retries;
    }
    spdlog::info("attempt {}: {}", tried, status.ToString());
    // Where all nodes have failed it, it may be the turn of the first again: after a while. So it may where no prefill
    // node has room: a decode node that has will need it for answers.
    const bool crowded = absl::IsResourceExhausted(status) && Candidates(Role::kPrefill).empty() &&
                         !backend_.Nodes(Role::kPrefill, model_).empty();
    if (crowded || Candidates(Role::kDecode).empty()) PERIGEE_RETURN_IF_ERROR(Pause());
  }
  for (const Sample& sample : samples_) usage_.completion_tokens += static_cast<uint32_t>(sample.ids.size());
  return usage_;
}

void RequestRun::DropPassingBlocks() const {
  if (!prefilled_ || backend_.store_ == nullptr || request_.chunks.empty()) return;
  const auto stored = std::span(request_.token_ids).first(request_.token_ids.size() - 1);
  const std::vector<pod::BlockKey> keys = pod::DeriveChain(identity_, stored);
  const auto passing = PassingBlocks(request_, keys, model_.layout.block_tokens());
  if (passing.empty()) return;
  const absl::StatusOr<uint32_t> deleted = backend_.store_->Delete(keys[0], passing);
  if (!deleted.ok()) spdlog::info("a prompt's planes stay until others need the room: {}", deleted.status().ToString());
}

absl::Status RequestRun::Pause() {
  avoided_.clear();
  for (const absl::Time until = std::min(deadline_, absl::Now() + pause_); absl::Now() < until;) {
    absl::SleepFor(std::min(kLookEvery, until - absl::Now()));
    if (cancelled_()) return absl::CancelledError("the caller is gone");
  }
  pause_ = std::min(pause_ * 2, absl::Seconds(1));
  return absl::OkStatus();
}

// The error with which the request ends, where there is no sense in another attempt.
absl::Status RequestRun::GivesUp(const absl::Status& status) const {
  if (caller_gone_) return absl::CancelledError("the caller is gone");
  if (absl::Now() >= deadline_) {
    return absl::DeadlineExceededError(absl::StrCat("the request's time is over; last: ", status.message()));
  }
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kUnimplemented:
      return status;
    // Not the caller's fault: what is meant is this cluster's own processes.
    case absl::StatusCode::kUnauthenticated:
    case absl::StatusCode::kPermissionDenied:
      return absl::InternalError(absl::StrCat("the cluster is not set up well: ", status.message()));
    default:
      return absl::OkStatus();
  }
}

RequestRun::Attempt RequestRun::NextAttempt() const {
  Attempt attempt{.samples = {}, .ids = request_.token_ids, .keys = {}};
  // All of a request's samples are one call, as long as none has begun; then each goes on by itself.
  const bool together =
      std::all_of(samples_.begin(), samples_.end(), [](const Sample& s) { return s.ids.empty() && !s.finished; });
  for (uint32_t i = 0; i < samples_.size(); ++i) {
    if (!together && (samples_[i].finished || !attempt.samples.empty())) continue;
    attempt.samples.push_back(i);
  }
  if (!together) {
    const std::vector<int32_t>& answered = samples_[attempt.samples[0]].ids;
    attempt.ids.insert(attempt.ids.end(), answered.begin(), answered.end());
  }
  if (!composed()) attempt.keys = pod::DeriveChain(identity_, std::span(attempt.ids).first(attempt.ids.size() - 1));
  return attempt;
}

std::vector<std::shared_ptr<NodeHandle>> RequestRun::Candidates(Role role) const {
  std::vector<std::shared_ptr<NodeHandle>> nodes = backend_.Nodes(role, model_);
  std::erase_if(nodes, [this](const auto& node) { return avoided_.contains(node->id()); });
  return nodes;
}

PromptFigures RequestRun::Figures(const Attempt& attempt) const {
  PromptFigures figures{.tokens = static_cast<int64_t>(attempt.ids.size()) - 1,
                        .fetch = absl::ZeroDuration(),
                        .fetch_token_s = backend_.fetch_token_s_};
  if (composed()) {
    for (const std::vector<int32_t>& ids : contexts_) figures.stored_tokens += static_cast<int64_t>(ids.size());
    figures.stored_tokens = std::min(figures.stored_tokens, figures.tokens);
    figures.fetch = absl::Seconds(figures.fetch_token_s * static_cast<double>(figures.stored_tokens));
    return figures;
  }
  if (backend_.store_ == nullptr || attempt.keys.empty() || prefill_first_) return figures;
  const absl::StatusOr<kvstore::LookupResult> lookup =
      backend_.store_->Lookup(attempt.keys[0], attempt.keys, kvstore::LookupMode::kPrefix);
  if (!lookup.ok()) return figures;
  const node::Reuse reuse = node::LongestUsablePrefix(model_.layout, figures.tokens,
                                                      StoredBlocks(model_.layout, attempt.keys.size(), *lookup));
  figures.stored_tokens = std::min(static_cast<int64_t>(reuse.blocks) * model_.layout.block_tokens(), figures.tokens);
  figures.fetch = absl::Microseconds(lookup->estimated_fetch_us);
  return figures;
}

struct RequestRun::Choice {
  Choice(std::shared_ptr<NodeHandle> decode_node, std::shared_ptr<NodeHandle> prefill_node, int64_t prompt_tokens)
      : decode(std::move(decode_node)), prefill(std::move(prefill_node)), tokens(prompt_tokens) {
    ++decode->requests;
    if (prefill == nullptr) return;
    ++prefill->requests;
    prefill->prefill_tokens += tokens;
  }
  Choice(Choice&&) = default;
  ~Choice() {
    if (decode == nullptr) return;  // Moved from.
    --decode->requests;
    PrefillDone();
  }
  void PrefillDone() {
    if (prefill == nullptr) return;
    --prefill->requests;
    prefill->prefill_tokens -= tokens;
    prefill = nullptr;
  }

  std::shared_ptr<NodeHandle> decode;
  std::shared_ptr<NodeHandle> prefill;  // Null: none is needed.
  int64_t tokens;
  bool alone = false;  // There are no prefill nodes: the decode nodes are on their own.
};

absl::StatusOr<RequestRun::Choice> RequestRun::Choose(const Attempt& attempt, const PromptFigures& prompt) {
  const absl::MutexLock lock(&backend_.route_mu_);  // Many at once do not choose the same one.
  const std::vector<std::shared_ptr<NodeHandle>> decode = Candidates(Role::kDecode);
  const std::vector<std::shared_ptr<NodeHandle>> prefill = Candidates(Role::kPrefill);
  std::vector<NodeFigures> decode_figures, prefill_figures;
  for (const auto& node : decode) {
    NodeFigures& figures = decode_figures.emplace_back(FiguresOf(*node));
    if (prefill_first_ && !composed()) continue;
    size_t blocks = backend_.chains_.Leading(node->id(), attempt.keys);
    for (const std::vector<pod::BlockKey>& keys : context_keys_) blocks += backend_.chains_.Leading(node->id(), keys);
    figures.local_tokens =
        std::min<int64_t>(static_cast<int64_t>(blocks) * model_.layout.block_tokens(), prompt.tokens);
  }
  // What stands between and behind contexts is computed where they are attended.
  for (const auto& node : prefill) {
    if (!composed()) prefill_figures.push_back(FiguresOf(*node));
  }
  RouteOptions options = backend_.options_.route;
  if (prefill_first_) options.max_direct_tokens = -1;
  const std::optional<Route> route = ChooseRoute(prompt, prefill_figures, decode_figures, options);
  if (!route.has_value()) return absl::UnavailableError("no decode node answers; try again later");
  Choice choice(decode[route->decode], route->prefill.has_value() ? prefill[*route->prefill] : nullptr,
                static_cast<int64_t>(attempt.ids.size()));
  choice.alone = prefill.empty();
  return choice;
}

absl::Status RequestRun::Try(const Attempt& attempt) {
  const Span span("attempt");
  Span routing("route");
  const PromptFigures prompt = Figures(attempt);
  PERIGEE_ASSIGN_OR_RETURN(Choice choice, Choose(attempt, prompt));
  routing.Set("stored_tokens", prompt.stored_tokens);
  routing.Set("decode", choice.decode->id());
  if (choice.prefill != nullptr) routing.Set("prefill", choice.prefill->id());
  routing.End();
  {
    absl::MutexLock lock(&backend_.mu_);
    ++(choice.prefill != nullptr ? backend_.stats_.prefilled : backend_.stats_.direct);
    backend_.stats_.contexts += composed();
    if (!samples_[attempt.samples[0]].ids.empty()) ++backend_.stats_.resumed;
  }

  if (choice.prefill != nullptr) {
    const absl::Status status = Prefill(*choice.prefill, attempt);
    if (!status.ok()) {
      Failed(*choice.prefill, status);
      return Annotate(status, absl::StrCat("prefill node ", choice.prefill->id()));
    }
    choice.PrefillDone();
  }
  if (composed() && prefill_first_ && !choice.alone) PERIGEE_RETURN_IF_ERROR(PrefillContexts());
  NodeHandle& node = *choice.decode;
  const int64_t spare = kSpareComputeTokens + std::max<int64_t>(backend_.options_.route.max_direct_tokens, 0);
  const absl::Status status = Generate(node, attempt, choice.alone ? INT32_MAX : static_cast<uint32_t>(spare));
  if (status.ok()) {
    prefill_first_ = false;
    return status;
  }
  // It is well, and lacks what has to be prefilled first.
  prefill_first_ = absl::IsNotFound(status) && !choice.alone;
  if (absl::IsNotFound(status)) {
    backend_.chains_.Forget(node.id(), attempt.keys);
    for (const std::vector<pod::BlockKey>& keys : context_keys_) backend_.chains_.Forget(node.id(), keys);
  } else {
    Failed(node, status);
  }
  return Annotate(status, absl::StrCat("decode node ", node.id()));
}

void RequestRun::Failed(NodeHandle& node, const absl::Status& status) {
  if (caller_gone_ || absl::IsInvalidArgument(status)) return;
  avoided_.insert(node.id());
  if (!absl::IsUnavailable(status)) return;
  node.ReportFailure();
  backend_.chains_.Forget(node.id());  // It may be another process when it answers again.
}

absl::Status RequestRun::StillThere(const NodeHandle& node) const {
  if (node.gone()) return absl::UnavailableError("it does not answer any more");
  return absl::Now() < deadline_ ? absl::OkStatus() : absl::DeadlineExceededError("the request's time is over");
}

absl::Status RequestRun::Prefill(NodeHandle& node, const Attempt& attempt) {
  Span span("prefill call");
  span.Set("node", node.id());
  v1::PrefillRequest request;
  request.mutable_scope()->set_tenant(request_.tenant);
  request.mutable_scope()->set_salt(request_.salt);
  int64_t begin = 0;
  const auto add = [&](int64_t end) {
    if (end <= begin) return;
    request.add_segments()->mutable_tokens()->mutable_ids()->Assign(attempt.ids.begin() + begin,
                                                                    attempt.ids.begin() + end);
    begin = end;
  };
  for (const int64_t point : request_.branch_points) {
    add(std::min(point, static_cast<int64_t>(request_.token_ids.size())));
  }
  add(static_cast<int64_t>(attempt.ids.size()));

  prefilled_ = true;
  PrefillCall call(node.prefill(), request, request_.request_id, deadline_);
  for (;;) {
    if (const std::optional<absl::Status> status = call.Wait(kLookEvery); status.has_value()) {
      if (status->ok() && !found_.has_value()) {
        found_ = call.response().reused_tokens() - call.response().recomputed_tokens();
      }
      return *status;
    }
    if (cancelled_()) {
      caller_gone_ = true;
      return absl::CancelledError("the caller is gone");
    }
    PERIGEE_RETURN_IF_ERROR(StillThere(node));
  }
}

absl::Status RequestRun::PrefillContexts() {
  const absl::StatusOr<uint64_t> computed = backend_.PrefillContexts(model_,
                                                                     {.tenant = request_.tenant,
                                                                      .salt = request_.salt,
                                                                      .request_id = request_.request_id,
                                                                      .contexts = contexts_,
                                                                      .deadline = deadline_},
                                                                     cancelled_);
  caller_gone_ = absl::IsCancelled(computed.status());
  PERIGEE_RETURN_IF_ERROR(computed.status());
  uint64_t tokens = 0;
  for (const std::vector<int32_t>& ids : contexts_) tokens += ids.size();
  if (!found_.has_value()) found_ = static_cast<uint32_t>(tokens - std::min(*computed, tokens));
  return absl::OkStatus();
}

absl::Status RequestRun::Generate(NodeHandle& node, const Attempt& attempt, uint32_t max_compute_tokens) {
  Span span("decode call");
  span.Set("node", node.id());
  v1::GenerateRequest request;
  request.mutable_scope()->set_tenant(request_.tenant);
  request.mutable_scope()->set_salt(request_.salt);
  request.mutable_token_ids()->Assign(attempt.ids.begin(), attempt.ids.end());
  request.set_model_fingerprint(std::string(AsView(model_.fingerprint)));
  request.set_plan_id(std::string(AsView(model_.layout.plan().id())));
  request.set_max_tokens(request_.max_tokens);
  request.set_temperature(static_cast<float>(request_.temperature));
  request.set_top_p(static_cast<float>(request_.top_p));
  request.set_top_k(request_.top_k);
  request.set_seed(request_.seed + attempt.samples[0]);
  request.set_ignore_eos(request_.ignore_eos);
  for (const std::string& stop : request_.stop) request.add_stop(stop);
  request.set_samples(static_cast<uint32_t>(attempt.samples.size()));
  request.set_answered_tokens(static_cast<uint32_t>(attempt.ids.size() - request_.token_ids.size()));
  request.set_max_compute_tokens(max_compute_tokens);
  // Behind chunks that are contexts from now on nobody goes on.
  request.set_store_answer(backend_.options_.store_answers && request_.chunks.empty());
  if (composed()) {
    for (const ContextSpan& span : request_.contexts) {
      v1::ContextSpan* context = request.add_contexts();
      context->set_begin(static_cast<uint32_t>(span.begin));
      context->set_tokens(static_cast<uint32_t>(span.tokens));
      if (span.source == nullptr) continue;
      context->mutable_source()->Assign(span.source->begin(), span.source->end());
      context->set_source_begin(static_cast<uint32_t>(span.source_begin));
    }
    request.set_repair(repair_->ToString());
  }

  GenerateCall call(node.decode(), request, request_.request_id, deadline_);
  std::optional<absl::Status> ended;
  while (!ended.has_value()) {
    if (const std::optional<v1::GenerateEvent> event = call.Next(kLookEvery, &ended); event.has_value()) {
      PERIGEE_RETURN_IF_ERROR(Take(*event, node, attempt));
      continue;
    }
    if (ended.has_value()) break;
    if (cancelled_()) {
      caller_gone_ = true;
      return absl::CancelledError("the caller is gone");
    }
    PERIGEE_RETURN_IF_ERROR(StillThere(node));
  }
  PERIGEE_RETURN_IF_ERROR(*ended);
  for (const uint32_t i : attempt.samples) {
    if (!samples_[i].finished) return absl::UnavailableError("it ended its answer without finishing it");
    if (composed()) continue;
    std::vector<int32_t> ids = request_.token_ids;
    ids.insert(ids.end(), samples_[i].ids.begin(), samples_[i].ids.end());
    ids.pop_back();
    backend_.chains_.Add(node.id(), pod::DeriveChain(identity_, ids));
  }
  for (const std::vector<pod::BlockKey>& keys : context_keys_) backend_.chains_.Add(node.id(), keys);
  return absl::OkStatus();
}

absl::Status RequestRun::Take(const v1::GenerateEvent& event, NodeHandle& node, const Attempt& attempt) {
  if (event.has_started()) {
    const v1::GenerateEvent::Started& started = event.started();
    if (started.bytes_fetched() > 0) backend_.RecordFetch(started.fetched_tokens(), started.fetch_us());
    const uint32_t here = started.fetched_tokens() - std::min(started.recomputed_tokens(), started.fetched_tokens());
    // Through a prefill node everything is fetched: what that one found is what was not computed.
    if (!started_) {
      usage_.cached_tokens = std::min({here, found_.value_or(here), usage_.prompt_tokens});
      usage_.context_tokens = started.context_tokens();
      usage_.repaired_tokens = started.repaired_tokens();
    }
    started_ = true;
    return absl::OkStatus();
  }
  const uint32_t place = event.has_token() ? event.token().sample() : event.finished().sample();
  if (place >= attempt.samples.size()) return absl::InternalError("it answered for a sample that was not asked for");
  const uint32_t i = attempt.samples[place];
  BackendEvent out{.sample = i, .text = {}, .tokens = 0, .finish_reason = {}};
  if (event.has_token()) {
    if (samples_[i].ids.empty()) TraceInstant("first token");
    samples_[i].ids.push_back(event.token().id());
    out.text = event.token().text();
    out.tokens = 1;
  } else {
    samples_[i].finished = true;
    out.text = event.finished().text();
    out.finish_reason = event.finished().reason() == "length" ? "length" : "stop";
  }
  if (emit_(out)) return absl::OkStatus();
  caller_gone_ = true;
  return absl::CancelledError("the caller is gone");
}

}  // namespace perigee::cluster
