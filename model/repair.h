// What is computed again of contexts that stand in a prompt, and by which rule.
//
// A context is computed alone, from a beginning of its own: begin-of-sequence token, if the model has one, and its
// text. In a prompt its planes are read where they stand. What is lost is what its tokens would have taken from those
// before them, and what of that is worth a repair differs by model and by question:
//
//   full                 all is: contexts are plain text, and nothing is reused but prefixes
//   none                 nothing is computed again
//   prefix:K             the first K tokens of each context but a leading one (EPIC's LegoLink, arXiv 2410.15332): the
//                        places where a text that was computed alone puts its attention sink
//   deviation:SHARE      the tokens whose values in the second layer differ most from what they would be in this
//                        prompt, SHARE of all (CacheBlend, arXiv 2405.16444); first of all each context's first ones
//   parallel:T:S         nothing, but contexts stand side by side, at the same positions, and attention over them is
//                        sharpened by the temperature T and their log-sum-exp is scaled by S (APE, arXiv 2502.05431)
//
// Computed again means: with everything before it in this prompt in sight. The stored planes stay as they are.
#ifndef PERIGEE_MODEL_REPAIR_H_
#define PERIGEE_MODEL_REPAIR_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::model {

enum class RepairKind : uint8_t { kNone, kPrefix, kDeviation, kParallel, kFull };

struct Repair {
  RepairKind kind = RepairKind::kNone;
  int32_t prefix_tokens = 0;  // kPrefix: 1 to 4096.
  double share = 0;           // kDeviation: above 0, at most 1.
  double temperature = 1;     // kParallel: above 0, at most 2.
  double scale = 1;           // kParallel: above 0, at most 2.

  // As above, numbers to six digits; "" is none. "prefix", "deviation" and "parallel" alone mean 32, 0.15 and 0.9:0.9.
  // INVALID_ARGUMENT says what there is.
  static absl::StatusOr<Repair> Parse(absl::string_view text);
  std::string ToString() const;

  friend bool operator==(const Repair&, const Repair&) = default;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_REPAIR_H_
