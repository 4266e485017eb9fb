// Pass keys to be recalled from texts: names, digits, statements and questions. Internal to model/.
//
// A pure function of the seed: the same on every machine.
#ifndef PERIGEE_MODEL_PASS_KEYS_H_
#define PERIGEE_MODEL_PASS_KEYS_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "model/tokenizer.h"

namespace perigee::model {

// SplitMix64: the standard library's distributions differ between implementations.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // Below n, which must be positive. The bias of the remainder does not matter for texts.
  size_t Below(size_t n) { return static_cast<size_t>(Next() % n); }
  template <size_t n>
  const char* Pick(const std::array<const char*, n>& from) {
    return from[Below(n)];
  }

 private:
  uint64_t state_;
};

struct PassKey {
  std::string name;
  std::string digits;
};

// Names apart from each other.
std::vector<PassKey> MakeKeys(Random& random, size_t count);

// " The pass key for Torvek is 48213."
std::string Statement(const PassKey& key);
// In turn " What is the pass key for Torvek? " and " The pass key for Torvek is ".
std::string QuestionAbout(const std::string& name, int index);

// A question and its answer as the tokenizer writes them together; the answer begins where the two writings part.
struct QuestionTokens {
  std::vector<int32_t> ids;
  size_t answer_begin = 0;
};
absl::StatusOr<QuestionTokens> EncodeQuestion(const Tokenizer& tokenizer, const std::string& question,
                                              const std::string& answer);

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_PASS_KEYS_H_
