// Text to token ids and back, from a Hugging Face tokenizer.json (byte-level BPE) or a sentencepiece tokenizer.model.
//
// Encode never turns a special token's text ("<|eot_id|>") into the special token unless asked: a user must not be able
// to write one. Byte-level BPE takes any bytes and Decode(Encode(x)) == x, except that an NFC normaliser, where the
// model has one, normalises the valid parts, and add_prefix_space adds its space. Sentencepiece takes valid UTF-8 only
// and normalises as its model says.
//
// Anything in tokenizer.json that would change the ids and is not implemented is refused (UNIMPLEMENTED) by name. A
// tokenizer.model is parsed by the sentencepiece library, which trusts it further than this room trusts files; take
// those from where you take the weights. Tokenizers are immutable: any thread may call.
#ifndef PERIGEE_MODEL_TOKENIZER_H_
#define PERIGEE_MODEL_TOKENIZER_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "base/bytes.h"

namespace perigee::model {

// A part of a text that is encoded as one. The view must outlive the call.
struct TextSegment {
  absl::string_view text;
  // Special tokens' text that lies wholly in such parts becomes those tokens.
  bool parse_special = false;
  // No token crosses this part's beginning.
  bool split = false;
};

class Tokenizer {
 public:
  virtual ~Tokenizer() = default;
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  // At most 32 MiB of text. parse_special: the text of special tokens becomes those tokens (chat templates; never for
  // users' text). FAILED_PRECONDITION if add_bos and the model has no BOS; INVALID_ARGUMENT for text that the tokenizer
  // cannot take.
  absl::StatusOr<std::vector<int32_t>> Encode(absl::string_view text, bool add_bos, bool parse_special = false) const;

  // The segments joined, as Encode takes one text: a token may cross from one to the next. `starts`, where not null,
  // gets for each segment how many tokens surely stand before it, BOS included: those up to the last added token or
  // split that ends at or before its beginning.
  absl::StatusOr<std::vector<int32_t>> EncodeSegments(std::span<const TextSegment> segments, bool add_bos,
                                                      std::vector<int64_t>* starts = nullptr) const;

  // Bytes, not necessarily valid UTF-8 (see StreamDecoder). Special tokens give nothing unless skip_special is false.
  // at_text_start: the ids begin a text, so that sentencepiece's added first space is dropped; false for a
  // continuation. INVALID_ARGUMENT on unknown ids.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool skip_special = true,
                                     bool at_text_start = true) const;

  // The bytes that this token stands for; a special token's own text. The view lives as long as the tokenizer.
  absl::StatusOr<absl::string_view> TokenBytes(int32_t id) const;

  // One more than the largest id; there may be unused ids below. The model's vocabulary may be larger (padding).
  int vocab_size() const { return static_cast<int>(tokens_.size()); }
  bool IsSpecial(int32_t id) const;
  // The id of a special or added token by its text, e.g. "<|im_end|>".
  std::optional<int32_t> FindAddedToken(absl::string_view text) const;
  std::optional<int32_t> bos_id() const { return bos_id_; }
  const std::vector<int32_t>& eos_ids() const { return eos_ids_; }
  // What the model's own files say about putting BOS before a text; Encode's caller decides.
  bool adds_bos_by_default() const { return adds_bos_by_default_; }
  // Sentencepiece's dummy prefix: a text's first token starts with a space that is not in the text.
  bool has_dummy_prefix() const { return has_dummy_prefix_; }
  // SHA-256 of the file that LoadTokenizer read; zeros for others. Equal digests: equal ids for equal texts.
  const Digest& digest() const { return digest_; }

 protected:
  Tokenizer() = default;
  // Appends the ids of text without added tokens in it.
  virtual absl::Status EncodePlain(absl::string_view text, std::vector<int32_t>& ids) const = 0;

  struct Token {
    std::string bytes;
    bool used = false;
    bool special = false;
  };
  struct AddedToken {
    std::string text;
    int32_t id = 0;
    bool special = false;  // matched only on request; the others always
  };
  // Registers tokens to be found in the text before EncodePlain sees it. Texts must not be empty.
  void SetAddedTokens(std::vector<AddedToken> tokens);
  // From tokenizer_config.json ("" where there is none): bos_token, eos_token, add_bos_token. `template_bos`: BOS by
  // the post-processor.
  absl::Status ApplyTokenizerConfig(absl::string_view tokenizer_config, std::optional<int32_t> template_bos,
                                    bool default_adds_bos);

  std::vector<Token> tokens_;
  std::optional<int32_t> bos_id_;
  std::vector<int32_t> eos_ids_;
  bool adds_bos_by_default_ = false;
  bool has_dummy_prefix_ = false;

 private:
  friend absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& folder);
  Digest digest_{};
  // `special_bytes`: how far into the text a special token may reach.
  const AddedToken* AddedTokenAt(absl::string_view text, size_t special_bytes) const;
  std::vector<AddedToken> added_;
  std::vector<std::vector<int>> added_by_first_byte_;  // indices into added_, longest first
};

// Both texts as in the files; tokenizer_config may be empty.
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(absl::string_view tokenizer_json,
                                                              absl::string_view tokenizer_config);
absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePiece(absl::string_view tokenizer_model,
                                                              absl::string_view tokenizer_config);

// From a model folder: tokenizer.json where it can be used, else tokenizer.model; with tokenizer_config.json where it
// exists.
absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& folder);

// Turns tokens into text as they come, never emitting a part of a UTF-8 character. The emitted pieces joined are
// Decode's bytes with each invalid part replaced by U+FFFD: always valid UTF-8. One per stream; not thread-safe; the
// tokenizer must outlive it.
class StreamDecoder {
 public:
  // at_text_start as in Decode: false where the stream continues a prompt.
  explicit StreamDecoder(const Tokenizer& tokenizer, bool at_text_start = false);
  // What can be shown now, often "". On an unknown id the stream stays as it was.
  absl::StatusOr<std::string> Push(int32_t id);
  // What is left; the decoder is then as new (for a continuation).
  std::string Finish();

 private:
  const Tokenizer* tokenizer_;
  bool strip_space_;
  std::string pending_;  // the beginning of a character
};

}  // namespace perigee::model

#endif  // PERIGEE_MODEL_TOKENIZER_H_
