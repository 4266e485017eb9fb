#include "cluster/contexts/context_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "base/status.h"
#include "model/utf8.h"

namespace perigee::cluster {
namespace {

// A version that is replaced while it is read is looked for again.
constexpr int kMaxAttempts = 8;

PrefillAhead::Job JobOf(const ContextRecord& record) {
  return {.tenant = record.tenant, .id = record.id, .content = record.content};
}

}  // namespace

ContextService::ContextService(ContextRegistry* registry, const model::Tokenizer* tokenizer, PrefillContext prefill,
                               const ContextServiceOptions& options)
    : registry_(registry),
      tokenizer_(tokenizer),
      prefill_(std::move(prefill)),
      options_(options),
      cache_(options.cached_token_bytes),
      ahead_([this](const PrefillAhead::Job& job,
                    const std::function<bool()>& cancelled) { return Compute(job, cancelled); },
             options.ahead) {}

absl::StatusOr<SharedTokens> ContextService::Tokenise(const std::string& id, const StoredContent& stored) const {
  if (const auto* text = std::get_if<std::string>(&stored.content)) {
    if (const size_t valid = model::ValidUtf8Prefix(*text); valid != text->size()) {
      return absl::InvalidArgumentError(absl::StrCat("the text of context '", id, "' is not UTF-8 at byte ", valid));
    }
    PERIGEE_ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer_->Encode(*text, /*add_bos=*/false));
    return std::make_shared<const std::vector<int32_t>>(std::move(ids));
  }
  if (stored.tokenizer != tokenizer_->digest()) {
    return absl::FailedPreconditionError(absl::StrCat(
        "context '", id, "' is token ids of another model's tokenizer: put it again, as text or as this one's ids"));
  }
  const auto& ids = std::get<std::vector<int32_t>>(stored.content);
  for (const int32_t token : ids) {
    PERIGEE_RETURN_IF_ERROR(tokenizer_->TokenBytes(token).status());
    if (tokenizer_->IsSpecial(token)) {
      return absl::InvalidArgumentError(
          absl::StrCat("token id ", token, " is a special token, which no context may have: leave it to the prompt"));
    }
  }
  return std::make_shared<const std::vector<int32_t>>(ids);
}

absl::StatusOr<ContextService::PutAnswer> ContextService::Put(const std::string& tenant, const std::string& id,
                                                              ContextContent content) {
  const StoredContent stored{.content = std::move(content), .tokenizer = tokenizer_->digest()};
  NewContext context{
      .tenant = tenant, .id = id, .content = PackContent(stored), .tokenizer = ToHex(tokenizer_->digest())};
  // Before the work of tokenising it.
  PERIGEE_RETURN_IF_ERROR(CheckNewContext(context, registry_->limits()));
  PERIGEE_ASSIGN_OR_RETURN(const SharedTokens tokens, Tokenise(id, stored));
  if (tokens->empty()) return absl::InvalidArgumentError(absl::StrCat("context '", id, "' has no tokens"));
  if (static_cast<int64_t>(tokens->size()) > options_.window_tokens - 1) {
    return absl::InvalidArgumentError(absl::StrCat("context '", id, "' has ", tokens->size(),
                                                   " tokens; the model's context length is ", options_.window_tokens,
                                                   " tokens, of which a prompt needs one more: make several of it"));
  }
  context.tokens = tokens->size();
  PERIGEE_ASSIGN_OR_RETURN(ContextRegistry::PutResult put, registry_->Put(context));
  cache_.Add(put.record.content, tokens);
  if (prefill_) ahead_.Add(JobOf(put.record));
  return PutAnswer{.info = InfoOf(std::move(put.record)), .created = put.created};
}

absl::StatusOr<SharedTokens> ContextService::TokensOf(const ContextRecord& record) {
  if (SharedTokens tokens = cache_.Find(record.content)) return tokens;
  PERIGEE_ASSIGN_OR_RETURN(const std::string content, registry_->Content(record));
  PERIGEE_ASSIGN_OR_RETURN(const StoredContent stored, UnpackContent(content));
  PERIGEE_ASSIGN_OR_RETURN(SharedTokens tokens, Tokenise(record.id, stored));
  cache_.Add(record.content, tokens);
  return tokens;
}

absl::StatusOr<SharedTokens> ContextService::Resolve(const std::string& tenant, const std::string& id) {
  for (int attempt = 1;; ++attempt) {
    PERIGEE_ASSIGN_OR_RETURN(const ContextRecord record, registry_->Get(tenant, id));
    absl::StatusOr<SharedTokens> tokens = TokensOf(record);
    if (!absl::IsNotFound(tokens.status())) return tokens;
    if (attempt == kMaxAttempts) {
      return absl::UnavailableError(absl::StrCat("context '", id, "' is being replaced again and again: try again"));
    }
  }
}

ContextInfo ContextService::InfoOf(ContextRecord record) {
  if (record.tokenizer != ToHex(tokenizer_->digest())) {
    if (const auto tokens = TokensOf(record); tokens.ok()) {
      record.tokens = (*tokens)->size();
    } else if (absl::IsFailedPrecondition(tokens.status())) {
      return {.record = std::move(record),
              .progress = {.state = ContextState::kFailed, .error = std::string(tokens.status().message())}};
    }
  }
  ContextProgress progress = ahead_.Of(JobOf(record));
  return {.record = std::move(record), .progress = std::move(progress)};
}

absl::StatusOr<ContextInfo> ContextService::Get(const std::string& tenant, const std::string& id) {
  PERIGEE_ASSIGN_OR_RETURN(ContextRecord record, registry_->Get(tenant, id));
  return InfoOf(std::move(record));
}

absl::StatusOr<std::vector<ContextInfo>> ContextService::List(const std::string& tenant, const std::string& after,
                                                              size_t limit) {
  if (!after.empty()) PERIGEE_RETURN_IF_ERROR(CheckContextId(after));
  PERIGEE_ASSIGN_OR_RETURN(std::vector<ContextRecord> records, registry_->List(tenant, after, limit));
  std::vector<ContextInfo> infos;
  for (ContextRecord& record : records) infos.push_back(InfoOf(std::move(record)));
  return infos;
}

absl::Status ContextService::Delete(const std::string& tenant, const std::string& id) {
  PERIGEE_RETURN_IF_ERROR(registry_->Delete(tenant, id));
  ahead_.Remove(tenant, id);
  return absl::OkStatus();
}

absl::Status ContextService::Compute(const PrefillAhead::Job& job, const std::function<bool()>& cancelled) {
  // Another gateway may have replaced or deleted it.
  const absl::StatusOr<ContextRecord> record = registry_->Get(job.tenant, job.id);
  if (absl::IsNotFound(record.status()) || (record.ok() && record->content != job.content)) {
    return absl::CancelledError("there is no such version any more");
  }
  PERIGEE_RETURN_IF_ERROR(record.status());
  const absl::StatusOr<SharedTokens> tokens = TokensOf(*record);
  if (absl::IsNotFound(tokens.status())) return absl::CancelledError("there is no such version any more");
  PERIGEE_RETURN_IF_ERROR(tokens.status());
  return prefill_(job.tenant, **tokens, cancelled);
}

}  // namespace perigee::cluster
