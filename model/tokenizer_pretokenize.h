// Cutting a text into words before BPE: the "pre_tokenizer" of a tokenizer.json. Internal to model/.
#ifndef PERIGEE_MODEL_TOKENIZER_PRETOKENIZE_H_
#define PERIGEE_MODEL_TOKENIZER_PRETOKENIZE_H_

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace perigee::model {

// GPT-2's pattern, which the ByteLevel pre-tokenizer applies with use_regex.
extern const char kGpt2Pattern[];

// A regular expression whose matches, and the stretches between them, become words (behaviour "Isolated"). PCRE2 with
// Unicode properties. Immutable; any thread may Split.
class RegexSplitter {
 public:
  // literal: the pattern is plain text. INVALID_ARGUMENT for a pattern that does not compile.
  static absl::StatusOr<RegexSplitter> Compile(absl::string_view pattern, bool literal);
  RegexSplitter(RegexSplitter&&) noexcept;
  RegexSplitter& operator=(RegexSplitter&&) noexcept;
  ~RegexSplitter();

  // Appends the words of `text`, which must be valid UTF-8; together they are `text`. RESOURCE_EXHAUSTED if the pattern
  // backtracks beyond PCRE2's limit.
  absl::Status Split(absl::string_view text, std::vector<absl::string_view>& words) const;

 private:
  struct Code;
  explicit RegexSplitter(std::unique_ptr<Code> code);
  std::unique_ptr<Code> code_;
};

class PreTokenizer {
 public:
  // The steps in order.
  void AddSplit(RegexSplitter splitter) {
    steps_.push_back({std::make_unique<RegexSplitter>(std::move(splitter)), false});
  }
  void AddPrefixSpace() { steps_.push_back({nullptr, true}); }

  // Words of `text` (valid UTF-8) in order; views into `text` or into `owned`.
  absl::Status Split(absl::string_view text, std::vector<absl::string_view>& words,
                     std::deque<std::string>& owned) const;

 private:
  struct Step {
    std::unique_ptr<RegexSplitter> splitter;
    bool prefix_space;  // ByteLevel's add_prefix_space: every word that does not start with a space gets one
  };
  std::vector<Step> steps_;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_TOKENIZER_PRETOKENIZE_H_
