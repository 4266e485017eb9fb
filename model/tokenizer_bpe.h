// Byte-pair encoding of one word: repeatedly join the neighbouring pair of lowest rank (leftmost first), O(n log n) in
// the word's bytes. Internal to model/.
#ifndef PERIGEE_MODEL_TOKENIZER_BPE_H_
#define PERIGEE_MODEL_TOKENIZER_BPE_H_

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"

namespace perigee::model {

class BpeModel {
 public:
  // ids of the 256 single bytes.
  void SetByteIds(const std::array<int32_t, 256>& ids) { byte_ids_ = ids; }
  // A pair given again takes the later rank, as in Hugging Face's tokenizers.
  void AddMerge(int32_t left, int32_t right, int32_t rank, int32_t joined) {
    merges_[Key(left, right)] = {rank, joined};
  }
  // Words that are tokens as they stand, whatever the merges say (ignore_merges).
  void SetWholeWords(absl::flat_hash_map<std::string, int32_t> words) { whole_words_ = std::move(words); }

  // Appends the word's ids. Any thread.
  void Encode(absl::string_view word, std::vector<int32_t>& ids) const;

 private:
  struct Merge {
    int32_t rank;
    int32_t joined;
  };
  static uint64_t Key(int32_t left, int32_t right) {
    return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
  }
  std::array<int32_t, 256> byte_ids_{};
  absl::flat_hash_map<uint64_t, Merge> merges_;
  absl::flat_hash_map<std::string, int32_t> whole_words_;
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_TOKENIZER_BPE_H_
