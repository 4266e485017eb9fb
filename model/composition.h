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
};

class Composition {
 public:
  struct Context {
    ContextRange range;
    std::vector<int32_t> ids;  // Opening and tokens: what its chain of blocks is derived from.
    int64_t position = 0;      // Of the first id, the opening's included.
    bool moved = false;        // Not the prompt's own prefix.
    int32_t hidden = 0;        // First ids that are not seen.
  };

  // INVALID_ARGUMENT: ranges that are empty, overlap, are out of order, outside the prompt or reach its last token; a
  // moved context without room for its opening's positions in front of it.
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

  // The places of a context's blocks, planes left out.
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
