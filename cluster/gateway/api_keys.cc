#include "cluster/gateway/api_keys.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "base/bytes.h"
#include "base/file.h"
#include "base/status.h"

namespace perigee::cluster {
namespace {

constexpr size_t kMaxFileBytes = size_t{16} << 20;

bool IsVisible(absl::string_view text, size_t low, size_t high) {
  return text.size() >= low && text.size() <= high &&
         std::all_of(text.begin(), text.end(), [](unsigned char c) { return absl::ascii_isgraph(c); });
}

std::string DigestOf(absl::string_view key) {
  const Digest digest = Sha256(key);
  return std::string(reinterpret_cast<const char*>(digest.data()), digest.size());
}

}  // namespace

absl::StatusOr<ApiKeys> ApiKeys::Parse(absl::string_view text) {
  ApiKeys keys;
  size_t number = 0;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#') continue;
    const std::vector<absl::string_view> words = absl::StrSplit(line, absl::ByAnyChar(" \t"), absl::SkipEmpty());
    if (words.size() != 2 || !IsVisible(words[0], 16, 256) || !IsVisible(words[1], 1, 128)) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": a key of 16 to 256 visible characters, a space and a tenant are needed"));
    }
    if (!keys.tenant_by_key_digest_.emplace(DigestOf(words[0]), words[1]).second) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": this key was there before"));
    }
  }
  if (keys.tenant_by_key_digest_.empty()) return absl::InvalidArgumentError("there is no key: nobody could ask");
  return keys;
}

absl::StatusOr<ApiKeys> ApiKeys::Read(const std::string& path) {
  PERIGEE_ASSIGN_OR_RETURN(const std::string text, ReadFile(path, kMaxFileBytes));
  absl::StatusOr<ApiKeys> keys = Parse(text);
  if (!keys.ok()) return Annotate(keys.status(), path);
  return keys;
}

absl::StatusOr<std::string> ApiKeys::TenantOf(absl::string_view authorization) const {
  const std::pair<absl::string_view, absl::string_view> parts = absl::StrSplit(authorization, absl::MaxSplits(' ', 1));
  if (!absl::EqualsIgnoreCase(parts.first, "Bearer")) {
    return absl::UnauthenticatedError("no API key; send it as \"Authorization: Bearer KEY\"");
  }
  const auto at = tenant_by_key_digest_.find(DigestOf(absl::StripAsciiWhitespace(parts.second)));
  if (at == tenant_by_key_digest_.end()) return absl::UnauthenticatedError("the API key is not known");
  return at->second;
}

}  // namespace perigee::cluster
