#include "cluster/scheduler/cluster_backend.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/trace.h"
#include "cluster/scheduler/request_run.h"

namespace perigee::cluster {
namespace {

constexpr char kNoDecodeNode[] = "no decode node answers; start one, or look at 'perigee cluster nodes'";
constexpr size_t kRememberedBlocks = 1 << 18;  // Of each decode node.

bool Serves(const v1::NodeInfo& info, const ClusterModel& model) {
  return info.model_fingerprint() == AsView(model.fingerprint) && info.plan_id() == AsView(model.layout.plan().id()) &&
         static_cast<int>(info.block_tokens()) == model.layout.block_tokens();
}

}  // namespace

ClusterBackend::ClusterBackend(const NodeSet* nodes, kvstore::ShardedStore* store, const ClusterBackendOptions& options)
    : nodes_(nodes), store_(store), options_(options), queue_(options.queue), chains_(kRememberedBlocks) {}

bool ClusterBackend::Fits(const v1::NodeInfo& info) const {
  return options_.tokenizer_digest.empty() || info.tokenizer_digest().empty() ||
         info.tokenizer_digest() == options_.tokenizer_digest;
}

absl::StatusOr<std::shared_ptr<const ClusterModel>> ClusterBackend::Model() {
  std::vector<std::shared_ptr<NodeHandle>> decode = nodes_->Usable(Role::kDecode);
  const std::shared_ptr<NodeHandle> any = decode.empty() ? nullptr : decode.front();
  std::erase_if(decode, [this](const auto& node) { return !Fits(*node->info()); });
  absl::MutexLock lock(&mu_);
  // It stays what it is as long as anybody serves it: nodes of a new model wait until the old ones are gone.
  const bool served = model_ != nullptr && std::any_of(decode.begin(), decode.end(), [&](const auto& node) {
                        return Serves(*node->info(), *model_);
                      });
  if (served || (model_ != nullptr && decode.empty())) return model_;
  if (any != nullptr && decode.empty()) {
    return absl::UnavailableError(
        absl::StrCat("decode node ", any->id(), " has another tokenizer than this gateway: give both the same model"));
  }
  if (decode.empty()) return absl::UnavailableError(kNoDecodeNode);
  const std::shared_ptr<const v1::NodeInfo> told = decode.front()->info();
  const v1::NodeInfo& info = *told;
  PERIGEE_ASSIGN_OR_RETURN(const pod::Plan plan, pod::Plan::Parse(info.plan_json()));
  PERIGEE_ASSIGN_OR_RETURN(pod::Layout layout, pod::Layout::Create(plan, static_cast<int>(info.block_tokens())));
  if (info.model_fingerprint().size() != sizeof(Digest)) {
    return absl::InternalError(absl::StrCat("decode node ", decode.front()->id(), " has no model fingerprint"));
  }
  ClusterModel model{
      .name = info.model_name(), .layout = std::move(layout), .max_positions = int64_t{info.max_positions()}};
  std::copy(info.model_fingerprint().begin(), info.model_fingerprint().end(), model.fingerprint.begin());
  model_ = std::make_shared<const ClusterModel>(std::move(model));
  return model_;
}

std::vector<std::shared_ptr<NodeHandle>> ClusterBackend::Nodes(Role role, const ClusterModel& model) const {
  std::vector<std::shared_ptr<NodeHandle>> nodes = nodes_->Usable(role);
  std::erase_if(nodes, [&](const auto& node) {
    const std::shared_ptr<const v1::NodeInfo> info = node->info();
    return !Serves(*info, model) || !Fits(*info);
  });
  return nodes;
}

void ClusterBackend::RecordFetch(uint32_t tokens, uint64_t us) {
  if (tokens < 64 || us == 0) return;
  fetch_token_s_ = 0.9 * fetch_token_s_ + 0.1 * 1e-6 * static_cast<double>(us) / tokens;
}

absl::Status ClusterBackend::Ready() {
  PERIGEE_ASSIGN_OR_RETURN(const std::shared_ptr<const ClusterModel> model, Model());
  return Nodes(Role::kDecode, *model).empty() ? absl::UnavailableError(kNoDecodeNode) : absl::OkStatus();
}

ClusterBackendStats ClusterBackend::stats() const {
  absl::MutexLock lock(&mu_);
  ClusterBackendStats stats = stats_;
  stats.waiting = queue_.waiting();
  stats.serving = queue_.serving();
  return stats;
}

absl::StatusOr<BackendUsage> ClusterBackend::Complete(const BackendRequest& request,
                                                      absl::FunctionRef<bool(const BackendEvent&)> emit,
                                                      absl::FunctionRef<bool()> cancelled) {
  const RequestScope scope(request.request_id);
  Span span("complete");
  span.Set("prompt_tokens", request.token_ids.size());
  PERIGEE_ASSIGN_OR_RETURN(const std::shared_ptr<const ClusterModel> model, Model());
  const int64_t tokens = static_cast<int64_t>(request.token_ids.size()) + request.max_tokens;
  if (request.token_ids.empty()) return absl::InvalidArgumentError("the prompt is empty");
  if (tokens > model->max_positions) {
    return absl::InvalidArgumentError(absl::StrCat("the prompt has ", request.token_ids.size(),
                                                   " tokens and the answer may have ", request.max_tokens,
                                                   "; the model's context is ", model->max_positions, " tokens"));
  }
  for (const ContextSpan& span : request.contexts) {
    if (span.begin < 0 || span.tokens < 1 ||
        span.begin + span.tokens > static_cast<int64_t>(request.token_ids.size())) {
      return absl::InvalidArgumentError(absl::StrCat("a context takes ", span.tokens, " tokens from ", span.begin,
                                                     " on, of a prompt of ", request.token_ids.size()));
    }
  }
  const auto look_for_places = [&] {
    size_t places = 0;
    for (const auto& node : Nodes(Role::kDecode, *model))
      places += std::max<uint32_t>(node->info()->load().max_running(), 1);
    if (places > 0) queue_.SetPlaces(places);  // Without nodes just now: as before.
  };
  look_for_places();
  const absl::Time deadline = std::min(request.deadline, absl::Now() + options_.longest_request);
  // What a request costs: a token of an answer is a pass of its own, tokens of a prompt share one.
  const double cost = static_cast<double>(request.token_ids.size()) / 64 + request.max_tokens * request.samples;
  absl::StatusOr<FairQueue::Turn> turn = [&] {
    const Span span("queue");
    return queue_.Enter(request.tenant, cost, deadline, [&] {
      look_for_places();  // Of nodes that have come meanwhile.
      return cancelled();
    });
  }();
  {
    absl::MutexLock lock(&mu_);
    ++(turn.ok() ? stats_.requests : stats_.refused);
  }
  PERIGEE_RETURN_IF_ERROR(turn.status());
  RequestRun run(this, *model, request, deadline, emit, cancelled);
  return run.Run();
}

}  // namespace perigee::cluster
