// Contexts computed by prefill nodes: several at once, each where the least is waiting.
#include <spdlog/spdlog.h>

#include <algorithm>
#include <memory>
#include <set>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/trace.h"
#include "cluster/scheduler/calls.h"
#include "cluster/scheduler/cluster_backend.h"

namespace perigee::cluster {
namespace {

constexpr absl::Duration kLookEvery = absl::Milliseconds(10);
// Of one request's contexts at one node: more would only wait there.
constexpr size_t kCallsPerNode = 2;

struct Running {
  std::shared_ptr<NodeHandle> node;
  std::unique_ptr<PrefillCall> call;
  size_t context = 0;
  int64_t tokens = 0;
};

}  // namespace

absl::StatusOr<uint64_t> ClusterBackend::PrefillContexts(const ClusterModel& model, const ContextWork& work,
                                                         absl::FunctionRef<bool()> cancelled) {
  Span span("prefill contexts");
  span.Set("contexts", work.contexts.size());
  uint64_t computed = 0;
  size_t next = 0, done = 0;
  std::vector<size_t> again;  // Failed at a node that is gone.
  std::vector<Running> running;
  std::set<std::string> avoided;
  const absl::Cleanup release = [&] {
    for (const Running& one : running) {
      --one.node->requests;
      one.node->prefill_tokens -= one.tokens;
    }
  };
  while (done < work.contexts.size()) {
    std::vector<std::shared_ptr<NodeHandle>> nodes = Nodes(Role::kPrefill, model);
    std::erase_if(nodes, [&](const auto& node) { return avoided.contains(node->id()); });
    if (nodes.empty() && running.empty()) return absl::UnavailableError("no prefill node answers; try again later");
    while ((next < work.contexts.size() || !again.empty()) && running.size() < nodes.size() * kCallsPerNode) {
      const auto ahead = [](const std::shared_ptr<NodeHandle>& node) {
        return std::max<int64_t>(node->info()->load().prefill_tokens_ahead(), node->prefill_tokens);
      };
      const std::shared_ptr<NodeHandle> node = *std::min_element(
          nodes.begin(), nodes.end(), [&](const auto& a, const auto& b) { return ahead(a) < ahead(b); });
      size_t context = next;
      if (again.empty()) {
        ++next;
      } else {
        context = again.back();
        again.pop_back();
      }
      v1::PrefillRequest request;
      request.mutable_scope()->set_tenant(work.tenant);
      request.mutable_scope()->set_salt(work.salt);
      request.set_whole(true);
      request.set_no_bos(true);
      request.set_background(work.background);
      const std::vector<int32_t>& ids = work.contexts[context];
      request.add_segments()->mutable_tokens()->mutable_ids()->Assign(ids.begin(), ids.end());
      const int64_t tokens = static_cast<int64_t>(ids.size());
      ++node->requests;
      node->prefill_tokens += tokens;
      running.push_back({node, std::make_unique<PrefillCall>(node->prefill(), request, work.request_id, work.deadline),
                         context, tokens});
    }
    for (size_t i = 0; i < running.size();) {
      Running& one = running[i];
      std::optional<absl::Status> status = one.call->Wait(i == 0 ? kLookEvery : absl::ZeroDuration());
      if (!status.has_value() && one.node->gone()) status = absl::UnavailableError("it does not answer any more");
      if (!status.has_value()) {
        ++i;
        continue;
      }
      const Running ended = std::move(one);
      running.erase(running.begin() + static_cast<std::ptrdiff_t>(i));
      --ended.node->requests;
      ended.node->prefill_tokens -= ended.tokens;
      if (status->ok()) {
        computed += ended.call->response().prefilled_tokens();
        ++done;
        continue;
      }
      spdlog::info("context {} of {} at prefill node {}: {}", ended.context, work.contexts.size(), ended.node->id(),
                   status->ToString());
      // Cancelled by the node, which is stopping.
      if (!absl::IsUnavailable(*status) && !absl::IsCancelled(*status))
        return Annotate(*status, absl::StrCat("prefill node ", ended.node->id()));
      ended.node->ReportFailure();
      avoided.insert(ended.node->id());
      again.push_back(ended.context);
    }
    if (cancelled()) return absl::CancelledError("the caller is gone");
    if (absl::Now() >= work.deadline) return absl::DeadlineExceededError("the request's time is over");
  }
  {
    absl::MutexLock lock(&mu_);
    stats_.contexts_prefilled += work.contexts.size();
  }
  span.Set("computed_tokens", computed);
  return computed;
}

absl::Status ClusterBackend::PrefillAhead(const std::string& tenant, const std::vector<int32_t>& token_ids,
                                          const std::function<bool()>& cancelled) {
  PERIGEE_ASSIGN_OR_RETURN(const std::shared_ptr<const ClusterModel> model, Model());
  std::vector<int32_t> ids = options_.context_opening;
  ids.insert(ids.end(), token_ids.begin(), token_ids.end());
  const ContextWork work{.tenant = tenant,
                         .salt = {},
                         .request_id = {},
                         .contexts = {std::move(ids)},
                         .background = true,
                         .deadline = absl::Now() + options_.longest_request};
  return PrefillContexts(*model, work, [&] { return cancelled != nullptr && cancelled(); }).status();
}

}  // namespace perigee::cluster
