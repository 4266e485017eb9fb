// A prompt in which contexts stand: which of its tokens are read from the contexts' own planes and where, and which are
// computed.
//
// A prompt is a list of token ids; stretches of it are contexts (model/repair.h says what those are). A context is
// computed alone, its tokens behind `opening` ids (the begin-of-sequence token, where the model has one): its chain of
// blocks is that of opening + tokens, wherever it is used. In a prompt its blocks stand moved, with the opening's
// tokens hidden; only one that begins the prompt, right behind the same opening, is the prompt's own prefix, and needs
// no repair. Everything else is text: computed with all before it in sight, the last token always. By the repair "full"
// all is text.
//
// A range may also be a slice of a longer text that was computed alone: what an edit has left of a document stands in
// front of and behind what was changed (PIE, "Let the Code LLM Edit Itself"). Then only the slice's tokens are seen,
// and only its blocks are read.
//
// Pure: no I/O, no threads.
#ifndef PERIGEE_MODEL_COMPOSITION_H_
#define PERIGEE_MODEL_COMPOSITION_H_

#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "model/plane_cache.h"
#include "model/repair.h"

namespace perigee::model {

// A stretch of the prompt's token ids.
struct ContextRange {
  int64_t begin = 0;
  int64_t tokens = 0;
  // Where it is a slice: the ids of the whole text, of which those from source_begin on stand here; they need not
  // outlive the call. Empty: the range is the whole text.
  std::span<const int32_t> source = {};
  int64_t source_begin = 0;
};

class Composition {
 public:
  struct Context {
    std::vector<int32_t> ids;  // Opening and text: what its chain of blocks is derived from.
    int64_t position = 0;      // Of ids[0], seen or not: may be negative.
    bool moved = false;        // Not the prompt's own prefix.
    int64_t first = 0;         // ids [first, end) are seen.
    int64_t end = 0;

    int64_t tokens() const { return end - first; }  // That are seen.
    // Of its chain: the first block of which something is seen.
    size_t first_block(int block_tokens) const { return static_cast<size_t>(first / block_tokens); }
  };

  // INVALID_ARGUMENT: ranges that are empty, overlap, are out of order, outside the prompt or reach its last token; a
  // slice that is not in its source.
  static absl::StatusOr<Composition> Create(std::span<const int32_t> ids, std::span<const ContextRange> contexts,
                                            std::span<const int32_t> opening, const Repair& repair);

  const Repair& repair() const { return repair_; }
  const std::vector<Context>& contexts() const { return contexts_; }
  // Tokens that the contexts' planes give, before any repair.
  int64_t context_tokens() const { return context_tokens_; }

  // What is computed, by ascending position: texts, and tokens of contexts that the repair names beforehand. Repairs
  // that have to look at the planes first (deviation) name theirs by Add.
  struct Token {
    int64_t position = 0;
    int32_t id = 0;
    bool repaired = false;
  };
  const std::vector<Token>& computed() const { return computed_; }
  int64_t repaired_tokens() const { return repaired_; }
  // Tokens of moved contexts, ascending: what a repair may choose from.
  std::vector<Token> Repairable() const;
  // These too: tokens out of Repairable().
  void Add(std::span<const Token> repaired);
  // Leading tokens of computed() that stand before all moved contexts.
  size_t leading() const;

  // The places of a context's blocks, from first_block() to the last of which something is seen, planes left out.
  std::vector<CachedBlock> Places(const Context& context, int block_tokens) const;
  // With the planes of a cache in which the context was computed alone.
  std::vector<CachedBlock> Places(const Context& context, const PlaneCache& alone) const;
  // Whether a computed token, one of Repairable() where the repair chooses later, or a later one is near to the block:
  // then its proximal plane is wanted.
  bool ReadsProximal(const pod::Window& window, const CachedBlock& block) const;

  // After all blocks were placed: hides what is computed again.
  absl::Status HideRepaired(PlaneCache& cache) const;

 private:
  Composition() = default;
  Repair repair_;
  std::vector<Context> contexts_;
  std::vector<Token> computed_;
  int64_t context_tokens_ = 0, repaired_ = 0;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_COMPOSITION_H_
