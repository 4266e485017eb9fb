#include "model/tokenizer.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "base/file.h"
#include "base/status.h"
#include "model/json_reader.h"
#include "model/utf8.h"

namespace perigee::model {
namespace {
constexpr size_t kMaxTextBytes = size_t{32} << 20;
constexpr size_t kMaxTokenizerBytes = size_t{128} << 20;
// No added token's text is longer: how far one may reach into the segments that follow.
constexpr size_t kMaxAddedTokenReach = 4096;
constexpr size_t kMaxTokenizerConfigBytes = size_t{8} << 20;
}  // namespace

void Tokenizer::SetAddedTokens(std::vector<AddedToken> tokens) {
  added_ = std::move(tokens);
  added_by_first_byte_.assign(256, {});
  for (size_t i = 0; i < added_.size(); ++i) {
    added_by_first_byte_[static_cast<uint8_t>(added_[i].text[0])].push_back(static_cast<int>(i));
  }
  for (std::vector<int>& list : added_by_first_byte_) {
    std::sort(list.begin(), list.end(), [&](int a, int b) {
      const size_t a_size = added_[static_cast<size_t>(a)].text.size(),
                   b_size = added_[static_cast<size_t>(b)].text.size();
      return a_size != b_size ? a_size > b_size : a < b;
    });
  }
}

const Tokenizer::AddedToken* Tokenizer::AddedTokenAt(absl::string_view text, size_t special_bytes) const {
  if (added_by_first_byte_.empty()) return nullptr;
  for (const int i : added_by_first_byte_[static_cast<uint8_t>(text[0])]) {
    const AddedToken& token = added_[static_cast<size_t>(i)];
    if ((!token.special || token.text.size() <= special_bytes) && absl::StartsWith(text, token.text)) return &token;
  }
  return nullptr;
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(absl::string_view text, bool add_bos, bool parse_special) const {
  const TextSegment whole{.text = text, .parse_special = parse_special};
  return EncodeSegments({&whole, 1}, add_bos);
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::EncodeSegments(std::span<const TextSegment> segments, bool add_bos,
                                                               std::vector<int64_t>* starts) const {
  size_t total_bytes = 0;
  for (const TextSegment& segment : segments) total_bytes += segment.text.size();
  if (total_bytes > kMaxTextBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("the text has ", total_bytes, " bytes; at most ", kMaxTextBytes, " can be tokenised at once"));
  }
  std::string joined;
  absl::string_view text = segments.empty() ? absl::string_view() : segments[0].text;
  if (segments.size() > 1) {
    joined.reserve(total_bytes);
    for (const TextSegment& segment : segments) joined.append(segment.text.data(), segment.text.size());
    text = joined;
  }
  std::vector<int32_t> ids;
  if (starts != nullptr) starts->clear();
  if (add_bos) {
    if (!bos_id_) return absl::FailedPreconditionError("add_bos is asked for, but this tokenizer has no BOS token");
    ids.push_back(*bos_id_);
  }
  size_t plain_begin = 0;  // Everything before it is encoded.
  const auto encode_plain_until = [&](size_t end) -> absl::Status {
    if (end > plain_begin) PERIGEE_RETURN_IF_ERROR(EncodePlain(text.substr(plain_begin, end - plain_begin), ids));
    plain_begin = std::max(plain_begin, end);
    return absl::OkStatus();
  };
  size_t at = 0, segment_begin = 0;
  for (size_t i = 0; i < segments.size(); ++i) {
    const size_t segment_end = segment_begin + segments[i].text.size();
    if (segments[i].split) PERIGEE_RETURN_IF_ERROR(encode_plain_until(segment_begin));
    // An added token that reached into this segment does not stand before it.
    if (starts != nullptr) starts->push_back(static_cast<int64_t>(ids.size()) - (at > segment_begin ? 1 : 0));
    // How far the run of special text goes that begins here, and where the next split is.
    size_t special_end = segment_begin, text_end = segment_end;
    for (size_t j = i, end = segment_begin; j < segments.size(); ++j) {
      if (j > i && segments[j].split) break;
      end += segments[j].text.size();
      text_end = end;
      if (segments[j].parse_special && special_end + segments[j].text.size() == end) special_end = end;
      if (end >= segment_end + kMaxAddedTokenReach) break;
    }
    while (at < segment_end) {
      const AddedToken* token = AddedTokenAt(text.substr(at, text_end - at), special_end > at ? special_end - at : 0);
      if (token == nullptr) {
        ++at;
        continue;
      }
      PERIGEE_RETURN_IF_ERROR(encode_plain_until(at));
      ids.push_back(token->id);
      at += token->text.size();
      plain_begin = at;
    }
    segment_begin = segment_end;
  }
  PERIGEE_RETURN_IF_ERROR(encode_plain_until(text.size()));
  return ids;
}

absl::StatusOr<absl::string_view> Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= tokens_.size() || !tokens_[static_cast<size_t>(id)].used) {
    return absl::InvalidArgumentError(
        absl::StrCat("token id ", id, " is not in the tokenizer's vocabulary of ", tokens_.size()));
  }
  return tokens_[static_cast<size_t>(id)].bytes;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && static_cast<size_t>(id) < tokens_.size() && tokens_[static_cast<size_t>(id)].special;
}

