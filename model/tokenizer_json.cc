// tokenizer.json with a byte-level BPE model (GPT-2, Llama 3, Qwen2/3).
#include <unicode/bytestream.h>
#include <unicode/normalizer2.h>

#include <algorithm>
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/string_view.h"
#include "base/status.h"
#include "model/json_reader.h"
#include "model/tokenizer.h"
#include "model/tokenizer_bpe.h"
#include "model/tokenizer_pretokenize.h"
#include "model/utf8.h"

namespace perigee::model {
namespace {

constexpr int kMaxDepth = 32;
constexpr int64_t kMaxTokenId = (1 << 22) - 1;

// GPT-2's alphabet: every byte as a printable character, so that a token can be written in JSON. Printable Latin-1
// bytes stand for themselves, the other 68 for U+0100 onward in byte order.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    int next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || (byte >= 0xAE && byte <= 0xFF);
      byte_of_[static_cast<size_t>(printable ? byte : next++)] = byte;
    }
  }

  // The bytes that a token's characters stand for; nothing if one of them is not in the alphabet.
  std::optional<std::string> Bytes(absl::string_view token) const {
    std::string bytes;
    for (size_t i = 0; i < token.size();) {
      const auto lead = static_cast<uint8_t>(token[i]);
      uint32_t point = lead;
      if (lead >= 0x80) {  // JSON parsing has checked the UTF-8; the alphabet ends below U+0800
        if ((lead & 0xE0) != 0xC0 || i + 1 >= token.size()) return std::nullopt;
        point = static_cast<uint32_t>(lead & 0x1F) << 6 | (static_cast<uint8_t>(token[i + 1]) & 0x3F);
        ++i;
      }
      ++i;
      if (point >= byte_of_.size() || byte_of_[point] < 0) return std::nullopt;
      bytes.push_back(static_cast<char>(byte_of_[point]));
    }
    return bytes;
  }

 private:
  std::array<int, 512> byte_of_;
};

std::string TypeOf(const Json& value) {
  const Json* type = FindValue(value, "type");
  return type != nullptr && type->is_string() ? type->get<std::string>() : Shown(value);
}

absl::Status Unsupported(absl::string_view what, const Json& value, absl::string_view supported) {
  return absl::UnimplementedError(absl::StrCat(what, " ", Shown(value), " is not supported; supported: ", supported));
}

class ByteLevelBpe : public Tokenizer {
 public:
  absl::Status Parse(absl::string_view tokenizer_json, absl::string_view tokenizer_config) {
    PERIGEE_ASSIGN_OR_RETURN(const Json json, ParseJsonObject(tokenizer_json, "tokenizer.json", kMaxDepth));
    // The kinds first: a tokenizer that cannot be used is refused for that, not for a detail.
    const Json* model = FindValue(json, "model");
    if (model == nullptr || !model->is_object())
      return absl::InvalidArgumentError("\"model\" is missing or not an object");
    PERIGEE_RETURN_IF_ERROR(CheckModelKind(*model));
    PERIGEE_RETURN_IF_ERROR(ParseNormalizer(FindValue(json, "normalizer")));
    bool byte_level = false;
    if (const Json* pre_tokenizer = FindValue(json, "pre_tokenizer")) {
      PERIGEE_RETURN_IF_ERROR(ParsePreTokenizer(*pre_tokenizer, 0, byte_level));
    }
    if (!byte_level) {
      return absl::UnimplementedError(
          "the pre-tokenizer has no ByteLevel step; only byte-level BPE is supported in tokenizer.json");
    }
    PERIGEE_RETURN_IF_ERROR(ParseAddedTokens(json));
    PERIGEE_RETURN_IF_ERROR(ParseVocab(*model));
    PERIGEE_RETURN_IF_ERROR(ParseMerges(*model));
    std::optional<int32_t> template_bos;
    if (const Json* post_processor = FindValue(json, "post_processor")) {
      PERIGEE_RETURN_IF_ERROR(ParsePostProcessor(*post_processor, 0, template_bos));
    }
    PERIGEE_RETURN_IF_ERROR(ApplyTokenizerConfig(tokenizer_config, template_bos, /*default_adds_bos=*/false));
    words_by_text_.clear();
    return absl::OkStatus();
  }

