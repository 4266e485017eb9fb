#include "model/prompt_parts.h"

#include "base/status.h"

namespace perigee::model {

absl::StatusOr<PromptTokens> EncodeParts(const Tokenizer& tokenizer, std::span<const PromptPart> parts, bool add_bos) {
  PromptTokens out;
  size_t at = 0;
  do {
    const bool first = at == 0;
    std::vector<TextSegment> run;  // Up to the next context.
    for (; at < parts.size() && !parts[at].context; ++at) run.push_back(parts[at].text);
    if (!run.empty() || (first && add_bos)) {
      std::vector<int64_t> starts;
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                               tokenizer.EncodeSegments(run, first && add_bos, &starts));
      const auto before = static_cast<int64_t>(out.token_ids.size());
      for (const int64_t start : starts) out.starts.push_back(before + start);
      out.token_ids.insert(out.token_ids.end(), ids.begin(), ids.end());
    }
    for (; at < parts.size() && parts[at].context; ++at) {
      const std::span<const int32_t> ids = *parts[at].context;
      const auto begin = static_cast<int64_t>(out.token_ids.size());
      out.starts.push_back(begin);
      out.token_ids.insert(out.token_ids.end(), ids.begin(), ids.end());
      if (!ids.empty()) out.contexts.push_back({.begin = begin, .tokens = static_cast<int64_t>(ids.size())});
    }
  } while (at < parts.size());
  return out;
}

}  // namespace perigee::model
