#include "model/calibration_samples.h"

#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/pass_keys.h"

namespace perigee::model {
namespace {

struct Insertion {
  size_t at = 0;  // In the filler.
  std::vector<int32_t> ids;
  bool target = false;
};

absl::StatusOr<CalibrationSample> MakeRecallSample(const Tokenizer& tokenizer, std::span<const int32_t> text,
                                                   size_t bos_tokens, const CalibrationSampleOptions& options,
                                                   int index, Random& random) {
  const std::vector<PassKey> keys = MakeKeys(random, static_cast<size_t>(options.distractors) + 1);
  const std::string& name = keys[0].name;
  PERIGEE_ASSIGN_OR_RETURN(const QuestionTokens question,
                           EncodeQuestion(tokenizer, QuestionAbout(name, index), keys[0].digits));
  std::vector<Insertion> insertions;
  size_t inserted = 0;
  for (const PassKey& key : keys) {
    Insertion insertion;
    PERIGEE_ASSIGN_OR_RETURN(insertion.ids, tokenizer.Encode(Statement(key), /*add_bos=*/false));
    insertion.target = insertions.empty();
    inserted += insertion.ids.size();
    insertions.push_back(std::move(insertion));
  }

  // The target must end at or before the first token that is near to the first query that answers.
  const size_t total = static_cast<size_t>(options.sample_tokens);
  const size_t tail = question.ids.size();
  const size_t first_query = total - (tail - question.answer_begin) - 1;
  const size_t earliest = std::max(bos_tokens, static_cast<size_t>(pod::SinkEnd(options.window, options.block_tokens)));
  const size_t latest =
      static_cast<size_t>(pod::RecentBegin(options.window, options.block_tokens, static_cast<int64_t>(first_query)));
  const size_t needed = inserted + tail + bos_tokens;
  if (total < needed || latest < earliest + inserted || total - needed + bos_tokens < earliest) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a recall sample of ", total, " tokens has no room for ", keys.size(), " pass keys of ", inserted,
        " tokens in its distant part (", earliest, "..", latest, "): take longer samples or a smaller window"));
  }
  const size_t filler = total - needed;

  // In the filler's own counting the target may stand anywhere between `low` and `high`, whatever stands before it.
  const size_t low = earliest - bos_tokens;
  const size_t high = std::min(filler, latest - bos_tokens - inserted);
  const double depth = (index + 0.5) / options.recall;
  insertions[0].at = low + static_cast<size_t>(depth * static_cast<double>(high - std::min(low, high)));
  for (size_t i = 1; i < insertions.size(); ++i) insertions[i].at = random.Below(filler + 1);
  std::stable_sort(insertions.begin(), insertions.end(),
                   [](const Insertion& a, const Insertion& b) { return a.at < b.at; });

  CalibrationSample sample;
  sample.recall = true;
  if (bos_tokens > 0) sample.tokens.push_back(*tokenizer.bos_id());
  const size_t start = random.Below(text.size() - filler + 1);
  size_t copied = 0;
  const auto copy_until = [&](size_t end) {
    sample.tokens.insert(sample.tokens.end(), text.begin() + static_cast<ptrdiff_t>(start + copied),
                         text.begin() + static_cast<ptrdiff_t>(start + end));
    copied = end;
  };
  for (const Insertion& insertion : insertions) {
    copy_until(insertion.at);
    if (insertion.target) {
      sample.target_begin = sample.tokens.size();
      sample.target_end = sample.target_begin + insertion.ids.size();
    }
    sample.tokens.insert(sample.tokens.end(), insertion.ids.begin(), insertion.ids.end());
  }
  copy_until(filler);
  sample.scored_begin = sample.tokens.size() + question.answer_begin;
  sample.tokens.insert(sample.tokens.end(), question.ids.begin(), question.ids.end());
  if (sample.target_begin < earliest || sample.target_end > latest) {
    return absl::InternalError(absl::StrCat("a pass key stands at ", sample.target_begin, "..", sample.target_end,
                                            ", outside the distant part ", earliest, "..", latest));
  }
  return sample;
}

}  // namespace

int64_t FirstDistantQuery(const pod::Window& window, int block_tokens) {
  // RecentBegin(p) must lie at least one block past the sink.
  return pod::SinkEnd(window, block_tokens) + block_tokens + window.recent_tokens - 1;
}

