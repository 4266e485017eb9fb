// A prompt that is put together of texts and contexts: texts are encoded here, contexts come as the tokens that they
// have alone.
#ifndef PERIGEE_MODEL_PROMPT_PARTS_H_
#define PERIGEE_MODEL_PROMPT_PARTS_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace perigee::model {

struct TokenSpan {
  int64_t begin = 0;  // Into the prompt's tokens.
  int64_t tokens = 0;
  friend bool operator==(const TokenSpan&, const TokenSpan&) = default;
};

struct PromptPart {
  TextSegment text;
  std::optional<std::span<const int32_t>> context;  // Instead of the text.
};

struct PromptTokens {
  std::vector<int32_t> token_ids;
  std::vector<int64_t> starts;      // For each part how many tokens surely stand before it (see EncodeSegments).
  std::vector<TokenSpan> contexts;  // Where they stand, in order; none for a context without tokens.
};

// No token crosses a context's border, and nothing is put there, but for what a sentencepiece model begins every text
// with (its dummy prefix). The begin of sequence, where asked for, is the first token and stands nowhere else.
absl::StatusOr<PromptTokens> EncodeParts(const Tokenizer& tokenizer, std::span<const PromptPart> parts, bool add_bos);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_PROMPT_PARTS_H_
