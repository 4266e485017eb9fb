// The texts on which a plan is calibrated: prose, and pass keys to be recalled from it.
//
// A recall sample is prose with one target statement (" The pass key for Torvek is 48213.") and a few of other names,
// then one of two questions about the target (" What is the pass key for Torvek? ", " The pass key for Torvek is ") and
// the digits. The target lies wholly in the part that is distant to every query that answers: a plan that loses it
// cannot answer from the window.
//
// Everything is a pure function of the arguments: the same seed gives the same samples on every machine. Any thread.
#ifndef PERIGEE_MODEL_CALIBRATION_SAMPLES_H_
#define PERIGEE_MODEL_CALIBRATION_SAMPLES_H_

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"
#include "pod/window.h"

namespace perigee::model {

struct CalibrationSample {
  std::vector<int32_t> tokens;
  // The loss is that of tokens[scored_begin..end). Prose: every token whose query sees something distant. Recall: the
  // digits.
  size_t scored_begin = 0;
  bool recall = false;
  size_t target_begin = 0, target_end = 0;  // Recall: where the target statement stands.
};

struct CalibrationSampleOptions {
  int prose = 8;          // Samples of prose.
  int recall = 8;         // Samples with pass keys.
  int distractors = 3;    // Other pass keys in a recall sample.
  int sample_tokens = 0;  // Of every sample.
  pod::Window window;     // As served.
  int block_tokens = 64;  // As served: the window is rounded outward to blocks.
  uint64_t seed = 1;
};

// The smallest position whose query sees a distant token.
int64_t FirstDistantQuery(const pod::Window& window, int block_tokens);

// Prose samples stand evenly spaced over `text_tokens` (they overlap where the text is short), recall samples are
// filled from random places of it. INVALID_ARGUMENT, saying how many tokens are needed, where a sample would have
// nothing distant, where a target does not fit into the distant part, or where the text is shorter than one sample.
absl::StatusOr<std::vector<CalibrationSample>> MakeCalibrationSamples(const Tokenizer& tokenizer,
                                                                      std::span<const int32_t> text_tokens,
                                                                      const CalibrationSampleOptions& options);

// Plain English sentences made of a few dozen words: what there is to calibrate on without a text. A poor substitute
// for one.
std::string FillerProse(uint64_t seed, size_t bytes);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_CALIBRATION_SAMPLES_H_
