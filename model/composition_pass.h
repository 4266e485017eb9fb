// Runs what of a composed prompt is to be computed, over a cache in which its contexts' blocks are placed.
#ifndef PERIGEE_MODEL_COMPOSITION_PASS_H_
#define PERIGEE_MODEL_COMPOSITION_PASS_H_

#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "model/composition.h"
#include "model/plane_cache.h"
#include "model/transformer.h"

namespace perigee::model {

struct CompositionPass {
  const Transformer* transformer = nullptr;
  int chunk_tokens = 512;  // Run in one go.
  // Runs one item: the transformer's Forward, or a batch of several sequences.
  std::function<absl::Status(BatchItem)> run;
  // Asked between two chunks; its error ends the pass. May be null.
  std::function<absl::Status()> still_wanted = nullptr;
};

// Chooses the repair's tokens where that takes a look at the planes, hides what is computed again, and runs all of
// composition.computed() in the order of positions. `logits`: of the last token. Blocks may still be arriving: layers
// are waited for as the passes come to them. After an error the cache is not to be used.
absl::Status RunComposition(const CompositionPass& pass, Composition& composition, PlaneCache& cache,
                            std::vector<float>* logits);

// By the deviation repair: of composition.Repairable(), the share whose stored values in the second layer differ most
// from what they would be in this prompt (arXiv 2405.16444, section 4; the first layer's differ in nothing). The share
// begins with the first few tokens of every context, which the paper does not have. The cache
// holds everything that stands before the contexts. Ascending.
absl::StatusOr<std::vector<Composition::Token>> MostDeviating(const CompositionPass& pass,
                                                              const Composition& composition, PlaneCache& cache);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_COMPOSITION_PASS_H_
