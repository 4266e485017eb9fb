#include "cluster/contexts/registry.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace perigee::cluster {
namespace {

using Json = nlohmann::ordered_json;

absl::Status BadRecord(const std::string& id, absl::string_view why) {
  return absl::DataLossError(
      absl::StrCat("the record of context '", id, "' cannot be read: ", why, "; delete the context and put it again"));
}

}  // namespace

absl::Status CheckContextId(absl::string_view id) {
  const bool fits = !id.empty() && id.size() <= kMaxContextIdBytes && std::all_of(id.begin(), id.end(), [](char c) {
    return absl::ascii_isalnum(static_cast<unsigned char>(c)) ||
           absl::string_view("._:-").find(c) != absl::string_view::npos;
  });
  if (fits) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("\"", absl::Utf8SafeCHexEscape(id.substr(0, 60)),
                                                 "\" is no context's id: 1 to ", kMaxContextIdBytes,
                                                 " of A-Z a-z 0-9 . _ : - are needed"));
}

std::string ContextRecordToJson(const ContextRecord& record) {
  const Json json = {{"tenant_sha256", TenantKey(record.tenant)},
                     {"id", record.id},
                     {"version", record.version},
                     {"content_sha256", ToHex(record.content)},
                     {"bytes", record.bytes},
                     {"tokens", record.tokens},
                     {"tokenizer_sha256", record.tokenizer},
                     {"created_unix_us", absl::ToUnixMicros(record.created)},
                     {"changed_unix_us", absl::ToUnixMicros(record.changed)}};
  return json.dump();
}

absl::StatusOr<ContextRecord> ContextRecordFromJson(absl::string_view text, const std::string& tenant,
                                                    const std::string& id) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return BadRecord(id, "it is no JSON object");
  for (const char* name : {"tenant_sha256", "id", "content_sha256", "tokenizer_sha256"}) {
    if (!json.contains(name) || !json[name].is_string()) return BadRecord(id, absl::StrCat("no \"", name, "\""));
  }
  for (const char* name : {"version", "bytes", "tokens", "created_unix_us", "changed_unix_us"}) {
    if (!json.contains(name) || !json[name].is_number_unsigned() || json[name].get<uint64_t>() >= uint64_t{1} << 53) {
      return BadRecord(id, absl::StrCat("no \"", name, "\""));
    }
  }
  const absl::StatusOr<Digest> content = DigestFromHex(json["content_sha256"].get<std::string>());
  if (!content.ok()) return BadRecord(id, "\"content_sha256\" is no digest");
  if (json["tenant_sha256"] != TenantKey(tenant) || json["id"] != id) return BadRecord(id, "it is another context's");
  return ContextRecord{.tenant = tenant,
                       .id = id,
                       .version = json["version"],
                       .content = *content,
                       .bytes = json["bytes"],
                       .tokens = json["tokens"],
                       .tokenizer = json["tokenizer_sha256"],
                       .created = absl::FromUnixMicros(json["created_unix_us"]),
                       .changed = absl::FromUnixMicros(json["changed_unix_us"])};
}

absl::StatusOr<std::string> ContextIdOf(absl::string_view text) {
  const Json json = Json::parse(text.begin(), text.end(), nullptr, /*allow_exceptions=*/false);
  if (json.is_object() && json.contains("id") && json["id"].is_string() &&
      CheckContextId(json["id"].get_ref<const std::string&>()).ok()) {
    return json["id"].get<std::string>();
  }
  return absl::DataLossError("a context's record names no id");
}

ContextRegistry::PutResult NextVersion(const NewContext& context, const ContextRecord* before, absl::Time now) {
  const Digest content = Sha256(context.content);
  if (before != nullptr && before->content == content) return {.record = *before};
  now = absl::FromUnixMicros(absl::ToUnixMicros(now));  // As it will be read.
  return {.record = {.tenant = context.tenant,
                     .id = context.id,
                     .version = before == nullptr ? 1 : before->version + 1,
                     .content = content,
                     .bytes = context.content.size(),
                     .tokens = context.tokens,
                     .tokenizer = context.tokenizer,
                     .created = before == nullptr ? now : before->created,
                     .changed = now},
          .created = before == nullptr,
          .changed = true};
}

absl::Status CheckNewContext(const NewContext& context, const ContextLimits& limits) {
  if (absl::Status id = CheckContextId(context.id); !id.ok()) return id;
  if (context.content.size() <= limits.content_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("context '", context.id, "' has ", context.content.size(),
                                                 " bytes as stored; at most ", limits.content_bytes,
                                                 " are allowed: make several contexts of it"));
}

absl::Status TooManyContexts(const ContextLimits& limits) {
  return absl::ResourceExhaustedError(
      absl::StrCat("there are ", limits.contexts, " contexts already, as many as one tenant may have: delete some"));
}

absl::Status NoSuchContext(absl::string_view id) {
  return absl::NotFoundError(absl::StrCat("there is no context \"", id.substr(0, kMaxContextIdBytes), "\""));
}

absl::Status CheckContent(const ContextRecord& record, absl::string_view content) {
  if (content.size() == record.bytes && Sha256(content) == record.content) return absl::OkStatus();
  return NoSuchContext(record.id);
}

std::string TenantKey(const std::string& tenant) { return ToHex(Sha256(tenant)); }

}  // namespace perigee::cluster