 private:
  absl::Status EncodePlain(absl::string_view text, std::vector<int32_t>& ids) const override {
    while (!text.empty()) {
      const size_t valid = ValidUtf8Prefix(text);
      if (valid > 0) PERIGEE_RETURN_IF_ERROR(EncodeValid(text.substr(0, valid), ids));
      text.remove_prefix(valid);
      // Bytes that are no text go to BPE as they are, past the normaliser and the pattern, which could only fail on
      // them.
      size_t invalid = 0;
      while (invalid < text.size()) {
        const Utf8Step step = NextUtf8(text.substr(invalid));
        if (step.kind == Utf8Kind::kCharacter) break;
        invalid += step.bytes;
      }
      bpe_.Encode(text.substr(0, invalid), ids);
      text.remove_prefix(invalid);
    }
    return absl::OkStatus();
  }

  absl::Status EncodeValid(absl::string_view text, std::vector<int32_t>& ids) const {
    std::string normalized;
    if (nfc_ != nullptr &&
        std::any_of(text.begin(), text.end(), [](char c) { return static_cast<uint8_t>(c) >= 0x80; })) {
      UErrorCode error = U_ZERO_ERROR;
      icu::StringByteSink<std::string> sink(&normalized);
      nfc_->normalizeUTF8(0, icu::StringPiece(text.data(), static_cast<int32_t>(text.size())), sink, nullptr, error);
      if (U_FAILURE(error)) return absl::InternalError(absl::StrCat("NFC normalisation failed: ", u_errorName(error)));
      text = normalized;
    }
    std::vector<absl::string_view> words;
    std::deque<std::string> owned;
    PERIGEE_RETURN_IF_ERROR(pre_tokenizer_.Split(text, words, owned));
    for (const absl::string_view word : words) bpe_.Encode(word, ids);
    return absl::OkStatus();
  }

