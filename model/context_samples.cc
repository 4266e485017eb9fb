#include "model/context_samples.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/status.h"
#include "model/pass_keys.h"

namespace perigee::model {
namespace {

constexpr size_t kMaxKeysPerDocument = 2;

absl::Status Check(const ContextSampleOptions& o) {
  if (o.questions < 1 || o.questions > 100000) {
    return absl::InvalidArgumentError(absl::StrCat("questions is ", o.questions, "; it must be 1 to 100000"));
  }
  if (o.min_documents < 1 || o.max_documents < o.min_documents || o.max_documents > 256) {
    return absl::InvalidArgumentError(absl::StrCat("a sample of ", o.min_documents, " to ", o.max_documents,
                                                   " documents cannot be; there must be 1 to 256"));
  }
  if (o.min_tokens < 16 || o.max_tokens < o.min_tokens || o.max_tokens > 1000000) {
    return absl::InvalidArgumentError(absl::StrCat("documents of ", o.min_tokens, " to ", o.max_tokens,
                                                   " tokens cannot be; there must be 16 to 1000000"));
  }
  if (!(o.cut_share >= 0 && o.cut_share <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the share of cut statements is ", o.cut_share, "; it must be 0 to 1"));
  }
  if (o.cut_share > 0 && o.titles) {
    return absl::InvalidArgumentError("titles would stand between the halves of cut statements: have none cut (0)");
  }
  return absl::OkStatus();
}

// The prose by words, and how many tokens each takes where it stands behind a space.
struct Words {
  std::vector<absl::string_view> words;
  std::vector<size_t> tokens;
  size_t all_tokens = 0;
};

absl::StatusOr<Words> SplitProse(const Tokenizer& tokenizer, absl::string_view prose) {
  Words out;
  out.words = absl::StrSplit(prose, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty());
  for (const absl::string_view word : out.words) {
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                             tokenizer.Encode(absl::StrCat(" ", word), /*add_bos=*/false));
    out.tokens.push_back(ids.size());
    out.all_tokens += ids.size();
  }
  return out;
}

// Words from a random place on, until there are enough tokens; each key between two of them.
std::string MakeDocument(const Words& prose, size_t tokens, const std::vector<PassKey>& keys, Random& random) {
  // Words near the end would not suffice: the text goes on at its beginning.
  size_t word = random.Below(prose.words.size());
  std::vector<absl::string_view> words;
  for (size_t taken = 0; taken < tokens; word = (word + 1) % prose.words.size()) {
    words.push_back(prose.words[word]);
    taken += prose.tokens[word];
  }
  std::vector<size_t> places;
  for (size_t k = 0; k < keys.size(); ++k) places.push_back(1 + random.Below(words.size()));
  std::string text;
  for (size_t w = 0; w <= words.size(); ++w) {
    for (size_t k = 0; k < keys.size(); ++k) {
      if (places[k] == w) text += Statement(keys[k]);
    }
    if (w < words.size()) absl::StrAppend(&text, w == 0 ? "" : " ", words[w]);
  }
  return text;
}

absl::StatusOr<ContextSample> MakeSample(const Tokenizer& tokenizer, const Words& prose, const ContextSampleOptions& o,
                                         int index, Random& random) {
  const auto between = [&random](int low, int high) {
    return static_cast<size_t>(low) + random.Below(static_cast<size_t>(high - low) + 1);
  };
  const size_t documents = between(o.min_documents, o.max_documents);
  const std::vector<PassKey> all = MakeKeys(random, documents * kMaxKeysPerDocument);
  ContextSample sample;
  // In turn, so that any share is met as nearly as it can be.
  const auto cuts = [&o](int questions) { return static_cast<int>(o.cut_share * questions + 0.5); };
  sample.cut = documents > 1 && cuts(index + 1) > cuts(index);
  sample.target = sample.cut ? 1 + random.Below(documents - 1) : random.Below(documents);
  std::vector<std::string> texts;
  for (size_t d = 0; d < documents; ++d) {
    const auto first = all.begin() + static_cast<ptrdiff_t>(d * kMaxKeysPerDocument);
    std::vector<PassKey> keys(first, first + static_cast<ptrdiff_t>(1 + random.Below(kMaxKeysPerDocument)));
    if (sample.cut && d == sample.target) keys.erase(keys.begin());
    texts.push_back(MakeDocument(prose, between(o.min_tokens, o.max_tokens), keys, random));
  }
  if (sample.cut) {
    const PassKey& key = all[sample.target * kMaxKeysPerDocument];
    texts[sample.target - 1] += absl::StrCat(" The pass key for ", key.name, " is");
    texts[sample.target] = absl::StrCat(" ", key.digits, ". ", texts[sample.target]);
  }
  if (tokenizer.adds_bos_by_default() && tokenizer.bos_id().has_value()) sample.prompt.push_back(*tokenizer.bos_id());
  for (size_t d = 0; d < documents; ++d) {
    if (o.titles) {
      PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> title,
                               tokenizer.Encode(absl::StrCat("\n\nDocument ", d + 1, ":\n"), /*add_bos=*/false));
      sample.prompt.insert(sample.prompt.end(), title.begin(), title.end());
    }
    PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, tokenizer.Encode(texts[d], /*add_bos=*/false));
    sample.documents.push_back({static_cast<int64_t>(sample.prompt.size()), static_cast<int64_t>(ids.size())});
    sample.prompt.insert(sample.prompt.end(), ids.begin(), ids.end());
  }
  const PassKey& asked = all[sample.target * kMaxKeysPerDocument];
  PERIGEE_ASSIGN_OR_RETURN(const QuestionTokens question,
                           EncodeQuestion(tokenizer, QuestionAbout(asked.name, index), asked.digits));
  const auto answer = question.ids.begin() + static_cast<ptrdiff_t>(question.answer_begin);
  sample.prompt.insert(sample.prompt.end(), question.ids.begin(), answer);
  sample.answer.assign(answer, question.ids.end());
  return sample;
}

}  // namespace

absl::StatusOr<std::vector<ContextSample>> MakeContextSamples(const Tokenizer& tokenizer, absl::string_view prose,
                                                              const ContextSampleOptions& options) {
  PERIGEE_RETURN_IF_ERROR(Check(options));
  PERIGEE_ASSIGN_OR_RETURN(const Words words, SplitProse(tokenizer, prose));
  if (words.all_tokens < static_cast<size_t>(options.max_tokens)) {
    return absl::InvalidArgumentError(absl::StrCat("the text has ", words.all_tokens, " tokens; one document has ",
                                                   options.max_tokens,
                                                   ": give a longer text or take shorter documents"));
  }
  Random random(options.seed);
  std::vector<ContextSample> samples;
  for (int i = 0; i < options.questions; ++i) {
    PERIGEE_ASSIGN_OR_RETURN(ContextSample sample, MakeSample(tokenizer, words, options, i, random));
    samples.push_back(std::move(sample));
  }
  return samples;
}

}  // namespace perigee::model