absl::StatusOr<std::vector<CalibrationSample>> MakeCalibrationSamples(const Tokenizer& tokenizer,
                                                                      std::span<const int32_t> text_tokens,
                                                                      const CalibrationSampleOptions& options) {
  PERIGEE_RETURN_IF_ERROR(pod::ValidateWindow(options.window));
  if (options.prose < 0 || options.recall < 0 || options.distractors < 0 || options.prose + options.recall == 0) {
    return absl::InvalidArgumentError(absl::StrCat("calibration needs samples: prose is ", options.prose,
                                                   ", recall is ", options.recall, ", distractors is ",
                                                   options.distractors));
  }
  if (options.distractors > 64)
    return absl::InvalidArgumentError(absl::StrCat("distractors is ", options.distractors, "; at most 64"));
  const int64_t first_query = FirstDistantQuery(options.window, options.block_tokens);
  if (options.sample_tokens < first_query + 2) {
    return absl::InvalidArgumentError(absl::StrCat(
        "samples of ", options.sample_tokens, " tokens have nothing distant to a window of ",
        options.window.sink_tokens, " + ", options.window.recent_tokens, " tokens in blocks of ", options.block_tokens,
        ": take at least ", first_query + 2, " tokens (several times as many are better) or a smaller window"));
  }
  const size_t total = static_cast<size_t>(options.sample_tokens);
  const size_t bos_tokens = tokenizer.adds_bos_by_default() && tokenizer.bos_id().has_value() ? 1 : 0;
  if (text_tokens.size() < total) {
    return absl::InvalidArgumentError(absl::StrCat("the text has ", text_tokens.size(), " tokens; one sample has ",
                                                   total, ": give a longer text or take shorter samples"));
  }
  std::vector<CalibrationSample> samples;
  const size_t prose_tokens = total - bos_tokens;
  const size_t room = text_tokens.size() - prose_tokens;
  for (int i = 0; i < options.prose; ++i) {
    CalibrationSample sample;
    if (bos_tokens > 0) sample.tokens.push_back(*tokenizer.bos_id());
    const size_t start =
        options.prose == 1 ? 0 : room * static_cast<size_t>(i) / static_cast<size_t>(options.prose - 1);
    const auto from = text_tokens.subspan(start, prose_tokens);
    sample.tokens.insert(sample.tokens.end(), from.begin(), from.end());
    sample.scored_begin = static_cast<size_t>(first_query) + 1;
    samples.push_back(std::move(sample));
  }
  Random random(options.seed);
  for (int i = 0; i < options.recall; ++i) {
    PERIGEE_ASSIGN_OR_RETURN(CalibrationSample sample,
                             MakeRecallSample(tokenizer, text_tokens, bos_tokens, options, i, random));
    samples.push_back(std::move(sample));
  }
  return samples;
}

std::string FillerProse(uint64_t seed, size_t bytes) {
  static constexpr std::array kWho = {"The old man", "A young woman", "The children",    "His brother",
                                      "The captain", "Her mother",    "The stranger",    "The whole town",
                                      "The doctor",  "A servant",     "The two sisters", "Nobody"};
  static constexpr std::array kDid = {"went down to",  "looked back at", "spoke softly of", "had never seen",
                                      "remembered",    "walked past",    "had returned to", "was afraid of",
                                      "waited beside", "thought of"};
  static constexpr std::array kWhat = {"the river",  "the open window", "the dark road",  "the house on the hill",
                                       "the garden", "the ship",        "the empty room", "the church",
                                       "the letter", "the great fire"};
  static constexpr std::array kWhen = {"in the evening",     "before the rain came", "as the sun was setting",
                                       "with a heavy heart", "without a word",       "long after midnight",
                                       "for the last time",  "that winter"};
  static constexpr std::array kJoin = {", and ", ", but ", "; then ", ", while "};
  Random random(seed);
  std::string text;
  while (text.size() < bytes) {
    absl::StrAppend(&text, text.empty() ? "" : " ", random.Pick(kWho), " ", random.Pick(kDid), " ", random.Pick(kWhat),
                    " ", random.Pick(kWhen));
    if (random.Below(2) == 0) {
      std::string who = random.Pick(kWho);
      who[0] = static_cast<char>(who[0] - 'A' + 'a');
      absl::StrAppend(&text, random.Pick(kJoin), who, " ", random.Pick(kDid), " ", random.Pick(kWhat));
    }
    text += '.';
  }
  return text;
}

}  // namespace perigee::model
