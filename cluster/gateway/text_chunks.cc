#include "cluster/gateway/text_chunks.h"

#include <algorithm>
#include <utility>

#include "base/status.h"

namespace perigee::cluster {

absl::StatusOr<std::vector<TextChunk>> CutChunks(const model::Tokenizer& tokenizer, absl::string_view text,
                                                 absl::string_view separator, std::span<const size_t> places,
                                                 size_t most) {
  std::vector<TextChunk> chunks;
  if (separator.empty()) return chunks;
  for (size_t begin = 0; chunks.size() < most;) {
    const size_t end = text.find(separator, begin);
    if (end == absl::string_view::npos) break;
    const auto inside = std::upper_bound(places.begin(), places.end(), begin);
    // No token is less than a byte: ten thousand tiny pieces are not tokenised one by one.
    if (end - begin >= kMinChunkTokens && (inside == places.end() || *inside >= end)) {
      PERIGEE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode(text.substr(begin, end - begin), false));
      if (ids.size() >= kMinChunkTokens) chunks.push_back({.begin = begin, .end = end, .ids = std::move(ids)});
    }
    begin = end + separator.size();
  }
  return chunks;
}

void AdmitChunks(ChunkIndex& index, BackendRequest& request) {
  if (request.chunks.empty()) return;
  std::vector<std::span<const int32_t>> ids;
  for (const ContextSpan& chunk : request.chunks) {
    ids.push_back(
        std::span(request.token_ids).subspan(static_cast<size_t>(chunk.begin), static_cast<size_t>(chunk.tokens)));
  }
  const std::vector<bool> admitted = index.See(request.tenant, request.salt, ids);
  std::vector<ContextSpan> rest;
  for (size_t i = 0; i < admitted.size(); ++i) (admitted[i] ? request.contexts : rest).push_back(request.chunks[i]);
  request.chunks = std::move(rest);
  std::sort(request.contexts.begin(), request.contexts.end(),
            [](const ContextSpan& a, const ContextSpan& b) { return a.begin < b.begin; });
}

}  // namespace perigee::cluster
