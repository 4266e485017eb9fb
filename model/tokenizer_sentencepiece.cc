// tokenizer.model: the sentencepiece library encodes; decoding is done here, token by token, so that a stream and a
// whole text agree.
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "base/bytes.h"
#include "base/status.h"
#include "model/sentencepiece/loader.h"
#include "model/tokenizer.h"
#include "model/utf8.h"

namespace perigee::model {
namespace {

constexpr char kSpaceMark[] = "\xE2\x96\x81";  // U+2581, sentencepiece's visible space
constexpr int kMaxPieces = 1 << 22;

class SentencePieceTokenizer : public Tokenizer {
 public:
  absl::Status Parse(absl::string_view tokenizer_model, absl::string_view tokenizer_config) {
    if (tokenizer_model.empty()) return absl::InvalidArgumentError("the sentencepiece model is empty");
    PERIGEE_ASSIGN_OR_RETURN(library_, NewSentencePieceObject());
    if (const std::string error = library_->Load(std::string(tokenizer_model)); !error.empty()) {
      return absl::InvalidArgumentError(absl::StrCat("sentencepiece refuses the model: ", error));
    }
    const int size = library_->size();
    if (size < 1 || size > kMaxPieces) {
      return absl::InvalidArgumentError(
          absl::StrCat("the sentencepiece model has ", size, " pieces; 1 to ", kMaxPieces, " are supported"));
    }
    std::vector<AddedToken> added;
    tokens_.resize(static_cast<size_t>(size));
    for (int id = 0; id < size; ++id) {
      const std::string piece = library_->PieceOf(id);
      Token token{"", true, false};
      switch (library_->KindOf(id)) {
        case SentencePiece::Kind::kControl:
          token.bytes = piece;
          token.special = true;
          if (!piece.empty()) added.push_back({piece, id, true});
          break;
        case SentencePiece::Kind::kUnknown:
          token.bytes = " \xE2\x81\x87 ";  // U+2047, as sentencepiece decodes it
          break;
        case SentencePiece::Kind::kByte: {  // <0xAB>
          const absl::StatusOr<std::string> byte =
              piece.size() == 6 ? FromHex(piece.substr(3, 2)) : absl::StatusOr<std::string>("");
          if (!byte.ok() || byte->size() != 1)
            return absl::InvalidArgumentError(absl::StrCat("byte piece ", id, " is \"", piece, "\""));
          token.bytes = *byte;
          break;
        }
        case SentencePiece::Kind::kUnused:
        case SentencePiece::Kind::kNormal:
          token.bytes = absl::StrReplaceAll(piece, {{kSpaceMark, " "}});
          break;
      }
      tokens_[static_cast<size_t>(id)] = std::move(token);
    }
    SetAddedTokens(std::move(added));
    if (library_->bos_id() >= 0 && library_->bos_id() < size) bos_id_ = library_->bos_id();
    if (library_->eos_id() >= 0 && library_->eos_id() < size) eos_ids_ = {library_->eos_id()};
    // The library does not tell whether the model adds a first space; a text without one does.
    std::vector<int32_t> probe;
    PERIGEE_RETURN_IF_ERROR(EncodePlain("a", probe));
    has_dummy_prefix_ = !probe.empty() && (tokens_[static_cast<size_t>(probe[0])].bytes.substr(0, 1) == " ");
    return ApplyTokenizerConfig(tokenizer_config, std::nullopt, /*default_adds_bos=*/true);
  }

 private:
  absl::Status EncodePlain(absl::string_view text, std::vector<int32_t>& ids) const override {
    const size_t valid = ValidUtf8Prefix(text);
    if (valid != text.size()) {
      return absl::InvalidArgumentError(
          absl::StrCat("the text is not valid UTF-8 at byte ", valid, "; a sentencepiece tokenizer takes only UTF-8"));
    }
    std::vector<int> pieces;
    if (const std::string error = library_->Encode(text.data(), text.size(), pieces); !error.empty()) {
      return absl::InternalError(absl::StrCat("sentencepiece: ", error));
    }
    for (const int id : pieces) {
      if (id < 0 || static_cast<size_t>(id) >= tokens_.size())
        return absl::InternalError(absl::StrCat("sentencepiece gave the id ", id));
      ids.push_back(id);
    }
    return absl::OkStatus();
  }

  std::unique_ptr<SentencePiece> library_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> ParseSentencePiece(absl::string_view tokenizer_model,
                                                              absl::string_view tokenizer_config) {
  auto tokenizer = std::make_unique<SentencePieceTokenizer>();
  PERIGEE_RETURN_IF_ERROR(tokenizer->Parse(tokenizer_model, tokenizer_config));
  return std::unique_ptr<Tokenizer>(std::move(tokenizer));
}

}  // namespace perigee::model