std::optional<int32_t> Tokenizer::FindAddedToken(absl::string_view text) const {
  if (text.empty() || added_by_first_byte_.empty()) return std::nullopt;
  for (const int i : added_by_first_byte_[static_cast<uint8_t>(text[0])]) {
    if (added_[static_cast<size_t>(i)].text == text) return added_[static_cast<size_t>(i)].id;
  }
  return std::nullopt;
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special,
                                              bool at_text_start) const {
  std::string text;
  bool strip_space = has_dummy_prefix_ && at_text_start;
  for (const int32_t id : ids) {
    PERIGEE_ASSIGN_OR_RETURN(absl::string_view bytes, TokenBytes(id));
    if (IsSpecial(id)) {
      if (!skip_special) text.append(bytes.data(), bytes.size());
      continue;
    }
    if (strip_space && !bytes.empty()) {
      if (bytes[0] == ' ') bytes.remove_prefix(1);
      strip_space = false;
    }
    text.append(bytes.data(), bytes.size());
  }
  return text;
}

absl::Status Tokenizer::ApplyTokenizerConfig(absl::string_view tokenizer_config, std::optional<int32_t> template_bos,
                                             bool default_adds_bos) {
  bool adds_bos = default_adds_bos;
  if (!tokenizer_config.empty()) {
    PERIGEE_ASSIGN_OR_RETURN(const Json config, ParseJsonObject(tokenizer_config, "tokenizer_config.json", 32));
    const auto find = [&](const char* key) -> absl::StatusOr<std::optional<int32_t>> {
      const Json* value = FindValue(config, key);
      if (value != nullptr && value->is_object()) value = FindValue(*value, "content");  // a serialised AddedToken
      if (value == nullptr) return std::optional<int32_t>();
      if (!value->is_string()) {
        return absl::InvalidArgumentError(
            absl::StrCat("tokenizer_config.json: \"", key, "\" is ", Shown(*value), "; a string is needed"));
      }
      const std::string& text = value->get_ref<const std::string&>();
      if (std::optional<int32_t> id = FindAddedToken(text)) return id;
      return absl::InvalidArgumentError(absl::StrCat("tokenizer_config.json: \"", key, "\" is ", Shown(*value),
                                                     ", which is not among the tokenizer's added tokens"));
    };
    PERIGEE_ASSIGN_OR_RETURN(const std::optional<int32_t> bos, find("bos_token"));
    PERIGEE_ASSIGN_OR_RETURN(const std::optional<int32_t> eos, find("eos_token"));
    if (bos) bos_id_ = bos;
    if (eos) eos_ids_ = {*eos};
    PERIGEE_ASSIGN_OR_RETURN(adds_bos, BoolOr(config, "add_bos_token", default_adds_bos));
  }
  if (template_bos) {  // what the fast tokenizers go by
    bos_id_ = template_bos;
    adds_bos = true;
  }
  adds_bos_by_default_ = adds_bos && bos_id_.has_value();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadTokenizer(const std::string& folder) {
  absl::StatusOr<std::string> config = ReadFile(folder + "/tokenizer_config.json", kMaxTokenizerConfigBytes);
  if (!config.ok() && !absl::IsNotFound(config.status())) return config.status();
  const std::string config_text = config.ok() ? *config : std::string();

  const std::string json_path = folder + "/tokenizer.json", model_path = folder + "/tokenizer.model";
  absl::Status json_status = absl::OkStatus();
  if (absl::StatusOr<std::string> text = ReadFile(json_path, kMaxTokenizerBytes); text.ok()) {
    auto tokenizer = ParseTokenizerJson(*text, config_text);
    if (tokenizer.ok()) (*tokenizer)->digest_ = Sha256(*text);
    if (tokenizer.ok()) return tokenizer;
    json_status = Annotate(tokenizer.status(), json_path);
    // Sentencepiece models carry a tokenizer.json that imitates them; the original is beside it.
    if (!absl::IsUnimplemented(json_status)) return json_status;
  } else if (!absl::IsNotFound(text.status())) {
    return text.status();
  }
  absl::StatusOr<std::string> text = ReadFile(model_path, kMaxTokenizerBytes);
  if (text.ok()) {
    auto tokenizer = ParseSentencePiece(*text, config_text);
    if (!tokenizer.ok()) return Annotate(tokenizer.status(), model_path);
    (*tokenizer)->digest_ = Sha256(*text);
    return tokenizer;
  }
  if (!absl::IsNotFound(text.status())) return text.status();
  if (!json_status.ok()) return json_status;
  return absl::NotFoundError(absl::StrCat("neither tokenizer.json nor tokenizer.model is in ", folder));
}

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool at_text_start)
    : tokenizer_(&tokenizer), strip_space_(at_text_start && tokenizer.has_dummy_prefix()) {}

absl::StatusOr<std::string> StreamDecoder::Push(int32_t id) {
  PERIGEE_ASSIGN_OR_RETURN(absl::string_view bytes, tokenizer_->TokenBytes(id));
  if (tokenizer_->IsSpecial(id) || bytes.empty()) return std::string();
  if (strip_space_) {
    if (bytes[0] == ' ') bytes.remove_prefix(1);
    strip_space_ = false;
  }
  pending_.append(bytes.data(), bytes.size());
  absl::string_view rest = pending_;
  while (!rest.empty()) {
    const Utf8Step step = NextUtf8(rest);
    if (step.kind == Utf8Kind::kIncomplete) break;
    rest.remove_prefix(step.bytes);
  }
  const size_t ready = pending_.size() - rest.size();
  std::string out = Utf8Lossy(absl::string_view(pending_).substr(0, ready));
  pending_.erase(0, ready);
  return out;
}

std::string StreamDecoder::Finish() {
  std::string out = Utf8Lossy(pending_);
  pending_.clear();
  strip_space_ = false;
  return out;
}

}  // namespace perigee::model
