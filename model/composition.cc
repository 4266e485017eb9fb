#include "model/composition.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "pod/window.h"

namespace perigee::model {
namespace {

absl::Status CheckRanges(std::span<const ContextRange> contexts, int64_t tokens) {
  int64_t end = 0;
  for (size_t i = 0; i < contexts.size(); ++i) {
    const ContextRange& range = contexts[i];
    if (range.begin < end || range.tokens < 1 || range.tokens > tokens || range.begin > tokens - range.tokens) {
      return absl::InvalidArgumentError(absl::StrCat("context ", i, " of ", contexts.size(), " takes ", range.tokens,
                                                     " tokens from ", range.begin, " on; it must have some, behind ",
                                                     end, " and inside the prompt's ", tokens));
    }
    end = range.begin + range.tokens;
  }
  if (end == tokens && !contexts.empty()) {
    return absl::InvalidArgumentError("the prompt ends with a context; its last token must be the request's own");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Composition> Composition::Create(std::span<const int32_t> ids, std::span<const ContextRange> contexts,
                                                std::span<const int32_t> opening, const Repair& repair) {
  PERIGEE_RETURN_IF_ERROR(CheckRanges(contexts, static_cast<int64_t>(ids.size())));
  Composition out;
  out.repair_ = repair;
  if (repair.kind == RepairKind::kFull) contexts = {};
  const bool parallel = repair.kind == RepairKind::kParallel;
  const int64_t open = static_cast<int64_t>(opening.size());
  int64_t longest = 0;
  for (const ContextRange& range : contexts) longest = std::max(longest, range.tokens);

  // Side by side, contexts stand where the first one does; texts between them stand behind them all.
  int64_t position = 0, next = 0;
  const auto compute_texts = [&](int64_t end) {
    for (; next < end; ++next) out.computed_.push_back({position++, ids[static_cast<size_t>(next)], false});
  };
  for (size_t i = 0; i < contexts.size(); ++i) {
    const ContextRange& range = contexts[i];
    compute_texts(range.begin);
    const int64_t first = parallel ? contexts[0].begin : position;
    const std::span<const int32_t> own =
        ids.subspan(static_cast<size_t>(range.begin), static_cast<size_t>(range.tokens));
    const std::span<const int32_t> source = range.source.empty() ? own : range.source;
    const int64_t from = range.source.empty() ? 0 : range.source_begin;
    if (from < 0 || from > static_cast<int64_t>(source.size()) - range.tokens ||
        !std::equal(own.begin(), own.end(), source.begin() + from)) {
      return absl::InvalidArgumentError(absl::StrCat("context ", i, " is not what its source of ", source.size(),
                                                     " tokens has from token ", from, " on"));
    }
    const bool begins =
        !parallel && from == 0 && range.begin == open && std::equal(opening.begin(), opening.end(), ids.begin());
    Context& context = out.contexts_.emplace_back();
    context.ids.assign(opening.begin(), opening.end());
    context.ids.insert(context.ids.end(), source.begin(), source.end());
    context.position = first - open - from;
    context.moved = !begins;
    context.first = begins ? 0 : open + from;
    context.end = open + from + range.tokens;
    if (begins) out.computed_.clear();  // The opening is its own.
    out.context_tokens_ += range.tokens + (begins ? open : 0);
    if (repair.kind == RepairKind::kPrefix && context.moved) {
      const int64_t again = std::min<int64_t>(repair.prefix_tokens, range.tokens);
      for (int64_t t = 0; t < again; ++t) out.computed_.push_back({first + t, own[static_cast<size_t>(t)], true});
      out.repaired_ += again;
    }
    next = range.begin + range.tokens;
    position = parallel ? position + (i == 0 ? longest : 0) : first + range.tokens;
  }
  compute_texts(static_cast<int64_t>(ids.size()));
  return out;
}

std::vector<Composition::Token> Composition::Repairable() const {
  std::vector<Token> out;
  for (const Context& context : contexts_) {
    if (!context.moved) continue;
    for (int64_t t = context.first; t < context.end; ++t) {
      out.push_back({context.position + t, context.ids[static_cast<size_t>(t)], true});
    }
  }
  return out;
}

void Composition::Add(std::span<const Token> repaired) {
  computed_.insert(computed_.end(), repaired.begin(), repaired.end());
  std::sort(computed_.begin(), computed_.end(), [](const Token& a, const Token& b) { return a.position < b.position; });
  repaired_ += static_cast<int64_t>(repaired.size());
}

size_t Composition::leading() const {
  for (const Context& context : contexts_) {
    if (!context.moved) continue;
    const int64_t first = context.position + context.first;
    return static_cast<size_t>(std::count_if(computed_.begin(), computed_.end(),
                                             [first](const Token& token) { return token.position < first; }));
  }
  return computed_.size();
}

std::vector<CachedBlock> Composition::Places(const Context& context, int block_tokens) const {
  std::vector<CachedBlock> blocks;
  for (int64_t begin = context.first / block_tokens * block_tokens; begin < context.end; begin += block_tokens) {
    CachedBlock& block = blocks.emplace_back();
    block.position = context.position + begin;
    block.base_position = begin;
    block.tokens = static_cast<int32_t>(std::min<int64_t>(block_tokens, context.end - begin));
    block.context = repair_.kind == RepairKind::kParallel;
    for (int64_t t = begin; t < std::min(context.first, begin + block.tokens); ++t) {
      block.hidden[static_cast<size_t>(t - begin) / 64] |= uint64_t{1} << (t - begin) % 64;
    }
  }
  return blocks;
}

std::vector<CachedBlock> Composition::Places(const Context& context, const PlaneCache& alone) const {
  const int block_tokens = alone.layout().block_tokens();
  std::vector<CachedBlock> blocks = Places(context, block_tokens);
  const bool has_proximal = alone.layout().plane_bytes(pod::PlaneKind::kProximal) > 0;
  for (size_t b = 0; b < blocks.size(); ++b) {
    const CachedBlock& from = alone.blocks()[context.first_block(block_tokens) + b];
    blocks[b].distant = from.distant;
    blocks[b].proximal = from.proximal;
    blocks[b].far_only = has_proximal && from.proximal == nullptr;
  }
  return blocks;
}

bool Composition::ReadsProximal(const pod::Window& window, const CachedBlock& block) const {
  if (block.position < window.sink_tokens) return true;
  // Of the tokens that see the block, the first one is the likeliest to be near to it.
  if (repair_.kind == RepairKind::kDeviation) return true;
  const auto first = std::lower_bound(computed_.begin(), computed_.end(), block.position,
                                      [](const Token& token, int64_t position) { return token.position < position; });
  return first == computed_.end() || pod::IsSpanNear(window, block.position, block.last_position(), first->position);
}

absl::Status Composition::HideRepaired(PlaneCache& cache) const {
  std::vector<int64_t> positions;
  for (const Token& token : computed_) {
    if (token.repaired) positions.push_back(token.position);
  }
  return cache.Hide(positions);
}

}  // namespace perigee::model
