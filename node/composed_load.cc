#include "node/composed_load.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "base/trace.h"
#include "model/composition_pass.h"
#include "node/prompt_fetch.h"

namespace perigee::node {
namespace {

// Of one request, when planes prove wrong or vanish on the way.
constexpr int kAttempts = 3;

// One context of the prompt, and where its planes come from.
struct Source {
  const model::Composition::Context* context = nullptr;
  std::vector<pod::BlockKey> keys;
  std::unique_ptr<PromptFetch> fetch;                  // Or
  std::optional<std::vector<model::CachedBlock>> own;  // computed here.
};

class Loader {
 public:
  Loader(const Node& node, const ComposedRequest& request, ComposedReport* report)
      : node_(node), request_(request), report_(report) {}
  // What still arrives is left to node/abandoned.h.
  ~Loader() {
    for (Source& source : sources_) {
      if (source.fetch != nullptr && source.fetch->running()) node_.abandoned().Take(std::move(source.fetch));
    }
  }

  absl::Status Find(const model::Composition& composition) {
    for (const model::Composition::Context& context : composition.contexts()) {
      Source& source = sources_.emplace_back();
      source.context = &context;
      source.keys = pod::DeriveChain(*request_.identity, context.ids);
      PERIGEE_RETURN_IF_ERROR(StartFetch(composition, source));
    }
    int64_t missing = 0;
    for (const Source& source : sources_) {
      if (!source.fetch->missing().empty()) missing += static_cast<int64_t>(source.context->ids.size());
    }
    for (size_t i = 0; i < sources_.size(); ++i) {
      Source& source = sources_[i];
      if (source.fetch->missing().empty()) continue;
      if (missing > request_.max_compute_tokens) {
        return Annotate(source.fetch->status(), absl::StrCat("context ", i, " of ", sources_.size(), " is not stored"));
      }
      PERIGEE_RETURN_IF_ERROR(Compute(composition, source));
    }
    return absl::OkStatus();
  }

  absl::Status Place(const model::Composition& composition, model::PlaneCache& cache) {
    for (const Source& source : sources_) {
      for (const model::CachedBlock& block : source.own.has_value() ? *source.own : source.fetch->blocks()) {
        if (block.far_only) ++report_->far_only_blocks;
        PERIGEE_RETURN_IF_ERROR(cache.Place(block));
      }
    }
    cache.AwaitArrival([this](int layer) -> absl::Status {
      for (const Source& source : sources_) {
        if (source.fetch != nullptr) PERIGEE_RETURN_IF_ERROR(source.fetch->WaitForLayer(layer));
      }
      return absl::OkStatus();
    });
    return absl::OkStatus();
  }

  // While planes arrive a pass waits in front of its layers: nobody else's should wait with it.
  absl::Status Run(model::BatchItem item) {
    if (!complete() && node_.batches().idle()) {
      PERIGEE_RETURN_IF_ERROR(node_.model().transformer().ForwardBatch(std::span(&item, 1)));
      return item.status;
    }
    for (const Source& source : sources_) {
      if (source.fetch != nullptr) PERIGEE_RETURN_IF_ERROR(source.fetch->WaitForAll());
    }
    return node_.batches().Run(std::move(item));
  }

  // Whether planes proved missing or wrong since they were found.
  bool lost() const {
    return std::any_of(sources_.begin(), sources_.end(),
                       [](const Source& s) { return s.fetch != nullptr && !s.fetch->missing().empty(); });
  }

  void Report() {
    LoadReport& load = report_->load;
    for (const Source& source : sources_) {
      if (source.fetch == nullptr) continue;
      load.prefix_tokens += source.context->tokens();
      load.bytes += source.fetch->bytes();
      load.planes += source.fetch->planes();
      load.planes_from_ssd += source.fetch->planes_from_ssd();
      load.acquire_time += source.fetch->acquire_time();
      load.fetch_time = std::max(load.fetch_time, source.fetch->fetch_time());
      load.exposed_time += source.fetch->exposed_time();
    }
  }

  absl::Status StillWanted() const {
    LoadRequest wanted;
    wanted.deadline = request_.deadline;
    wanted.cancelled = request_.cancelled;
    return wanted.StillWanted();
  }

 private:
  bool complete() const {
    return std::all_of(sources_.begin(), sources_.end(),
                       [](const Source& s) { return s.fetch == nullptr || s.fetch->complete(); });
  }

