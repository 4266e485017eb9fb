#include "prefill_node/prefill_node.h"

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/trace.h"
#include "node/chunk_writer.h"
#include "node/reuse.h"

namespace perigee::prefill_node {
namespace {

using pod::PlaneKind;

// While a prompt in the background waits for others: whether it is still wanted.
constexpr absl::Duration kAskEvery = absl::Milliseconds(50);

}  // namespace

PrefillNode::PrefillNode(const node::Node* node, const PrefillOptions& options)
    : node_(node),
      chunk_tokens_([&] {
        const int block = node->model().layout().block_tokens();
        return (std::max(options.chunk_tokens, 1) + block - 1) / block * block;
      }()),
      options_(options) {}

absl::StatusOr<PrefillNode::Prompt> PrefillNode::Read(const v1::PrefillRequest& request) const {
  Prompt prompt;
  PERIGEE_ASSIGN_OR_RETURN(prompt.identity, node_->IdentityFor(request.scope()));
  const model::Tokenizer& tokenizer = node_->model().tokenizer();
  bool bos = !request.no_bos() && tokenizer.adds_bos_by_default();
  for (const v1::Segment& segment : request.segments()) {
    if (!prompt.ids.empty()) prompt.branch_points.push_back(static_cast<int64_t>(prompt.ids.size()));
    if (segment.has_tokens()) {
      prompt.ids.insert(prompt.ids.end(), segment.tokens().ids().begin(), segment.tokens().ids().end());
    } else {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(segment.text(), bos));
      prompt.ids.insert(prompt.ids.end(), ids.begin(), ids.end());
    }
    bos = false;
  }
  PERIGEE_RETURN_IF_ERROR(node_->CheckPrompt(prompt.ids, 0));
  prompt.cached = static_cast<int64_t>(prompt.ids.size()) - (request.whole() ? 0 : 1);
  prompt.whole = request.whole();
  prompt.background = request.background();
  prompt.replicas = static_cast<int>(std::min(request.replicas(), kvstore::kMaxReplicas));
  const int64_t block_tokens = node_->model().layout().block_tokens();
  for (int64_t back = prompt.cached / block_tokens * block_tokens;
       back > 0 && back >= prompt.cached - options_.branch_tokens; back -= block_tokens) {
    prompt.branch_points.push_back(back);
  }
  prompt.branch_points.push_back(prompt.cached);
  prompt.keys = pod::DeriveChain(prompt.identity, std::span(prompt.ids).first(static_cast<size_t>(prompt.cached)));
  return prompt;
}

absl::Status PrefillNode::Prefill(const v1::PrefillRequest& request, absl::Time deadline, v1::PrefillResponse* response,
                                  const std::function<bool()>& cancelled) const {
  Span span("prefill");
  const absl::Time start = absl::Now();
  const int awaited = request.background() ? 0 : 1;
  const auto count = [this](int more) {
    absl::MutexLock lock(&mu_);
    awaited_ += more;
  };
  ++running_;
  count(awaited);
  const absl::Cleanup done = [&] {
    --running_;
    count(-awaited);
  };
  const absl::Status status = Store(request, deadline, response, cancelled);
  metrics_.Ended(status, absl::Now() - start);
  span.Set("status", absl::StatusCodeToString(status.code()));
  if (!status.ok()) return status;
  span.Set("prompt_tokens", response->token_ids_size());
  span.Set("reused_tokens", response->reused_tokens());
  metrics_.computed_tokens += response->prefilled_tokens();
  metrics_.recomputed_tokens += response->recomputed_tokens();
  metrics_.reused_tokens +=
      response->reused_tokens() - std::min(response->recomputed_tokens(), response->reused_tokens());
  metrics_.fetched_bytes += response->bytes_fetched();
  metrics_.written_bytes += response->bytes_written();
  metrics_.exposed_fetch_us += response->exposed_fetch_us();
  return status;
}

absl::Status PrefillNode::Store(const v1::PrefillRequest& request, absl::Time deadline, v1::PrefillResponse* response,
                                const std::function<bool()>& cancelled) const {
  PERIGEE_ASSIGN_OR_RETURN(Prompt prompt, Read(request));
  tokens_ahead_ += prompt.cached;
  const absl::Cleanup ended = [&] { tokens_ahead_ -= prompt.cached; };
  if (prompt.cached > 0) {
    const node::LoadRequest load{.identity = &prompt.identity,
                                 .ids = prompt.ids,
                                 .keys = prompt.keys,
                                 .tokens = prompt.cached,
                                 .max_compute_tokens = prompt.cached,
                                 .chunk_tokens = static_cast<int>(chunk_tokens_),
                                 .deadline = deadline,
                                 .cancelled = cancelled};
    Computing::Claim claim;
    for (bool mine = false; !mine;) {
      const absl::Time start = absl::Now();
      absl::Status reached;
      node::StoredPrompt stored =
          node::LookUpPrompt(*node_, prompt.keys, prompt.cached, node::Presence::kStored, &reached);
      PERIGEE_RETURN_IF_ERROR(reached);
      response->set_lookup_us(node::MicrosecondsSince(start));
      const pod::Layout& layout = node_->model().layout();
      const node::Reuse reuse = node::LongestUsablePrefix(layout, prompt.cached, stored.blocks);
      // Where this prompt leaves what an earlier one had in common with it, others will too.
      prompt.branch_points.push_back(static_cast<int64_t>(reuse.distant_blocks) * layout.block_tokens());
      {
        // What somebody else is computing already will be stored soon; then this looks again.
        const Span span("claim");
        mine = computing_.ClaimOrWait(std::span(prompt.keys).subspan(reuse.blocks), deadline, &claim, cancelled);
      }
      // Nobody who is waited for should wait for one that lets others go first: it is computed twice rather.
      if (prompt.background) claim = {};
      PERIGEE_RETURN_IF_ERROR(
          mine ? Continue(prompt, std::move(stored), reuse.blocks == prompt.keys.size(), load, response)
               : load.StillWanted());
    }
  }
  response->mutable_token_ids()->Assign(prompt.ids.begin(), prompt.ids.end());
  response->set_model_fingerprint(std::string(AsView(prompt.identity.model_fingerprint)));
  response->set_plan_id(std::string(AsView(prompt.identity.plan_id)));
  response->set_prefilled_tokens(static_cast<uint32_t>(prompt.cached) - response->reused_tokens());
  response->set_bytes_full(static_cast<uint64_t>(prompt.cached) * node_->model().layout().dense_bytes_per_token());
  return absl::OkStatus();
}

