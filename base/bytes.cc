#include "base/bytes.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "base/status.h"

namespace perigee {

absl::string_view ByteReader::Raw(size_t n) {
  if (!ok_ || rest_.size() < n) {
    ok_ = false;
    rest_ = absl::string_view();
    return absl::string_view();
  }
  absl::string_view out = rest_.substr(0, n);
  rest_.remove_prefix(n);
  return out;
}

uint64_t ByteReader::Fixed(int n) {
  absl::string_view raw = Raw(static_cast<size_t>(n));
  uint64_t v = 0;
  for (size_t i = 0; i < raw.size(); ++i) v |= static_cast<uint64_t>(static_cast<uint8_t>(raw[i])) << (8 * i);
  return v;
}

Sha256Hasher::Sha256Hasher() : context_(EVP_MD_CTX_new()) {
  EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_), EVP_sha256(), nullptr);
}

Sha256Hasher::~Sha256Hasher() { EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context_)); }

void Sha256Hasher::Update(absl::string_view bytes) {
  EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_), bytes.data(), bytes.size());
}

Digest Sha256Hasher::Finish() {
  Digest out;
  unsigned int n = 0;
  EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_), out.data(), &n);
  return out;
}

Digest Sha256(absl::string_view bytes) {
  Sha256Hasher hasher;
  hasher.Update(bytes);
  return hasher.Finish();
}

std::string ToHex(std::span<const uint8_t> bytes) {
  return absl::BytesToHexString(absl::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
}

absl::StatusOr<std::string> FromHex(absl::string_view hex) {
  if (hex.size() % 2 != 0) {
    return absl::InvalidArgumentError(absl::StrCat("hex text has odd length ", hex.size()));
  }
  for (char c : hex) {
    if (!absl::ascii_isxdigit(static_cast<unsigned char>(c))) {
      return absl::InvalidArgumentError(absl::StrCat("not a hex digit: character code ", static_cast<int>(c)));
    }
  }
  return absl::HexStringToBytes(hex);
}

absl::StatusOr<Digest> DigestFromHex(absl::string_view hex) {
  PERIGEE_ASSIGN_OR_RETURN(std::string raw, FromHex(hex));
  if (raw.size() != std::tuple_size_v<Digest>) {
    return absl::InvalidArgumentError(absl::StrCat("a digest has 64 hex digits, this has ", hex.size()));
  }
  Digest out;
  std::copy(raw.begin(), raw.end(), out.begin());
  return out;
}

}  // namespace perigee
