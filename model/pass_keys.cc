#include "model/pass_keys.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status.h"

namespace perigee::model {
namespace {

constexpr std::array kOnsets = {"b", "c", "d", "f",  "g",  "h",  "j",  "k",  "l",  "m",  "n",  "p",  "r",  "s", "t",
                                "v", "w", "z", "br", "ch", "cr", "dr", "fl", "gr", "kl", "pr", "st", "th", "tr"};
constexpr std::array kVowels = {"a", "e", "i", "o", "u", "ai", "ea", "oo"};
constexpr std::array kCodas = {"n", "r", "l", "s", "t", "m", "k", "d", "x", "nd", "rk", "th"};

// Two syllables, capitalised: Torvek, Braimel, Plosun.
std::string MakeName(Random& random) {
  std::string name = random.Pick(kOnsets);
  name += random.Pick(kVowels);
  if (random.Below(5) < 2) name += random.Pick(kCodas);
  name += random.Pick(kOnsets);
  name += random.Pick(kVowels);
  name += random.Pick(kCodas);
  name[0] = static_cast<char>(name[0] - 'a' + 'A');
  return name;
}

}  // namespace

std::vector<PassKey> MakeKeys(Random& random, size_t count) {
  std::vector<PassKey> keys;
  while (keys.size() < count) {
    std::string name = MakeName(random);
    if (std::any_of(keys.begin(), keys.end(), [&](const PassKey& k) { return k.name == name; })) continue;
    keys.push_back({std::move(name), absl::StrFormat("%05d", random.Below(100000))});
  }
  return keys;
}

std::string Statement(const PassKey& key) {
  return absl::StrCat(" The pass key for ", key.name, " is ", key.digits, ".");
}

std::string QuestionAbout(const std::string& name, int index) {
  return index % 2 == 0 ? absl::StrCat(" What is the pass key for ", name, "? ")
                        : absl::StrCat(" The pass key for ", name, " is ");
}

absl::StatusOr<QuestionTokens> EncodeQuestion(const Tokenizer& tokenizer, const std::string& question,
                                              const std::string& answer) {
  PERIGEE_ASSIGN_OR_RETURN(const std::vector<int32_t> alone, tokenizer.Encode(question, /*add_bos=*/false));
  QuestionTokens out;
  PERIGEE_ASSIGN_OR_RETURN(out.ids, tokenizer.Encode(question + answer, /*add_bos=*/false));
  const auto part = std::mismatch(alone.begin(), alone.end(), out.ids.begin(), out.ids.end());
  out.answer_begin = static_cast<size_t>(part.second - out.ids.begin());
  if (out.answer_begin == 0 || out.answer_begin == out.ids.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the tokenizer writes '", question, answer, "' in a way that leaves no answer token"));
  }
  return out;
}

}  // namespace perigee::model
