// Questions over several documents: what the reuse of contexts is judged by (model/context_measure.h).
//
// A sample is a few documents of prose, each with one or two pass keys (" The pass key for Torvek is 48213.") at random
// places, and a question about one of them, as in calibration samples. A whole statement can be found by a model that
// saw the documents apart; one that is cut by a border, as a splitter of long texts cuts, only by one that saw both
// sides. Every document is tokenised by itself, as a
// context is: its tokens are the same wherever it stands.
//
// Everything is a pure function of the arguments: the same seed gives the same samples on every machine. Any thread.
#ifndef PERIGEE_MODEL_CONTEXT_SAMPLES_H_
#define PERIGEE_MODEL_CONTEXT_SAMPLES_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "model/composition.h"
#include "model/tokenizer.h"

namespace perigee::model {

struct ContextSample {
  std::vector<int32_t> prompt;          // Begin-of-sequence token, documents, question; not the answer.
  std::vector<ContextRange> documents;  // In the prompt.
  std::vector<int32_t> answer;          // Of the question, as the tokenizer writes it behind the prompt.
  size_t target = 0;  // The document that answers; where its statement is cut, the one with the digits.
  bool cut = false;
};

struct ContextSampleOptions {
  int questions = 200;
  int min_documents = 2, max_documents = 8;  // A sample's.
  int min_tokens = 160, max_tokens = 400;    // A document's, about, its statements left out.
  // Of the questions, whose statement is cut in two by the border between two documents, in front of its digits: "The
  // pass key for Torvek is" ends one document, " 48213." begins the next. What was computed alone cannot know whose
  // digits they are.
  double cut_share = 0;
  bool titles = false;  // "\n\nDocument 1:\n" in front of each, not part of the context.
  uint64_t seed = 1;
};

// INVALID_ARGUMENT for options that cannot be, and where the prose is shorter than a document.
absl::StatusOr<std::vector<ContextSample>> MakeContextSamples(const Tokenizer& tokenizer, absl::string_view prose,
                                                              const ContextSampleOptions& options);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_CONTEXT_SAMPLES_H_