absl::Status PrefillNode::Continue(const Prompt& prompt, node::StoredPrompt stored, bool all_stored,
                                   const node::LoadRequest& request, v1::PrefillResponse* response) const {
  node::LoadReport report;
  if (all_stored) {
    // With everything stored nothing is computed, so nothing is fetched here: the decode node fetches for itself.
    report.prefix_tokens = prompt.cached;
  } else {
    PERIGEE_RETURN_IF_ERROR(node::LoadPrompt(
        *node_, request, stored,
        [&](model::PlaneCache& cache, node::PromptLoad& load) {
          return Compute(prompt, request, cache, load, response);
        },
        &report));
  }
  uint64_t bytes = 0;
  const int64_t block_tokens = node_->model().layout().block_tokens();
  for (int64_t b = 0; b * block_tokens < report.prefix_tokens; ++b)
    bytes += stored.blocks[static_cast<size_t>(b)].bytes;
  const auto us = [](absl::Duration d) { return static_cast<uint64_t>(absl::ToInt64Microseconds(d)); };
  response->set_bytes_stored(response->bytes_stored() + bytes);
  response->set_reused_tokens(static_cast<uint32_t>(report.prefix_tokens));
  response->set_recomputed_tokens(static_cast<uint32_t>(report.recomputed_tokens));
  response->set_reuse_ended_because(report.ended_because);
  response->set_bytes_fetched(report.bytes);
  response->set_fetch_us(us(report.fetch_time));
  response->set_exposed_fetch_us(us(report.exposed_time));
  if (report.mode == node::LoadMode::kFetch) {
    response->set_compute_us(response->compute_us() - std::min(response->compute_us(), us(report.exposed_time)));
  }
  return absl::OkStatus();
}

absl::Status PrefillNode::LetOthersGoFirst(const node::LoadRequest& request) const {
  const Span span("let others go first");
  const auto quiet = [this]() ABSL_SHARED_LOCKS_REQUIRED(mu_) { return awaited_ == 0; };
  absl::MutexLock lock(&mu_);
  while (!mu_.AwaitWithTimeout(absl::Condition(&quiet), kAskEvery)) {
    PERIGEE_RETURN_IF_ERROR(request.StillWanted());
  }
  return absl::OkStatus();
}

absl::Status PrefillNode::Compute(const Prompt& prompt, const node::LoadRequest& request, model::PlaneCache& cache,
                                  node::PromptLoad& load, v1::PrefillResponse* response) const {
  const pod::Layout& layout = node_->model().layout();
  const int block_tokens = layout.block_tokens();
  node::WriteOptions write = options_.write;
  if (prompt.replicas > 0) write.replicas = prompt.replicas;
  node::ChunkWriter writer(&node_->store(), &layout, &prompt.identity, prompt.keys, options_.chunks_under_way, write);
  const absl::Time start = absl::Now();
  while (cache.tokens() < prompt.cached) {
    if (prompt.background) PERIGEE_RETURN_IF_ERROR(LetOthersGoFirst(request));
    const int64_t begin = cache.tokens();  // On a block border: every chunk and every reused prefix end on one.
    const int64_t end = std::min(prompt.cached, begin + chunk_tokens_);
    std::vector<node::ChunkWriter::Plane> planes;
    for (int64_t block_begin = begin; block_begin < end; block_begin += block_tokens) {
      for (PlaneKind kind : pod::kPlaneKinds) {
        if (layout.plane_bytes(kind) == 0) continue;
        // Of a context anything may be near to what stands in other prompts.
        if (kind == PlaneKind::kProximal && !prompt.whole &&
            !node::KeepsProximal(layout, block_begin, prompt.branch_points)) {
          continue;
        }
        planes.push_back({static_cast<size_t>(block_begin / block_tokens), kind});
      }
    }
    PERIGEE_RETURN_IF_ERROR(writer.Begin(std::move(planes)));
    const auto ship = [&](int layer) -> absl::Status {
      PERIGEE_RETURN_IF_ERROR(request.StillWanted());
      return writer.LayerDone(layer, cache.blocks());
    };
    const std::span<const int32_t> tokens =
        std::span(prompt.ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    Span span("compute chunk");
    span.Set("begin", begin);
    span.Set("tokens", end - begin);
    PERIGEE_RETURN_IF_ERROR(load.Run({.tokens = tokens, .cache = &cache, .after_layer = ship}));
    cache.RetireProximal(cache.tokens());
  }
  PERIGEE_RETURN_IF_ERROR(writer.Finish());
  node_->KeepBlocks(prompt.keys, cache);
  response->set_commit_us(static_cast<uint64_t>(absl::ToInt64Microseconds(writer.stalled())));
  response->set_compute_us(node::MicrosecondsSince(start) - response->commit_us());
  response->set_bytes_stored(writer.bytes_stored());
  response->set_bytes_written(writer.bytes_written());
  return absl::OkStatus();
}

}  // namespace perigee::prefill_node
