#include "node/prompt_load.h"

#include <algorithm>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status.h"
#include "base/trace.h"

namespace perigee::node {
namespace {

using pod::PlaneKind;

// Nothing is given up sooner: a busy machine is not a slow store.
constexpr absl::Duration kLeastPatience = absl::Milliseconds(25);

// The first block that a query behind all tokens lacks something of.
absl::Status FirstHole(const pod::Layout& layout, const LoadRequest& request, const std::vector<StoredBlock>& blocks) {
  for (const PlaneKind kind : {PlaneKind::kDistant, PlaneKind::kProximal}) {
    for (size_t b = 0; b < blocks.size(); ++b) {
      if (blocks[b].has(kind) || !Reads(layout, kind, static_cast<int64_t>(b) * layout.block_tokens(), request.tokens))
        continue;
      return absl::NotFoundError(
          absl::StrCat("block ", b, " of ", blocks.size(), " (", request.keys[b].ToString(), "): ", blocks[b].missing));
    }
  }
  return absl::NotFoundError("the prompt's end is not stored");
}

}  // namespace

absl::Status LoadRequest::StillWanted() const {
  if (absl::Now() >= deadline) {
    return absl::DeadlineExceededError("the request's time is over; its prompt was not complete");
  }
  if (cancelled != nullptr && cancelled()) return absl::CancelledError("the caller is gone");
  return absl::OkStatus();
}

LoadMode ChooseLoadMode(absl::Duration fetch, std::optional<absl::Duration> compute) {
  if (!compute.has_value()) return LoadMode::kFetch;
  return fetch <= std::max(*compute * kHope, kLeastPatience) / 2 ? LoadMode::kFetch : LoadMode::kBothEnds;
}

PromptLoad::~PromptLoad() {
  if (fetch_ != nullptr && fetch_->running()) node_.abandoned().Take(std::move(fetch_));
}

absl::Status PromptLoad::Run(model::BatchItem item) {
  if (fetch_ != nullptr && !fetch_->complete()) {
    if (node_.batches().idle()) {
      return node_.model().transformer().Forward(item.tokens, *item.cache, item.which, item.logits, item.after_layer);
    }
    PERIGEE_RETURN_IF_ERROR(fetch_->WaitForAll());
  }
  return node_.batches().Run(std::move(item));
}

// Computes from the front until what has come from the back is there.
absl::Status PromptLoad::FromBothEnds(const LoadRequest& request, size_t blocks, int64_t tokens,
                                      model::PlaneCache& cache, LoadReport* report) {
  const Span span("from both ends");
  const absl::Time start = absl::Now();
  const int block_tokens = node_.model().layout().block_tokens();
  auto back = std::make_unique<BackFetch>(node_, *request.identity, request.keys.first(blocks), tokens);
  const absl::Cleanup leave = [&] {
    back->Stop();
    if (back->running()) node_.abandoned().Take(std::move(back));
  };
  // Small steps, so that little is computed that has come meanwhile; a pass over one block costs as much a token as a
  // longer one, nearly.
  const int64_t step = std::max<int64_t>(block_tokens, request.chunk_tokens / 4 / block_tokens * block_tokens);
  for (;;) {
    const int64_t here = std::min(static_cast<int64_t>(back->first_here()) * block_tokens, tokens);
    if (cache.tokens() >= here) break;
    PERIGEE_RETURN_IF_ERROR(request.StillWanted());
    const int64_t count = std::min(step, here - cache.tokens());
    PERIGEE_RETURN_IF_ERROR(node_.batches().Run(
        {.tokens = request.ids.subspan(static_cast<size_t>(cache.tokens()), static_cast<size_t>(count)),
         .cache = &cache}));
    cache.RetireProximal(cache.tokens());
  }
  report->recomputed_tokens = cache.tokens();
  PERIGEE_RETURN_IF_ERROR(back->AddTo(cache, static_cast<size_t>((cache.tokens() + block_tokens - 1) / block_tokens)));
  report->bytes += back->bytes();
  report->planes += back->planes();
  report->planes_from_ssd += back->planes_from_ssd();
  report->fetch_time = report->exposed_time = absl::Now() - start;
  return absl::OkStatus();
}

absl::Status LoadPrompt(const Node& node, const LoadRequest& request, StoredPrompt stored,
                        const std::function<absl::Status(model::PlaneCache& cache, PromptLoad& load)>& rest,
                        LoadReport* report) {
  Span span("load");
  const pod::Layout& layout = node.model().layout();
  bool late = false;  // The fetch of an earlier round.
  for (;;) {
    PERIGEE_RETURN_IF_ERROR(request.StillWanted());
    const Reuse reuse = LongestUsablePrefix(layout, request.tokens, stored.blocks);
    const int64_t tokens = std::min(static_cast<int64_t>(reuse.blocks) * layout.block_tokens(), request.tokens);
    report->prefix_tokens = tokens;
    report->ended_because = reuse.ended_because;
    if (request.tokens - tokens > request.max_compute_tokens) {
      return FirstHole(layout, request, stored.blocks);
    }

    model::PlaneCache cache = node.NewCache();
    PromptLoad load(node);
    const std::optional<absl::Duration> compute =
        node.options().recompute ? node.batches().prefill_rate().Estimate(0, tokens) : std::nullopt;
    // Whether what a store that has gone was to give may be had from both ends instead.
    const bool replaceable = compute.has_value() && request.tokens <= request.max_compute_tokens;
    report->mode = late ? LoadMode::kBothEnds : ChooseLoadMode(stored.EstimateFetch(reuse.blocks), compute);
    if (tokens > 0 && report->mode == LoadMode::kBothEnds) {
      PERIGEE_RETURN_IF_ERROR(load.FromBothEnds(request, reuse.blocks, tokens, cache, report));
    } else if (tokens > 0) {
      const absl::Time give_up =
          std::min(request.deadline, compute.has_value() ? absl::Now() + std::max(*compute * kHope, kLeastPatience)
                                                         : absl::InfiniteFuture());
      absl::StatusOr<std::unique_ptr<PromptFetch>> fetch =
          PromptFetch::Start(node, *request.identity, request.keys.first(reuse.blocks), tokens, cache, give_up);
      if ((absl::IsDeadlineExceeded(fetch.status()) && absl::Now() >= give_up) ||
          (absl::IsUnavailable(fetch.status()) && replaceable)) {
        late = true;
        continue;
      }
      PERIGEE_RETURN_IF_ERROR(fetch.status());
      load.fetch_ = *std::move(fetch);
    }

    const absl::Status ran =
        load.fetch_ != nullptr && !load.fetch_->missing().empty() ? load.fetch_->status() : rest(cache, load);
    if (load.fetch_ != nullptr) {
      if (load.fetch_->gave_up() && (!absl::IsUnavailable(ran) || replaceable)) {
        late = true;
        continue;
      }
      for (const MissingPlane& plane : load.fetch_->missing()) {
        StoredBlock& block = stored.blocks[plane.block];
        block.has(plane.id.kind) = false;
        block.missing = plane.why;
      }
      if (!load.fetch_->missing().empty()) continue;
      report->bytes += load.fetch_->bytes();
      report->planes += load.fetch_->planes();
      report->planes_from_ssd += load.fetch_->planes_from_ssd();
      report->acquire_time = load.fetch_->acquire_time();
      report->fetch_time = load.fetch_->fetch_time();
      report->exposed_time = load.fetch_->exposed_time();
    }
    span.Set("prefix_tokens", report->prefix_tokens);
    span.Set("recomputed_tokens", report->recomputed_tokens);
    span.Set("fetched_bytes", report->bytes);
    span.Set("exposed_fetch_us", absl::ToInt64Microseconds(report->exposed_time));
    return ran;
  }
}

}  // namespace perigee::node