  static absl::Status CheckModelKind(const Json& model) {
    if (TypeOf(model) != "BPE" && !(FindValue(model, "type") == nullptr && FindValue(model, "merges") != nullptr)) {
      return absl::UnimplementedError(absl::StrCat("model type ", TypeOf(model), " is not supported; supported: BPE"));
    }
    PERIGEE_ASSIGN_OR_RETURN(const double dropout, NumberOr(model, "dropout", 0.0));
    if (dropout != 0)
      return absl::UnimplementedError(absl::StrCat("model: \"dropout\" is ", dropout, "; only null or 0 is supported"));
    PERIGEE_ASSIGN_OR_RETURN(const bool byte_fallback, BoolOr(model, "byte_fallback", false));
    if (byte_fallback) {
      return absl::UnimplementedError(
          "model: \"byte_fallback\" is true (a converted sentencepiece model); use its tokenizer.model");
    }
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
      PERIGEE_ASSIGN_OR_RETURN(const std::string affix, StringOr(model, key, ""));
      if (!affix.empty())
        return absl::UnimplementedError(absl::StrCat("model: \"", key, "\" is \"", affix, "\"; it must be empty"));
    }
    return absl::OkStatus();
  }

  absl::Status ParseNormalizer(const Json* normalizer) {
    if (normalizer == nullptr) return absl::OkStatus();
    const std::string type = TypeOf(*normalizer);
    if (type == "Sequence") {
      const Json* list = FindValue(*normalizer, "normalizers");
      if (list == nullptr || !list->is_array())
        return absl::InvalidArgumentError("normalizer: \"normalizers\" is missing or not a list");
      for (const Json& item : *list) {
        // Nested sequences do not occur; NFC twice is NFC.
        if (TypeOf(item) != "NFC") return Unsupported("normalizer", item, "null, NFC");
        PERIGEE_RETURN_IF_ERROR(ParseNormalizer(&item));
      }
      return absl::OkStatus();
    }
    if (type != "NFC") return Unsupported("normalizer", *normalizer, "null, NFC");
    UErrorCode error = U_ZERO_ERROR;
    nfc_ = icu::Normalizer2::getNFCInstance(error);
    if (U_FAILURE(error)) return absl::InternalError(absl::StrCat("ICU has no NFC data: ", u_errorName(error)));
    return absl::OkStatus();
  }

  absl::Status ParsePreTokenizer(const Json& step, int depth, bool& byte_level) {
    constexpr absl::string_view kSupported = "Split (Isolated), ByteLevel, Sequence";
    if (byte_level) return Unsupported("a pre-tokenizer step after ByteLevel:", step, "ByteLevel as the last step");
    const std::string type = TypeOf(step);
    if (type == "Sequence") {
      const Json* list = FindValue(step, "pretokenizers");
      if (list == nullptr || !list->is_array() || list->size() > 16 || depth > 4) {
        return absl::InvalidArgumentError("pre_tokenizer: \"pretokenizers\" is not a list of at most 16 steps");
      }
      for (const Json& item : *list) PERIGEE_RETURN_IF_ERROR(ParsePreTokenizer(item, depth + 1, byte_level));
      return absl::OkStatus();
    }
    if (type == "Split") {
      PERIGEE_ASSIGN_OR_RETURN(const std::string behavior, StringOr(step, "behavior", ""));
      // With Isolated, matches and the stretches between them are kept alike, so "invert" changes nothing.
      if (behavior != "Isolated") return Unsupported("pre-tokenizer", step, kSupported);
      const Json* pattern = FindValue(step, "pattern");
      const Json* regex = pattern == nullptr ? nullptr : FindValue(*pattern, "Regex");
      const Json* literal = pattern == nullptr ? nullptr : FindValue(*pattern, "String");
      const Json* text = regex != nullptr ? regex : literal;
      if (text == nullptr || !text->is_string())
        return absl::InvalidArgumentError("pre_tokenizer: Split has no \"pattern\"");
      PERIGEE_ASSIGN_OR_RETURN(RegexSplitter splitter,
                               RegexSplitter::Compile(text->get_ref<const std::string&>(), regex == nullptr));
      pre_tokenizer_.AddSplit(std::move(splitter));
      return absl::OkStatus();
    }
    if (type == "ByteLevel") {
      byte_level = true;
      PERIGEE_ASSIGN_OR_RETURN(const bool prefix_space, BoolOr(step, "add_prefix_space", true));
      PERIGEE_ASSIGN_OR_RETURN(const bool use_regex, BoolOr(step, "use_regex", true));
      if (prefix_space) pre_tokenizer_.AddPrefixSpace();
      if (use_regex) {
        PERIGEE_ASSIGN_OR_RETURN(RegexSplitter splitter, RegexSplitter::Compile(kGpt2Pattern, false));
        pre_tokenizer_.AddSplit(std::move(splitter));
      }
      return absl::OkStatus();
    }
    return Unsupported("pre-tokenizer", step, kSupported);
  }

  absl::Status SetToken(int64_t id, std::string bytes, bool special, const std::string& shown) {
    if (id < 0 || id > kMaxTokenId) {
      return absl::InvalidArgumentError(
          absl::StrCat("token \"", shown, "\" has id ", id, "; ids are in [0, ", kMaxTokenId, "]"));
    }
    if (static_cast<size_t>(id) >= tokens_.size()) tokens_.resize(static_cast<size_t>(id) + 1);
    Token& token = tokens_[static_cast<size_t>(id)];
    if (token.used)
      return absl::InvalidArgumentError(
          absl::StrCat("token \"", shown, "\" has id ", id, ", which another token has too"));
    token = {std::move(bytes), true, special};
    return absl::OkStatus();
  }

  absl::Status ParseAddedTokens(const Json& json) {
    const Json* list = FindValue(json, "added_tokens");
    if (list == nullptr) return absl::OkStatus();
    if (!list->is_array()) return absl::InvalidArgumentError("\"added_tokens\" is not a list");
    std::vector<AddedToken> added;
    for (const Json& item : *list) {
      PERIGEE_ASSIGN_OR_RETURN(const int64_t id, IntOr(item, "id", -1));
      PERIGEE_ASSIGN_OR_RETURN(const std::string content, StringOr(item, "content", ""));
      PERIGEE_ASSIGN_OR_RETURN(const bool special, BoolOr(item, "special", false));
      if (content.empty())
        return absl::InvalidArgumentError(absl::StrCat("added token ", Shown(item), " has no content"));
      for (const char* key : {"single_word", "lstrip", "rstrip"}) {
        PERIGEE_ASSIGN_OR_RETURN(const bool set, BoolOr(item, key, false));
        if (set)
          return absl::UnimplementedError(
              absl::StrCat("added token \"", content, "\": \"", key, "\" is not supported"));
      }
      PERIGEE_RETURN_IF_ERROR(SetToken(id, content, special, content));
      if (!added_ids_.emplace(content, static_cast<int32_t>(id)).second) {
        return absl::InvalidArgumentError(absl::StrCat("added token \"", content, "\" is listed twice"));
      }
      added.push_back({content, static_cast<int32_t>(id), special});
    }
    SetAddedTokens(std::move(added));
    return absl::OkStatus();
  }

  absl::Status ParseVocab(const Json& model) {
    const Json* vocab = FindValue(model, "vocab");
    if (vocab == nullptr || !vocab->is_object())
      return absl::InvalidArgumentError("model: \"vocab\" is missing or not an object");
    PERIGEE_ASSIGN_OR_RETURN(const bool ignore_merges, BoolOr(model, "ignore_merges", false));
    absl::flat_hash_map<std::string, int32_t> whole_words;
    std::array<int32_t, 256> byte_ids;
    byte_ids.fill(-1);
    for (const auto& [text, value] : vocab->items()) {
      if (!value.is_number_unsigned() || value.get<uint64_t>() > static_cast<uint64_t>(kMaxTokenId)) {
        return absl::InvalidArgumentError(
            absl::StrCat("model: vocab \"", text, "\" has id ", Shown(value), "; ids are in [0, ", kMaxTokenId, "]"));
      }
      const auto id = static_cast<int32_t>(value.get<uint64_t>());
      words_by_text_.emplace(text, id);
      if (const auto added = added_ids_.find(text); added != added_ids_.end()) {  // listed in both: one token
        if (added->second != id) {
          return absl::InvalidArgumentError(absl::StrCat("token \"", text, "\" has id ", id, " in the vocab and ",
                                                         added->second, " among the added tokens"));
        }
        continue;
      }
      std::optional<std::string> bytes = alphabet_.Bytes(text);
      if (bytes && bytes->size() == 1) byte_ids[static_cast<uint8_t>((*bytes)[0])] = id;
      if (bytes && ignore_merges) whole_words.emplace(*bytes, id);
      PERIGEE_RETURN_IF_ERROR(SetToken(id, bytes ? *std::move(bytes) : text, false, text));
    }
    for (int byte = 0; byte < 256; ++byte) {
      if (byte_ids[static_cast<size_t>(byte)] < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("model: the vocab has no token for the byte ", byte, "; byte-level BPE needs all 256"));
      }
    }
    bpe_.SetByteIds(byte_ids);
    bpe_.SetWholeWords(std::move(whole_words));
    return absl::OkStatus();
  }

  absl::Status ParseMerges(const Json& model) {
    const Json* merges = FindValue(model, "merges");
    if (merges == nullptr || !merges->is_array())
      return absl::InvalidArgumentError("model: \"merges\" is missing or not a list");
    int32_t rank = 0;
    for (const Json& merge : *merges) {
      std::string left, right;
      if (merge.is_string()) {  // "a b"
        const std::string& text = merge.get_ref<const std::string&>();
        const size_t space = text.find(' ');
        if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
          left = text.substr(0, space);
          right = text.substr(space + 1);
        }
      } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {  // ["a", "b"]
        left = merge[0].get<std::string>();
        right = merge[1].get<std::string>();
      }
      if (left.empty() || right.empty()) {
        return absl::InvalidArgumentError(
            absl::StrCat("model: merge ", rank, " is ", Shown(merge), "; \"a b\" or [\"a\", \"b\"] is needed"));
      }
      const auto left_id = words_by_text_.find(left), right_id = words_by_text_.find(right),
                 joined = words_by_text_.find(left + right);
      if (left_id == words_by_text_.end() || right_id == words_by_text_.end() || joined == words_by_text_.end()) {
        return absl::InvalidArgumentError(
            absl::StrCat("model: merge ", rank, " ", Shown(merge), " needs tokens that the vocab lacks"));
      }
      if (IsSpecial(joined->second)) {
        return absl::InvalidArgumentError(
            absl::StrCat("model: merge ", rank, " ", Shown(merge), " makes a special token"));
      }
      bpe_.AddMerge(left_id->second, right_id->second, rank++, joined->second);
    }
    return absl::OkStatus();
  }

  // Only what can be said by "put BOS in front" is supported: [BOS, text] or [text].
  absl::Status ParsePostProcessor(const Json& step, int depth, std::optional<int32_t>& template_bos) {
    const std::string type = TypeOf(step);
    if (type == "ByteLevel") return absl::OkStatus();  // offsets only
    if (type == "Sequence" && depth == 0) {
      const Json* list = FindValue(step, "processors");
      if (list == nullptr || !list->is_array())
        return absl::InvalidArgumentError("post_processor: \"processors\" is missing or not a list");
      for (const Json& item : *list) PERIGEE_RETURN_IF_ERROR(ParsePostProcessor(item, depth + 1, template_bos));
      return absl::OkStatus();
    }
    if (type != "TemplateProcessing")
      return Unsupported("post-processor", step, "null, ByteLevel, TemplateProcessing, Sequence");
    const Json* single = FindValue(step, "single");
    if (single == nullptr || !single->is_array() || single->empty() || single->size() > 2) {
      return Unsupported("post-processor template", single == nullptr ? step : *single, "[BOS, text] and [text]");
    }
    if (FindValue(single->back(), "Sequence") == nullptr)
      return Unsupported("post-processor template", *single, "[BOS, text] and [text]");
    if (single->size() == 1) return absl::OkStatus();
    const Json* special = FindValue(single->front(), "SpecialToken");
    const Json* name = special == nullptr ? nullptr : FindValue(*special, "id");
    if (name == nullptr || !name->is_string())
      return Unsupported("post-processor template", *single, "[BOS, text] and [text]");
    template_bos = FindAddedToken(name->get_ref<const std::string&>());
    if (!template_bos) {
      return absl::InvalidArgumentError(
          absl::StrCat("post_processor: the template's token ", Shown(*name), " is not among the added tokens"));
    }
    return absl::OkStatus();
  }

  const ByteAlphabet alphabet_;
  const icu::Normalizer2* nfc_ = nullptr;  // ICU's own, never deleted
  PreTokenizer pre_tokenizer_;
  BpeModel bpe_;
  absl::flat_hash_map<std::string, int32_t> words_by_text_;  // while parsing
  absl::flat_hash_map<std::string, int32_t> added_ids_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseTokenizerJson(absl::string_view tokenizer_json,
                                                              absl::string_view tokenizer_config) {
  auto tokenizer = std::make_unique<ByteLevelBpe>();
  PERIGEE_RETURN_IF_ERROR(tokenizer->Parse(tokenizer_json, tokenizer_config));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace perigee::model
