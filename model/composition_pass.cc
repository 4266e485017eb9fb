#include "model/composition_pass.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <tuple>

#include "base/status.h"
#include "base/trace.h"

namespace perigee::model {
namespace {

using Token = Composition::Token;

// The deviation repair's share begins with so many of every context. The paper does not have them; by deviation alone
// a small share misses some of what the borders broke (docs/contexts.md, section 3).
constexpr int64_t kAlwaysFirst = 8;

void Split(std::span<const Token> tokens, std::vector<int32_t>& ids, std::vector<int64_t>& positions) {
  ids.clear();
  positions.clear();
  for (const Token& token : tokens) {
    ids.push_back(token.id);
    positions.push_back(token.position);
  }
}

// [begin, end) of what is computed; logits of the very last token only.
absl::Status Run(const CompositionPass& pass, const Composition& composition, size_t begin, size_t end,
                 PlaneCache& cache, std::vector<float>* logits) {
  const std::span<const Token> all = composition.computed();
  std::vector<int32_t> ids;
  std::vector<int64_t> positions;
  while (begin < end) {
    if (pass.still_wanted) PERIGEE_RETURN_IF_ERROR(pass.still_wanted());
    const size_t count = std::min(static_cast<size_t>(std::max(pass.chunk_tokens, 1)), end - begin);
    Split(all.subspan(begin, count), ids, positions);
    begin += count;
    const bool last = begin == all.size();
    Span span(last ? "first pass" : "compute chunk");
    span.Set("begin", positions.front());
    span.Set("tokens", count);
    PERIGEE_RETURN_IF_ERROR(pass.run({.tokens = ids,
                                      .positions = positions,
                                      .cache = &cache,
                                      .which = last ? Logits::kLast : Logits::kNone,
                                      .logits = logits}));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<Token>> MostDeviating(const CompositionPass& pass, const Composition& composition,
                                                 PlaneCache& cache) {
  Span span("deviation");
  std::vector<Token> tokens;
  std::vector<int64_t> depth;  // How far into its context each stands, up to where that matters.
  for (const Token& token : composition.Repairable()) {
    // A query cannot stand where near-only slots see nothing.
    if (cache.FarOnlyAt(token.position)) continue;
    const auto context =
        std::find_if(composition.contexts().begin(), composition.contexts().end(),
                     [&](const Composition::Context& c) { return c.moved && token.position < c.position + c.end; });
    tokens.push_back(token);
    depth.push_back(std::min(token.position - context->position - context->first, kAlwaysFirst));
  }
  const size_t wanted = static_cast<size_t>(composition.repair().share * static_cast<double>(tokens.size()) + 0.5);
  span.Set("tokens", tokens.size());
  if (wanted == 0) return std::vector<Token>();
  // In front of all others the first tokens of every context, by how far in they stand; then the largest, by position.
  std::vector<std::tuple<int64_t, double, size_t>> deviation;
  std::vector<int32_t> ids;
  std::vector<int64_t> positions;
  std::vector<float> fresh, stored;
  const size_t chunk = static_cast<size_t>(std::max(pass.chunk_tokens, 1));
  for (size_t begin = 0; begin < tokens.size(); begin += chunk) {
    if (pass.still_wanted) PERIGEE_RETURN_IF_ERROR(pass.still_wanted());
    const size_t count = std::min(chunk, tokens.size() - begin);
    Split(std::span(tokens).subspan(begin, count), ids, positions);
    PERIGEE_RETURN_IF_ERROR(pass.transformer->SecondLayerValues(ids, positions, cache, &fresh));
    stored.resize(fresh.size());
    PERIGEE_RETURN_IF_ERROR(cache.PlacedValues(1, positions, stored.data()));
    const size_t width = fresh.size() / count;
    for (size_t t = 0; t < count; ++t) {
      double sum = 0;
      for (size_t i = t * width; i < (t + 1) * width; ++i) {
        const double difference = double{fresh[i]} - double{stored[i]};
        if (std::isfinite(difference)) sum += difference * difference;
      }
      deviation.emplace_back(depth[begin + t], -sum, begin + t);
    }
  }
  std::nth_element(deviation.begin(), deviation.begin() + static_cast<std::ptrdiff_t>(wanted - 1), deviation.end());
  std::vector<Token> chosen;
  for (size_t i = 0; i < wanted; ++i) chosen.push_back(tokens[std::get<2>(deviation[i])]);
  std::sort(chosen.begin(), chosen.end(), [](const Token& a, const Token& b) { return a.position < b.position; });
  return chosen;
}

absl::Status RunComposition(const CompositionPass& pass, Composition& composition, PlaneCache& cache,
                            std::vector<float>* logits) {
  const Repair& repair = composition.repair();
  size_t begin = 0;
  if (repair.kind == RepairKind::kParallel) {
    cache.SetContextAttention(static_cast<float>(repair.temperature), static_cast<float>(repair.scale));
  }
  if (repair.kind == RepairKind::kDeviation) {
    begin = composition.leading();
    PERIGEE_RETURN_IF_ERROR(Run(pass, composition, 0, begin, cache, logits));
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<Token> chosen, MostDeviating(pass, composition, cache));
    composition.Add(chosen);
  }
  PERIGEE_RETURN_IF_ERROR(composition.HideRepaired(cache));
  return Run(pass, composition, begin, composition.computed().size(), cache, logits);
}

}  // namespace perigee::model