  absl::Status StartFetch(const model::Composition& composition, Source& source) {
    const pod::Layout& layout = node_.model().layout();
    std::vector<model::CachedBlock> places = composition.Places(*source.context, layout.block_tokens());
    std::vector<bool> wants_proximal;
    for (const model::CachedBlock& block : places) {
      wants_proximal.push_back(composition.ReadsProximal(layout.plan().window(), block));
    }
    const std::span<const pod::BlockKey> seen =
        std::span(source.keys).subspan(source.context->first_block(layout.block_tokens()), places.size());
    PERIGEE_ASSIGN_OR_RETURN(
        source.fetch, PromptFetch::StartContext(node_, *request_.identity, source.keys.front(), seen, std::move(places),
                                                wants_proximal, request_.deadline));
    return absl::OkStatus();
  }

  // The context by itself, as a prefill node would compute it.
  absl::Status Compute(const model::Composition& composition, Source& source) {
    Span span("compute context");
    const std::vector<int32_t>& ids = source.context->ids;
    span.Set("tokens", ids.size());
    const int64_t tokens = static_cast<int64_t>(ids.size());
    const LoadRequest alone{.identity = request_.identity,
                            .ids = ids,
                            .keys = source.keys,
                            .tokens = tokens,
                            .max_compute_tokens = tokens,
                            .chunk_tokens = request_.chunk_tokens,
                            .deadline = request_.deadline,
                            .cancelled = request_.cancelled};
    absl::Status reached;
    StoredPrompt stored = LookUpPrompt(node_, source.keys, tokens, Presence::kStoredOrHere, &reached);
    // Something is always computed: the pass over it is what waits for the rest.
    stored.blocks.back().distant = false;
    stored.blocks.back().missing = "computed again";
    PERIGEE_RETURN_IF_ERROR(LoadPrompt(
        node_, alone, std::move(stored),
        [&](model::PlaneCache& own, PromptLoad& load) -> absl::Status {
          while (own.tokens() < tokens) {
            PERIGEE_RETURN_IF_ERROR(StillWanted());
            const int64_t begin = own.tokens();
            const int64_t count = std::min<int64_t>(request_.chunk_tokens, tokens - begin);
            PERIGEE_RETURN_IF_ERROR(
                load.Run({.tokens = std::span(ids).subspan(static_cast<size_t>(begin), static_cast<size_t>(count)),
                          .cache = &own}));
          }
          source.own = composition.Places(*source.context, own);
          node_.KeepBlocks(source.keys, own);
          if (request_.computed != nullptr) request_.computed(ids, own);
          return absl::OkStatus();
        },
        &report_->load));
    report_->load.prefix_tokens = 0;
    source.fetch = nullptr;
    return absl::OkStatus();
  }

  const Node& node_;
  const ComposedRequest& request_;
  ComposedReport* const report_;
  std::vector<Source> sources_;
};

}  // namespace

std::vector<int32_t> ContextOpening(const model::Tokenizer& tokenizer) {
  if (!tokenizer.adds_bos_by_default() || !tokenizer.bos_id().has_value()) return {};
  return {*tokenizer.bos_id()};
}

absl::Status LoadComposed(const Node& node, const ComposedRequest& request, std::unique_ptr<model::PlaneCache>* cache,
                          std::vector<float>* logits, ComposedReport* report) {
  Span span("load composed");
  span.Set("contexts", request.contexts.size());
  span.Set("repair", request.repair.ToString());
  for (int attempt = 1;; ++attempt) {
    *report = {};
    PERIGEE_ASSIGN_OR_RETURN(model::Composition composition,
                             model::Composition::Create(request.ids, request.contexts,
                                                        ContextOpening(node.model().tokenizer()), request.repair));
    Loader loader(node, request, report);
    PERIGEE_RETURN_IF_ERROR(loader.StillWanted());
    PERIGEE_RETURN_IF_ERROR(loader.Find(composition));
    auto view = std::make_unique<model::PlaneCache>(node.NewCache());
    PERIGEE_RETURN_IF_ERROR(loader.Place(composition, *view));
    const model::CompositionPass pass{.transformer = &node.model().transformer(),
                                      .chunk_tokens = request.chunk_tokens,
                                      .run = [&](model::BatchItem item) { return loader.Run(std::move(item)); },
                                      .still_wanted = [&] { return loader.StillWanted(); }};
    const absl::Status ran = model::RunComposition(pass, composition, *view, logits);
    if (!ran.ok() && loader.lost() && attempt < kAttempts) continue;
    PERIGEE_RETURN_IF_ERROR(ran);
    loader.Report();
    report->context_tokens = composition.context_tokens();
    report->repaired_tokens = composition.repaired_tokens();
    report->load.prefix_tokens -= std::min(report->load.prefix_tokens, composition.repaired_tokens());
    span.Set("context_tokens", report->context_tokens);
    span.Set("repaired_tokens", report->repaired_tokens);
    span.Set("computed_tokens", composition.computed().size());
    span.Set("fetched_bytes", report->load.bytes);
    *cache = std::move(view);
    return absl::OkStatus();
  }
}

}  // namespace perigee::node
